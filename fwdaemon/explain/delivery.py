"""The steps from the routing decision to the guest's interface, and of the answer back. Pure."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Final

from fwdaemon.explain import remedies
from fwdaemon.explain.entrance import Entrance
from fwdaemon.explain.evaluation import Judgement
from fwdaemon.explain.facts import MAIN_TABLE, RouteAnswer
from fwdaemon.explain.ground import Ground, Target, leads_to
from fwdaemon.explain.hooks import Way, through
from fwdaemon.explain.packet import Packet, Place, State, System
from fwdaemon.explain.report import Cause, Standing, Step, fine, unknown, wrong
from fwdaemon.model import Family, Subnet
from fwdaemon.naming import shown
from fwdaemon.sysctl import of_interface

# Stands for a rule of ours that is not there.
_ABSENT: Final = Place(System.NFTABLES, "", "kvm_portfwd", "", 0)


class Delivery:
    """Follows a connection from where it arrived; where it was not sent to its target, as if it had been."""

    def __init__(self, ground: Ground, entrance: Entrance) -> None:
        self._ground = ground
        self._arrived = entrance.arrived
        self._suspects = {passage.chain for passage in entrance.passages if passage.judgement is not Judgement.ACCEPTS}

    def leave(self, target: Target, mark: int) -> Iterator[Step]:
        """Give the steps from the routing decision to the guest's interface, and back."""
        route, step = self._route(target)
        yield step
        yield from self._forwarding(target)
        device = route.device or target.bridge
        if device is None:
            return
        end = remedies.End(target.address, target.number)
        packets = frozenset(replace(packet, goes_out=device) for packet in self._led(target, mark))
        if not self._ground.arrival.from_host:
            way = through(self._ground.chains, "forward", packets, self._ground.around)
            yield from self._tell(way, end)
            packets = way.packets
        way = through(self._ground.chains, "postrouting", packets, self._ground.around)
        yield from self._tell(way, end)
        yield from self._bridge(target, way.packets, device)
        yield from self._back(target, way.packets, device)

    def _tell(self, way: Way, end: remedies.End) -> Iterator[Step]:
        """Give a step for each chain, and remember those that do not let the packet through."""
        self._suspects |= {passage.chain for passage in way.passages if passage.judgement is not Judgement.ACCEPTS}
        yield from self._ground.judge.steps(way.passages, end)

    def _led(self, target: Target, mark: int) -> frozenset[Packet]:
        """Give the packets that go to the target; where none does, one as our rules would send it."""
        right = frozenset(packet for packet in self._arrived if leads_to(packet, target))
        if right:
            return right
        packet = self._ground.arrival.packet()
        if not target.translated:
            return frozenset([packet])
        return frozenset([replace(packet.sent_to(target.address, target.number, _ABSENT), connmark=mark)])

    def _route(self, target: Target) -> tuple[RouteAnswer, Step]:
        """Judge the way to the guest; the kernel is asked as if the packet were the host's own."""
        route, bridge = self._ground.world.route(target.address), target.bridge
        if bridge is not None and self._ground.world.is_up(bridge) is False:
            text = f"bridge {shown(bridge)} is switched off"
            return route, wrong("route", text, Cause.BRIDGE_DOWN, remedies.switch_on(bridge))
        if route.device is not None and route.device == (bridge or route.device) and not route.local:
            return route, fine("route", f"{target.address} is reached through {shown(route.device)}")
        return route, self._astray(target, route)

    def _astray(self, target: Target, route: RouteAnswer) -> Step:
        where = "to no interface at all" if route.device is None else f"to {shown(route.device)}"
        text = f"the route to {target.address} leads {where}, not to {shown(target.bridge or 'the guest')}"
        if not _is_fallback(route, target.subnet):
            return wrong("route", text, Cause.ROUTE_ASTRAY, remedies.drop_route(route))
        if not target.translated:
            return self._ground.judge.missing("route", text)
        remedy = remedies.add_route(target.subnet or ip_network(target.address), target.bridge)
        return wrong("route", text, Cause.ROUTE_ASTRAY, remedy)

    def _forwarding(self, target: Target) -> Iterator[Step]:
        """Judge the forwarding settings: IPv4 asks that of the interface a packet came in by (ip_route_input_slow)."""
        arrival = self._ground.arrival
        if arrival.from_host:
            yield from self._local_net(target)
            return
        every, name = "net.ipv4.ip_forward", of_interface(Family.IPV4, arrival.came_in, "forwarding")
        if arrival.family is Family.IPV6:
            every = name = "net.ipv6.conf.all.forwarding"
        setting = self._ground.world.sysctl(name)
        if setting != "0":
            told = fine("forwarding", f"{name} is on")
            yield told if setting else unknown("forwarding", f"there is no {name}", "the host may not forward it")
            return
        off = name if self._ground.world.sysctl(every) == "1" else every
        text = f"{off} is off, so the host forwards nothing"
        yield wrong("forwarding", text, Cause.FORWARDING_OFF, remedies.set_sysctl(off, 1))

    def _local_net(self, target: Target) -> Iterator[Step]:
        """Judge what lets 127.0.0.1 leave the host, for a connection from there."""
        if not self._ground.arrival.address.is_loopback or target.bridge is None:
            return
        name = of_interface(Family.IPV4, target.bridge, "route_localnet")
        if self._ground.world.sysctl(name) == "1":
            yield fine("forwarding", f"{name} is on")
            return
        text = f"{name} is off, so 127.0.0.1 cannot reach a guest"
        yield wrong("forwarding", text, Cause.FORWARDING_OFF, self._ground.judge.mend_ours())

    def _bridge(self, target: Target, packets: frozenset[Packet], device: str) -> Iterator[Step]:
        """Follow the packet through the bridge to the guest's port."""
        if device != target.bridge:
            return
        inside = [replace(packet, came_in="", goes_out=target.port or "") for packet in packets]
        for hook in ("output", "postrouting"):
            way = through(self._ground.chains, hook, inside, self._ground.around, link=device)
            yield from self._ground.judge.steps(way.passages, remedies.End(target.address, target.number))
        if self._ground.arrival.source == target.address and target.port is not None:
            yield self._hairpin(target.port)

    def _hairpin(self, port: str) -> Step:
        """Judge a guest's connection to itself: bridged frames that netfilter translates come back to their port."""
        family = "iptables" if self._ground.arrival.family is Family.IPV4 else "ip6tables"
        through_netfilter = self._ground.world.sysctl(f"net.bridge.bridge-nf-call-{family}") == "1"
        if not through_netfilter:
            return fine("hairpin", f"bridge-nf-call-{family} is off, so the guest reaches itself")
        if self._ground.world.in_hairpin_mode(port):
            return fine("hairpin", f"bridge-nf-call-{family} is on, and port {shown(port)} in hairpin mode")
        text = f"bridge-nf-call-{family} is on, and port {shown(port)} not in hairpin mode: no frame comes back to it"
        return wrong("hairpin", text, Cause.HAIRPIN_OFF, remedies.set_hairpin(port))

    def _back(self, target: Target, packets: frozenset[Packet], device: str) -> Iterator[Step]:
        """Follow the answer; only chains that let the question through, but not the answer, are told."""
        answers = frozenset(self._answer(target, packet, device) for packet in packets)
        end = remedies.End(target.address, target.number, back=True)
        for hook in (
            ("prerouting", "input") if self._ground.arrival.from_host else ("prerouting", "forward", "postrouting")
        ):
            way = through(self._ground.chains, hook, answers, self._ground.around)
            new = [passage for passage in way.passages if passage.chain not in self._suspects]
            for step in self._ground.judge.steps(new, end):
                if step.standing is not Standing.FINE:
                    yield replace(step, name="answer back")
            # From here on it is for the client itself, under whatever address it was asked.
            answers = frozenset(replace(answer, destination=self._ground.arrival.source) for answer in way.packets)

    def _answer(self, target: Target, packet: Packet, device: str) -> Packet:
        """Give the guest's answer to a packet; its client's port is anybody's guess."""
        own = (address for address, devices in self._ground.around.local.items() if device in devices)
        here = next((address for address in own if Family.of(address) is packet.family), None)
        return replace(
            packet,
            source=target.address,
            source_port=target.number,
            destination=here if packet.renamed else self._ground.arrival.source,
            port=packet.source_port,
            came_in=device,
            goes_out=self._ground.around.way_back or "",
            state=State.ESTABLISHED,
            mark=0,
        )


def _is_fallback(route: RouteAnswer, subnet: Subnet | None) -> bool:
    """Whether a route is only taken for want of the one to a subnet; a default route is never more than that."""
    if route.subnet is None:
        return True
    return route.table == MAIN_TABLE and route.subnet.prefixlen < (subnet.prefixlen if subnet is not None else 1)
