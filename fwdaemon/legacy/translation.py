"""The rules of the nat table: where the first packet of a connection goes, and under whose address it leaves.

KVMPF_OUT goes from the most specific claim to the least: forwards on one address, forwards on every local address, 1:1
NATs. Three rules ahead of the forwards on every address send back what is not for the host itself, so 1:1 NATs of
addresses that are not the host's come before them, and for the host's own addresses once more after the forwards.
What the host itself opens comes there at once: that has come in through no interface, so a forward bound to one does
not take it. KVMPF_PRE leads there what came in where its source can be.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from ipaddress import ip_network
from itertools import chain
from typing import Final, NamedTuple, TypeAlias

from fwdaemon.core.exposures import Exposure, Forward, Nat, Translated
from fwdaemon.core.state import Desired
from fwdaemon.core.text import is_interface_name, label
from fwdaemon.core.types import Address, Family, PortRange, Protocol, Subnet, collapse, show_endpoint
from fwdaemon.legacy.info import Counter, counted_table
from fwdaemon.legacy.model import (
    CONFINED,
    OUT,
    POST,
    PRE,
    Rule,
    TableName,
    confined_from,
    host,
    in_set,
    labelling,
    lasting_name,
    looked_up,
    newcomers,
    unlabelled,
)
from fwdaemon.resolve.segments import (
    Home,
    PortSegment,
    bridged,
    closed,
    homes,
    in_order,
    outside,
    routed_outside,
    segments,
    switched,
)

# A rule, and the exposure it is there for; `None` where it is there for all of them.
Serving: TypeAlias = tuple[Exposure | None, Rule]

# What the rules that let only packets for the host's own addresses go on call themselves.
EVERY_ADDRESS = "every_address"

# Never "every local address": a loopback address is not reachable from elsewhere, a link-local one means another host
# on each link.
_NOT_ANYWHERE = {Family.IPV4: ("127.0.0.0/8", "169.254.0.0/16"), Family.IPV6: ("::1/128", "fe80::/10")}
ELSEWHERE = "-m addrtype ! --dst-type LOCAL"
# What the host sends to itself comes by `lo`: from elsewhere no packet can have an address of its own.
_AS_THE_HOST = "! -i lo -m addrtype --src-type LOCAL"
# What came in has passed the rule above, so only the host's own packets have its addresses.
_FROM_THE_HOST_ELSEWHERE = "-m addrtype --src-type LOCAL ! --dst-type LOCAL"


def translating(family: Family, desired: Desired) -> dict[str, list[Serving]]:
    """Write the rules of each chain."""
    return {
        PRE: list(entering(family, desired, OUT)),
        OUT: [*left_by_host(family, desired), *(_led(lead, desired.label) for lead in leads(family, desired))],
        POST: list(_postrouting(family, desired)),
    }


def entering(family: Family, desired: Desired, chain: str) -> Iterator[Serving]:
    """Lead what came in on to a chain."""
    for subnet in collapse(subnet for subnet in desired.guest_subnets if Family.of(subnet) is family):
        yield from _left_alone(family, desired, f"-s {subnet} ", ELSEWHERE)
    yield from ((None, rule) for rule in believed(family, desired, chain))


def left_by_host(family: Family, desired: Desired) -> Iterator[Serving]:
    """Send back what the host sends to addresses that another machine on the link may hold."""
    yield from _left_alone(family, desired, "", _FROM_THE_HOST_ELSEWHERE)


class Lead(NamedTuple):
    """What takes packets, to a destination; where it is no exposure's, all that it matches is sent back."""

    exposure: Translated | None
    header: str
    ports: PortRange | None = None
    rest: str = ""
    destination: str = ""

    @property
    def matches(self) -> str:
        """What it asks."""
        return f"{self.header}{'' if self.ports is None else f' --dport {_between(self.ports)}'}{self.rest}"


def leads(family: Family, desired: Desired) -> Iterator[Lead]:
    """Give what takes packets, in the order in which it is asked."""
    ordered = sorted(segments(desired.of_family(family)), key=_most_specific_first)
    every_address = [segment for segment in ordered if segment.listen is None]
    nats = nats_of(family, desired.nats)
    for segment in ordered:
        if segment.listen is not None:
            yield from _claims(segment, host(segment.listen), counts_down=desired.counts_down)
    for nat in nats:
        yield from _to_public(nat, f" {ELSEWHERE}")
    if every_address:
        yield from (Lead(None, f"-d {subnet}") for subnet in _NOT_ANYWHERE[family])
        yield Lead(None, ELSEWHERE)
    for segment in every_address:
        yield from _claims(segment, counts_down=desired.counts_down)
    for nat in nats:
        yield from _to_public(nat)


def sources_of(exposure: Exposure) -> list[tuple[str, str]]:
    """Write who is taken: each as an option ahead of all matches, or as a match behind them. Empty is anyone."""
    asked = exposure.admission
    if asked is None or not asked.is_exclusive:
        sources = exposure.sources if isinstance(exposure, Forward) else ()
        return [(f"-s {source} ", "") for source in collapse(sources)] or [("", "")]
    family = exposure.family
    plain = collapse(source for source in asked.sources if Family.of(source) is family)
    return [*((f"-s {source} ", "") for source in plain), *(("", f" {in_set(name, family)}") for name in asked.sets)]


def _to_public(nat: Nat, more: str = "") -> Iterator[Lead]:
    for source, match in sources_of(nat):
        yield Lead(nat, f"{source}-d {host(nat.public)}{more}", None, match, str(nat.target))


def believed(family: Family, desired: Desired, chain: str = OUT) -> Iterator[Rule]:
    """Lead what came in on to a chain, unless its source cannot have come from there.

    That is so for an address of the host, of guests, and of what is on its links.
    """
    yield Rule.of(_AS_THE_HOST, "RETURN", "all")
    for home in homes(family, desired):
        for part in home.parts:
            yield from _of_home(part, chain)
        if home.interfaces is not None and len(home.interfaces) == 1:
            yield Rule.of(f"-s {home.subnet} ! -i {home.interfaces[0]}", "RETURN", "all")
        else:
            yield from _of_home(home, chain)
    yield Rule.of("", chain, "all")


def _of_home(home: Home, chain: str) -> Iterator[Rule]:
    """Lead on what came in by each interface, as a rule names one, and send back the rest."""
    ways = [""] if home.interfaces is None else [f" -i {interface}" for interface in home.interfaces]
    yield from (Rule.of(f"-s {home.subnet}{way}", chain, "all") for way in ways)
    yield Rule.of(f"-s {home.subnet}", "RETURN", "all")


def _left_alone(family: Family, desired: Desired, source: str, led: str) -> Iterator[Serving]:
    """Have the host and its guests reach addresses that another machine on the link may hold, unless they came here."""
    for address in sorted((item for item in desired.elsewhere if Family.of(item) is family), key=int):
        yield None, Rule.of(f"{source}-d {host(address)} {led}", "RETURN", "elsewhere")


def _postrouting(family: Family, desired: Desired) -> Iterator[Serving]:
    """Give a 1:1 guest its public address where it leaves the host, and hairpin connections a source to answer to.

    What the guest opens gets no label: no gate is for it, so what others refuse of it they may refuse at any time.
    """
    own_addresses = leaving(family, desired)
    for nat in own_addresses:
        for interface in uplinks(desired):
            match = f"-s {host(nat.target)} -o {interface}"
            yield nat, Rule.of(match, f"SNAT --to-source {nat.public}", label(nat.domain))
    yield from _hairpin(family, desired, own_addresses)


def nats_of(family: Family, nats: Iterable[Nat]) -> list[Nat]:
    """List the 1:1 NATs of a family in the order of their public addresses."""
    return sorted((nat for nat in nats if nat.family is family), key=lambda nat: int(nat.public))


def leaving(family: Family, desired: Desired) -> list[Nat]:
    """List for each 1:1 guest the one NAT that says under which address its own connections leave, the first."""
    return list({nat.target: nat for nat in reversed(nats_of(family, desired.outgoing))}.values())[::-1]


def uplinks(desired: Desired) -> list[str]:
    """List the interfaces that lead away from the host, but no name that iptables could read as anything else."""
    return sorted(filter(is_interface_name, desired.uplinks))


def _most_specific_first(segment: PortSegment) -> tuple[bool, int, Protocol, PortRange]:
    return segment.listen is None, int(segment.listen or 0), segment.protocol, segment.ports


def _claims(segment: PortSegment, where: str = "", *, counts_down: bool) -> Iterator[Lead]:
    """Give what takes packets of a port segment to `where`, one for each forward and source."""
    for forward in sorted(segment.forwards, key=_narrowest_first):
        for source, match in sources_of(forward):
            rest = f"{_while_open(forward, counts_down=counts_down)}{match}"
            there = _destination(forward, segment.ports)
            yield Lead(forward, f"{source}{_header(forward, where)}", segment.ports, rest, there)


def _while_open(forward: Forward, *, counts_down: bool) -> str:
    """Write the match of the time in which it is there, by the kernel's clock and in UTC; these tables have no other.

    It takes whole seconds, and the last of them too. An ipset counts down beside it.
    """
    if forward.until is None:
        return ""
    stop = f" -m time --datestop {datetime.fromtimestamp(forward.until.wall - 1, UTC):%Y-%m-%dT%H:%M:%S}"
    return f"{stop} {looked_up(lasting_name(forward.until, forward.family))}" if counts_down else stop


def _led(lead: Lead, bit: int) -> Serving:
    """Write the rule that labels and translates, or sends back."""
    if lead.exposure is None:
        return None, Rule.of(lead.matches, "RETURN", EVERY_ADDRESS)
    target = f"DNAT --to-destination {lead.destination}"
    return lead.exposure, Rule.of(f"{lead.matches} {labelling(bit)}", target, label(lead.exposure.domain))


def _narrowest_first(forward: Forward) -> tuple[bool, str, bool, list[str], str]:
    sources = [str(source) for source in forward.sources]
    return forward.interface is None, forward.interface or "", not sources, sources, str(forward.target)


def _matches(forward: Forward, ports: PortRange, source: str, where: str) -> str:
    return f"{f'-s {source} ' if source else ''}{_header(forward, where)} --dport {_between(ports)}"


def _header(forward: Forward, where: str) -> str:
    """Write what is asked of a forward's packets, but for source and ports."""
    parts = [f"-d {where}"] if where else []
    if forward.interface is not None:
        parts.append(f"-i {forward.interface}")
    return " ".join([*parts, f"-p {forward.protocol} -m {forward.protocol}"])


def _between(ports: PortRange) -> str:
    return str(ports).replace("-", ":")


def _destination(forward: Forward, ports: PortRange) -> str:
    """Write where `ports`, a piece of the forward's own, lead; the number after the slash is what is counted from."""
    if ports.width > 1 and forward.shift == 0:
        return str(forward.target)
    there = show_endpoint(forward.target, ports.shifted(forward.shift))
    return there if ports.width == 1 else f"{there}/{ports.first}"


def _hairpin(family: Family, desired: Desired, own_addresses: Iterable[Nat]) -> Iterator[Serving]:
    """Make a guest that is reached from a guest answer through the host, which knows both ends.

    Our connections go to guests, most of them in known subnets. The few targets outside are sent back first, so that
    one rule for each source is enough. Masquerading forwards make their guests answer through the host to everyone.
    """
    written = collapse(subnet for subnet in desired.guest_subnets if Family.of(subnet) is family)
    subnets = [*map(ip_network, written)]
    hiding = dict(in_order(family, desired))
    if not subnets and not hiding:
        return
    yield None, Rule.of(unlabelled(desired.label), "RETURN", "hairpin")
    yield None, Rule.of("-m conntrack ! --ctstate DNAT", "RETURN", "hairpin")
    for target, exposures in hiding.items():
        ways = list(_ways_back(own_addresses, subnets)) if _lies_in(target, subnets) else []
        yield from chain.from_iterable(_hidden(exposure, ways) for exposure in exposures)
    for target in _targets(family, desired, own_addresses):
        if not _lies_in(target, subnets):
            yield None, Rule.of(f"-d {host(target)}", "RETURN", "hairpin")
    for source, verdict, nat in _ways_back(own_addresses, subnets):
        yield nat, Rule.of(f"-s {source}", verdict, label(nat.domain) if nat else "hairpin")


def _targets(family: Family, desired: Desired, own_addresses: Iterable[Nat]) -> list[Address]:
    targets = {forward.target for forward in desired.of_family(family)} | {nat.target for nat in own_addresses}
    return sorted(targets, key=int)


def _lies_in(address: Address, subnets: Iterable[Subnet]) -> bool:
    return any(address in subnet for subnet in subnets)


# A source within which a guest's connections to guests lie, what gives them another one, and whose that is.
_Way: TypeAlias = tuple[Subnet, str, Nat | None]


def _ways_back(own_addresses: Iterable[Nat], subnets: Iterable[Subnet]) -> Iterator[_Way]:
    for nat in own_addresses:
        yield ip_network(nat.target), f"SNAT --to-source {nat.public}", nat
    yield from ((subnet, "MASQUERADE", None) for subnet in subnets)


def _hidden(exposure: Translated, ways: Iterable[_Way]) -> Iterator[Serving]:
    """Hide the clients of a masquerading forward; of what goes before one, those alone that are hidden anyway."""
    name = label(exposure.domain)
    if exposure.masquerade:
        yield from ((exposure, Rule.of(match, "MASQUERADE", name)) for match in _asked(exposure))
        return
    for source, verdict, nat in ways:
        yield from ((nat or exposure, Rule.of(match, verdict, name)) for match in _asked(exposure, source))
    yield from ((exposure, Rule.of(match, "RETURN", name)) for match in _asked(exposure))


def _asked(exposure: Translated, within: Subnet | None = None) -> Iterator[str]:
    """Write the matches of an exposure's connections, of all or of clients in one subnet, by their own first end."""
    if isinstance(exposure, Nat):
        source = "" if within is None else f"-s {within} "
        yield f"{source}-d {host(exposure.target)} -m conntrack --ctorigdst {exposure.public}"
        return
    listen = "" if exposure.listen is None else f" --ctorigdst {exposure.listen}"
    asked = f"-m conntrack{listen} --ctorigdstport {_between(exposure.ports)}"
    for source in _admitted(exposure, within):
        yield f"{_matches(exposure, exposure.target_ports, source, host(exposure.target))} {asked}"


def _admitted(forward: Forward, within: Subnet | None) -> list[str]:
    """Write who may connect, from anywhere or from one subnet; empty text is anyone."""
    if within is None:
        return collapse(forward.sources) or [""]
    met = [source for source in forward.sources if source.overlaps(within)]
    return collapse(max(source, within, key=_length) for source in met) if forward.sources else [str(within)]


def _length(subnet: Subnet) -> int:
    return subnet.prefixlen


# What is refused in the filter table where we turned forwarding on.
GOING_ON: Final = "-m conntrack --ctstate RELATED,ESTABLISHED"


def confined(family: Family, desired: Desired) -> Iterator[Rule]:
    """Refuse what was not forwarded before we turned forwarding on; exposures have accepted theirs by now."""
    ways = [] if family in desired.confined else switched(family, desired)
    if family not in desired.confined and not ways:
        return
    yield Rule.of(GOING_ON, "RETURN", "confined")
    for target in outside(family, desired):
        yield from (Rule.of(f"-s {host(target)} -o {way}", "RETURN", "confined") for way in uplinks(desired))
    for route in routed_outside(family, desired):
        yield from (Rule.of(way, "RETURN", "confined") for way in ways_out(route.subnet, route.bridge, desired))
    for bridge in bridged(family, desired):
        yield Rule.of(f"-i {bridge} -o {bridge}", "RETURN", "confined")
    yield from _of_libvirt(family, desired, ways)
    yield from map(confined_from, ways) if ways else [CONFINED]


def _of_libvirt(family: Family, desired: Desired, ways: Collection[str]) -> Iterator[Rule]:
    """Let through what libvirt wants forwarded, and refuse what it refuses: its rules come back only as it starts."""
    shut, inside = closed(family, desired), sorted(filter(is_interface_name, desired.inside))
    for bridge in shut:
        if ways:
            yield from (newcomers(f"-i {way} -o {bridge}") for way in ways)
        else:
            yield Rule.of(f"-o {bridge}", "DROP", "confined")
    yield from (Rule.of(f"-i {bridge}", "RETURN", "confined") for bridge in inside)
    for bridge in sorted(set(shut).difference(inside)):
        yield confined_from(bridge) if bridge in ways else Rule.of(f"-i {bridge}", "DROP", "confined")
    yield from (Rule.of(f"-o {bridge}", "RETURN", "confined") for bridge in inside if bridge not in shut)


def ways_out(subnet: Subnet, bridge: str, desired: Desired) -> list[str]:
    """Write the matches of what a routed guest sends away from the host."""
    return [f"-s {subnet} -i {bridge} -o {interface}" for interface in uplinks(desired)]


# As in nftables, only a rule that translates counts connections.
_TRANSLATIONS: Final = ("DNAT ", "SNAT ")


def counting_rules(desired: Desired) -> Mapping[Counter, Exposure]:
    """Give the rules that count connections, each with its live exposure."""
    return {
        (counted_table(family, TableName.NAT), chain, rule.comment): exposure
        for family in Family
        for chain, servings in translating(family, desired).items()
        for exposure, rule in servings
        if exposure is not None and exposure not in desired.imminent and rule.target.startswith(_TRANSLATIONS)
    }
