"""What a reconcile did and why, as data. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeAlias

from fwdaemon.core.conflicts import Conflict
from fwdaemon.core.exposures import Exposure, Renaming
from fwdaemon.core.inventory import HijackedAddress, Hindrance
from fwdaemon.core.state import Desired, Namesake, Unchosen
from fwdaemon.core.types import Family, Gate, GateFault, Origin
from fwdaemon.core.types import Protocol as Transport
from fwdaemon.errors import PortfwdError, shortage

# What makes the daemon look again, and who changed what it keeps, as data. Pure.
# Nothing in this module is a sentence: names are as they are, and `fwdaemon.audit` puts them into words.


class ReasonKind(StrEnum):
    """What happened, and to what: what the `subject` of a reason is."""

    DOMAIN = "domain"  # a domain
    DEVICES = "devices"  # a domain
    AGENT = "agent"  # a domain; the detail is what became of the agent, none if it reported addresses
    METADATA = "metadata"  # a domain
    NETWORK = "network"  # a network
    LIBVIRT = "libvirt"  # a URI
    LISTED = "listed"  # instead of events
    HOST_ADDRESS = "host-address"  # an address
    NEIGHBOUR = "neighbour"  # an address; the detail is the MAC address that answers for it, if any
    ADDRESSES_LOST = "addresses-lost"
    ROUTE = "route"  # an interface
    ROUTES_LOST = "routes-lost"
    ADDRESS_PUT_BACK = "address-put-back"
    LEASES = "leases"  # a bridge
    FIRST_LEASE = "first-lease"  # a bridge, on which a guest had no address yet
    RESERVATIONS = "reservations"  # a network
    LEASE_DIRECTORY = "lease-directory"  # a path
    LEASES_WATCHED = "leases-watched"
    CONFIGURATION = "configuration"  # a path
    RUNNING = "running"  # a domain or network, found to run
    STOPPED = "stopped"  # a domain or network, found not to
    MOVED = "moved"  # an address, found to be the guest's
    STOP = "stop"
    OPENED = "opened"  # a domain, to which something was opened for a while
    CLOSED = "closed"  # a domain
    ENDED = "ended"  # a domain
    UNCONFIRMED = "unconfirmed"  # a path
    TABLE = "table"  # a revision of the table of many hosts
    CLAIM_TAKEN = "claim-taken"  # an address
    CLAIM_LOST = "claim-lost"  # an address; the detail is the host that has it, if any


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
    """Who changed something: a process and its number, as far as the kernel reports it; `link` is what was changed."""

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


# What could not be done, what is not as it should be, and what an administrator should know of it.


class FaultKind(StrEnum):
    """What is wrong: what a fault is `about` stands behind each; its `detail`, if any, is the error's own text."""

    ERROR = "error"  # nothing: the text alone says it
    LEFT_BEHIND = "left-behind"
    UNWANTED = "unwanted"  # nothing: the text is the kernel's name of it
    CONNECTIONS_OPEN = "connections-open"
    CONFIGURATION_LATE = "configuration-late"
    SET_REFUSED = "set-refused"  # a set
    TABLE_LEFT_OUT = "table-left-out"  # where an entry of that table stands, and what the host's own files claim
    MORE_CONFLICTS = "more-conflicts"  # how many more
    HOST_UNCHECKED = "host-unchecked"
    RULES_UNCHECKED = "rules-unchecked"
    WRITER_UNKNOWN = "writer-unknown"  # the title of the backend in which rules stay
    LIBVIRT_RULES_GONE = "libvirt-rules-gone"
    GATE_UNREAD = "gate-unread"  # a gate
    GATE_REFUSED = "gate-refused"  # a gate
    GATE_OWNED = "gate-owned"  # a gate in a table that one program may own alone
    GATES_UNSEARCHED = "gates-unsearched"
    LEGACY_GATE = "legacy-gate"
    LEGACY_GATES = "legacy-gates"
    NO_IPSET = "no-ipset"  # a key of the configuration
    ONE_CLOCK = "one-clock"
    NO_MATCH = "no-match"  # a key, a family, and a match of iptables
    NO_EXPRESSION = "no-expression"  # a key, what it needs of nftables, and the module that has that
    LEGACY_CHAIN_HELD = "legacy-chain-held"  # a chain, its table, the family, and the program that shows it
    HOST_NOT_FORWARDING = "host-not-forwarding"  # a family
    FORWARDING_OFF = "forwarding-off"  # a family
    INTERFACE_OFF = "interface-off"  # a family and an interface
    FORWARDING_UNGUARDED = "forwarding-unguarded"  # a family
    INTERFACE_UNGUARDED = "interface-unguarded"  # a sysctl
    INTERFACE_NOT_FORWARDING = "interface-not-forwarding"  # a family and an interface
    ROUTE = "route"  # a subnet and a network
    NO_IPV6 = "no-ipv6"  # a bridge
    PUBLIC_ADDRESS = "public-address"  # an address and an interface
    PUBLIC_ADDRESS_CHANGED = "public-address-changed"  # an address and an interface
    PROXY = "proxy"  # a subnet and an interface
    PROXY_ENTRY = "proxy-entry"  # a subnet and an interface
    PROXY_LISTENER = "proxy-listener"  # an interface and subnets
    HAIRPIN_MODE = "hairpin-mode"  # a bridge port
    LOOPBACK_BUSY = "loopback-busy"
    LOOPBACK_PORTS = "loopback-ports"  # how many ports
    LOOPBACK_PORT = "loopback-port"  # protocol, port, address and domain
    LOOPBACK_PORT_TAKEN = "loopback-port-taken"  # the same
    TOO_MANY_OPEN = "too-many-open"  # how many may be
    NOTHING_OPEN = "nothing-open"
    NO_AUTO_PORTS = "no-auto-ports"
    PORT_TAKEN = "port-taken"  # where it listens; the text is what hinders it
    PORT_ASSIGNED = "port-assigned"  # the same
    PORT_UNKNOWN = "port-unknown"  # the same
    NOT_KEPT = "not-kept"  # a file
    BEFORE_NOT_KEPT = "before-not-kept"
    BEFORE_NOT_KEPT_IN_TIME = "before-not-kept-in-time"
    NOTHING_TO_CONFIRM = "nothing-to-confirm"
    CONFIRMED_TOO_LATE = "confirmed-too-late"
    CONFIRMATION_NOT_KEPT = "confirmation-not-kept"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something could not be done; see `FaultKind`."""

    kind: FaultKind
    about: tuple[str, ...] = ()
    detail: str = ""


AnyFault: TypeAlias = Fault | Namesake | Unchosen | HijackedAddress | Conflict
"""All that is listed as a problem."""


class Closing(StrEnum):
    """Why what was open for a while is closed, and by whom or what."""

    ASKED = "asked"  # a client
    OVER = "over"
    CLAIMED = "claimed"  # where an entry stands that claims the same
    LACKING = "lacking"  # the configuration has not what it takes


class NoteKind(StrEnum):
    """What an administrator should know of a setting that was changed."""

    CONFINING = "confining"  # a family and its sysctl
    FORWARDING_NEEDED = "forwarding-needed"  # a family, and networks of libvirt's
    FORWARDING_PUT_BACK = "forwarding-put-back"  # a sysctl


@dataclass(frozen=True, slots=True)
class Note:
    """Something an administrator should know; see `NoteKind`."""

    kind: NoteKind
    about: tuple[str, ...]


class LocationReason(StrEnum):
    """Why rules belong where they do."""

    CONFIGURED = "configured"
    LIBVIRT_TABLE = "libvirt-table"
    LIBVIRT_CHAINS = "libvirt-chains"
    NO_LIBVIRT_RULES = "no-libvirt-rules"
    WRITTEN_TO = "written-to"  # by iptables, while libvirt's chains are elsewhere too


@dataclass(frozen=True, slots=True)
class Location:
    """Where the rules are, or belong: the name of a backend and what sentences call it; and why there.

    One that `forgets` counts open connections anew after any change of its rules.
    """

    backend: str
    title: str
    reason: LocationReason
    forgets: bool = False


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
    fault: GateFault

    @property
    def action(self) -> str:
        """The audit's word for it."""
        return "restored" if self.restored else "added"


class SettingKind(StrEnum):
    """What kind of setting it is, and so what names it."""

    SYSCTL = "sysctl"  # `net.ipv4.ip_forward = 1`
    FORMER_SYSCTL = "former-sysctl"  # the same, of one that an earlier version of this program changed
    HAIRPIN_MODE = "hairpin-mode"  # a bridge port


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of the host that was changed; `restored` says that others had changed it from what it is again."""

    what: str
    restored: bool
    kind: SettingKind = SettingKind.SYSCTL

    @property
    def action(self) -> str:
        """The audit's word for it."""
        return "restored" if self.restored else "added"


@dataclass(frozen=True, slots=True)
class Assigned:
    """A port of the host that a domain was given for one of its own; `moved` is the one it had before.

    `claimed` is where that one is claimed by a file now. `origin` is where it was asked for, and who allows that.
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
    `stale` names, as the kernel does, exposures that are no longer wanted. `faults` are what could not be done, and
    `refused` names the exposures that do not work for one of them. `changed` says whether anything was committed,
    `script` what of it went through `nft`. `moved` is where the rules are, or belong, when that is another place than
    before. `settings` are those of the host that were changed, `notes` what an administrator has to know of them.
    `altered` are forwards that had other rules of their own, or none, while those of other exposures were in place:
    their port may have led to its guest in another way. `labels` are those that rules of an earlier run went by,
    `uplinks` those that they named, as far as rules show, and `renamings` under which addresses they had guests open
    connections. `short` says that a fault is for want of a thread, descriptor or memory, so that the next attempt may
    do better.
    """

    mended: frozenset[Exposure] = frozenset()
    damaged: frozenset[Exposure] = frozenset()
    stale: frozenset[str] = frozenset()
    gates: tuple[GateChange, ...] = ()
    faults: tuple[AnyFault, ...] = ()
    script: str = ""
    changed: bool = False
    moved: Location | None = None
    refused: tuple[tuple[Exposure, Fault], ...] = ()
    settings: tuple[Setting, ...] = ()
    notes: tuple[Note, ...] = ()
    altered: frozenset[Exposure] = frozenset()
    labels: frozenset[int] = frozenset()
    uplinks: frozenset[str] = frozenset()
    renamings: frozenset[Renaming] = frozenset()
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
        one.renamings | other.renamings,
        one.short or other.short,
    )


def tried(act: Callable[[], ApplyResult]) -> ApplyResult:
    """Do something; that it failed is a fault, and no reason to leave the rest undone."""
    try:
        return act()
    except (PortfwdError, OSError) as error:  # no descriptor is available, either
        return ApplyResult(faults=(fault_of(error),), short=shortage(error) is not None)


def fault_of(error: Exception) -> Fault:
    """Make a fault of an error whose own text says all of it."""
    return Fault(FaultKind.ERROR, detail=str(error))


# Where libvirt writes its rules: a chain linked from iptables' FORWARD, or a table of its own.
LIBVIRT_CHAIN = "LIBVIRT_FWI"
LIBVIRT_TABLE = "libvirt_network"


# What one reconcile did: for the audit, the status, the metrics and the stream of changes.


class Change(NamedTuple):
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
    location: Location | None = None
    unusable: Mapping[Family, Fault] = field(default_factory=dict)
