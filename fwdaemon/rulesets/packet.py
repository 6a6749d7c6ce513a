"""A packet, what is known of it, and rules of whatever system as tests and verdicts, with whose they are. Pure."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Final, TypeAlias

from fwdaemon.core.text import shown, unquoted
from fwdaemon.core.types import Address, Family, Protocol, Subnet
from fwdaemon.legacy.model import LIMITS, OWN_CHAINS
from fwdaemon.nftables.gates import COMMENT

# Logic with a third value: what is unknown is never taken for a yes or a no (Kleene's strong logic). Pure.


class Tristate(IntEnum):
    """The values, in the order that makes *and* the least of several and *or* the greatest."""

    NO = 0
    UNKNOWN = 1
    YES = 2


def tristate_of(known: bool) -> Tristate:  # noqa: FBT001  a plain truth value is what it turns into one of ours
    """Give the value of what is known."""
    return Tristate.YES if known else Tristate.NO


def negated(tristate: Tristate) -> Tristate:
    """Give the opposite; that of the unknown is unknown."""
    return Tristate(Tristate.YES - tristate)


def all_of(tristates: Iterable[Tristate]) -> Tristate:
    """Whether every one holds; of none, yes."""
    return min(tristates, default=Tristate.YES)


def any_of(tristates: Iterable[Tristate]) -> Tristate:
    """Whether one of them holds; of none, no."""
    found = Tristate.NO
    for tristate in tristates:
        if tristate is Tristate.YES:
            return tristate
        found = max(found, tristate)
    return found


# The first packet of a connection, and the answer to it, as rules see them. Pure.

# Programs that do not ask for one get no port below 1024 (ip-sysctl.rst, ip_local_port_range), nor does NAT give one.
CLIENT_PORTS: Final = (1024, 65535)


class System(StrEnum):
    """A rule system of the kernel, by the programs that write to it."""

    NFTABLES = "nftables"
    IPTABLES_NFT = "iptables-nft"
    LEGACY = "iptables-legacy"


class State(StrEnum):
    """What connection tracking says of a packet; the values are nft's words."""

    NEW = "new"
    ESTABLISHED = "established"
    # Not looked at yet: chains before priority -200 see this, and both rule systems then say "invalid".
    UNSEEN = "invalid"
    UNTRACKED = "untracked"


@dataclass(frozen=True, slots=True)
class RuleLocation:
    """Where a rule stands.

    `number` is nft's handle, or the position in a chain of iptables from 1; 0 is the chain's policy. `text` is the rule
    as its own program lists it, raw: names in it may hold anything.
    """

    system: System
    family: str
    table: str
    chain: str
    number: int
    text: str = ""

    @property
    def chain_name(self) -> str:
        """Its chain, fit to be shown; `legacy` stands before one of the iptables-legacy tables."""
        name = f"{self.family} {self.table} {self.chain}"
        return shown(f"legacy {name}" if self.system is System.LEGACY else name)


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet. `None` is unknown; for `source` it is a client somewhere outside.

    `came_in` and `goes_out` are interfaces, empty where there is none. `wanted` is where the connection's first packet
    was sent before any translation, and `translated_by` the rule that did. `mark` is the packet's, `connmark` the
    connection's, and so are its `labels`, each as it is written; `marked_by` is the rule that gave it one of these.
    `renamed` says that it leaves under another source, to which the answer will go.
    """

    family: Family
    protocol: Protocol
    source: Address | None
    destination: Address | None
    port: int | None
    wanted: tuple[Address, int]
    source_port: int | None = None
    came_in: str = ""
    goes_out: str = ""
    state: State = State.NEW
    mark: int | None = 0
    connmark: int | None = 0
    labels: frozenset[str] | None = frozenset()
    translated_by: RuleLocation | None = None
    marked_by: RuleLocation | None = None
    renamed: bool = False

    @property
    def tracked(self) -> bool:
        """Whether connection tracking knows a connection it belongs to."""
        return self.state in (State.NEW, State.ESTABLISHED)

    @property
    def to_client(self) -> bool:
        """Whether its port is one that a client chose, which is unknown."""
        return self.state is State.ESTABLISHED and self.port is None

    def has_label(self, label: str) -> Tristate:
        """Whether the connection has a label; some are called by numbers, others by names."""
        if self.labels is None:
            return Tristate.UNKNOWN
        if label in self.labels:
            return Tristate.YES
        comparable = not self.labels or all(name.isdecimal() for name in (label, *self.labels))
        return Tristate.NO if comparable else Tristate.UNKNOWN

    def labelled(self, label: str) -> "Packet":
        """Give the packet once its connection has a further label."""
        if self.labels is None or not self.tracked:
            return self
        return replace(self, labels=self.labels | {label})

    def marked_anyhow(self) -> "Packet":
        """Give the same packet with unknown marks and labels."""
        return replace(self, mark=None, connmark=None, labels=None, marked_by=None)

    def of_client(self, client: Address | None) -> "Packet":
        """Give the same packet of another client, `None` for any outside; in an answer, that is the destination."""
        if self.state is State.ESTABLISHED:
            return replace(self, destination=client)
        return replace(self, source=client)

    def sent_to(self, destination: Address | None, port: int | None, by: RuleLocation) -> "Packet":
        """Give the packet as a DNAT makes it."""
        return replace(self, destination=destination, port=port, translated_by=by)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What matches ask of the host besides the packet.

    `local` has each address of the host with its interfaces. `inner` are subnets no client outside is in. `way_back` is
    the interface the host would send an answer out of.
    """

    local: dict[Address, frozenset[str]]
    inner: tuple[Subnet, ...] = ()
    way_back: str | None = None

    def within(self, address: Address | None, subnet: Subnet) -> Tristate:
        """Whether an address, or a client somewhere outside, is in a subnet."""
        if address is not None:
            return tristate_of(address.version == subnet.version and address in subnet)
        if subnet.prefixlen == 0:
            return Tristate.YES
        return Tristate.NO if _lies_within(subnet, self.inner) else Tristate.UNKNOWN

    def type_of(self, address: Address | None) -> str | None:
        """Give the kernel's word for a kind of address, as the FIB sees it; `None` where it is unknown."""
        if address is None:
            return None
        if address in self.local or address.is_loopback:
            return "local"
        return "multicast" if address.is_multicast else "unicast"


def _lies_within(subnet: Subnet, others: Iterable[Subnet]) -> bool:
    return any(
        subnet.version == other.version and subnet.subnet_of(other)  # type: ignore[arg-type]  # the family is one
        for other in others
    )


def among_client_ports(first: int, last: int) -> Tristate:
    """Whether a port that some client chose is in a range."""
    if first <= CLIENT_PORTS[0] and last >= CLIENT_PORTS[1]:
        return Tristate.YES
    return Tristate.NO if last < CLIENT_PORTS[0] else Tristate.UNKNOWN


# Rules of whatever system as one kind of thing: tests, changes of the packet, and verdicts. Pure data.


class End(StrEnum):
    """How a packet's way through a chain ends; what a program in user space decides is unclear."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Match:
    """A test the packet has to pass for the rest of the rule to count."""

    test: Callable[[Packet, Surroundings], Tristate]


@dataclass(frozen=True, slots=True)
class Change:
    """Changes the packet and goes on."""

    change: Callable[[Packet], Packet]


@dataclass(frozen=True, slots=True)
class Translate:
    """Sends the connection elsewhere, and accepts; the second argument is the rule's own place."""

    translate: Callable[[Packet, RuleLocation], Packet]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Ends the packet's way through the base chain."""

    end: End


@dataclass(frozen=True, slots=True)
class Jump:
    """Goes on in another chain; with `goto`, without coming back to this one."""

    chain: str
    goto: bool = False


@dataclass(frozen=True, slots=True)
class Return:
    """Goes back to where the chain was jumped to from."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A verdict map: gives those verdicts that may apply. Where none does, the rule does not match."""

    choose: Callable[[Packet, Surroundings], Iterable[tuple[Tristate, "Statement"]]]


Statement: TypeAlias = Match | Change | Translate | Verdict | Jump | Return | Choice


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule and where it stands."""

    location: RuleLocation
    statements: tuple[Statement, ...]


Chains: TypeAlias = Mapping[str, tuple[Rule, ...]]


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain the kernel calls by itself. `chains` are all of its table; `devices` are for hooks of one interface.

    The table of one that is `owned` takes rules from the process that made it only.
    """

    system: System
    family: str
    table: str
    name: str
    kind: str
    hook: str
    priority: int
    accepts: bool
    chains: Chains = field(compare=False, repr=False, default_factory=dict)
    devices: frozenset[str] = frozenset()
    owned: bool = False

    @property
    def policy(self) -> RuleLocation:
        """Where its policy stands, as if it were a rule."""
        return RuleLocation(self.system, self.family, self.table, self.name, 0)

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


# Whose a chain is, by the names its tools are known to use.

OURS: Final = "kvm-portfwd"
ADMIN: Final = "admin"
# Tools that are there to refuse clients.
BANNING: Final = frozenset({"fail2ban", "CrowdSec"})

_TABLES: Final = (
    (r"kvm_portfwd", OURS),
    (r"libvirt_network", "libvirt"),
    (r"firewalld", "firewalld"),
    (r"docker.*", "Docker"),
    (r"kube.*", "Kubernetes"),
    (r"incus", "Incus"),
    (r"lxd|lxc", "LXD"),
    (r"f2b.*|fail2ban.*", "fail2ban"),
    (r"netavark", "Podman"),
    (r"crowdsec.*", "CrowdSec"),
)
_CHAINS: Final = (
    ("|".join([*OWN_CHAINS, LIMITS]), OURS),
    (r"LIBVIRT_.*", "libvirt"),
    (r"DOCKER.*", "Docker"),
    (r"(INPUT|FORWARD|OUTPUT|PREROUTING|POSTROUTING)_(direct|ZONES.*|(IN|OUT)_ZONES.*|POLICIES.*)", "firewalld"),
    (r"ufw6?-.*", "ufw"),
    (r"KUBE-.*", "Kubernetes"),
    (r"cali-.*", "Calico"),
    (r"CILIUM_.*", "Cilium"),
    (r"FLANNEL-.*", "flannel"),
    (r"CNI-.*", "CNI"),
    (r"NETAVARK.*", "Podman"),
    (r"f2b-.*", "fail2ban"),
    (r"(?i:crowdsec).*", "CrowdSec"),
)


def owner_of(location: RuleLocation) -> str:
    """Name the tool that a rule's chain or table belongs to; what no tool is known for is the administrator's."""
    return _named(location.chain, _CHAINS) or _named(location.table, _TABLES) or ADMIN


def owners_of(chain: BaseChain) -> str:
    """Name all who have rules in a base chain, or `nobody`; one of iptables is shared, so its rules decide."""
    owner = owner_of(chain.policy)
    if chain.system is System.NFTABLES:
        return owner
    return ", ".join(sorted({_owner_of_rule(rule) for rule in chain.chains.get(chain.name, ())})) or "nobody"


def _owner_of_rule(rule: Rule) -> str:
    targets = [statement.chain for statement in rule.statements if isinstance(statement, Jump)]
    if COMMENT in unquoted(rule.location.text).split():
        return OURS
    return owner_of(replace(rule.location, chain=targets[0])) if targets else owner_of(rule.location)


def _named(name: str, owners: tuple[tuple[str, str], ...]) -> str | None:
    return next((owner for pattern, owner in owners if re.fullmatch(pattern, name)), None)
