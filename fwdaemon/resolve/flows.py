"""Which open connections a change of the exposures invalidates. Pure; `fwdaemon.kernel.conntrack` reads and ends them.

NAT decides on a connection's first packet, and the kernel remembers. A connection of an exposure that went, or leads
elsewhere now, would go on with the old answer, so it is ended. So is a flow without an end of its own (UDP, pings) that
was open to the host itself before an exposure took its port: its client would never reach the guest.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import ip_address, ip_network
from operator import attrgetter

from fwdaemon.core.admission import Gatekeeper, lets_in
from fwdaemon.core.exposures import Claim, Exposure, Renaming
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family, FlowKey, Protocol, Subnet, subnet_key
from fwdaemon.resolve.segments import homes, outside, routed_outside

_bound = attrgetter("interface")


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked connection: who sent its first packet where, and who answers to whom.

    Without NAT, the `server` is the destination and the `client` the source. `protocol` is `None`, and ports are 0,
    where a protocol has no ports that a forward could name.
    """

    protocol: Protocol | None
    source: Address
    destination: Address
    destination_port: int
    server: Address
    server_port: int
    client: Address
    client_port: int

    @property
    def family(self) -> Family:
        """The family, which NAT does not change."""
        return Family.of(self.server)

    @property
    def translated(self) -> bool:
        """Whether a DNAT rule of others leads it elsewhere than its client thinks."""
        return (self.destination, self.destination_port) != (self.server, self.server_port)


class Carriers:
    """Finds the live exposure that carries a flow, in a time that does not grow with the number of exposures."""

    def __init__(self, live: Iterable[Exposure]) -> None:
        self._by_key: defaultdict[FlowKey, list[Exposure]] = defaultdict(list)
        self._lengths: dict[tuple[Family, int], None] = {}
        self._renames = False
        for exposure in live:
            self._by_key[exposure.flow_key].append(exposure)
            if exposure.subnet is not None:
                self._lengths[exposure.family, exposure.subnet.prefixlen] = None
            self._renames |= exposure.renaming is not None

    def carrier(self, flow: Flow) -> Exposure | None:
        """Give the live exposure that sends the flow's packets where they go, or lets its guest send them."""
        return next(self.carriers(flow), None)

    def carriers(self, flow: Flow) -> Iterator[Exposure]:
        """Give all that may be it: which one a packet takes depends on the interface that it comes in by."""
        if not flow.translated:
            outward = self._leads_out(flow) or self.routed(flow.destination)
            yield from () if outward is None else (outward,)
            return
        sent = flow.source, flow.destination, flow.destination_port, flow.server_port
        for key in self._keys(flow):
            yield from (found for found in self._by_key.get(key, ()) if found.carries(*sent))

    def _keys(self, flow: Flow) -> Iterator[FlowKey]:
        """Give what may have led a flow to its guest: a public address, one port, or several."""
        if self._renames and flow.destination_port == flow.server_port:
            yield flow.server, flow.destination
        if flow.protocol is not None:
            yield flow.protocol, flow.server, flow.destination_port, flow.server_port
            yield flow.protocol, flow.server

    def leaves(self, flow: Flow) -> bool:
        """Whether a guest of one of them opened it to somewhere else than to a routed guest."""
        away = not flow.translated and self.routed(flow.destination) is None
        return away and self._leads_out(flow) is not None

    def _leads_out(self, flow: Flow) -> Exposure | None:
        """A guest opened it, under its public address or from a routed one."""
        renamed = self._by_key.get((flow.source, flow.client)) if self._renames else None
        return renamed[0] if renamed else self.routed(flow.source)

    def routed(self, address: Address) -> Exposure | None:
        """Give the live route to an address."""
        own = Family.of(address)
        keys = (subnet_key(address, length) for family, length in self._lengths if family is own)
        return next((self._by_key[key][0] for key in keys if key in self._by_key), None)


def renamings(exposures: Iterable[Exposure]) -> frozenset[Renaming]:
    """Give by what the connections are known that 1:1 guests among these open."""
    return frozenset(exposure.renaming for exposure in exposures if exposure.renaming is not None)


class Judge:
    """Finds the flows of ours that belong to no exposure that is live; `local` are the host's addresses.

    `removed` has just gone. A flow does not say by which interface it came in. So what may have gone through an
    exposure that went is outdated where all that carry it now are bound to other interfaces, although it could be
    theirs. Nor does it say by which it left: with `fewer_uplinks`, all that guests opened to the outside are outdated.
    What 1:1 guests open has no label, and is known by `renamed`, of which some were `left` by an earlier run.
    `gatekeeper` knows who may not connect any more.
    """

    def __init__(  # noqa: PLR0913  who is to go on depends on that many sides
        self,
        live: Collection[Exposure],
        local: Collection[Address],
        removed: Collection[Exposure] = (),
        *,
        fewer_uplinks: bool = False,
        left: Collection[Renaming] = (),
        gatekeeper: Gatekeeper | None = None,
    ) -> None:
        self._fewer_uplinks, self._gatekeeper, self._exposures, self._local = fewer_uplinks, gatekeeper, live, local
        kept, gone = renamings(live), renamings(removed).union(left)
        self.renamed = gone | kept if fewer_uplinks else gone - kept
        self._before = Carriers(removed if any(map(_bound, live)) else ())

    @cached_property
    def _live(self) -> Carriers:  # thousands: only where there is a flow to judge
        return Carriers(self._exposures)

    def is_misnamed(self, flow: Flow) -> bool:
        """Whether one without our label was opened by a guest under a public address that it may not use any more."""
        return (flow.source, flow.client) in self.renamed

    def is_outdated(self, flow: Flow) -> bool:
        """Judge one with our label; without DNAT, it has that only where it passes through the host."""
        if not flow.translated and (flow.source in self._local or flow.destination in self._local):
            return False
        if self._fewer_uplinks and self._live.leaves(flow):
            return True
        fitting = (carrier for carrier in self._live.carriers(flow) if self._goes_on(carrier, flow))
        now = set(map(_bound, fitting))
        before = set(map(_bound, self._before.carriers(flow)))
        return not now or (bool(before) and not any(interface is None or before == {interface} for interface in now))

    def _goes_on(self, carrier: Exposure, flow: Flow) -> bool:
        if _shows_client(carrier, flow, self._local):
            return False
        # What a guest opened is refused only for the guest that it is to.
        entered = carrier if flow.translated else self._live.routed(flow.destination)
        if self._gatekeeper is None or entered is None:
            return True
        return self._gatekeeper.refusal(entered.admission, flow.source) is None


@dataclass(frozen=True, slots=True)
class Strangers:
    """Finds the flows without our label that began while the rules that refuse such where nothing passes were gone.

    The kernel does not say by which interfaces a flow goes, so addresses tell: `left` and `entered` are the subnets of
    networks out of which libvirt lets guests, and into which it lets all; `homes` those of all its networks. What
    a flow between others should have been let through for, its next packet starts over.

    What is in `let_out` may open connections to the outside, and none of these has our label.

    In the families of `partly`, only what came in by some interfaces was refused. `ways` say of subnets, the most
    specific first, whether a source there comes in by one of these alone, and `beyond` whether all others do. Where
    that is unknown, a flow goes on.
    """

    families: frozenset[Family]
    local: Collection[Address] = ()
    left: tuple[Subnet, ...] = ()
    entered: tuple[Subnet, ...] = ()
    homes: tuple[Subnet, ...] = ()
    let_out: tuple[Subnet, ...] = ()
    partly: frozenset[Family] = frozenset()
    ways: tuple[tuple[Subnet, bool], ...] = ()
    beyond: frozenset[Family] = frozenset()

    @classmethod
    def of(cls, desired: Desired, local: Collection[Address]) -> "Strangers":
        """Tell it of those of a state."""
        left = tuple(subnet for subnet, bridge in desired.homes if bridge in desired.inside)
        entered = tuple(
            subnet
            for subnet, bridge in desired.homes
            if bridge in desired.inside and (Family.of(subnet), bridge) not in desired.closed
        )
        all_homes = tuple(subnet for subnet, _ in desired.homes)
        let_out = tuple(subnet for family in Family for subnet in _let_out(family, desired))
        partly = frozenset(family for family, _ in desired.switched) - desired.confined
        by_family = {family: frozenset(name for kind, name in desired.switched if kind is family) for family in partly}
        ways = tuple(way for family, names in by_family.items() for way in _ways(family, names, desired))
        # Without a link of its own, a source is behind an interface that leads away from the host.
        beyond = frozenset(
            family for family, names in by_family.items() if desired.uplinks and desired.uplinks <= names
        )
        return cls(desired.confined | partly, local, left, entered, all_homes, let_out, partly, ways, beyond)

    def include(self, flow: Flow) -> bool:
        """Whether the rules would have refused a flow."""
        if flow.family not in self.families or self._is_of_host(flow.source) or self._is_of_host(flow.server):
            return False
        source, server = _homes_of(flow.source, self.homes), _homes_of(flow.server, self.homes)
        if source & server or (not server and _homes_of(flow.source, self.let_out)):
            return False
        if flow.family in self.partly:
            return self._came_in(flow) and (not server or not _homes_of(flow.server, self.entered))
        if server and not _homes_of(flow.server, self.entered):
            return True
        return bool(source - set(self.left)) or not (source or server)

    def _came_in(self, flow: Flow) -> bool:
        """Whether it came in by an interface that forwarded nothing, and was no frame within a bridge."""
        for subnet, is_refused in self.ways:
            if subnet.version == flow.source.version and flow.source in subnet:
                return is_refused and flow.server not in subnet
        return flow.family in self.beyond

    def _is_of_host(self, address: Address) -> bool:
        """Whether the host itself sends or gets what has this address; none of these is forwarded."""
        unrouted = Family.of(address) is Family.IPV6 and address.is_link_local
        special = address.is_loopback or address.is_multicast or address.is_unspecified
        return address in self.local or special or unrouted


def _let_out(family: Family, desired: Desired) -> Iterator[Subnet]:
    """Give who may open connections to the outside by rules of ours, and not by libvirt's."""
    yield from map(ip_network, outside(family, desired))
    yield from (route.subnet for route in routed_outside(family, desired))


def _ways(family: Family, refused: frozenset[str], desired: Desired) -> Iterator[tuple[Subnet, bool]]:
    """Say of each subnet on a link whether all its interfaces are refused; of one behind gateways, all uplinks."""
    beyond = bool(desired.uplinks) and desired.uplinks <= refused
    for home in homes(family, desired):
        for part in (*home.parts, home):
            yield part.subnet, beyond if part.interfaces is None else refused.issuperset(part.interfaces or ("",))


def _homes_of(address: Address, homes: Iterable[Subnet]) -> set[Subnet]:
    return {home for home in homes if home.version == address.version and address in home}


def _shows_client(carrier: Exposure, flow: Flow, local: Collection[Address]) -> bool:
    """Whether a guest is to see an address of the host, and sees the client's: the flow began before that was asked.

    A client that goes on sending would keep such a flow without an answer for ever.
    """
    return carrier.masquerade and flow.client == flow.source and flow.source not in local


def is_claimed(flow: Flow, added: Iterable[Claim], local: Collection[Address]) -> bool:
    """Whether a flow ends at the host itself, where an added exposure takes it; `local` are the host's addresses."""
    return not flow.translated and any(_takes(claim, flow, local) for claim in added)


def turned(flow: Flow) -> Flow:
    """Give the other way of a flow that nothing translates, as if its answer had been its first packet."""
    return replace(
        flow,
        source=flow.destination,
        destination=flow.source,
        destination_port=flow.client_port,
        server=flow.source,
        server_port=flow.client_port,
        client=flow.destination,
        client_port=flow.destination_port,
    )


def is_strayed(flow: Flow, public: Mapping[Address, Collection[Address]], taken: Collection[Address] = ()) -> bool:
    """Whether a guest sends a flow under none of its own addresses in `public`, or one to those `taken` misses it."""
    own = public.get(flow.source)
    strays = flow.destination in taken if own is None else flow.client not in own
    return strays and not flow.translated


def is_resumed(flow: Flow, taken_over: Collection[Address]) -> bool:
    """Whether a flow with sequence numbers is to or from one of these addresses itself, as guests of routes have."""
    numbered = flow.protocol is not None and flow.protocol is not Protocol.UDP
    return numbered and not flow.translated and (flow.server in taken_over or flow.source in taken_over)


def _takes(claim: Claim, flow: Flow, local: Collection[Address]) -> bool:
    meant = claim.subnet is None and claim.takes(flow.protocol, flow.destination, flow.destination_port)
    return meant and lets_in(claim.sources, flow.source) and (claim.address is not None or flow.destination in local)


# What guests are refused for a while, once their connections were ended. One that stands for a whole port is enough
# where there are many: any program that looks at the rules reads all of them, and in iptables-legacy each is a rule.
_ANYWHERE = {Family.IPV4: ip_address("0.0.0.0"), Family.IPV6: ip_address("::")}  # noqa: S104  nothing binds to these


class Ended:
    """What is refused, and until when, by one monotonic clock.

    Where more than `alone` connections of one port end, all that it sends is refused that would begin one; so it is for
    every port once there are more than `most`. Of more ports than that, the oldest are forgotten.
    """

    def __init__(self, alone: int, most: int) -> None:
        self._most_alone, self._most = alone, most
        self._until: dict[Flow, float] = {}
        self._alone: defaultdict[Flow, set[Flow]] = defaultdict(set)

    @property
    def flows(self) -> tuple[Flow, ...]:
        """What is refused now; one to anywhere stands for all of its guest's port."""
        return tuple(self._until)

    def left(self, now: float) -> dict[Flow, float]:
        """What is refused now, each with the seconds that are left of that."""
        return {flow: until - now for flow, until in self._until.items()}

    def add(self, flows: Iterable[Flow], until: float) -> bool:
        """Remember these, and return whether anything is refused that was not before."""
        known, ports = set(self._until), defaultdict[tuple[Protocol | None, Address, int], list[Flow]](list)
        for flow in flows:
            ports[flow.protocol, flow.server, flow.server_port].append(flow)
        for group in ports.values():  # once there are many, one stands for all
            for flow in group if to_anywhere(group[0]) not in self._until else group[:1]:
                self._add(flow, until)
        if len(self._until) > self._most:
            self._gather_all()
        for flow in tuple(self._until)[: -self._most]:
            self._take_out(flow)
        return not known.issuperset(self._until)

    def forget(self, now: float) -> bool:
        """Forget what has been refused for long enough, and return whether that was anything."""
        over = [flow for flow, until in self._until.items() if until <= now]
        for flow in over:
            self._take_out(flow)
        return bool(over)

    def _add(self, flow: Flow, until: float) -> None:
        everybody = to_anywhere(flow)
        stands = everybody if everybody in self._until else flow
        self._until.pop(stands, None)  # what comes last is forgotten last
        self._until[stands] = until
        if stands is not flow:
            return
        alone = self._alone[everybody]
        alone.add(flow)
        if len(alone) > self._most_alone:
            for other in self._alone.pop(everybody):
                del self._until[other]
            self._until[everybody] = until

    def _gather_all(self) -> None:
        ports = dict[Flow, float]()
        for flow, until in self._until.items():
            ports.pop(to_anywhere(flow), None)
            ports[to_anywhere(flow)] = until
        self._until = ports
        self._alone.clear()

    def _take_out(self, flow: Flow) -> None:
        del self._until[flow]
        everybody = to_anywhere(flow)
        if flow in self._alone.get(everybody, ()):
            self._alone[everybody].discard(flow)
            if not self._alone[everybody]:
                del self._alone[everybody]


def to_anywhere(flow: Flow) -> Flow:
    """Give what stands for all connections of a guest's port."""
    anywhere = _ANYWHERE[flow.family]
    return replace(flow, source=anywhere, destination=anywhere, destination_port=0, client=anywhere, client_port=0)
