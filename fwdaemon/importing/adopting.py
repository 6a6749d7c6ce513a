"""Candidates as forwards: each for just what the old rules let in, or as a comment with the lines that stopped it.

Forwards that take the same packets are compared here, too. Nothing here knows how the rules were written; an `Origin`
is what a person knows one by.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from pathlib import Path
from typing import Final, TypeAlias

from fwdaemon.config.addresses import parse_listen, parse_source
from fwdaemon.config.names import parse_interface
from fwdaemon.core.text import GrammarError, quote
from fwdaemon.core.types import Address, Family, PortRange, Protocol, Subnet
from fwdaemon.importing.findings import Findings, Forward, Hole, Judged
from fwdaemon.importing.judging import Candidate, Ruleset, Stop, as_asked, doubtful_jumps, left_of, stops
from fwdaemon.rulesets.rules import LAST_PROTOCOL, Box, Field, Space, Spans, without
from fwdaemon.rulesets.xt_matches import WITH_PORTS

# Sets of packets as what a forward can say: one address or every one, one interface or every one, some sources.
_ADDRESSES: Final[dict[Family, type[Address]]] = {Family.IPV4: IPv4Address, Family.IPV6: IPv6Address}
_MULTICAST: Final = {Family.IPV4: "224.0.0.0/4", Family.IPV6: "ff00::/8"}
_MOST_LISTENING: Final = 16
# All but one address of IPv4 are this many networks.
_MOST_SOURCES: Final = 32


@dataclass(frozen=True, slots=True)
class Claim:
    """What one forward can say of the packets it takes."""

    ports: PortRange
    listen: Address | None
    interface: str | None
    sources: tuple[Subnet, ...]


def claims(packets: Box, space: Space) -> Iterator[tuple[Claim, Box]]:
    """Yield claims on just these packets, each with its own; raise `GrammarError` where no forward could say it."""
    sources = _sources(packets[Field.SOURCE], space)
    for listen, destination in list(_listening(packets[Field.DESTINATION], space)):
        for interface, came_in in list(_interfaces(packets[Field.CAME_IN], space)):
            for first, last in packets[Field.PORT].ranges:
                taken = packets.holding(destination=destination, came_in=came_in, port=Spans(((first, last),)))
                yield Claim(PortRange(first, last), listen, interface, sources), taken


def _listening(spans: Spans, space: Space) -> Iterator[tuple[Address | None, Spans]]:
    if spans == space.everything[Field.DESTINATION]:
        yield None, spans
        return
    if spans.size > _MOST_LISTENING:
        others = space.complement(Field.DESTINATION, spans)
        if others.size <= _MOST_LISTENING:
            said = "write a forward for each of the others that is in use"
            raise GrammarError(f"it is for every address but {_listed(others, space)}; {said}")
        said = "write a forward with the addresses of it that are in use"
        raise GrammarError(f"{_shown(spans, space)} is a network; {said}")
    for first, last in spans.ranges:
        for number in range(first, last + 1):
            yield parse_listen(str(_ADDRESSES[space.family](number))), Spans(((number, number),))


def _interfaces(spans: Spans, space: Space) -> Iterator[tuple[str | None, Spans]]:
    if spans == space.outside:
        yield None, spans
        return
    names = [name for number, name in enumerate(space.interfaces) if number in spans]
    if "+" in names:
        missing = [name for name in space.interfaces if name not in {*names, "lo"}]
        raise GrammarError(f"it is for every interface but {' and '.join(map(quote, missing))}")
    for name in names:
        yield parse_interface(name), space.interfaces_like(name)


def _sources(spans: Spans, space: Space) -> tuple[Subnet, ...]:
    if spans == space.everything[Field.SOURCE]:
        return ()
    networks: list[Subnet] = []
    for network in _networks(spans.minus(space.addresses_in(_MULTICAST[space.family])), space):
        networks.append(network)
        if len(networks) > _MOST_SOURCES:
            raise GrammarError(f"its sources would be more than {_MOST_SOURCES} networks")
    return tuple(parse_source(str(network)) for network in networks)


def _networks(spans: Spans, space: Space) -> Iterator[Subnet]:
    kind = _ADDRESSES[space.family]
    for first, last in spans.ranges:
        yield from summarize_address_range(kind(first), kind(last))


def _listed(spans: Spans, space: Space) -> str:
    kind = _ADDRESSES[space.family]
    return " and ".join(str(kind(number)) for first, last in spans.ranges for number in range(first, last + 1))


def _shown(spans: Spans, space: Space) -> str:
    first, *others = _networks(spans, space)
    return quote(f"{first}{' and others' if others else ''}")


_MOST_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Origin:
    """A rule, or a policy, as its file has it; the line is 0 where it is in another file."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Adopter:
    """Adds forwards to `findings`; `origins` has all rules and policies by the number that stands for them.

    `blocked` is why nothing may be live, if nothing may.
    """

    findings: Findings
    ruleset: Ruleset
    origins: Mapping[int, Origin]
    blocked: str = ""

    def adopt(self, candidate: Candidate) -> bool:
        """Add forwards for what was let in, or comments; return whether anything was.

        Raises:
            GrammarError: no forward can say what the rule asks for, whatever other rules do.

        """
        holes, cut, spread = self._parted(candidate)
        cut += spread
        pieces = self._pieces(candidate, holes, cut)
        if pieces == []:
            self.leave_out(candidate, self._all_stopped(candidate, [*cut, *holes]))
            return False
        said, unsaid = self._said(pieces)
        if not said:
            self._cannot_say(candidate, cut, unsaid)
            return False
        for claim, packets in said:
            known = [Hole(hole.packets, self._line(hole.line)) for hole in holes if claim.listen is None]
            self._add(candidate, claim, Judged(packets, tuple(known)), self.blocked)
        self._remark_rest(candidate, cut, unsaid)
        self._remark_spread(candidate, spread)
        return True

    def named(self, numbers: Iterable[int]) -> str:
        """Name rules by line and text, the first few."""
        origins = dict.fromkeys(self.origins[number] for number in numbers if number in self.origins)
        known = [f"line {origin.line}, {quote(origin.text)}," if origin.line else origin.text for origin in origins]
        more = [f"{len(known) - _MOST_NAMED} more"] if len(known) > _MOST_NAMED else []
        return " and ".join([*known[:_MOST_NAMED], *more])

    def leave_out(self, candidate: Candidate, reason: str) -> None:
        """Write a forward as a comment, for what its rule asks as far as that can be said."""
        try:
            said = [claim for claim, _ in claims(candidate.packets, self.ruleset.space)]
        except GrammarError:
            said = [Claim(candidate.host, None, None, ())]
        for claim in said:
            self._add(candidate, claim, None, reason)

    def _line(self, number: int) -> int:
        return self.origins[number].line

    def _pieces(self, candidate: Candidate, holes: Sequence[Stop], cut: Sequence[Stop]) -> list[Box] | None:
        """Give what was let in; a hole is left to another forward only where the piece is for every address."""
        everywhere = self.ruleset.space.everything[Field.DESTINATION]
        pieces = left_of(candidate.packets, cut)
        if pieces is None:
            return None
        wide = [piece for piece in pieces if piece[Field.DESTINATION] == everywhere]
        narrow = [left_of(piece, holes) for piece in pieces if piece not in wide]
        return None if None in narrow else [*wide, *(left for lefts in narrow for left in lefts or ())]

    def _parted(self, candidate: Candidate) -> tuple[list[Stop], list[Stop], list[Stop]]:
        """Part what another forward may take first, as it is for one address, from what has to be left out.

        The last are those that took some clients of an address only. These would come to this guest while the other
        one is down, so they are left out on every address.
        """
        everywhere = self.ruleset.space.everything[Field.DESTINATION]
        holes, cut = [], []
        for stop in stops(candidate, self.ruleset):
            # A rule for every address takes all but one where a rule for that one is before it: no forward fills that.
            goes_before = stop.was_sent_elsewhere and stop.packets[Field.DESTINATION].size <= _MOST_LISTENING
            if goes_before and candidate.packets[Field.DESTINATION] == everywhere:
                holes.append(stop)
            else:
                cut.append(stop)
        spread: list[Stop] = []
        while some := self._of_some_clients(candidate, holes, [*cut, *spread]):
            holes = [hole for hole in holes if hole not in some]
            spread += (replace(stop, packets=stop.packets.holding(destination=everywhere)) for stop in some)
        return holes, cut, spread

    def _of_some_clients(self, candidate: Candidate, holes: Sequence[Stop], cut: Iterable[Stop]) -> list[Stop]:
        """Give the holes that another guest has, and that leave some of their address's clients to this one."""
        everywhere = self.ruleset.space.everything[Field.DESTINATION]
        wide = [piece for piece in left_of(candidate.packets, cut) or () if piece[Field.DESTINATION] == everywhere]
        others = [hole for hole in holes if self._guest(hole.line) != candidate.address]
        return [hole for hole in others if any(_leaves_some(hole, holes, piece) for piece in wide)]

    def _guest(self, number: int) -> Address | None:
        target = self.ruleset.targets.get(number)
        return None if target is None else target.address

    def _all_stopped(self, candidate: Candidate, cut: Iterable[Stop]) -> str:
        if lines := lines_of(cut):
            return f"{self.named(lines)} stopped it{self._unless_known(candidate)}"
        jumps = self.named(doubtful_jumps(self.ruleset)) or "what gives connections to its chain"
        return f"{jumps} may not have led there: it asks for what is not understood"

    def _unless_known(self, candidate: Candidate) -> str:
        """Say that rules for an outgoing interface may have let something in, where it is not known."""
        asked = (rule.match for chain in self.ruleset.after for rules in chain.chains.values() for rule in rules)
        is_known = candidate.goes_out != self.ruleset.space.everything[Field.GOES_OUT]
        if is_known or not any(Field.GOES_OUT in match for match in asked):
            return ""
        return f"; which interface leads to {candidate.address} is not known while no running guest has it"

    def _said(self, pieces: Sequence[Box] | None) -> tuple[list[tuple[Claim, Box]], list[str]]:
        """Give what forwards can say of the pieces, and why they cannot say the others."""
        said: list[tuple[Claim, Box]] = []
        unsaid = ["it would be in too many pieces"] if pieces is None else []
        for piece in pieces or ():
            try:
                said += claims(piece, self.ruleset.space)
            except GrammarError as error:
                unsaid.append(str(error))
        return said, list(dict.fromkeys(unsaid))

    def _cannot_say(self, candidate: Candidate, cut: Iterable[Stop], unsaid: Iterable[str]) -> None:
        why = "; ".join(unsaid)
        if not (lines := lines_of(cut)):
            raise GrammarError(why)
        stopped = f"{self.named(lines)} stopped some of it, and what is left cannot be said: {why}"
        self.leave_out(candidate, stopped)

    def _remark_rest(self, candidate: Candidate, cut: Iterable[Stop], unsaid: Iterable[str]) -> None:
        """Say what of a rule its forwards do not take."""
        line, stopped = self._line(candidate.line), self.named(lines_of(cut))
        for error in unsaid:
            why = f"{stopped} stopped a part, and the rest cannot be said: {error}" if stopped else error
            self.findings.warn(line, f"{candidate.host}: some of it is left out: {why}")
        if stopped and not unsaid:
            self.findings.note(line, f"{candidate.host}: only what {stopped} left to it")

    def _remark_spread(self, candidate: Candidate, spread: Iterable[Stop]) -> None:
        """Say which clients a forward does not take on any address, though the rule took them on some."""
        if lines := lines_of(spread):
            said = f"{candidate.host}: the clients of {self.named(lines)} are left out, not only on its address"
            self.findings.warn(self._line(candidate.line), f"{said}: while its guest is down they would come here")

    def _add(self, candidate: Candidate, claim: Claim, judged: Judged | None, reason: str) -> None:
        guest = claim.ports.shifted(candidate.shift)
        origin = self.findings.origin(self._line(candidate.line))
        ends = candidate.address, claim.ports, guest, protocol_of(candidate.packets), origin
        forward = Forward(None, *ends, claim.listen, claim.interface, claim.sources, reason, judged)
        self.findings.forwards.append(forward)


def _leaves_some(hole: Stop, holes: Iterable[Stop], piece: Box) -> bool:
    """Whether a piece takes clients on the address and ports of a hole that are in none of the holes."""
    if piece.meet(as_asked(hole.packets)) is None:
        return False
    left = [piece.holding(destination=hole.packets[Field.DESTINATION], port=hole.packets[Field.PORT])]
    for other in (hole, *holes):  # the hole itself first, as it mostly takes all of them
        left = without(left, as_asked(other.packets))
        if not left:
            return False
    return True


def protocol_of(packets: Box) -> Protocol:
    """Give the one protocol of packets; raise `GrammarError` where a forward cannot be for theirs."""
    asked_for = packets[Field.PROTOCOL]
    for protocol, number in WITH_PORTS.items():
        if asked_for.ranges == ((number, number),):
            return protocol
    if asked_for.size > 1:
        every = "every protocol" if asked_for.size > LAST_PROTOCOL else "several protocols"
        raise GrammarError(f"it is for {every}, and a forward is for one")
    raise GrammarError("it is for a protocol that has no ports")


def lines_of(found: Iterable[Stop]) -> list[int]:
    """Give the lines that stopped anything, in order."""
    return sorted({stop.line for stop in found} - {0})


# Forwards to one target that take the same packets: the wider one is enough, whichever of the rules came first.
_Target: TypeAlias = tuple[str | None, Address, Protocol, int]


def absorbed(forwards: Iterable[Forward]) -> Mapping[Forward, Forward]:
    """Give the forwards that take nothing which another one to the same target does not, each with the other one."""
    targets: defaultdict[_Target, list[Forward]] = defaultdict(list)
    for forward in dict.fromkeys(forwards):
        if not forward.reason:
            targets[_target(forward)].append(forward)
    return {narrow: wide for found in targets.values() for narrow, wide in _sweep(found)}


def _target(forward: Forward) -> _Target:
    return forward.domain, forward.address, forward.protocol, forward.shift


def _sweep(forwards: Iterable[Forward]) -> Iterator[tuple[Forward, Forward]]:
    """Sweep along the ports, so that only forwards that share some are compared."""
    is_open: list[Forward] = []
    for forward in sorted(forwards, key=lambda forward: (forward.host.first, -forward.host.last)):
        is_open = [other for other in is_open if other.host.last >= forward.host.first]
        wide = next((other for other in is_open if _takes_all(other, forward)), None)
        if wide is not None:
            yield forward, wide
            continue
        narrow = [other for other in is_open if _takes_all(forward, other)]
        yield from ((other, forward) for other in narrow)
        is_open = [*(other for other in is_open if other not in narrow), forward]


def _takes_all(wide: Forward, narrow: Forward) -> bool:
    return (
        wide.host.first <= narrow.host.first
        and narrow.host.last <= wide.host.last
        and wide.listen in {None, narrow.listen}
        and wide.interface in {None, narrow.interface}
        and _holds_sources(wide.sources, narrow.sources)
    )


def _holds_sources(wide: Sequence[Subnet], narrow: Sequence[Subnet]) -> bool:
    return not wide or (bool(narrow) and all(any(_holds(one, other) for one in wide) for other in narrow))


def _holds(wide: Subnet, narrow: Subnet) -> bool:
    return Family.of(wide) is Family.of(narrow) and narrow.subnet_of(wide)  # type: ignore[arg-type]  # the family is one


# Forwards that would take packets which an old rule sent elsewhere, unless a forward of those goes before them.
#
# A forward on one address goes before one on every address. Where the former is not live, for whatever reason, the
# latter must not be either: it would take what was never meant for its guest.


def uncovered(live: Collection[Forward]) -> Iterator[tuple[Forward, int]]:
    """Yield the live forwards that would take too much, each with the line of the rule that took it."""
    shields: defaultdict[tuple[Path, Family], list[Box]] = defaultdict(list)
    for forward in live:
        # One with holes of its own takes what it should not: it shields nothing, itself least of all.
        if forward.judged is not None and not forward.judged.holes and forward.listen is not None:
            shields[_space(forward)].append(forward.judged.packets)
    for forward in live:
        for hole in () if forward.judged is None else forward.judged.holes:
            if _is_open(forward, hole, shields[_space(forward)]):
                yield forward, hole.line
                break


def fallbacks(live: Collection[Forward]) -> Iterator[tuple[Forward, Forward]]:
    """Yield forwards with those that take their clients of one address while they are not there.

    On the other addresses these clients come to that guest anyway.
    """
    by_line: defaultdict[tuple[Path, int], list[Forward]] = defaultdict(list)
    for forward in live:
        by_line[forward.origin.file, forward.origin.line].append(forward)
    for forward in live:
        holes = () if forward.judged is None else forward.judged.holes
        first = {other: hole for hole in holes for other in by_line[forward.origin.file, hole.line]}
        yield from ((other, forward) for other in first if _falls_back(other, forward))


def _falls_back(first: Forward, then: Forward) -> bool:
    """Whether clients of one forward on its own address are taken by another one, to another guest."""
    is_elsewhere = first.address != then.address and first.listen is not None
    if not is_elsewhere or first.judged is None or then.judged is None:
        return False
    return then.judged.packets.meet(as_asked(first.judged.packets)) is not None


def _space(forward: Forward) -> tuple[Path, Family]:
    """Give what packets can be compared within: those of other files may have other interfaces."""
    return forward.origin.file, Family.of(forward.address)


def _is_open(forward: Forward, hole: Hole, shields: Collection[Box]) -> bool:
    taken = None if forward.judged is None else forward.judged.packets.meet(as_asked(hole.packets))
    left = [] if taken is None else [taken]
    for shield in shields:
        left = without(left, as_asked(shield))
    return bool(left)
