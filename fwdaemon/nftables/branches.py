"""Branches: what openings have in the kernel, and the verdict maps through which packets come to it. Pure.

A verdict map sends a packet to one branch with a single lookup, however many there are. A branch that gives no verdict
returns, and the packet goes on to the next lookup.

Most branches are a chain. Those of *plain* forwards, which are one port for anyone on any interface, share one chain
that looks their target up in a map: `nft` reads all chains of the host before it changes any, so thousands of them
would make each change slow.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from fwdaemon.desired import Desired, Forward, Nat, Opening, Route
from fwdaemon.model import Address, Family, PortRange, Subnet, collapse
from fwdaemon.naming import is_interface_name, label
from fwdaemon.nftables.model import Rule, Target, family_name
from fwdaemon.nftables.places import Place
from fwdaemon.slots import Slot, slots

# The maps of forwards, in the order a packet is looked up in them.
ONE_ADDRESS = ("one_address", "one_address_ranges")
EVERY_ADDRESS = ("every_address", "every_address_ranges")

# The maps of plain forwards' targets, and the chains that look there, by the verdict map that leads to these.
TARGETS: Final = {name: f"{name}_targets" for name in (ONE_ADDRESS[0], EVERY_ADDRESS[0])}
PLAIN: Final = {name: f"{name}_plain" for name in TARGETS}

# The maps of 1:1 NATs: by public address on the way in; by the guest's on the way out, to be let through, and to be
# given its public address.
ONE_TO_ONE = "one_to_one"
ONE_TO_ONE_LEAVING = "one_to_one_leaving"
LEAVING_AS = "leaving_as"

# The maps of routes, by subnet; a 1:1 guest may lie in one, so it has a map of its own.
ENTERING = "entering"
LEAVING = "leaving"

# The set of interfaces that lead away from the host.
OUTER = "outer"


@dataclass(frozen=True, slots=True)
class Branch:
    """A chain, the map and key that lead to it, and the openings it serves, one for each rule.

    A plain forward has a `target` instead, and no rules, as the chain is there for all of them.
    """

    map: str
    key: str
    chain: str
    rules: tuple[Rule, ...]
    openings: tuple[Opening, ...]
    target: Target | None = None

    @property
    def place(self) -> Place:
        """Where its openings are."""
        return self.map, self.key

    @property
    def elements(self) -> tuple[tuple[str, str | Target], ...]:
        """What its key leads to, by map."""
        leading = self.map, self.chain
        return (leading,) if self.target is None else (leading, (TARGETS[self.map], self.target))


def branches(family: Family, desired: Desired) -> Iterator[Branch]:
    """Give all branches of one family; no two have rules in the same chain, and no two keys in a map overlap.

    The configuration sees to it for public addresses and subnets: none may be claimed twice.
    """
    for slot in slots(desired.of_family(family)):
        yield of_slot(slot, desired.mark)
    yield from of_addresses(family, desired)


def of_addresses(family: Family, desired: Desired) -> Iterator[Branch]:
    """Give the branches of all openings that are not forwards, of which there are few."""
    nats = sorted((nat for nat in desired.nats if nat.family is family), key=lambda nat: nat.public)
    for nat in nats:
        yield _of_nat(nat, desired.mark)
    for nat in _leaving(nats):
        yield from _of_leaving_nat(nat, desired.mark)
    routes = sorted((route for route in desired.routes if route.family is family), key=lambda route: route.subnet)
    for route in routes:
        # A rule is text, and libvirt may call a bridge whatever the kernel takes.
        if is_interface_name(route.bridge):
            yield from _of_route(route, desired.mark)


def marked(mark: int) -> str:
    """Write the match of connections that our rules let in."""
    return f"ct mark and {mark:#010x} == {mark:#010x}"


def marking(mark: int) -> str:
    """Write what marks a connection that our rules let in."""
    return f"ct mark set ct mark or {mark:#010x}"


def _counting(mark: int) -> str:
    return f"{marking(mark)} counter"


# --- forwards --------------------------------------------------------------------------------------------------------


def of_slot(slot: Slot, mark: int) -> Branch:
    """Give the branch of a piece of ports."""
    exact, ranges = EVERY_ADDRESS if slot.listen is None else ONE_ADDRESS
    if _is_plain(slot):
        target = _target(slot.forwards[0], slot.ports.first)
        return Branch(exact, _key(slot), PLAIN[exact], (), slot.forwards, target)
    ordered = slot.forwards if len(slot.forwards) == 1 else tuple(sorted(slot.forwards, key=_place_in_slot))
    return Branch(
        exact if slot.ports.width == 1 else ranges,
        _key(slot),
        _slot_chain(slot),
        tuple(Rule.of(_expression(forward, slot.ports, mark), label(forward.domain)) for forward in ordered),
        ordered,
    )


def _is_plain(slot: Slot) -> bool:
    """Whether a slot is one port of one forward that takes packets from anyone and by any interface."""
    if slot.ports.width > 1 or len(slot.forwards) > 1:
        return False
    (forward,) = slot.forwards
    return not forward.sources and forward.interface is None


def _key(slot: Slot) -> str:
    listen = "" if slot.listen is None else f"{_text(slot.listen)} . "
    return f"{listen}{slot.protocol} . {slot.ports}"


def _target(forward: Forward, port: int) -> Target:
    port += forward.target_ports.first - forward.ports.first
    return Target(f"{_text(forward.target)} . {port}", label(forward.domain))


def _slot_chain(slot: Slot) -> str:
    """Name a chain for what it serves: `any.tcp.80`, `on.198.51.100.7.udp.27015_27030`."""
    where = "any" if slot.listen is None else _chain("on", slot.listen)
    return f"{where}.{slot.protocol}.{slot.ports}".replace("-", "_")


def _place_in_slot(forward: Forward) -> tuple[str, tuple[Subnet, ...], str]:
    return forward.interface or "", forward.sources, str(forward.target)


def _expression(forward: Forward, ports: PortRange, mark: int) -> str:
    parts = [f"meta l4proto {forward.protocol}"]
    if forward.interface is not None:
        parts.append(f'iifname "{forward.interface}"')
    if forward.sources:
        parts.append(f"{family_name(forward.family)} saddr {{ {', '.join(collapse(forward.sources))} }}")
    parts.append(f"{_counting(mark)} {_dnat(forward, ports)}")
    return " ".join(parts)


def _dnat(forward: Forward, ports: PortRange) -> str:
    """Write the DNAT; nft cannot shift a range of ports, so a shifted one is spelled out as a map."""
    shift = forward.target_ports.first - forward.ports.first
    if ports.width == 1:
        return f"dnat to {_with_port(forward.target, ports.first + shift)}"
    if shift == 0:
        return f"dnat to {_text(forward.target)}"
    pairs = ", ".join(f"{port} : {port + shift}" for port in ports)
    return f"dnat to {_text(forward.target)} : {forward.protocol} dport map {{ {pairs} }}"


def _with_port(address: Address, port: int) -> str:
    return f"[{_text(address)}]:{port}" if Family.of(address) is Family.IPV6 else f"{_text(address)}:{port}"


@lru_cache(maxsize=256)
def _text(address: Address) -> str:
    """Write an address; a guest has many forwards, one after the other."""
    return str(address)


# --- 1:1 NATs --------------------------------------------------------------------------------------------------------


def _of_nat(nat: Nat, mark: int) -> Branch:
    rule = Rule.of(f"{_counting(mark)} dnat to {nat.target}", label(nat.domain))
    return Branch(ONE_TO_ONE, str(nat.public), _chain("nat", nat.public), (rule,), (nat,))


def _leaving(nats: Iterable[Nat]) -> Iterable[Nat]:
    """Choose the public address that each guest leaves with: of several, the first."""
    by_target: dict[Address, Nat] = {}
    for nat in nats:
        by_target.setdefault(nat.target, nat)
    return by_target.values()


def _of_leaving_nat(nat: Nat, mark: int) -> Iterator[Branch]:
    name, target = label(nat.domain), str(nat.target)
    # Whoever is elsewhere may give any source address.
    known = nat.bridge is not None and is_interface_name(nat.bridge)
    came_in = f'iifname "{nat.bridge}"' if known else f"iifname != @{OUTER}"
    through = Rule.of(f"{came_in} oifname @{OUTER} {_counting(mark)}", name)
    yield Branch(ONE_TO_ONE_LEAVING, target, _chain("from", nat.target), (through,), (nat,))
    renamed = Rule.of(f"counter snat to {nat.public}", name)
    yield Branch(LEAVING_AS, target, _chain("as", nat.public), (renamed,), (nat,))


# --- routes ----------------------------------------------------------------------------------------------------------


def _of_route(route: Route, mark: int) -> Iterator[Branch]:
    name, subnet = label(route.network), str(route.subnet)
    to = Rule.of(f'oifname "{route.bridge}" {_counting(mark)}', name)
    yield Branch(ENTERING, subnet, _chain("to", route.subnet), (to,), (route,))
    away = Rule.of(f'iifname "{route.bridge}" oifname @{OUTER} {_counting(mark)}', name)
    yield Branch(LEAVING, subnet, _chain("from", route.subnet), (away,), (route,))


def _chain(what: str, where: Address | Subnet) -> str:
    """Name a chain: `nat.198.51.100.8`, `to.2001_db8_1__/64`; nft takes a slash in a name, but no colon."""
    return f"{what}.{where}".replace(":", "_")
