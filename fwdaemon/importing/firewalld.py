"""Zones of firewalld as forwards: each forward-port for the connections that firewalld gives to its zone.

A connection is in one zone only: that of its source, or else that of the interface it came in on, or else the default
zone. What firewalld has translated, its own rules let through.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias

from fwdaemon.config.addresses import parse_guest
from fwdaemon.core.text import GrammarError, quote
from fwdaemon.core.types import PROTOCOL_NUMBERS, Family
from fwdaemon.importing import firewalld_zones
from fwdaemon.importing.adopting import Adopter, Origin
from fwdaemon.importing.findings import BrokenFileError, Findings, Kind, firewalld_root, is_firewalld_list, read_range
from fwdaemon.importing.firewalld_zones import BrokenXmlError, End, ForwardPort, Zone
from fwdaemon.importing.iptables_nat import Carrier, Sending, Target, WayOut
from fwdaemon.importing.judging import BaseChain, Ruleset
from fwdaemon.importing.nft_rule import NftRule
from fwdaemon.rulesets.rules import EMPTY, Field, Jump, Match, Rule, Space, Spans, matching, network_of, one
from fwdaemon.rulesets.rules import End as Ending

_ZONES: Final = " zones"
_NOTHING_IN: Final = (
    "no interface and no source is in zone {} here; where it is the default zone, give what"
    " `firewall-cmd --list-all-zones` prints"
)
_NOT_DEFAULT: Final = "no interface and no source is in zone {}, and zone {} is the default zone"
_DEFAULT_NOT_TOLD: Final = (
    "no interface and no source is in zone {}; where it is the default zone, which this listing does not say, write it"
    " for an interface that no other zone has"
)
_NOT_TOLD: Final = (
    "another zone may take some of its connections by their source, and not all zones are known; give what"
    " `firewall-cmd --list-all-zones` prints"
)
_NOT_READ: Final = "{} {} not read, and may send or refuse some of this first; where there is any, give it too"


@dataclass(frozen=True, slots=True)
class Given:
    """A policy, or direct rules, in another of the files that are imported together."""

    file: Path
    policy: Zone


def policies_in(file: Path, text: str) -> Iterator[Given]:
    """Yield what of a file may take connections before the zones of other files do."""
    if firewalld_root(text) in ("policy", "direct"):
        with suppress(BrokenXmlError):
            yield Given(file, firewalld_zones.parse_zone(text, file.stem))
    elif is_firewalld_list(text):
        yield from (Given(file, zone) for zone in firewalld_zones.parse_listing(text) if zone.is_policy)


def parse_xml(
    file: Path, text: str, siblings: Sequence[str] | None, way_out: WayOut, given: Sequence[Given] = ()
) -> Findings:
    """Read the file of a zone; `siblings` are the texts of all other zones, `None` where those are not known.

    `given` are the policies of other files.

    Raises:
        BrokenFileError: it is no zone.

    """
    findings = Findings(file, Kind.FIREWALLD_XML, families=set(Family))
    try:
        zone = firewalld_zones.parse_zone(text, file.stem)
    except BrokenXmlError as error:
        raise BrokenFileError(file, error.line, f"{error}; give a file of /etc/firewalld/zones") from None
    try:
        others = (
            None if siblings is None else [firewalld_zones.parse_zone(sibling, "beside it") for sibling in siblings]
        )
    except BrokenXmlError:
        others = None
    carry(findings, [zone], others, way_out, given)
    _remark_missing(findings, [zone, *(each.policy for each in given)], "../policies", "../direct.xml")
    return findings


def parse_list(file: Path, text: str, way_out: WayOut, given: Sequence[Given] = ()) -> Findings:
    """Read what firewall-cmd lists; with one zone only, the others are not known."""
    findings = Findings(file, Kind.FIREWALLD_LIST, families=set(Family))
    zones = firewalld_zones.parse_listing(text)
    carry(findings, zones, [] if len(_without_policies(zones)) > 1 else None, way_out, given)
    policies = "what `firewall-cmd --list-all-policies` prints"
    _remark_missing(findings, [*zones, *(each.policy for each in given)], policies, "/etc/firewalld/direct.xml")
    return findings


def _remark_missing(findings: Findings, zones: Iterable[Zone], policies: str, direct: str) -> None:
    """Say which rules of firewalld are in none of the files, where a forward from here goes by them."""
    known = {zone.is_direct for zone in zones if zone.is_policy}
    missing = [text for text, is_direct in ((policies, False), (direct, True)) if is_direct not in known]
    if missing and any(not forward.reason for forward in findings.forwards):
        findings.warn(1, _NOT_READ.format(" and ".join(missing), "was" if len(missing) == 1 else "were"))


def carry(
    findings: Findings,
    zones: Sequence[Zone],
    others: Sequence[Zone] | None,
    way_out: WayOut,
    given: Sequence[Given] = (),
) -> None:
    """Write what `zones` forward; `others` are all further zones, `None` where those are not known."""
    for zone in zones:
        for line, text in zone.unread:
            why = "direct rules are not followed" if zone.is_direct else "it is not understood"
            findings.warn(line, f"{quote(text)} left out: {why}")
        for forward in zone.forwards:
            _remark(findings, zone, forward)
    own, further = _without_policies(zones), _without_policies(others or ())
    policies = [*(Given(findings.file, zone) for zone in zones if zone.is_policy), *given]
    for family in Family:
        space = Space.around(family, (name for zone in (*own, *further) for name in zone.interfaces))
        _Writer(findings, space, others is None, policies).write(own, further, way_out)


def _without_policies(zones: Iterable[Zone]) -> list[Zone]:
    return [zone for zone in zones if not zone.is_policy]


def _remark(findings: Findings, zone: Zone, forward: ForwardPort) -> None:
    """Say why a forward-port is left out, where no rule is made of it."""
    if zone.is_policy:
        why = "it belongs to a policy, and those of zones only become forwards"
    elif not forward.to_address:
        why = "it has no to-addr: this host itself answered there"
    else:
        return
    findings.warn(forward.line, f"{quote(forward.text)} left out: {why}")


@dataclass(frozen=True, slots=True)
class _Writer:
    """What is known while the zones are put into chains; `rules` has those that translate, by number.

    `reasons` say of some why they are not live.
    """

    findings: Findings
    space: Space
    is_part: bool
    policies: Sequence[Given] = ()
    rules: dict[int, NftRule] = field(default_factory=dict)
    origins: dict[int, Origin] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def write(self, zones: Sequence[Zone], others: Sequence[Zone], way_out: WayOut) -> None:
        """Judge the zones of one family."""
        chains: dict[str, Sequence[Rule]] = {}
        for zone in others:
            chains[f"other {zone.name}"] = (Rule(self._number(0, f"zone {zone.name}"), {}, Ending.ACCEPT),)
        for zone in zones:
            chains[zone.name] = tuple(self._forwards(zone))
        chains[_ZONES] = *self._before({zone.name: zone for zone in (*zones, *others)}), *self._dispatch(zones, others)
        targets = {number: rule.target for number, rule in self.rules.items() if rule.target is not None}
        ruleset = Ruleset(self.space, (), BaseChain(chains, _ZONES), (), targets)
        blocked = _NOT_TOLD if self.is_part else ""
        carrier = Carrier(Adopter(self.findings, ruleset, self.origins, blocked), way_out)
        for number, rule in self.rules.items():
            if rule.target is not None:
                carrier.carry(Sending(number, rule.match, rule.target, rule.doubt, self.reasons.get(number, "")))

    def _number(self, line: int, text: str) -> int:
        number = len(self.origins) + 1
        self.origins[number] = Origin(line, text)
        return number

    def _before(self, zones: Mapping[str, Zone]) -> Iterator[Rule]:
        """Yield what policies may take of connections, whichever zone they are in."""
        for given in self.policies:
            for origin, match in _taken(given.policy, zones, self.space):
                text = f"line {origin.line} of {given.file}, {quote(origin.text)},"
                is_here = given.file == self.findings.file
                number = self._number(*(origin.line, origin.text) if is_here else (0, text))
                yield Rule(number, match, Ending.UNCLEAR, certain=False)

    def _dispatch(self, zones: Sequence[Zone], others: Sequence[Zone]) -> Iterator[Rule]:
        """Yield what gives connections to zones: by source first, then by interface, then to the default zone."""
        named = [*((zone.name, zone) for zone in zones), *((f"other {zone.name}", zone) for zone in others)]
        doubtful = _unordered([zone for _, zone in named], self.space)
        for name, zone in named:
            for source in zone.sources:
                if (match := _asked_of(source, Field.SOURCE, self.space)) is not None:
                    yield Rule(0, match, Jump(name, goto=True), certain=not source.doubt and not doubtful)
        for name, zone in named:
            for interface in zone.interfaces:
                match = {Field.CAME_IN: self.space.interfaces_like(interface)}
                yield Rule(0, match, Jump(name, goto=True))
        for zone in zones:
            if _is_empty(zone) and zone.default in ("", zone.name):
                yield Rule(0, {}, Jump(zone.name, goto=zone.takes_rest), certain=zone.takes_rest)

    def _forwards(self, zone: Zone) -> Iterator[Rule]:
        """Yield the forward-ports of a zone in their order."""
        found: list[tuple[ForwardPort, NftRule]] = []
        for forward in sorted(zone.forwards, key=lambda forward: (forward.priority, forward.rich)):
            number = self._number(forward.line, forward.text)
            try:
                rule = self._rule(number, forward)
            except GrammarError as error:
                self._warn(forward, str(error))
                rule = NftRule(number, {}, Ending.TRANSLATE, certain=False)
            if rule is not None:
                found.append((forward, rule))
        for forward, rule in found:
            if _is_empty(zone) and not zone.takes_rest:
                self.reasons[rule.line] = self._why_nothing(zone)
            ordered = _ordered(forward, rule, found)
            self.rules[rule.line] = ordered
            yield ordered
        yield Rule(self._number(zone.line, f"zone {zone.name}"), {}, Ending.ACCEPT)

    def _why_nothing(self, zone: Zone) -> str:
        if self.is_part or self.findings.kind != Kind.FIREWALLD_LIST:
            return _NOTHING_IN.format(zone.name)
        return (_NOT_DEFAULT if zone.default else _DEFAULT_NOT_TOLD).format(zone.name, zone.default)

    def _rule(self, number: int, forward: ForwardPort) -> NftRule | None:
        target = _target(forward)
        family = _family(forward, target)
        if family not in (None, self.space.family):
            return None
        ends = _ends(forward, self.space)
        if ends is None:
            return None
        match = matching([*_ports(forward).items(), *ends.items()])
        doubt = _doubt(forward)
        return NftRule(number, match, Ending.TRANSLATE, not doubt, target, doubt)

    def _warn(self, forward: ForwardPort, why: str) -> None:
        said = f"{quote(forward.text)} left out: {why}"
        if all(remark.text != said for remark in self.findings.remarks):
            self.findings.warn(forward.line, said)


def _is_empty(zone: Zone) -> bool:
    return not zone.interfaces and not zone.sources


def _ordered(forward: ForwardPort, rule: NftRule, others: Iterable[tuple[ForwardPort, NftRule]]) -> NftRule:
    """Give a rule, in doubt where a rich one and a plain one are for the same: which of them goes first is unknown."""
    for other, its_rule in others:
        both = matching([*rule.match.items(), *its_rule.match.items()])
        if (
            other.rich != forward.rich
            and other.priority == forward.priority
            and its_rule.target != rule.target
            and all(both.values())
        ):
            lines = sorted([forward.line, other.line])
            return replace(rule, certain=False, doubt=f"which of lines {lines[0]} and {lines[1]} goes first")
    return rule


def _target(forward: ForwardPort) -> Target | None:
    """Give where it leads; `None` for this host itself."""
    if not forward.to_address:
        return None
    return Target(parse_guest(forward.to_address), read_range(forward.to_port) if forward.to_port else None, None)


def _family(forward: ForwardPort, target: Target | None) -> int | None:
    if target is not None:
        return target.address.version
    return _FAMILIES.get(forward.family)


def _doubt(forward: ForwardPort) -> str:
    ends = [end for end in (forward.source, forward.destination) if end is not None]
    for end in ends:
        if end.doubt:
            return f"which addresses are in {end.doubt}"
    return "its limit" if forward.limited else ""


def _unordered(zones: Iterable[Zone], space: Space) -> bool:
    """Whether sources of two zones overlap, or zones have priorities: what goes first is then unknown."""
    zones = list(zones)
    if len({zone.priority for zone in zones}) > 1:
        return True
    taken = EMPTY
    for zone in zones:
        own = Spans.of(pair for end in zone.sources for pair in _addresses(end, space).ranges)
        if taken.meet(own):
            return True
        taken = Spans.of([*taken.ranges, *own.ranges])
    return False


def _addresses(end: End, space: Space) -> Spans:
    try:
        return space.addresses_in(end.address)
    except ValueError:
        return EMPTY


# What policies may take or refuse of the connections that zones forward. A policy is for what comes in from its ingress
# zones: by their interfaces and from their sources, whichever zone a connection belongs to. Those of a negative
# priority have their say before all zones.
_WITH_PORTS: Final = frozenset({"tcp", "udp", "sctp", "dccp"})
_FAMILIES: Final = {"ipv4": 4, "ipv6": 6}
_REFUSING: Final = frozenset({"DROP", "REJECT", "%%REJECT%%"})
Taken: TypeAlias = tuple[Origin, Match]
"""What on a line of a policy may end the way of connections, and which; never fewer than those."""


def _taken(policy: Zone, zones: Mapping[str, Zone], space: Space) -> Iterator[Taken]:
    """Yield what a policy may take before any of the zones sees it, or refuse afterwards."""
    for entering in _entering(policy, zones, space):
        for origin, match in (*_sent(policy, space), *_refused(policy, space)):
            yield origin, matching([*entering.items(), *match.items()])


def _sent(policy: Zone, space: Space) -> Iterator[Taken]:
    """Yield what goes elsewhere; after the zones, nothing is left to translate of what they did."""
    if policy.priority.lstrip("0").isdecimal():
        return
    yield from ((Origin(line, text), {}) for line, text in policy.unread)
    for forward in policy.forwards:
        if (match := _asked(forward, space)) is not None:
            yield Origin(forward.line, forward.text), match


def _asked(forward: ForwardPort, space: Space) -> Match | None:
    """Give all that a forward-port may take; `None` where none of this family is."""
    ends = _ends(forward, space)
    if ends is None or _FAMILIES.get(forward.family, space.family) != space.family:
        return None
    with suppress(GrammarError):
        return matching([*_ports(forward).items(), *ends.items()])
    return ends


def _refused(policy: Zone, space: Space) -> Iterator[Taken]:
    """Yield what is refused; what goes on to this host itself is none of it."""
    if set(policy.egress) <= {"HOST"}:
        return
    if policy.target in _REFUSING:
        yield Origin(policy.line, f"the target {policy.target} of policy {policy.name}"), {}
    for refusal in policy.refusals:
        match = _asked_of(refusal.source, Field.SOURCE, space)
        if match is not None and _FAMILIES.get(refusal.family, space.family) == space.family:
            yield Origin(refusal.line, refusal.text), match


def _entering(policy: Zone, zones: Mapping[str, Zone], space: Space) -> Iterator[Match]:
    """Yield what comes in from the ingress zones of a policy; everything where that is not known."""
    names = [name for name in policy.ingress if name != "HOST"]
    if any(name not in zones or _may_be_any(zones[name]) for name in names):
        yield {}
        return
    for zone in (zones[name] for name in names):
        yield from ({Field.CAME_IN: space.interfaces_like(interface)} for interface in zone.interfaces)
        found = (_asked_of(source, Field.SOURCE, space) for source in zone.sources)
        yield from (match for match in found if match is not None)


def _may_be_any(zone: Zone) -> bool:
    is_rest = not zone.interfaces and not zone.sources and zone.default in ("", zone.name)
    return is_rest or any(source.doubt for source in zone.sources)


def _asked_of(end: End | None, side: Field, space: Space) -> Match | None:
    """Give the packets from a source, or to a destination; `None` where none of this family are."""
    if end is None or end.doubt:
        return {}
    if network_of(end.address).version != space.family:
        return None
    spans = space.addresses_in(end.address)
    return {side: space.complement(side, spans) if end.inverted else spans}


def _ports(forward: ForwardPort) -> dict[Field, Spans]:
    """Give the ports of a forward-port; raise `GrammarError` where it has none."""
    if forward.protocol not in _WITH_PORTS:
        raise GrammarError(f"protocol {quote(forward.protocol)} has no ports")
    ports = read_range(forward.port)
    return {Field.PROTOCOL: one(PROTOCOL_NUMBERS[forward.protocol]), Field.PORT: Spans(((ports.first, ports.last),))}


def _ends(forward: ForwardPort, space: Space) -> Match | None:
    """Give the packets between the ends that a forward-port names; `None` where none of this family are."""
    source = _asked_of(forward.source, Field.SOURCE, space)
    destination = _asked_of(forward.destination, Field.DESTINATION, space)
    return None if source is None or destination is None else {**source, **destination}
