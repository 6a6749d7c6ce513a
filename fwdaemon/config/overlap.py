"""What entries must not say together: of ports, of addresses, and of keys of one entry."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import chain, islice
from operator import attrgetter
from typing import Final, TypeAlias

from fwdaemon.config.addresses import show_relation
from fwdaemon.config.model import Entry, ForwardEntry, NatEntry, PortMapping
from fwdaemon.config.node import Node
from fwdaemon.config.ports import PortSpec
from fwdaemon.core.admission import Admission
from fwdaemon.core.text import quote
from fwdaemon.core.types import Address, Family, Origin, PortRange, Protocol, Subnet, show_endpoint
from fwdaemon.errors import Clash, Problem

# Entries that claim the same, as problems: how many of them are reported.
MOST_CONFLICTS: Final = 100


def cut_short(conflicts: Iterable[Problem]) -> list[Problem]:
    """Return the first `MOST_CONFLICTS` problems; where there are more, one that says so is added."""
    problems = list(islice(conflicts, MOST_CONFLICTS + 1))
    if len(problems) > MOST_CONFLICTS:
        text = f"there are more than {MOST_CONFLICTS} conflicts; fix those listed, and the others will be shown"
        problems[-1] = problems[-2]._replace(text=text, clash=None)
    return problems


# What the keys of one entry must not say together.
_EITHER = frozenset(Family)
# ARP is answered address by address, for 1,024 at most; neighbour discovery is answered by subnet.
_WIDEST_PROXY: Final = 22


def families_of(items: Collection[Address | Subnet]) -> frozenset[Family]:
    """Return the families to which addresses or networks restrict an entry; none at all restrict nothing."""
    return frozenset(map(Family.of, items)) or _EITHER if items else _EITHER


def families_of_entry(entry: Entry) -> frozenset[Family]:
    """Return the families in which an entry can lead anything anywhere, where it listens left aside."""
    return families_of(_guest(entry)) & families_of(entry.sources)


def refuse_contradictions(entry: ForwardEntry, fields: Mapping[str, Node]) -> None:
    """Record what an entry's keys say against each other."""
    _refuse_two_interfaces(fields)
    _refuse_one_guest(entry, fields)
    listen, guest, sources = families_of(entry.listen), families_of(_guest(entry)), families_of(entry.sources)
    if not guest & listen:
        _refuse_families(fields["address"], guest, f"listen is {_show(listen)}")
    if not sources & listen:
        _refuse_families(fields["sources"], sources, f"listen is {_show(listen)}")
    if not sources & guest:
        _refuse_families(fields["sources"], sources, f"the guest's address is {_show(guest)}")


def refuse_nat_contradictions(entry: NatEntry, fields: Mapping[str, Node]) -> None:
    """Record what the keys of a `[[nat]]` say against each other."""
    _refuse_two_interfaces(fields)
    refuse_unmatched(fields, entry.admission, [entry.public], "public is")
    public, guest = families_of([entry.public]), families_of(_guest(entry))
    if not guest & public:
        _refuse_families(fields["address"], guest, f"public is {_show(public)}")
    if entry.address == entry.public:
        fields["address"].refuse("is public itself, so nothing is left to translate; write a [[route]] instead")


def refuse_unmatched(
    fields: Mapping[str, Node], asked: Admission | None, to: Collection[Address | Subnet], what: str
) -> None:
    """Record sources of which none could connect to any of these addresses; `what` calls those."""
    if asked is None or not asked.sources or asked.sets:
        return
    sources, there = families_of(asked.sources), families_of(to)
    if not sources & there:
        _refuse_families(fields["sources"], sources, f"{what} {_show(there)}")


def refuse_wide_proxies(subnets: Iterable[tuple[Node, Subnet]]) -> None:
    """Record each subnet of a `[[route]]` that is too wide to be answered for, address by address."""
    for item, subnet in subnets:
        if Family.of(subnet) is Family.IPV4 and subnet.prefixlen < _WIDEST_PROXY:
            item.refuse(
                f"{quote(str(subnet))} is wider than /{_WIDEST_PROXY}, and with proxy the host answers ARP for each"
                " address singly; leave proxy out and have the subnet routed to this host, or write the part in use"
            )


def refuse_port_contradictions(entry: ForwardEntry, specs: Collection[tuple[Node, PortSpec]]) -> None:
    """Record each port string whose own listening address is at odds with the entry's other keys."""
    for item, spec in specs:
        if spec.listen is None:
            continue
        here = families_of([spec.listen])
        if entry.listen:
            item.refuse("names an address, as listen does for the whole entry; move it to a [[forward]] of its own")
        elif not here & families_of(_guest(entry)):
            _refuse_families(item, here, f"the guest's address is {_show(families_of(_guest(entry)))}")
        elif not here & families_of(entry.sources):
            _refuse_families(item, here, f"sources are {_show(families_of(entry.sources))}")


def _refuse_one_guest(entry: ForwardEntry, fields: Mapping[str, Node]) -> None:
    """Record what only one guest can have beside a pattern of names."""
    for key in ("address", "mac"):
        if entry.is_pattern and key in fields:
            what = f"is one guest's, and domain is the pattern {quote(entry.domain)}"
            fields[key].refuse(f"{what}; write an entry for that guest by its name")


def _refuse_two_interfaces(fields: Mapping[str, Node]) -> None:
    if "network" in fields and "mac" in fields:
        fields["mac"].refuse("picks the guest's interface, as network already does; remove one of the two")


def _refuse_families(node: Node, families: frozenset[Family], other: str) -> None:
    node.refuse(f"is {_show(families)} only, but {other} only, so nothing could match; write both in one family")


def _guest(entry: Entry) -> tuple[Address, ...]:
    return () if entry.address is None else (entry.address,)


def _show(families: frozenset[Family]) -> str:
    return " and ".join(f"IPv{family}" for family in sorted(families))


# Two claims on one address, port and protocol.
#
# Claims that need not be compared are never met: they are sorted by address, family and protocol, then swept along the
# ports, and among those open at one port a claim finds the others through its interface and the prefixes of its
# sources. What that costs grows with the conflicts, not with the square of the claims.

# A network as its prefix length and the bits of its prefix; the networks around it are shifts of it.
_Prefix: TypeAlias = tuple[int, int]
_Place: TypeAlias = tuple[Address | None, Family, Protocol]
_Open: TypeAlias = dict[_Prefix, dict[str | None, list["_Claim"]]]


@dataclass(frozen=True, slots=True, eq=False)
class _Claim:
    """One mapping at one address, or at every address of one family; `rank` is its place in the configuration."""

    rank: tuple[int, int]
    place: _Place
    entry: ForwardEntry
    mapping: PortMapping

    @property
    def written(self) -> tuple[object, ...]:
        """What stands for its port string: the mappings of `53/tcp+udp` have it in common."""
        return self.rank[0], self.mapping.origin, self.mapping.listen, self.mapping.host

    @property
    def sources(self) -> list[_Prefix]:
        """Who may connect, within the claim's family; anyone is the empty prefix."""
        if not self.entry.sources:
            return [(0, 0)]
        family = self.place[1]
        return [
            (source.prefixlen, int(source.network_address) >> (family.bits - source.prefixlen))
            for source in self.entry.sources
            if Family.of(source) is family
        ]


_Pair: TypeAlias = tuple[_Claim, _Claim]


def find_conflicts(entries: Sequence[ForwardEntry]) -> list[Problem]:
    """Return a problem for each pair of port strings that claim the same, at the later one, `cut_short`.

    A pattern is compared only with the same pattern: which domains match it, and which of them has precedence, depends
    on the inventory and is decided later.
    """
    alike: defaultdict[str | None, list[ForwardEntry]] = defaultdict(list)
    for entry in entries:
        alike[entry.domain if entry.is_pattern else None].append(entry)
    pairs = (_distinct(_find_pairs(_claims(together))) for together in alike.values())
    return cut_short(_describe(*pair) for pair in chain.from_iterable(pairs))


def _claims(entries: Iterable[ForwardEntry]) -> Iterator[_Claim]:
    for entry_number, entry in enumerate(entries):
        families = tuple(sorted(families_of_entry(entry)))
        for number, mapping in enumerate(entry.mappings):
            for place in _places(entry, mapping, families):
                yield _Claim((entry_number, number), place, entry, mapping)


def _places(entry: ForwardEntry, mapping: PortMapping, families: tuple[Family, ...]) -> Iterator[_Place]:
    for address in entry.listens_on(mapping):
        for family in families:
            if address is None or Family.of(address) is family:
                yield address, family, mapping.protocol


def _distinct(pairs: Iterable[_Pair]) -> Iterator[_Pair]:
    """Drop what is the same pair of strings again, for another protocol, family or source."""
    seen: set[tuple[object, ...]] = set()
    for pair in pairs:
        earlier, later = sorted(pair, key=lambda claim: claim.rank)
        key = (earlier.written, later.written)
        if key not in seen:
            seen.add(key)
            yield earlier, later


def _find_pairs(claims: Iterable[_Claim]) -> Iterator[_Pair]:
    """Find claims that overlap; a pair may come several times."""
    places: defaultdict[_Place, list[_Claim]] = defaultdict(list)
    for claim in claims:
        places[claim.place].append(claim)
    for together in places.values():
        for group in _groups(together):
            sweep = _Sweep(_enclosing({source for claim in group for source in claim.sources}, group[0].place[1]))
            for claim in group:
                yield from ((met, claim) for met in sweep.meet(claim))


def _groups(claims: Iterable[_Claim]) -> Iterator[list[_Claim]]:
    """Split claims of one place, in the order of their ports, where no port is shared; a lone claim is no group."""
    group: list[_Claim] = []
    last = 0
    for claim in sorted(claims, key=attrgetter("mapping.host.first", "mapping.host.last")):
        if claim.mapping.host.first > last:
            if len(group) > 1:
                yield group
            group = []
        group.append(claim)
        last = max(last, claim.mapping.host.last)
    if len(group) > 1:
        yield group


@dataclass(slots=True)
class _Sweep:
    """The claims still open at the port reached.

    `enclosing` are the sources in use around each other. `exact` holds the claims by each of their sources, `around` by
    those around them, so that wider and narrower sources are both found by looking up, never by search.
    """

    enclosing: Mapping[_Prefix, _Prefix]
    exact: _Open = field(default_factory=dict)
    around: _Open = field(default_factory=dict)

    def meet(self, claim: _Claim) -> Iterator[_Claim]:
        """Yield the open claims with which this one conflicts, then open it too."""
        sources = claim.sources
        for source in sources:
            yield from _still_open(self.exact.get(source, {}), claim)
            yield from _still_open(self.around.get(source, {}), claim)
            for outer in self._outer(source):
                yield from _still_open(self.exact.get(outer, {}), claim)
        for source in sources:
            _add(self.exact, source, claim)
            for outer in self._outer(source):
                _add(self.around, outer, claim)

    def _outer(self, source: _Prefix) -> Iterator[_Prefix]:
        """Yield the sources in use around one, the narrowest first."""
        while (outer := self.enclosing.get(source)) is not None:
            yield outer
            source = outer


def _enclosing(prefixes: Iterable[_Prefix], family: Family) -> dict[_Prefix, _Prefix]:
    """Give the narrowest of the others around each prefix that is inside one.

    In the order of their first addresses, that is the last one before it that has not ended.
    """
    found: dict[_Prefix, _Prefix] = {}
    around: list[_Prefix] = []
    for prefix in sorted(prefixes, key=lambda item: (item[1] << (family.bits - item[0]), item[0])):
        while around and not _is_inside(prefix, around[-1]):
            around.pop()
        if around:
            found[prefix] = around[-1]
        around.append(prefix)
    return found


def _is_inside(inner: _Prefix, outer: _Prefix) -> bool:
    return inner[0] > outer[0] and inner[1] >> (inner[0] - outer[0]) == outer[1]


def _add(opened: _Open, prefix: _Prefix, claim: _Claim) -> None:
    opened.setdefault(prefix, {}).setdefault(claim.entry.interface, []).append(claim)


def _still_open(by_interface: dict[str | None, list[_Claim]], claim: _Claim) -> Iterator[_Claim]:
    """Yield the claims on an interface that may be this claim's, forgetting those whose ports are passed."""
    interface = claim.entry.interface
    names = list(by_interface) if interface is None else [None, interface]
    for name in names:
        if name in by_interface:
            met = [other for other in by_interface[name] if other.mapping.host.last >= claim.mapping.host.first]
            if met:
                by_interface[name] = met
            else:
                del by_interface[name]  # or every later claim on any interface would look at it again
            yield from met


def _describe(earlier: _Claim, later: _Claim) -> Problem:
    mine, its = later.mapping.host, earlier.mapping.host
    shared = PortRange(max(mine.first, its.first), min(mine.last, its.last))
    what = f"{show_endpoint(later.place[0], shared)}/{later.mapping.protocol}"
    before = f"domain {quote(later.entry.domain)}: {what} is already claimed at"
    after = f"for domain {quote(earlier.entry.domain)}; {_remedy(earlier, later)}"
    return Problem.of(later.mapping.origin, Clash(before, earlier.mapping.origin, after))


def _remedy(earlier: _Claim, later: _Claim) -> str:
    """Say how two claims differ; those that lead to one place need not be two."""
    if _leads_to(earlier) == _leads_to(later):
        return "both lead to the same, so take it out of one of the two"
    if earlier.entry is later.entry:
        return "use another port of the host in one of the two"
    return "use another port or address, or give both an interface or sources that tell them apart"


def _leads_to(claim: _Claim) -> tuple[object, ...]:
    """Name where the first port of a mapping would lead, if it began at port 0."""
    entry, mapping = claim.entry, claim.mapping
    return entry.domain, entry.address, entry.network, entry.mac, entry.interface, entry.sources, mapping.shift


# Public addresses claimed twice, by entries that claim them whole.
#
# Two subnets are either apart or one is in the other. So the claims are sorted by their first address, wider ones
# first, and those that are still open at a claim are exactly those which contain it. What that costs grows with the
# conflicts.
@dataclass(frozen=True, slots=True)
class _PublicClaim:
    """What an entry claims, and for which clients; `rank` is its place in the configuration."""

    rank: int
    subnet: Subnet
    owner: str
    origin: Origin

    @classmethod
    def of(cls, rank: int, entry: Entry) -> "Iterator[_PublicClaim]":
        for claim, origin in entry.claims():
            subnet = ip_network(claim.address) if claim.address is not None else claim.subnet
            if claim.ports is None and subnet is not None:
                yield cls(rank, subnet, f"{entry.owner.kind} {quote(entry.owner.name)}", origin)

    @property
    def position(self) -> tuple[Family, int, int, int]:
        """The order in which a wider claim comes before those in it."""
        return Family.of(self.subnet), int(self.subnet.network_address), self.subnet.prefixlen, self.rank

    def __str__(self) -> str:
        is_single = self.subnet.prefixlen == self.subnet.max_prefixlen
        return str(self.subnet.network_address if is_single else self.subnet)


_PublicPair: TypeAlias = tuple[_PublicClaim, _PublicClaim]


def find_public_conflicts(entries: Sequence[Entry]) -> list[Problem]:
    """Return a problem for each pair that claims the same address, at the later one, `cut_short`.

    The entries come in the order of the configuration.
    """
    claims = [claim for rank, entry in enumerate(entries) for claim in _PublicClaim.of(rank, entry)]
    return cut_short(_public_describe(*pair) for pair in _public_find_pairs(claims))


def _public_find_pairs(claims: Iterable[_PublicClaim]) -> Iterator[_PublicPair]:
    """Yield each pair of claims that overlap, the earlier one first."""
    opened: list[_PublicClaim] = []
    for claim in sorted(claims, key=lambda claim: claim.position):
        while opened and not opened[-1].subnet.overlaps(claim.subnet):
            opened.pop()
        yield from ((other, claim) if other.rank < claim.rank else (claim, other) for other in opened)
        opened.append(claim)


def _public_describe(earlier: _PublicClaim, later: _PublicClaim) -> Problem:
    relation = show_relation(later.subnet, earlier.subnet)
    what = f"{later} is" if relation == "is" else f"{later} {relation} {earlier}, which is"
    remedy = "an address leads to one guest or network only, so take it out of one of the two"
    clash = Clash(f"{later.owner}: {what} already claimed at", earlier.origin, f"for {earlier.owner}; {remedy}")
    return Problem.of(later.origin, clash)
