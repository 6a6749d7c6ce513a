"""The steps from the interface a packet comes in by to the routing decision, translation included. Pure."""

from collections.abc import Iterator, Sequence
from typing import Final

from fwdaemon.explain import remedies
from fwdaemon.explain.chain_steps import describe
from fwdaemon.explain.evaluation import Passage
from fwdaemon.explain.ground import Ground, Target, is_ours, leads_to
from fwdaemon.explain.hooks import Way, through, translations
from fwdaemon.explain.owners import owner_of
from fwdaemon.explain.packet import Packet, Place
from fwdaemon.explain.report import Cause, Step, fine, unknown, wrong
from fwdaemon.model import Address, Family
from fwdaemon.naming import shown
from fwdaemon.sysctl import of_interface

_STRICT: Final = 1


class Entrance:
    """First `enter`; then it knows where the connection was sent, and `arrived` are its packets."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._entering: Way | None = None
        self._end = remedies.End(ground.arrival.address, ground.arrival.port)
        self.arrived: frozenset[Packet] = frozenset()

    def enter(self) -> Iterator[Step]:
        """Give the steps up to the routing decision, translation included, whatever it should be."""
        yield from self._reverse_path()
        arrival = self._ground.arrival
        packets = frozenset([arrival.packet()])
        if arrival.from_host:
            self._entering = through(self._ground.chains, "output", packets, self._ground.around)
        else:
            ingress = through(self._ground.chains, "ingress", packets, self._ground.around, link=arrival.came_in)
            yield from self._ground.judge.steps(ingress.passages, self._end)
            self._entering = through(self._ground.chains, "prerouting", ingress.packets, self._ground.around)
        yield from self._ground.judge.steps(self._entering.passages, self._end)
        self.arrived = self._entering.packets

    def into_host(self) -> Iterator[Step]:
        """Give the steps of a connection that stays on the host."""
        if not self._ground.arrival.from_host:
            way = through(self._ground.chains, "input", self.arrived, self._ground.around)
            yield from self._ground.judge.steps(way.passages, self._end)

    def led_to(self) -> tuple[Address, int] | None:
        """Give the address and port that rules of ours in the kernel send the connection to, if they do."""
        ours = [packet for packet in self.arrived if is_ours(packet)]
        found = {(packet.destination, packet.port) for packet in ours}
        for address, port in found:
            if len(found) == 1 and address is not None and port is not None:
                return address, port
        return None

    def translation(self, target: Target) -> Step:
        """Judge whether the connection was sent where it shall go."""
        if not target.translated:
            return self._untouched(target)
        right = [packet for packet in self.arrived if leads_to(packet, target)]
        others = list(translations(packet for packet in self.arrived if not is_ours(packet)))
        if right and len(right) == len(self.arrived):
            return fine("translation", f"our rules send it to {target}")
        if others:
            return self._taken(others[0], certainly=not right)
        if right:
            return unknown("translation", f"our rules send it to {target}, unless what may refuse it does")
        untracked = self._entering.untracked_by if self._entering is not None else None
        if untracked is not None:
            remedy = remedies.except_from(untracked, self._end, self._ground.arrival.protocol)
            text = f"{describe(untracked)} takes it out of connection tracking, so nothing can translate it"
            return wrong("translation", text, Cause.UNTRACKED, remedy)
        return self._missing(target)

    def _untouched(self, target: Target) -> Step:
        others = list(translations(self.arrived))
        if others:
            return self._taken(others[0], certainly=all(packet.translated_by for packet in self.arrived))
        return fine("translation", f"none is needed: {target.address} is routed")

    def _taken(self, place: Place, *, certainly: bool) -> Step:
        chain = next(passage.chain for passage in self.passages if _translates(passage, place))
        where = next(packet for packet in self.arrived if packet.translated_by == place)
        to = "elsewhere" if where.destination is None else str(where.destination)
        text = f"{describe(chain)} ({owner_of(place)}) sends it to {to} before our rules: {shown(place.text)}"
        if not certainly:
            return unknown("translation", text.replace(" sends ", " may send "), f"{describe(chain)} may take it")
        if any(name.startswith("KVMPF_") for name in chain.chains):
            # An exception in there would end the table, and our chain with it.
            return wrong("translation", text, Cause.TAKEN, self._ground.judge.mend_ours())
        remedy = remedies.except_from(chain, self._end, self._ground.arrival.protocol)
        return wrong("translation", text, Cause.TAKEN, remedy)

    def _missing(self, target: Target) -> Step:
        led = self.led_to()
        text = (
            "no rule of ours in the kernel takes it" if led is None else f"our rules send it to {led[0]}, not {target}"
        )
        return self._ground.judge.missing("translation", text)

    @property
    def passages(self) -> Sequence[Passage]:
        """The packet's way through every chain it met so far, those of one interface aside."""
        return self._entering.passages if self._entering is not None else ()

    def _reverse_path(self) -> Iterator[Step]:
        """Judge the reverse path filter (ip-sysctl.rst, rp_filter): the stricter of two settings counts."""
        arrival, back = self._ground.arrival, self._ground.around.way_back
        if arrival.from_host or arrival.family is Family.IPV6:
            return
        name = of_interface(Family.IPV4, arrival.came_in, "rp_filter")
        settings = [self._ground.world.sysctl(name), self._ground.world.sysctl("net.ipv4.conf.all.rp_filter")]
        strictest = max(int(setting or 0) for setting in settings)
        if strictest != _STRICT or back == arrival.came_in:
            return
        if self._ground.world.route(arrival.address, arrival.stand_in, arrival.came_in).device is not None:
            return  # by another route, as one of several
        text = f"rp_filter is strict on {arrival.came_in}, and the way back to the client is {back or 'unknown'}"
        yield wrong("reverse path", text, Cause.REVERSE_PATH, remedies.set_sysctl(name, 2))


def _translates(passage: Passage, place: Place) -> bool:
    return any(packet.translated_by == place for packet in passage.packets)
