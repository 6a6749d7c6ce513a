"""Dispatch chains: what exposures have in the kernel, and the verdict maps through which packets come to it. Pure.

A verdict map sends a packet to one dispatch chain with a single lookup, however many there are. A dispatch chain that
gives no verdict returns, and the packet goes on to the next lookup.

Most dispatch chains are a chain. Those of *plain* forwards, which are one port for anyone on any interface, share one
chain that looks their target up in a map: `nft` reads all chains of the host before it changes any, so thousands of
them would make each change slow.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, NamedTuple, TypeAlias

from fwdaemon.core.exposures import Exposure, Forward, Nat, Renaming, Route, Translated
from fwdaemon.core.state import Desired
from fwdaemon.core.text import is_interface_name, is_mac, label
from fwdaemon.core.types import Address, Family, PortRange, Subnet, collapse
from fwdaemon.nftables.admission import Terms, guarded, is_plain, kept_from_forgers, terms
from fwdaemon.nftables.model import Held, Lasting, Rule, Target
from fwdaemon.resolve.segments import Home, PortSegment, homes, in_order, segments

# Masquerading forwards: whose guests see an address of the host instead of the client's. Pure.
#
# Which forward sent a connection to a guest is no longer in the packet when it leaves. So the guest's address leads to
# a chain that asks connection tracking where the client sent it, and everything else that the forward asks. A forward
# on one address, or a 1:1 NAT, may lead to the same port of the guest without masquerading: it goes first, as on the
# way in.

# The map, by the guest's address.
MASQUERADED = "masqueraded"


def chains(family: Family, desired: Desired) -> Iterator[tuple[Address, tuple[Rule, ...], tuple[Exposure, ...]]]:
    """Give what each guest with masquerading forwards needs: its address, the rules, and the exposure of each."""
    for target, exposures in in_order(family, desired):
        yield target, tuple(_rules(exposures)), exposures


def _rules(exposures: Iterable[Translated]) -> Iterator[Rule]:
    for exposure in exposures:
        verdict = "masquerade" if exposure.masquerade else "return"
        yield Rule.of(f"{_asked(exposure)} {verdict}", label(exposure.domain))


def _asked(exposure: Translated) -> str:
    """Write what distinguishes an exposure's connections from others to the same guest."""
    ip = exposure.family.word
    if isinstance(exposure, Nat):
        return f"ct original {ip} daddr {exposure.public}"
    forward = exposure
    parts = [f"meta l4proto {forward.protocol} th dport {forward.target_ports}"]
    if forward.interface is not None:
        parts.append(f'iifname "{forward.interface}"')
    if forward.sources:
        parts.append(f"{ip} saddr {{ {', '.join(collapse(forward.sources))} }}")
    if forward.listen is not None:
        parts.append(f"ct original {ip} daddr {forward.listen}")
    parts.append(f"ct original proto-dst {forward.ports}")
    return " ".join(parts)


# Where in one of our tables exposures are, which is how damage is attributed to exposures. Pure.
MapKey: TypeAlias = tuple[str, str]
"""The verdict map and the key by which packets come to an exposure."""


@dataclass(frozen=True, slots=True)
class MapKeys:
    """Some map keys of a table, or `every` one."""

    named: frozenset[MapKey] = frozenset()
    every: bool = False

    def __bool__(self) -> bool:
        return self.every or bool(self.named)

    def __and__(self, other: "MapKeys") -> "MapKeys":
        if self.every:
            return other
        return self if other.every else MapKeys(self.named & other.named)


NOWHERE = MapKeys()
EVERYWHERE = MapKeys(every=True)


_PORT: Final = "meta l4proto . th dport"

# The maps of forwards, in the order a packet is looked up in them.
ONE_ADDRESS = ("one_address", "one_address_ranges")
EVERY_ADDRESS = ("every_address", "every_address_ranges")

# The maps of plain forwards' targets, and the chains that look there, by the verdict map that leads to these.
TARGETS: Final = {name: f"{name}_targets" for name in (ONE_ADDRESS[0], EVERY_ADDRESS[0])}
PLAIN: Final = {name: f"{name}_plain" for name in TARGETS}

# The sets of pieces of ports that are open for a while, by the map that leads to them. An element vanishes by itself.
LASTING: Final = {name: f"{name}_open" for name in (*ONE_ADDRESS, *EVERY_ADDRESS)}

# The verdict map beside which each of these maps and sets is.
BESIDE: Final = {beside: name for names in (TARGETS, LASTING) for name, beside in names.items()}

# The maps of 1:1 NATs: by public address on the way in; by the guest's on the way out, to be refused to others, and to
# be given its public address.
ONE_TO_ONE = "one_to_one"
ONE_TO_ONE_LEAVING = "one_to_one_leaving"
LEAVING_AS = "leaving_as"
_AS: Final = "as"

# The maps of routes, by subnet: on the way in, and on the way out where libvirt would refuse that. A 1:1 guest may lie
# in one, so it has a map of its own.
ENTERING = "entering"
LEAVING = "leaving"

# The maps in which a packet is looked up that no forward takes, by the public address that it goes to; and those that
# what needs no translation passes, each with the end that is looked up. A subnet is a key only in the latter.
TO_PUBLIC: Final = (ONE_TO_ONE,)
PASSING: Final = {ENTERING: "daddr", LEAVING: "saddr"}

# The map of subnets of guests and of the host's links: what has a source there, and came in elsewhere, is none of ours.
HOMES = "homes"

# The set of interfaces that lead away from the host.
UPLINKS = "uplinks"

# The sets of bridges from which libvirt lets guests out, and of those into which it lets no one; and the chain that
# refuses whatever else was not forwarded before us.
INSIDE = "inside"
CLOSED = "closed"
STRANGERS = "strangers"

# The chain that does so with what comes in where nothing was forwarded.
NEWCOMERS = "newcomers"


class DispatchChain(NamedTuple):
    """A chain, the map and key that lead to it, and the exposures it serves: that of each rule, or none.

    A plain forward has a `target` instead, and no rules, as the chain is there for all of them. What is open for a
    while has an element that is `lasting`, without which its rules take nothing.
    """

    map: str
    key: str
    chain: str
    rules: tuple[Rule, ...]
    exposures: tuple[Exposure, ...]
    target: Target | None = None
    lasting: Lasting | None = None

    @property
    def map_key(self) -> MapKey:
        """Where its exposures are in the table."""
        return self.map, self.key


def elements_of(found: Iterable[DispatchChain]) -> dict[str, dict[str, Held]]:
    """Give what the keys of dispatch chains lead to, by map or set."""
    elements = defaultdict[str, dict[str, Held]](dict)
    for name, key, chain, _, _, target, lasting in found:
        elements[name][key] = chain
        if target is not None:
            elements[TARGETS[name]][key] = target
        if lasting is not None:
            elements[LASTING[name]][key] = lasting
    return elements


def dispatch_chains(family: Family, desired: Desired) -> Iterator[DispatchChain]:
    """Give all dispatch chains of one family; no two have rules in the same chain, and no two keys in a map overlap.

    The configuration sees to it for public addresses and subnets: none may be claimed twice.
    """
    shared = terms(family, desired)
    for segment in segments(desired.of_family(family)):
        yield of_segment(segment, shared)
    yield from of_addresses(family, desired)


def of_addresses(family: Family, desired: Desired) -> Iterator[DispatchChain]:
    """Give the dispatch chains of all exposures but forwards, and of masquerading ones: there are few of these."""
    shared = terms(family, desired)
    outgoing = sorted((nat for nat in desired.outgoing if nat.family is family), key=lambda nat: nat.public)
    for nat in outgoing:
        if nat in desired.nats:
            yield _of_nat(nat, shared)
    for nat in _leaving(outgoing):
        yield from _of_leaving_nat(nat, desired.nats)
    for target, rules, exposures in chains(family, desired):
        yield DispatchChain(MASQUERADED, str(target), _chain("behind", target), rules, exposures)
    routes = sorted((route for route in desired.routes if route.family is family), key=lambda route: route.subnet)
    for route in routes:
        # A rule is text, and libvirt may call a bridge whatever the kernel takes.
        if is_interface_name(route.bridge):
            yield from _of_route(route, shared)
    kept = kept_from_forgers(family, desired)
    yield from (_of_home(home, kept) for home in homes(family, desired))


def labelled(bit: int) -> str:
    """Write the match of connections that our rules let in."""
    return f"ct label {bit}"


def labelling(bit: int) -> str:
    """Write what labels a connection that our rules let in; nft can set a label, and never takes one away."""
    return f"ct label set {bit}"


def _counting(bit: int) -> str:
    return f"{labelling(bit)} counter"


# --- forwards --------------------------------------------------------------------------------------------------------


def of_segment(segment: PortSegment, terms: Terms) -> DispatchChain:
    """Give the dispatch chain of a piece of ports."""
    exact, ranges = EVERY_ADDRESS if segment.listen is None else ONE_ADDRESS
    if _is_plain(segment):
        (forward,) = segment.forwards
        target = _target(forward.target, segment.ports.first + forward.shift, forward.domain)
        return DispatchChain(exact, _key(segment), PLAIN[exact], (), segment.forwards, target)
    ordered = segment.forwards if len(segment.forwards) == 1 else tuple(sorted(segment.forwards, key=_place_in_segment))
    name = exact if segment.ports.width == 1 else ranges
    rules = [(rule, forward) for forward in ordered for rule in _of_forward(forward, segment.ports, terms, name)]
    return DispatchChain(
        name,
        _key(segment),
        _segment_chain(segment),
        tuple(rule for rule, _ in rules),
        tuple(forward for _, forward in rules),
        lasting=_lasting(segment),
    )


def asked(family: Family, name: str) -> str:
    """Write what a packet is looked up by in a map of forwards."""
    return f"{family.word} daddr . {_PORT}" if name in ONE_ADDRESS else _PORT


def _lasting(segment: PortSegment) -> Lasting | None:
    """Give when the last of the forwards ends that are there for a while; each has a rule with an end of its own."""
    ends = [forward.until for forward in segment.forwards if forward.until is not None]
    if not ends:
        return None
    wall, boottime = max(end.wall for end in ends), max(end.boottime for end in ends)
    return Lasting(f"until {wall} or {boottime:.0f}", boottime)


def _is_plain(segment: PortSegment) -> bool:
    """Whether a port segment is one port of one forward that takes packets from anyone and by any interface."""
    ports, forwards = segment.ports, segment.forwards
    return ports.first == ports.last and len(forwards) == 1 and is_plain(forwards[0])


def _key(segment: PortSegment) -> str:
    listen = "" if segment.listen is None else f"{_text(segment.listen)} . "
    return f"{listen}{segment.protocol} . {segment.ports}"


@lru_cache(maxsize=256)
def _target(address: Address, port: int, domain: str) -> Target:
    """Give the very same for all forwards to one port of a guest."""
    return Target(f"{_text(address)} . {port}", label(domain))


def _segment_chain(segment: PortSegment) -> str:
    """Name a chain for what it serves: `any.tcp.80`, `on.198.51.100.7.udp.27015_27030`."""
    where = "any" if segment.listen is None else _chain("on", segment.listen)
    return f"{where}.{segment.protocol}.{segment.ports}".replace("-", "_")


def _place_in_segment(forward: Forward) -> tuple[str, tuple[Subnet, ...], str]:
    return forward.interface or "", forward.sources, str(forward.target)


def _of_forward(forward: Forward, ports: PortRange, terms: Terms, name: str) -> Iterator[Rule]:
    parts = [f"meta l4proto {forward.protocol}"]
    if forward.interface is not None:
        parts.append(f'iifname "{forward.interface}"')
    if forward.sources:
        parts.append(f"{forward.family.word} saddr {{ {', '.join(collapse(forward.sources))} }}")
    if forward.until is not None:
        # The clock may be put back, which the element does not follow; and it is there for the last of several.
        parts.append(f"meta time < {forward.until.wall} {asked(forward.family, name)} @{LASTING[name]}")
    return guarded(forward, " ".join(parts), f"{_counting(terms.bit)} {_dnat(forward, ports)}", terms)


def _dnat(forward: Forward, ports: PortRange) -> str:
    """Write the DNAT; nft cannot shift a range of ports, so a shifted one is spelled out as a map."""
    if ports.width == 1:
        return f"dnat to {_with_port(forward.target, ports.first + forward.shift)}"
    if forward.shift == 0:
        return f"dnat to {_text(forward.target)}"
    pairs = ", ".join(f"{port} : {port + forward.shift}" for port in ports)
    return f"dnat to {_text(forward.target)} : {forward.protocol} dport map {{ {pairs} }}"


def _with_port(address: Address, port: int) -> str:
    return f"[{_text(address)}]:{port}" if Family.of(address) is Family.IPV6 else f"{_text(address)}:{port}"


@lru_cache(maxsize=256)
def _text(address: Address) -> str:
    """Write an address; a guest has many forwards, one after the other."""
    return str(address)


# --- 1:1 NATs --------------------------------------------------------------------------------------------------------


def _of_nat(nat: Nat, terms: Terms) -> DispatchChain:
    # Who may not connect is not to meet the host under the guest's address.
    rules = tuple(guarded(nat, "", f"{_counting(terms.bit)} dnat to {nat.target}", terms, others=""))
    return DispatchChain(ONE_TO_ONE, str(nat.public), _chain("nat", nat.public), rules, (nat,) * len(rules))


def _leaving(nats: Iterable[Nat]) -> Iterable[Nat]:
    """Choose the public address that each guest leaves with: of several, the first."""
    by_target: dict[Address, Nat] = {}
    for nat in nats:
        by_target.setdefault(nat.target, nat)
    return by_target.values()


def _of_leaving_nat(nat: Nat, nats: Collection[Nat]) -> Iterator[DispatchChain]:
    """Refuse a guest's address to others, and give what leaves with it the public one.

    What the guest opens gets no label: no gate is for it, so what others refuse of it they may refuse at any time.
    """
    name, target, live = label(nat.domain), str(nat.target), nat in nats
    others = tuple(Rule.of(f"{forged} oifname @{UPLINKS} drop", name) for forged in _forged(nat))
    yield DispatchChain(ONE_TO_ONE_LEAVING, target, _chain("from", nat.target), others, (nat,) * len(others) * live)
    renamed = Rule.of(f"counter snat to {nat.public}", name)
    yield DispatchChain(LEAVING_AS, target, _chain(_AS, nat.public), (renamed,), (nat,) * live)


def renaming(guest: str, chain: str) -> Renaming | None:
    """Read back which public address a key and its chain give to a guest; `None` where others bent them."""
    try:
        return ip_address(guest), ip_address(chain.removeprefix(f"{_AS}.").replace("_", ":"))
    except ValueError:
        return None


def _forged(nat: Nat) -> Iterator[str]:
    """Write the matches of packets that the guest cannot have sent, though they have its address."""
    if nat.bridge is None or not is_interface_name(nat.bridge):
        yield f"iifname @{UPLINKS}"
        return
    yield f'iifname != "{nat.bridge}"'
    if nat.mac is not None and is_mac(nat.mac):
        yield f'iifname "{nat.bridge}" ether saddr != {nat.mac.lower()}'


# --- routes ----------------------------------------------------------------------------------------------------------


def _of_route(route: Route, terms: Terms) -> Iterator[DispatchChain]:
    name, subnet = label(route.network), str(route.subnet)
    there = f'oifname "{route.bridge}"'  # guests of one bridge reach each other without the host
    done = " return" if route.admission is not None and route.admission.is_exclusive else ""
    others = f'iifname != "{route.bridge}" {there}'
    to = tuple(guarded(route, there, f"{_counting(terms.bit)}{done}", terms, others))
    yield DispatchChain(ENTERING, subnet, _chain("to", route.subnet), to, (route,) * len(to))
    if not route.let_out:
        away = Rule.of(f'iifname "{route.bridge}" oifname @{UPLINKS} {_counting(terms.bit)}', name)
        yield DispatchChain(LEAVING, subnet, _chain("from", route.subnet), (away,), (route,))


def _of_home(home: Home, kept: Iterable[str]) -> DispatchChain:
    """Take what came in elsewhere out of our chains, and out of no other's, but for what is `kept` from forgers."""
    texts = [text for part in home.parts for text in _of_part(part, kept)]
    rules = tuple(Rule.of(text, "all") for text in [*texts, *_elsewhere(home, kept)])
    return DispatchChain(HOMES, str(home.subnet), _chain("home", home.subnet), rules, ())


def _of_part(home: Home, kept: Iterable[str]) -> Iterator[str]:
    """Judge what is from a part of a subnet, so that the whole says nothing of it."""
    source = f"{Family.of(home.subnet).word} saddr {home.subnet}"
    yield from (f"{source} {verdict}" for verdict in [*_elsewhere(home, kept), "return"])


def _elsewhere(home: Home, kept: Iterable[str]) -> Iterator[str]:
    if home.interfaces is None:
        return
    listed = ", ".join(f'"{interface}"' for interface in home.interfaces)
    there = f"iifname != {{ {listed} }} " if listed else ""
    yield from (f"{there}{match} drop" for match in kept)
    yield f"{there}accept"


def _chain(what: str, where: Address | Subnet) -> str:
    """Name a chain: `nat.198.51.100.8`, `to.2001_db8_1__/64`; nft takes a slash in a name, but no colon."""
    return f"{what}.{where}".replace(":", "_")
