"""Which connections outlive a change of the configuration, and what becomes of packets on those that do not."""

from dataclasses import replace

from fwdaemon.config.model import Config, ForwardEntry
from fwdaemon.core.types import Address, Subnet
from tests.packets.plan import BRIDGES, HOLDER, LINK, LOCAL, UPLINK
from tests.packets.promise import (
    ACK,
    SYN,
    Fate,
    Led,
    Packet,
    Place,
    claims_on,
    fate,
    is_kept_out,
    is_let_in,
    is_refused,
    leaves_by_route,
    public_of,
    taker,
    within,
)


def answer_to(packet: Packet, met: Fate, client_port: int, number: int) -> Packet:
    """Give what a receiver answers, which saw the client at this port."""
    sent = number, met.where, met.where, met.to, met.port, met.source, client_port, packet.protocol
    return Packet(*sent, flags=SYN | ACK)


def answered(packet: Packet) -> Fate:
    """Say what an answer looks like to its client: as coming from where the client sent its packet."""
    return Fate(packet.sender, packet.to, packet.source, packet.source_port)


def fate_of_answer(before: Place, after: Place, packet: Packet, answer: Packet) -> Fate | None:
    """Say what becomes of an answer after a change; what was ended is refused where it would begin anew.

    But what an exposure took over may: it was nothing that we let in. So may all once nothing of ours is left; the
    client's next packet comes first then, and may have begun the same anew.
    """
    if goes_on(before, after, packet) or (after.gone and fate(after, packet) == fate(before, packet)):
        return answered(packet)
    anew = fate(after, answer)
    may = after.gone or displaced(before, after, packet) or (anew is not None and anew.where == "host")
    return anew if may else None


def fate_of_more(before: Place, after: Place, packet: Packet, answer: Packet | None) -> Fate | None:
    """Say what becomes of a client's next packet after a change, and after an answer, which the host gives none.

    What an administrator refuses since then holds for what guests opened, too.
    """
    if answer is None or fate_of_answer(before, after, packet, answer) != answered(packet):
        return fate(after, packet)
    if after.gone and not goes_on(before, after, packet):
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
    leaves = leaves_by_route(before.config, packet)
    routed = [subnet for subnet in _entered(before.config, packet) if LINK[HOLDER[packet.to]] in BRIDGES]
    left = [route.subnet for route in before.config.routes if leaves and within(packet.source, route.subnet)]
    staying = [route.subnet for route in after.config.routes]
    return all(subnet in _entered(after.config, packet) for subnet in routed) and all(map(staying.__contains__, left))


def _entered(config: Config, packet: Packet) -> list[Subnet]:
    """Give the routes by which a packet may come in."""
    routes = [route for route in config.routes if within(packet.to, route.subnet)]
    return [route.subnet for route in routes if not is_kept_out(config, route, packet)]


def displaced(before: Place, after: Place, packet: Packet) -> bool:
    """Whether an exposure takes now what went elsewhere and has no end of its own; the first to send begins it anew."""
    if packet.protocol != "udp" or taker(before.config, packet) is not None:
        return False
    return any(_is_new(claim, before.config, packet) for claim in claims_on(_for_anybody(after.config), packet))


def _for_anybody(config: Config) -> Config:
    """Give a configuration that does not know who is in a set: what is new there may be for any client."""
    forwards = (
        replace(entry, admission=replace(entry.admission, sources=(), sets=())) if entry.admission else entry
        for entry in config.forwards
    )
    return replace(config, forwards=tuple(forwards))


def _is_still_led(before: Place, after: Place, packet: Packet, led: Led) -> bool:
    """By which interface it came in is not known later: what may have taken it and went has to be led there, too."""
    shown = fate(before, packet)
    hidden = shown is not None and shown.source != packet.source
    now = [claim for claim in claims_on(_for_anybody(after.config), packet) if _leads_to_same(claim, led)]
    former = [claim for claim in claims_on(_for_anybody(before.config), packet) if _leads_to_same(claim, led)]
    gone = {claim.interface for claim in former if not any(_same(claim, other) for other in now)}
    open_ = [claim for claim in claims_on(after.config, packet) if not is_kept_out(after.config, claim.entry, packet)]
    carrying = [claim for claim in open_ if _leads_to_same(claim, led)]
    fitting = [claim.interface for claim in carrying if hidden or not claim.masquerades]
    is_led = None in fitting or LINK[packet.sender] in fitting
    return is_led and (not gone or None in fitting or any(gone == {interface} for interface in fitting))


def _leads_to_same(claim: Led, led: Led) -> bool:
    return (claim.target, claim.port) == (led.target, led.port)


def _is_new(claim: Led, before: Config, packet: Packet) -> bool:
    return not any(_same(claim, former) for former in claims_on(_for_anybody(before), packet))


def _same(claim: Led, former: Led) -> bool:
    return _sides(claim) == _sides(former)


def _sides(led: Led) -> tuple[object, ...]:
    """Give all that makes a claim, but for the line where it is written."""
    sources = led.entry.sources if isinstance(led.entry, ForwardEntry) else ()
    hosts = [str(mapping.host) for mapping in led.entry.mappings] if isinstance(led.entry, ForwardEntry) else []
    asked = led.entry.admission
    return led.entry.domain, led.rank, led.target, led.port, led.interface, led.masquerades, sources, hosts, asked


def _left_as(config: Config, packet: Packet) -> Address | None:
    away = packet.to not in LOCAL and LINK[HOLDER[packet.to]] == UPLINK
    return public_of(config, packet.source) if away else None
