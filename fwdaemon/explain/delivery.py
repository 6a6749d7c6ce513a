"""The steps from the routing decision to the guest's interface, and of the answer back. Pure."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from fwdaemon.config.model import Entry, ForwardEntry
from fwdaemon.core.inventory import HostAddress
from fwdaemon.core.text import shown
from fwdaemon.core.types import Address, Family, Protocol, Subnet
from fwdaemon.errors import KernelError
from fwdaemon.explain import remedies
from fwdaemon.explain.arrival import Arrival
from fwdaemon.explain.entrance import Entrance, HostContext, Target, is_strict, leads_to
from fwdaemon.explain.report import (
    MAIN_TABLE,
    RELOAD,
    Cause,
    FarAnswer,
    GuestAnswer,
    RouteAnswer,
    Step,
    StepState,
    World,
    fine,
    unknown,
    wrong,
)
from fwdaemon.kernel.sysctl import FORWARDING, of_interface
from fwdaemon.rulesets.evaluation import Judgement, Way, through
from fwdaemon.rulesets.packet import Packet, RuleLocation, State, System

# Stands for a rule of ours that is not there.
_ABSENT: Final = RuleLocation(System.NFTABLES, "", "kvm_portfwd", "", 0)


class Delivery:
    """Follows a connection from where it arrived; where it was not sent to its target, as if it had been.

    Then it knows the `device` that it leaves the host by, and `delivered` are the packets as the guest gets them.
    """

    def __init__(self, context: HostContext, entrance: Entrance) -> None:
        self._context = context
        self._arrived = entrance.arrived
        self.device: str | None = None
        self.delivered: frozenset[Packet] = frozenset()
        self._suspects = {passage.chain for passage in entrance.passages if passage.judgement is not Judgement.ACCEPTS}

    def leave(self, target: Target, label: int) -> Iterator[Step]:
        """Give the steps from the routing decision to the guest's interface, and back."""
        route, step = self._route(target)
        yield step
        yield from self._forwarding()
        device = self.device = route.device or target.bridge
        if device is None:
            return
        yield from self._ruled_away(target, device)
        end = remedies.End(target.address, target.number)
        packets = frozenset(replace(packet, goes_out=device) for packet in self._led(target, label))
        if not self._context.arrival.from_host:
            way = through(self._context.chains, "forward", packets, self._context.around)
            yield from self._steps(way, end)
            packets = way.packets
        way = through(self._context.chains, "postrouting", packets, self._context.around)
        yield from self._steps(way, end)
        self.delivered = way.packets
        yield from self._bridge(target, way.packets, device)
        yield from self._back(target, way.packets, device)

    def pass_by(self, device: str) -> Iterator[Step]:
        """Give the steps through the host of what is for another machine, and leaves by a device."""
        yield from self._forwarding()
        packets = frozenset(replace(packet, goes_out=device) for packet in self._arrived)
        yield from self._through("forward", packets)

    def go_out(self, device: str) -> Iterator[Step]:
        """Give those of a guest's own connection, and of the answer."""
        yield from self.pass_by(device)
        yield from self._through("postrouting", self.delivered)
        to = Target(self._context.arrival.address, self._context.arrival.port, translated=False)
        yield from self._back(to, self.delivered, device)

    def _through(self, hook: str, packets: frozenset[Packet]) -> Iterator[Step]:
        way = through(self._context.chains, hook, packets, self._context.around)
        yield from self._steps(way, remedies.End(self._context.arrival.address, self._context.arrival.port))
        self.delivered = way.packets

    def _steps(self, way: Way, end: remedies.End) -> Iterator[Step]:
        """Give a step for each chain, and remember those that do not let the packet through."""
        self._suspects |= {passage.chain for passage in way.passages if passage.judgement is not Judgement.ACCEPTS}
        yield from self._context.judge.steps(way.passages, end)

    def _led(self, target: Target, label: int) -> frozenset[Packet]:
        """Give the packets that go to the target; where none does, one as our rules would send it."""
        right = frozenset(packet for packet in self._arrived if leads_to(packet, target))
        if right:
            return right
        packet = self._context.arrival.packet()
        if not target.translated:
            return frozenset([packet])
        return frozenset([packet.sent_to(target.address, target.number, _ABSENT).labelled(str(label))])

    def _route(self, target: Target) -> tuple[RouteAnswer, Step]:
        """Judge the way to the guest; the kernel is asked as if the packet were the host's own."""
        route, bridge = self._context.world.route(target.address), target.bridge
        if bridge is not None and self._context.world.is_up(bridge) is False:
            text = f"bridge {shown(bridge)} is switched off"
            return route, wrong("route", text, Cause.BRIDGE_DOWN, remedies.switch_on(bridge))
        if route.device is not None and route.device == (bridge or route.device) and not route.local:
            return route, fine("route", f"{target.address} is reached through {shown(route.device)}")
        return route, self._astray(target, route)

    def _ruled_away(self, target: Target, device: str) -> Iterator[Step]:
        """Judge rules of policy routing that lead the question or the answer nowhere, as administrators ban by."""
        arrival, client = self._context.arrival, self._context.arrival.stand_in
        if arrival.from_host:
            return
        ways = ((client, target.address, arrival.came_in), (target.address, client, device))
        for source, to, came_in in ways:
            rule = self._context.world.route(to, source, came_in).rule
            if rule:
                text = f"nothing goes from {source} to {to}, by the rule of policy routing {rule}"
                yield wrong("policy routing", text, Cause.ON_PURPOSE, remedies.ruled_away(rule, source, to))
                return

    def _astray(self, target: Target, route: RouteAnswer) -> Step:
        where = "to no interface at all" if route.device is None else f"to {shown(route.device)}"
        text = f"the route to {target.address} leads {where}, not to {shown(target.bridge or 'the guest')}"
        if not _is_fallback(route, target.subnet):
            return wrong("route", text, Cause.ROUTE_ASTRAY, remedies.drop_route(route))
        if not target.translated:
            return self._context.judge.missing("route", text)
        remedy = remedies.add_route(target.subnet or ip_network(target.address), target.bridge)
        return wrong("route", text, Cause.ROUTE_ASTRAY, remedy)

    def _forwarding(self) -> Iterator[Step]:
        """Judge the forwarding settings: IPv4 asks that of the interface a packet came in by (ip_route_input_slow)."""
        arrival = self._context.arrival
        if arrival.from_host:
            return
        every = name = FORWARDING[arrival.family]
        if arrival.family is Family.IPV4:
            name = of_interface(Family.IPV4, arrival.came_in, "forwarding")
        setting = self._context.world.sysctl(name)
        if setting != "0":
            step = fine("forwarding", f"{name} is on")
            yield step if setting else unknown("forwarding", f"there is no {name}", "the host may not forward it")
            return
        off = name if self._context.world.sysctl(every) == "1" else every
        text = f"{off} is off, so the host forwards nothing"
        yield wrong("forwarding", text, Cause.FORWARDING_OFF, remedies.set_sysctl(off, 1))

    def _bridge(self, target: Target, packets: frozenset[Packet], device: str) -> Iterator[Step]:
        """Follow the packet through the bridge to the guest's port."""
        if device != target.bridge:
            return
        inside = [replace(packet, came_in="", goes_out=target.port or "") for packet in packets]
        for hook in ("output", "postrouting"):
            way = through(self._context.chains, hook, inside, self._context.around, link=device)
            yield from self._context.judge.steps(way.passages, remedies.End(target.address, target.number))
        if self._context.arrival.source == target.address and target.port is not None:
            yield self._hairpin(target.port)

    def _hairpin(self, port: str) -> Step:
        """Judge a guest's connection to itself: bridged frames that netfilter translates come back to their port."""
        family = self._context.arrival.family.iptables
        through_netfilter = self._context.world.sysctl(f"net.bridge.bridge-nf-call-{family}") == "1"
        if not through_netfilter:
            return fine("hairpin", f"bridge-nf-call-{family} is off, so the guest reaches itself")
        if self._context.world.in_hairpin_mode(port):
            return fine("hairpin", f"bridge-nf-call-{family} is on, and port {shown(port)} in hairpin mode")
        text = f"bridge-nf-call-{family} is on, and port {shown(port)} not in hairpin mode: no frame comes back to it"
        return wrong("hairpin", text, Cause.HAIRPIN_OFF, remedies.set_hairpin(port))

    def _back(self, target: Target, packets: frozenset[Packet], device: str) -> Iterator[Step]:
        """Follow the answer; only chains that let the question through, but not the answer, are shown."""
        answers = frozenset(self._answer(target, packet, device) for packet in packets)
        end = remedies.End(target.address, target.number, back=True)
        for hook in (
            ("prerouting", "input") if self._context.arrival.from_host else ("prerouting", "forward", "postrouting")
        ):
            way = through(self._context.chains, hook, answers, self._context.around)
            new = [passage for passage in way.passages if passage.chain not in self._suspects]
            for step in self._context.judge.steps(new, end):
                if step.state is not StepState.FINE:
                    yield replace(step, name="answer back")
            # From here on it is for the client itself, under whatever address it was asked.
            answers = frozenset(replace(answer, destination=self._context.arrival.source) for answer in way.packets)

    def _answer(self, target: Target, packet: Packet, device: str) -> Packet:
        """Give the guest's answer to a packet; its client's port is unknown."""
        own = (address for address, devices in self._context.around.local.items() if device in devices)
        here = next((address for address in own if Family.of(address) is packet.family), None)
        return replace(
            packet,
            source=target.address,
            source_port=target.number,
            destination=here if packet.renamed else self._context.arrival.source,
            port=packet.source_port,
            came_in=device,
            goes_out=self._context.around.way_back or "",
            state=State.ESTABLISHED,
            mark=0,
        )


def _is_fallback(route: RouteAnswer, subnet: Subnet | None) -> bool:
    """Whether a route is only taken for want of the one to a subnet; a default route is never more than that."""
    if route.subnet is None:
        return True
    return route.table == MAIN_TABLE and route.subnet.prefixlen < (subnet.prefixlen if subnet is not None else 1)


# The steps of the guest's answer: does it come back through this host, and leave where the question came in? Pure.
#
# That a guest answers this host says little: the host is on the guest's link, and its clients are not.
_NAME: Final = "way back"
_OUT: Final = "ways out"
_IS_ONE: Final = ("is no uplink", "it leads", "it")
_UNDER_ANOTHER: Final = "leaves under another address, by libvirt's masquerade, or not at all"
# Documentation's (RFC 5737) and the discard prefix (RFC 6666): what a guest sends there reaches no machine.
_NOWHERE: Final[Mapping[Family, Address]] = {Family.IPV4: IPv4Address("192.0.2.1"), Family.IPV6: IPv6Address("100::1")}


@dataclass(frozen=True, slots=True)
class WayBack:
    """Follows the answer of a guest.

    `renamed` says that the guest sees an address of the host on its link instead of the client.
    """

    arrival: Arrival
    world: World
    target: Target
    entry: Entry
    device: str
    renamed: bool

    def from_guest(self, near: GuestAnswer, held: Collection[HostAddress]) -> Iterator[Step]:
        """Ask the guest as a client off its link; `near` is what it answered to the host itself."""
        source = self._source(held)
        if self.renamed or source is None:
            return
        try:
            answer = self.world.ask_from_afar(self.target.address, self.target.number, self.device, source)
        except KernelError as error:
            yield unknown(_NAME, str(error), "whether the guest answers clients elsewhere was not asked")
            return
        step = self._judged(answer, source, near)
        if step is not None:
            yield step

    def to_client(self) -> Iterator[Step]:
        """Compare where the host sends the guest's answer with where the question came in."""
        arrival = self.arrival
        if arrival.from_host or arrival.came_in in self._links:
            return
        route = self.world.route(arrival.stand_in, self.target.address, self.device)
        if route.device is None or route.device == arrival.came_in:
            return
        out, came_in = shown(route.device), shown(arrival.came_in)
        text = f"the host sends the answer out by {out}, though the question comes in by {came_in}"
        gateway = self.world.gateway_on(arrival.came_in, arrival.family)
        yield unknown(_NAME, text, remedies.answer_elsewhere(arrival, route.device, gateway))

    @property
    def _links(self) -> frozenset[str]:
        return self.target.links | {self.device}

    def _source(self, held: Collection[HostAddress]) -> Address | None:
        """Choose an address off all links of the guest; the host's own connections have one, which may be on one."""
        if self.arrival.from_host:
            source = self.arrival.stand_in
            on_link = any(own.address == source and own.device in self._links for own in held)
            return None if on_link or source.is_loopback else source
        subnets = [own.subnet for own in held if own.device in self._links]
        usable = (own.address for own in held if own.device not in self._links and self._is_usable(own.address))
        return next((found for found in usable if not _lies_in(found, subnets)), _NOWHERE[self.arrival.family])

    def _is_usable(self, address: Address) -> bool:
        return Family.of(address) is self.arrival.family and not (address.is_loopback or address.is_link_local)

    def _judged(self, answer: FarAnswer, source: Address, near: GuestAnswer) -> Step | None:
        guest = self.target.address
        if not answer.sent:
            text = f"this host does not let {guest} be asked from {source}"
            return unknown(_NAME, text, "whether the guest answers clients elsewhere was not asked")
        if not answer.seen:
            return None if near not in (GuestAnswer.ANSWERS, GuestAnswer.REFUSES) else self._nowhere(answer, source)
        here = {seen.device for seen in answer.seen if seen.to_host}
        if not here:
            return self._elsewhere()
        if self.device not in here:
            return self._by_another_link(min(here))
        if near is GuestAnswer.ANSWERS and not any(seen.by_port for seen in answer.seen):
            return self._refused_from_afar()
        return fine(_NAME, f"{guest} answers clients elsewhere through this host")

    def _nowhere(self, answer: FarAnswer, source: Address) -> Step:
        why = "it has no route back through this host, or its own firewall admits its own network only"
        for device, wanted in sorted(answer.wanted, key=str):
            if wanted != self._gateway():
                link = shown(self.world.bridge_of(device) or device)
                why = f"it looks for a gateway {wanted} through {link}, which does not answer it"
        guest = self.target.address
        text = f"{guest} answers this host on their common link, but not {source}, which is elsewhere: {why}"
        return wrong(_NAME, text, Cause.NO_WAY_BACK, self._remedy(" unless its firewall refuses them on purpose;"))

    def _elsewhere(self) -> Step:
        text = f"{self.target.address} sends its answers to another gateway, and not back to this host"
        return wrong(_NAME, text, Cause.ANSWER_ASTRAY, self._remedy())

    def _by_another_link(self, device: str) -> Step:
        guest, link = self.target.address, shown(self.device)
        text = f"{guest} answers clients elsewhere through {shown(device)}, though it is asked through {link}"
        if self.arrival.family is Family.IPV4 and is_strict(self.world, device):
            return wrong(_NAME, f"{text}, where rp_filter is strict", Cause.ANSWER_ASTRAY, self._remedy())
        return fine(_NAME, text)

    def _refused_from_afar(self) -> Step:
        where = f"{Protocol.TCP} port {self.target.number} of {self.target.address}"
        text = f"the guest answers a ping from elsewhere, but {where} answers this host only"
        return unknown(_NAME, text, f"the guest's own firewall may admit its own network only to {where}")

    def _remedy(self, but: str = "") -> str:
        gateway = self._gateway()
        through = f"through {gateway}" if gateway is not None else "through this host"
        route = f"give the guest its default route {through}"
        if isinstance(self.entry, ForwardEntry):
            return (
                f"Write masquerade = true in {self.entry.origin} and {RELOAD}, so that the guest sees an"
                f" address of this host on its own network,{but} or {route}, to have it see its clients."
            )
        return f"{route[0].upper()}{route[1:]}."

    def _gateway(self) -> Address | None:
        """Give the host's own address on the guest's link."""
        for own in self.world.addresses():
            if own.device == self.device and self.target.address in own.subnet:
                return own.address
        return None


# Where guests that leave under their own addresses do not: on links that are no uplinks. Pure.


@dataclass(frozen=True, slots=True)
class WayOut:
    """What routed and 1:1 guests open by themselves; `inner` are links that lead to guests, `main` the main file.

    `chosen` says that the configuration names the uplinks: what it leaves out may be left out on purpose.
    """

    arrival: Arrival
    world: World
    uplinks: frozenset[str]
    inner: frozenset[str]
    chosen: bool
    main: str

    def steps(self, held: Iterable[HostAddress]) -> Iterator[Step]:
        """Report links that may lead out and are no uplinks: that of the client, or else all."""
        found = {own.device: own.subnet for own in held if self._may_lead_out(own)}
        came_in = self.arrival.came_in
        if came_in in found:
            yield self._to_client(came_in, found[came_in])
        elif found:
            yield self._anywhere(found)

    def _to_client(self, device: str, subnet: Subnet) -> Step:
        link = f"{shown(device)} ({subnet})"
        remedy = remedies.name_uplinks(self.uplinks, [device], self.main)
        done = f"{remedy}, and {RELOAD}" if remedy else f"rename {link}, as uplinks cannot name it"
        text = f"{link} is no uplink: what guests open to it {_UNDER_ANOTHER}"
        return unknown(_OUT, text, f"{done}, or what guests open to {link} {_UNDER_ANOTHER}")

    def _anywhere(self, found: Mapping[str, Subnet]) -> Step:
        links = " and ".join(f"{shown(device)} ({subnet})" for device, subnet in sorted(found.items()))
        are, they, them = ("are no uplinks", "they lead", "them") if len(found) > 1 else _IS_ONE
        text = f"{links} {are}: what guests open to {them} {_UNDER_ANOTHER}"
        remedy = None if self.chosen else remedies.name_uplinks(self.uplinks, found, self.main)
        if not remedy:
            return fine(_OUT, text)
        hint = f"where {they} out, {remedy}"
        aside = f"{links} {are}: {hint}, and {RELOAD}" if self.arrival.source is None else ""
        return Step(_OUT, StepState.FINE, f"{text}; {hint}", remedy=aside)

    def _may_lead_out(self, own: HostAddress) -> bool:
        address, device = own.address, own.device
        if Family.of(address) is not self.arrival.family or address.is_loopback or address.is_link_local:
            return False
        if own.subnet.num_addresses == 1 or device in self.uplinks or device in self.inner:
            return False
        return not self.world.is_inner(device)


def _lies_in(address: Address, subnets: Iterable[Subnet]) -> bool:
    return any(address.version == subnet.version and address in subnet for subnet in subnets)
