"""What a reconcile did and why, as data. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.inventory import Hindrance
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Gate, Origin
from fwdaemon.core.types import Protocol as Transport
from fwdaemon.errors import PortfwdError, shortage

# What makes the daemon look again, and who changed what it keeps, as data. Pure.
#
# Nothing here is a sentence: names are as they are, and `fwdaemon.audit.causes` puts them into words.


class ReasonKind(StrEnum):
    """What happened, and to whom: what the `subject` of a reason is."""

    DOMAIN = "domain"  # a domain
    DEVICES = "devices"  # a domain
    AGENT = "agent"  # a domain
    METADATA = "metadata"  # a domain
    NETWORK = "network"  # a network
    LIBVIRT = "libvirt"  # a URI
    HOST_ADDRESS = "host-address"  # an address
    NEIGHBOUR = "neighbour"  # an address
    ADDRESSES_LOST = "addresses-lost"
    ROUTE = "route"  # an interface
    ROUTES_LOST = "routes-lost"
    ADDRESS_PUT_BACK = "address-put-back"
    LEASES = "leases"  # a bridge
    RESERVATIONS = "reservations"  # a network
    LEASE_DIRECTORY = "lease-directory"  # a path
    LEASES_WATCHED = "leases-watched"
    CONFIGURATION = "configuration"  # a path
    RUNNING = "running"  # a domain or network, found to run
    STOPPED = "stopped"  # a domain or network, found not to
    MOVED = "moved"  # an address, found to be the guest's
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Reason:
    """Something happened to `subject`; `detail` says more of it, in the words of its source.

    With `by_guest`, it is something of this kind that a guest can make happen, as the end of a domain is not.
    """

    kind: ReasonKind
    subject: str = ""
    detail: str = ""
    by_guest: bool = False


class ActorKind(StrEnum):
    """How a change of rules, routes or links was noticed, which says what is known of who made it."""

    PROGRAM = "program"
    LEGACY_TABLES = "legacy-tables"
    COMMITS_LOST = "commits-lost"
    ROUTE_ADDED = "route-added"
    ROUTE_REMOVED = "route-removed"
    LINK_UP = "link-up"
    LINK_DOWN = "link-down"
    KERNEL = "kernel"
    ROUTES_LOST = "routes-lost"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changed something: a process and its number, as far as the kernel tells; `link` is what was changed."""

    kind: ActorKind
    process: str = ""
    pid: int = 0
    link: str = ""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something changed: what happened, who did it, or what hinders it. Empty if nothing is known."""

    facts: tuple[Reason | Actor | Hindrance, ...] = ()


Trigger: TypeAlias = Callable[[Reason], None]
"""Takes a reason to look again."""


# What a backend receives, finds and does, as data for the rest of the program.


class RulesChanged(Protocol):
    """Called when the kernel's rules changed."""

    def __call__(self, actor: Actor, *, full: bool) -> None:
        """Say who changed them; `full` asks for a full pass."""
        ...


@dataclass(frozen=True, slots=True)
class GateChange:
    """A gate that was made, or moved back to its place, because of `fault`."""

    gate: Gate
    restored: bool
    fault: str

    @property
    def action(self) -> str:
        """The audit's word for it."""
        return "restored" if self.restored else "added"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of the host that was changed: `what` names it, as `net.ipv4.ip_forward = 1` does.

    `restored` says that it had been so before, and was changed by others.
    """

    what: str
    restored: bool

    @property
    def action(self) -> str:
        """The audit's word for it."""
        return "restored" if self.restored else "added"


@dataclass(frozen=True, slots=True)
class Assigned:
    """A port of the host that a domain was given for one of its own; `moved` is the one it had before.

    `claimed` is where that one is claimed by a file now. `origin` is where it was asked for.
    """

    domain: str
    protocol: Transport
    guest: int
    port: int
    origin: Origin
    moved: int | None = None
    claimed: Origin | None = None


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """One reconcile of the kernel's rules.

    `mended` are exposures that did not work before and do now; `damaged` are those of them that we had made work.
    `stale` names, as the kernel does, exposures that are no longer wanted. `faults` are sentences about what could
    not be done, and `refused` names the exposures that do not work for one of them. `changed` says whether anything was
    committed, `script` what of it went through `nft`. `moved` tells in which rule system the rules are, and why, when
    that is another one than before. `settings` are those of the host that were changed, `notes` what an
    administrator has to know of them. `altered` are forwards that had other rules of their own, or none, while those of
    other exposures were in place: their port may have led to its guest in another way. `labels` are those that rules of
    an earlier run went by, `uplinks` those that they named, as far as rules tell. `short` says that a fault is for want
    of a thread, descriptor or memory, so that the next attempt may do better.
    """

    mended: frozenset[Exposure] = frozenset()
    damaged: frozenset[Exposure] = frozenset()
    stale: frozenset[str] = frozenset()
    gates: tuple[GateChange, ...] = ()
    faults: tuple[str, ...] = ()
    script: str = ""
    changed: bool = False
    moved: str = ""
    refused: tuple[tuple[Exposure, str], ...] = ()
    settings: tuple[Setting, ...] = ()
    notes: tuple[str, ...] = ()
    altered: frozenset[Exposure] = frozenset()
    labels: frozenset[int] = frozenset()
    uplinks: frozenset[str] = frozenset()
    short: bool = False


def joined(one: ApplyResult, other: ApplyResult) -> ApplyResult:
    """Combine two results."""
    return ApplyResult(
        one.mended | other.mended,
        one.damaged | other.damaged,
        one.stale | other.stale,
        one.gates + other.gates,
        one.faults + other.faults,
        one.script + other.script,
        one.changed or other.changed,
        one.moved or other.moved,
        one.refused + other.refused,
        one.settings + other.settings,
        one.notes + other.notes,
        one.altered | other.altered,
        one.labels | other.labels,
        one.uplinks | other.uplinks,
        one.short or other.short,
    )


def tried(act: Callable[[], ApplyResult]) -> ApplyResult:
    """Do something; that it failed is a fault, and no reason to leave the rest undone."""
    try:
        return act()
    except (PortfwdError, OSError) as error:  # no descriptor is to be had, either
        return ApplyResult(faults=(str(error),), short=shortage(error) is not None)


# Where libvirt writes its rules: a chain linked from iptables' FORWARD, or a table of its own.
LIBVIRT_CHAIN = "LIBVIRT_FWI"
LIBVIRT_TABLE = "libvirt_network"


class Presence(IntEnum):
    """What libvirt has in a rule system; the more, the surer it is that its rules are there and not elsewhere."""

    NOTHING = 0
    CHAINS = 1  # in a table of iptables'
    TABLE = 2  # one of its own


class Stamp(NamedTuple):
    """Something of a rule system that is another after a change; only if `certain`, it is so after each."""

    value: object
    certain: bool


_Counter = TypeVar("_Counter")


class Counted(Generic[_Counter]):
    """Adds up for each exposure what rules have counted; which rules those are is worked out once for each state."""

    def __init__(self, counting_rules: Callable[[Desired], Mapping[_Counter, Exposure]]) -> None:
        self._counting_rules = counting_rules
        self._known: tuple[Desired, Mapping[_Counter, Exposure]] | None = None

    def of(self, desired: Desired, packets: Iterable[tuple[_Counter, int]]) -> Mapping[Exposure, int]:
        """Give the packets of each exposure; rules that are none of this state's count nothing."""
        if self._known is None or self._known[0] is not desired:
            self._known = (desired, self._counting_rules(desired))
        rules, found = self._known[1], dict[Exposure, int]()
        for rule, number in packets:
            if (exposure := rules.get(rule)) is not None:
                found[exposure] = found.get(exposure, 0) + number
        return found


class Dropped(NamedTuple):
    """First packets that were dropped: by exposure, for `deny` of addresses and limits, and by the set that denied."""

    by_exposure: Mapping[Exposure, int] = MappingProxyType({})
    by_set: Mapping[str, int] = MappingProxyType({})


# What one reconcile did: for the audit, the status, the metrics and the stream of changes.


@dataclass(frozen=True, slots=True)
class Change:
    """An exposure was `added`, `removed` or `restored`, and why."""

    action: str
    exposure: Exposure
    cause: Cause


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """What one reconcile did, and what the kernel holds since: `desired`, where the rules are, and why there.

    `placed` is the state that was asked for; `desired` also has exposures that are held for a moment, and families that
    stay. `actors` changed rules before, `ended` is how many connections were ended, and families that are `unusable`
    cannot be served where the rules are.
    """

    desired: Desired
    result: ApplyResult = field(default_factory=ApplyResult)
    changes: tuple[Change, ...] = ()
    actors: tuple[Actor, ...] = ()
    ended: int = 0
    placed: Desired = field(default_factory=Desired)
    location: tuple[str, str] | None = None
    unusable: Mapping[Family, str] = field(default_factory=dict)
