"""Which connections outlive a change of the configuration, and what becomes of packets on those that do not."""

from fwdaemon.config.model import Config, ForwardEntry
from fwdaemon.core.types import Address
from tests.packets.plan import HOLDER, LINK, LOCAL, UPLINK
from tests.packets.promise import (
    Fate,
    Led,
    Packet,
    Place,
    claims_on,
    fate,
    is_let_in,
    is_refused,
    leaves_by_route,
    public_of,
    taker,
    within,
)


def answer_to(packet: Packet, met: Fate, client_port: int, number: int) -> Packet:
    """Give what a receiver answers, which saw the client at this port."""
    return Packet(number, met.where, met.where, met.to, met.port, met.source, client_port, packet.protocol)


def answered(packet: Packet) -> Fate:
    """Tell what an answer looks like to its client: as coming from where the client sent its packet."""
    return Fate(packet.sender, packet.to, packet.source, packet.source_port)


def fate_of_answer(before: Place, after: Place, packet: Packet, answer: Packet) -> Fate | None:
    """Tell what becomes of an answer after a change; what was ended is refused where it would begin anew.

    But what an exposure took over may: it was nothing that we let in.
    """
    if goes_on(before, after, packet):
        return answered(packet)
    anew = fate(after, answer)
    return anew if displaced(before, after, packet) or (anew and anew.where == "host") else None


def fate_of_more(before: Place, after: Place, packet: Packet, answer: Packet | None) -> Fate | None:
    """Tell what becomes of a client's next packet after a change, and after an answer, which the host gives none.

    What an administrator refuses since then holds for what guests opened, too.
    """
    if answer is None or fate_of_answer(before, after, packet, answer) != answered(packet):
        return fate(after, packet)
    met = fate(before, packet)
    ours = is_let_in(before.config, packet)
    return None if met is None or is_refused(after, packet, met.port, ours=ours) else met


def goes_on(before: Place, after: Place, packet: Packet) -> bool:
    """Whether the connection that a packet began goes on: if something still carries it, or nothing did before."""
    if led := taker(before.config, packet):
        return _is_still_led(before, after, packet, led)
    if displaced(before, after, packet):
        return False
    if public := _left_as(before.config, packet):
        return any(nat.public == public and HOLDER[packet.source] == nat.domain for nat in after.config.nats)
    routes = [route.subnet for route in before.config.routes]
    ends = [packet.to, *([packet.source] if leaves_by_route(before.config, packet) else [])]
    routed = [subnet for subnet in routes if any(within(end, subnet) for end in ends)]
    return all(any(subnet == route.subnet for route in after.config.routes) for subnet in routed)


def displaced(before: Place, after: Place, packet: Packet) -> bool:
    """Whether an exposure takes now what went elsewhere and has no end of its own; the first to send begins it anew."""
    claims = claims_on(after.config, packet)
    return taker(before.config, packet) is None and any(_is_new(claim, before.config, packet) for claim in claims)


def _is_still_led(before: Place, after: Place, packet: Packet, led: Led) -> bool:
    """By which interface it came in is not known later: what may have taken it and went has to be led there, too."""
    shown = fate(before, packet)
    hidden = shown is not None and shown.source != packet.source
    now = [claim for claim in claims_on(after.config, packet) if _leads_to_same(claim, led)]
    former = [claim for claim in claims_on(before.config, packet) if _leads_to_same(claim, led)]
    gone = {claim.interface for claim in former if not any(_same(claim, other) for other in now)}
    fitting = [claim.interface for claim in now if hidden or not claim.masquerades]
    is_led = None in fitting or LINK[packet.sender] in fitting
    return is_led and (not gone or None in fitting or any(gone == {interface} for interface in fitting))


def _leads_to_same(claim: Led, led: Led) -> bool:
    return (claim.target, claim.port) == (led.target, led.port)


def _is_new(claim: Led, before: Config, packet: Packet) -> bool:
    return not any(_same(claim, former) for former in claims_on(before, packet))


def _same(claim: Led, former: Led) -> bool:
    return _sides(claim) == _sides(former)


def _sides(led: Led) -> tuple[object, ...]:
    """Give all that makes a claim, but for the line where it is written."""
    sources = led.entry.sources if isinstance(led.entry, ForwardEntry) else ()
    hosts = [str(mapping.host) for mapping in led.entry.mappings] if isinstance(led.entry, ForwardEntry) else []
    return led.entry.domain, led.rank, led.target, led.port, led.interface, led.masquerades, sources, hosts


def _left_as(config: Config, packet: Packet) -> Address | None:
    away = packet.to not in LOCAL and LINK[HOLDER[packet.to]] == UPLINK
    return public_of(config, packet.source) if away else None
