"""The rules of the nat table: where the first packet of a connection goes, and under whose address it leaves.

KVMPF_PRE goes from the most specific claim to the least: forwards on one address, forwards on every local address, 1:1
NATs. Three rules ahead of the forwards on every address send back what is not for the host itself, so 1:1 NATs of
addresses that are not the host's come before them, and for the host's own addresses once more after the forwards.
KVMPF_OUT leads there: a connection the host itself opens has come in through no interface, so a forward bound to one
does not take it.
"""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from fwdaemon.desired import Desired, Forward, Nat, Opening
from fwdaemon.legacy.model import PRE, Rule, host, masked, set_mark
from fwdaemon.model import Family, PortRange, Protocol, collapse, show_endpoint
from fwdaemon.naming import is_interface_name, label
from fwdaemon.slots import Slot, slots

# A rule, and the opening it is there for; `None` where it is there for all of them.
Serving: TypeAlias = tuple[Opening | None, Rule]

# What the rules that let only packets for the host's own addresses go on call themselves.
EVERY_ADDRESS = "every_address"

LOOPBACK = "127.0.0.0/8"
# The rest of 127.0.0.0/8 is the host's own, as systemd-resolved's 127.0.0.53 is.
_LOCALHOST = "127.0.0.1/32"
# Never "every local address": a loopback address is not reachable from elsewhere, a link-local one means another host
# on each link.
_NOT_ANYWHERE = {Family.IPV4: (LOOPBACK, "169.254.0.0/16"), Family.IPV6: ("::1/128", "fe80::/10")}
_ELSEWHERE = "-m addrtype ! --dst-type LOCAL"


def prerouting(family: Family, desired: Desired) -> Iterator[Serving]:
    """Lead each new connection to whoever claims it."""
    ordered = sorted(slots(desired.of_family(family)), key=_most_specific_first)
    every_address = [slot for slot in ordered if slot.listen is None]
    nats = nats_of(family, desired)
    for slot in ordered:
        if slot.listen is not None:
            yield from _claims(slot, desired.mark, host(slot.listen))
    for nat in nats:
        yield from _led(nat, f"-d {host(nat.public)} {_ELSEWHERE}", str(nat.target), desired.mark)
    if every_address:
        for subnet in _NOT_ANYWHERE[family]:
            yield None, Rule.of(f"-d {subnet}", "RETURN", EVERY_ADDRESS)
        yield None, Rule.of(_ELSEWHERE, "RETURN", EVERY_ADDRESS)
    for slot in every_address:
        yield from _claims(slot, desired.mark)
    for nat in nats:
        yield from _led(nat, f"-d {host(nat.public)}", str(nat.target), desired.mark)


def output(family: Family, desired: Desired) -> Iterator[Serving]:
    """Lead what the host itself sends: KVMPF_PRE gives back what is for 127.0.0.1, for `localhost` to be tried."""
    yield None, Rule.of("", PRE, "all")
    answering = on_localhost(family, desired)
    for slot in sorted(slots(answering), key=_most_specific_first):
        yield from _claims(slot, desired.mark, _LOCALHOST)


def postrouting(family: Family, desired: Desired) -> Iterator[Serving]:
    """Give a 1:1 guest its public address where it leaves the host, and hairpin connections a source to answer to."""
    own_addresses = leaving(family, desired)
    for nat in own_addresses:
        for interface in outer(desired):
            yield nat, _public_source(nat, f" -o {interface}")
    yield from _hairpin(family, desired, own_addresses)


def nats_of(family: Family, desired: Desired) -> list[Nat]:
    """List the 1:1 NATs of a family in the order of their public addresses."""
    return sorted((nat for nat in desired.nats if nat.family is family), key=lambda nat: int(nat.public))


def leaving(family: Family, desired: Desired) -> list[Nat]:
    """List for each 1:1 guest the one NAT that says under which address its own connections leave, the first."""
    return list({nat.target: nat for nat in reversed(nats_of(family, desired))}.values())[::-1]


def outer(desired: Desired) -> list[str]:
    """List the interfaces that lead away from the host, but no name that iptables could read as anything else."""
    return sorted(filter(is_interface_name, desired.outer))


def on_localhost(family: Family, desired: Desired) -> list[Forward]:
    """List the forwards that answer on 127.0.0.1, which packets through an interface are never for."""
    if not desired.localhost or family is not Family.IPV4:
        return []
    return [forward for forward in desired.of_family(family) if forward.listen is None and forward.interface is None]


def _most_specific_first(slot: Slot) -> tuple[bool, int, Protocol, PortRange]:
    return slot.listen is None, int(slot.listen or 0), slot.protocol, slot.ports


def _claims(slot: Slot, mark: int, where: str = "") -> Iterator[Serving]:
    """Write the rules of a slot for packets to `where`, one for each forward and source."""
    for forward in sorted(slot.forwards, key=_narrowest_first):
        for source in collapse(forward.sources) or [""]:
            yield from _led(
                forward, _matches(forward, slot.ports, source, where), _destination(forward, slot.ports), mark
            )


def _led(opening: Forward | Nat, matches: str, destination: str, mark: int) -> Iterator[Serving]:
    """Write two rules with the same match: one marks, and one translates."""
    name = label(opening.domain)
    yield opening, Rule.of(matches, set_mark(mark), name)
    yield opening, Rule.of(matches, f"DNAT --to-destination {destination}", name)


def _narrowest_first(forward: Forward) -> tuple[bool, str, bool, list[str], str]:
    sources = [str(source) for source in forward.sources]
    return forward.interface is None, forward.interface or "", not sources, sources, str(forward.target)


def _matches(forward: Forward, ports: PortRange, source: str, where: str) -> str:
    parts = [f"-s {source}"] if source else []
    if where:
        parts.append(f"-d {where}")
    if forward.interface is not None:
        parts.append(f"-i {forward.interface}")
    between = str(ports).replace("-", ":")
    return " ".join([*parts, f"-p {forward.protocol} -m {forward.protocol} --dport {between}"])


def _destination(forward: Forward, ports: PortRange) -> str:
    """Write where `ports`, a piece of the forward's own, lead; the number after the slash is what is counted from."""
    shift = forward.target_ports.first - forward.ports.first
    if ports.width > 1 and shift == 0:
        return str(forward.target)
    there = show_endpoint(forward.target, PortRange(ports.first + shift, ports.last + shift))
    return there if ports.width == 1 else f"{there}/{ports.first}"


def _public_source(nat: Nat, way: str = "") -> Rule:
    return Rule.of(f"-s {host(nat.target)}{way}", f"SNAT --to-source {nat.public}", label(nat.domain))


def _hairpin(family: Family, desired: Desired, own_addresses: Iterable[Nat]) -> Iterator[Serving]:
    """Make a guest that is reached from a guest, or from 127.0.0.1, answer through the host, which knows both ends.

    Our connections go to guests, most of them in known subnets. The few targets outside are sent back first, so that
    one rule for each source is enough.
    """
    subnets = [subnet for subnet in desired.guest_subnets if Family.of(subnet) is family]
    from_loopback = bool(on_localhost(family, desired))
    if not subnets and not from_loopback:
        return
    yield None, Rule.of(f"-m connmark ! --mark {masked(desired.mark)}", "RETURN", "hairpin")
    yield None, Rule.of("-m conntrack ! --ctstate DNAT", "RETURN", "hairpin")
    if from_loopback:
        yield None, Rule.of(f"-s {LOOPBACK}", "MASQUERADE", "localhost")
    targets = {forward.target for forward in desired.of_family(family)} | {nat.target for nat in own_addresses}
    for target in sorted(targets, key=int):
        if not any(target in subnet for subnet in subnets):
            yield None, Rule.of(f"-d {host(target)}", "RETURN", "hairpin")
    for nat in own_addresses:
        yield nat, _public_source(nat)
    for source in collapse(subnets):
        yield None, Rule.of(f"-s {source}", "MASQUERADE", "hairpin")
