"""The desired state as plain data: what is to be reachable now, and why the rest waits.

Whatever makes something reachable is an *opening*: a port forward, a 1:1 NAT, a route. How openings follow from
configuration and inventory is in `fwdaemon.placing`; how they become rules is the backends' business.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

from fwdaemon.config.model import Gate, Origin
from fwdaemon.model import Address, Family, PortRange, Protocol, Subnet, show_endpoint

# Of thousands of openings each is looked at by what is written in C: a line of Python for each takes ten times as long.
_FAMILIES: Final[Mapping[type, Family]] = {IPv4Address: Family.IPV4, IPv6Address: Family.IPV6}
_target = attrgetter("target")


class Owner(NamedTuple):
    """Whose an opening is: a `domain` or a libvirt `network`; `name` is any text."""

    name: str
    kind: str = "domain"


@dataclass(frozen=True, slots=True)
class Forward:
    """One live forward of one family: packets to `listen` and `ports` go to `target` and `target_ports`.

    `listen` is `None` for every local address. Empty `sources` let anyone in; otherwise all are of this forward's
    family. `domain` is the name libvirt knows, any text. `bridge` is where the guest is plugged in, and `bridge_port`
    the host's side of its interface; others, as after a reboot, do not make it another forward.
    """

    domain: str
    protocol: Protocol
    listen: Address | None
    ports: PortRange
    target: Address
    target_ports: PortRange
    interface: str | None = None
    sources: tuple[Subnet, ...] = ()
    bridge: str | None = field(default=None, compare=False)
    bridge_port: str | None = field(default=None, compare=False)
    origin: Origin | None = field(default=None, compare=False)

    def __hash__(self) -> int:
        """Hash what tells most forwards apart and is hashed fast: sets of thousands are made of them."""
        return hash((self.domain, self.ports.first, self.ports.last))

    @property
    def family(self) -> Family:
        """The family of both sides."""
        return Family.of(self.target)

    @property
    def owner(self) -> Owner:
        """The domain it leads to."""
        return Owner(self.domain)

    def listens_at(self) -> str:
        """Where it listens, for people and the audit: `tcp 198.51.100.7:8443`."""
        return f"{self.protocol} {show_endpoint(self.listen, self.ports)}"

    def leads_to(self) -> str:
        """Where it leads, for people and the audit: `192.168.122.50:443`."""
        return show_endpoint(self.target, self.target_ports)


@dataclass(frozen=True, slots=True)
class Nat:
    """One live 1:1 NAT: `public` is the guest at `target`, every protocol and port, in and out.

    `assign` is the interface of the host that is to hold `public`. The rest is as in `Forward`.
    """

    domain: str
    public: Address
    target: Address
    assign: str | None = None
    bridge: str | None = field(default=None, compare=False)
    bridge_port: str | None = field(default=None, compare=False)
    origin: Origin | None = field(default=None, compare=False)

    @property
    def family(self) -> Family:
        """The family of both sides."""
        return Family.of(self.target)

    @property
    def owner(self) -> Owner:
        """The domain it leads to."""
        return Owner(self.domain)

    def listens_at(self) -> str:
        """Where it listens, for people and the audit."""
        return f"all of {self.public}"

    def leads_to(self) -> str:
        """Where it leads, for people and the audit."""
        return str(self.target)


@dataclass(frozen=True, slots=True)
class Route:
    """One live route: `subnet` lies behind `bridge`, which belongs to the libvirt network `network`.

    `proxy` is the interface on which the host is to answer for these addresses.
    """

    network: str
    subnet: Subnet
    bridge: str
    proxy: str | None = None
    origin: Origin | None = field(default=None, compare=False)

    @property
    def family(self) -> Family:
        """The family of its addresses."""
        return Family.of(self.subnet)

    @property
    def owner(self) -> Owner:
        """The network it leads to."""
        return Owner(self.network, "network")

    def listens_at(self) -> str:
        """What is routed, for people and the audit."""
        return f"route {self.subnet}"

    def leads_to(self) -> str:
        """Where it leads, for people and the audit."""
        return self.bridge


Opening: TypeAlias = Forward | Nat | Route


@dataclass(frozen=True, slots=True)
class Waiting:
    """An entry, or one family of it, that has no live opening, with the reason as a short sentence.

    `stopped` says that the reason is the domain not running.
    """

    owner: Owner
    reason: str
    origin: Origin = field(compare=False)
    stopped: bool = False


@dataclass(frozen=True)
class Desired:
    """Everything the kernel is to do for us.

    `guest_subnets` are where hairpin connections may come from and go to. `outer` are the interfaces that lead away
    from the host, and not to guests or containers on it: only there do routed and 1:1 guests open connections by
    themselves. `localhost` has IPv4 forwards on every address answer on 127.0.0.1 too. `gates` are the foreign
    chains, besides those we know, that are to let marked connections through. `kept` are families that had openings
    before: their tables stay, to go on refusing what is left of connections that were ended.

    Two states that follow each other share nearly all openings, as the same objects in sets. So they are compared by
    operations of sets, which neither hash nor compare them anew; and what follows from all of them is worked out once.
    """

    forwards: frozenset[Forward] = frozenset()
    nats: frozenset[Nat] = frozenset()
    routes: frozenset[Route] = frozenset()
    waiting: tuple[Waiting, ...] = ()
    guest_subnets: frozenset[Subnet] = frozenset()
    outer: frozenset[str] = frozenset()
    localhost: bool = False
    mark: int = 0x02000000
    gates: tuple[Gate, ...] = ()
    kept: frozenset[Family] = frozenset()

    @cached_property
    def openings(self) -> frozenset[Opening]:
        """Everything that is to be live."""
        # A set united with nothing is the same set, and takes no more memory.
        openings: frozenset[Opening] = self.forwards
        return openings.union(self.nats, self.routes) if self.nats or self.routes else openings

    def having(self, held: Iterable[Opening]) -> "Desired":
        """Give the same state with more openings."""
        held = frozenset(held)
        return replace(
            self,
            forwards=self.forwards.union(item for item in held if isinstance(item, Forward)),
            nats=self.nats.union(item for item in held if isinstance(item, Nat)),
            routes=self.routes.union(item for item in held if isinstance(item, Route)),
        )

    def knowing(self, families: frozenset[Family], bridge_ports: frozenset[tuple[Family, str]]) -> "Desired":
        """Give the same state, told what follows from its openings, where that is known without reading all of them."""
        told = replace(self)
        # Where `cached_property` keeps its value; what is made of this state with `replace` does not inherit it.
        vars(told).update(families=self.kept | families, bridge_ports=bridge_ports)
        return told

    def keeping(self, families: frozenset[Family]) -> "Desired":
        """Give the same state with these families kept."""
        return replace(self, kept=families).knowing(self.families, self.bridge_ports)

    def of_family(self, family: Family) -> Iterator[Forward]:
        """The forwards of one family, in no particular order."""
        return (forward for forward in self.forwards if forward.family is family)

    @cached_property
    def families(self) -> frozenset[Family]:
        """The families that need anything in the kernel."""
        kinds = set(map(type, map(_target, chain(self.forwards, self.nats))))
        return self.kept.union(map(_FAMILIES.__getitem__, kinds), (route.family for route in self.routes))

    @cached_property
    def stopped(self) -> frozenset[Owner]:
        """Those who have no opening because they do not run."""
        return frozenset(entry.owner for entry in self.waiting if entry.stopped)

    @cached_property
    def hindrances(self) -> Mapping[Owner, tuple[str, ...]]:
        """Why those who run have no opening, or not in each family."""
        found: dict[Owner, tuple[str, ...]] = {}
        for entry in self.waiting:
            if not entry.stopped:
                found[entry.owner] = (*found.get(entry.owner, ()), entry.reason)
        return found

    @cached_property
    def owners(self) -> frozenset[Owner]:
        """Those who have an opening."""
        domains = set(map(attrgetter("domain"), chain(self.forwards, self.nats)))
        return frozenset(map(Owner, domains)).union(route.owner for route in self.routes)

    @cached_property
    def bridge_ports(self) -> frozenset[tuple[Family, str]]:
        """The bridge ports of the guests that are reached by translation, each with the family it is reached in."""
        plugged: Collection[Forward | Nat] = [*self.forwards, *self.nats]
        ports = set(zip(map(type, map(_target, plugged)), map(attrgetter("bridge_port"), plugged), strict=True))
        return frozenset((_FAMILIES[kind], port) for kind, port in ports if port is not None)

    @cached_property
    def local_bridges(self) -> frozenset[str]:
        """The bridges of the guests that are to be reached from 127.0.0.1."""
        if not self.localhost:
            return frozenset()
        answering = (item for item in self.of_family(Family.IPV4) if item.listen is None and item.interface is None)
        return frozenset(item.bridge for item in answering if item.bridge is not None)
