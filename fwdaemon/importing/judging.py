"""Which packets that a forward would take the old rules did not let in to the same target, and what stopped them.

This is the promise of an import: whatever is not known to have been let in counts as stopped. Nothing here knows how
the rules were written.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from typing import Protocol as Interface

from fwdaemon.core.types import Address, Family, PortRange
from fwdaemon.rulesets.rules import (
    EMPTY,
    Box,
    Chains,
    End,
    Field,
    Jump,
    Match,
    Outcome,
    Return,
    Rule,
    Space,
    Spans,
    led_to,
    matching,
    one,
    walk,
    without,
)

BEFORE: Final = one(0)
AFTER: Final = one(1)
# A forward that would have to be cut into more pieces than this is nothing to read any more.
_MOST_PIECES: Final = 64


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain the kernel calls by itself, with those it leads to; `policy_line` is where its policy stands, or 0."""

    chains: Chains
    name: str
    policy: End = End.ACCEPT
    policy_line: int = 0

    def walk(self, packets: Box) -> list[Outcome]:
        """Follow packets through it."""
        return walk(self.chains, self.name, packets, self.policy)


class PortMap(Interface):
    """Where a rule that translates sends connections to."""

    @property
    def address(self) -> Address:
        """The guest's address."""
        ...

    def guest_port(self, port: int) -> int | None:
        """Give the port of the guest that one of the host becomes, where that is known."""
        ...


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The chains of one family that the first packet of a connection to a guest passes, in their order.

    `nat` is where it is translated, or else in `more_nat`, in turn; `targets` says where to, by the line of the rule.
    """

    space: Space
    before: tuple[BaseChain, ...]
    nat: BaseChain
    after: tuple[BaseChain, ...]
    targets: Mapping[int, PortMap]
    more_nat: tuple[BaseChain, ...] = ()

    def translate(self, packets: Box) -> Iterator[Outcome]:
        """Follow packets to where they are translated."""
        return in_turn((self.nat, *self.more_nat), packets)


def in_turn(chains: Sequence[BaseChain], packets: Box) -> Iterator[Outcome]:
    """Follow packets through chains that translate; what one chain accepts, the next one still may."""
    staying = [packets]
    for index, chain in enumerate(chains, 1):
        outcomes = [outcome for box in staying for outcome in chain.walk(box)]
        goes_on = [index < len(chains) and outcome.end is End.ACCEPT for outcome in outcomes]
        staying = [outcome.packets for outcome, stays in zip(outcomes, goes_on, strict=True) if stays]
        yield from (outcome for outcome, stays in zip(outcomes, goes_on, strict=True) if not stays)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the translating rule on `line` would become: ports of the host, in order, as ports of a guest.

    `packets` are those the rule asks for, and `goes_out` the interfaces that may lead to the guest.
    """

    line: int
    address: Address
    host: PortRange
    guest: PortRange
    packets: Box
    goes_out: Spans

    @property
    def shift(self) -> int:
        """What has to be added to a port of the host to give the guest's."""
        return self.host.shift_to(self.guest)

    @property
    def delivered(self) -> Box:
        """The packets once they are translated."""
        return self.packets.holding(
            destination=one(int(self.address)),
            port=Spans(((self.guest.first, self.guest.last),)),
            goes_out=self.goes_out,
            wanted=self.packets[Field.DESTINATION],
            wanted_port=self.packets[Field.PORT],
            translated=AFTER,
        )


@dataclass(frozen=True, slots=True)
class Stop:
    """Packets, as the client sent them, that may not have come to the target, and the line that stopped them.

    The line is 0 where no rule led them there. `was_sent_elsewhere` says that another rule translated them.
    """

    packets: Box
    line: int
    was_sent_elsewhere: bool = False


def is_reached(candidate: Candidate, ruleset: Ruleset) -> bool:
    """Whether any packet comes to the rule."""
    return any(_is_at(candidate, outcome) for outcome in ruleset.translate(candidate.packets))


def takers(candidate: Candidate, ruleset: Ruleset) -> frozenset[int]:
    """Give the lines of the rules of the table nat that end the way of any of the packets, or lead it past the rule."""
    found = ruleset.translate(candidate.packets)
    return frozenset(line for outcome in found for line in _lines(candidate, outcome, ruleset)) - {0}


def doubtful_jumps(ruleset: Ruleset) -> list[int]:
    """Give the lines of the jumps within the table nat that ask for what is not understood."""
    rules = (rule for chain in ruleset.nat.chains.values() for rule in chain)
    return sorted(rule.line for rule in rules if isinstance(rule.action, Jump) and not rule.certain)


def stops(candidate: Candidate, ruleset: Ruleset) -> Iterator[Stop]:
    """Yield what of a candidate did not come to its target, or cannot be known to have come."""
    for chain in ruleset.before:
        for outcome in chain.walk(candidate.packets):
            if not _accepts(outcome) and (packets := as_sent(outcome.packets, ruleset.space)) is not None:
                yield Stop(packets, _line(chain, outcome))
    yield from _sent_elsewhere(candidate, ruleset)
    for chain in ruleset.after:
        for outcome in chain.walk(candidate.delivered):
            if not _accepts(outcome) and (packets := _as_wanted(outcome.packets, candidate)) is not None:
                yield Stop(packets, _line(chain, outcome))


def _sent_elsewhere(candidate: Candidate, ruleset: Ruleset) -> Iterator[Stop]:
    """Yield what does not come to the rule, nor to another one that leads to the same target."""
    for outcome in ruleset.translate(candidate.packets):
        if _is_at(candidate, outcome) or _has_same_target(candidate, outcome, ruleset):
            continue
        if (packets := as_sent(outcome.packets, ruleset.space)) is not None:
            lines = _lines(candidate, outcome, ruleset)
            yield from (Stop(packets, line, outcome.end is End.TRANSLATE) for line in lines)


# What never comes to a rule, and is ended by none: it turned back before.


def _lines(candidate: Candidate, outcome: Outcome, ruleset: Ruleset) -> Iterable[int]:
    """Give the lines of the rules that kept packets from the candidate's; 0 where that is none."""
    if outcome.rule is not None:
        return (outcome.rule.line,)
    chains = (ruleset.nat, *ruleset.more_nat)
    found = (line for chain in chains for line in _turns(candidate.line, chain, outcome.packets))
    return tuple(dict.fromkeys(found)) or (0,)


def _turns(line: int, base: BaseChain, packets: Box) -> Iterator[int]:
    """Yield the lines of returns, and of jumps without a way back, that packets come to before they come to a rule."""
    ways = _ways(line, base.chains)
    for name in ways & led_to(base.chains, base.name):
        rules = base.chains[name]
        at = [index for index, rule in enumerate(rules) if rule.line == line or _jumps_to(rule, ways)]
        for rule in rules[: max(at)]:
            if _turns_back(rule, ways) and packets.meet(rule.match) is not None:
                yield rule.line


def _ways(line: int, chains: Chains) -> frozenset[str]:
    """Give the chains from which packets may come to the rule on a line."""
    found = {name for name, rules in chains.items() if any(rule.line == line for rule in rules)}
    more = found
    while more:
        more = {name for name, rules in chains.items() if any(_jumps_to(rule, found) for rule in rules)} - found
        found |= more
    return frozenset(found)


def _jumps_to(rule: Rule, names: Container[str]) -> bool:
    return isinstance(rule.action, Jump) and rule.action.chain in names


def _turns_back(rule: Rule, ways: Container[str]) -> bool:
    return isinstance(rule.action, Return) or (
        isinstance(rule.action, Jump) and rule.action.goto and rule.action.chain not in ways
    )


def _accepts(outcome: Outcome) -> bool:
    return outcome.end is End.ACCEPT


def _is_at(candidate: Candidate, outcome: Outcome) -> bool:
    return outcome.rule is not None and outcome.rule.line == candidate.line


def _has_same_target(candidate: Candidate, outcome: Outcome, ruleset: Ruleset) -> bool:
    target = None if outcome.rule is None else ruleset.targets.get(outcome.rule.line)
    if outcome.end is not End.TRANSLATE or target is None or target.address != candidate.address:
        return False
    ends = (port for ports in outcome.packets[Field.PORT].ranges for port in ports)
    return all(target.guest_port(port) == port + candidate.shift for port in ends)


def _line(chain: BaseChain, outcome: Outcome) -> int:
    return chain.policy_line if outcome.rule is None else outcome.rule.line


def as_sent(packets: Box, space: Space) -> Box | None:
    """Give packets that were not translated yet, with every way out; `None` where there are none.

    Until then a packet is where its client sent it, so whatever rules ask of the one they ask of the other.
    """
    destination = packets[Field.DESTINATION].meet(packets[Field.WANTED])
    port = packets[Field.PORT].meet(packets[Field.WANTED_PORT])
    if not destination or not port:
        return None
    sent_to = packets.holding(destination=destination, wanted=destination, port=port, wanted_port=port)
    return sent_to.holding(goes_out=space.everything[Field.GOES_OUT])


def _as_wanted(packets: Box, candidate: Candidate) -> Box | None:
    """Give packets as they were before they were translated; `None` where there are none."""
    wanted = packets[Field.PORT].shifted(-candidate.shift).meet(packets[Field.WANTED_PORT])
    return packets.holding(destination=packets[Field.WANTED], port=wanted) if wanted else None


# --- what is asked on the way to a rule -------------------------------------------------------------------------------

# What a forward is for; interfaces and sources are left to be cut out of it, so that one forward has them all.
_TOLD: Final = (Field.PORT, Field.PROTOCOL, Field.DESTINATION, Field.WANTED, Field.WANTED_PORT)
_MOST_WAYS: Final = 64
_Asked: TypeAlias = tuple[tuple[Field, Spans], ...]


def asked_on_ways(bases: Iterable[BaseChain], line: int, asks: Match) -> list[Match]:
    """Give what a rule asks with what the jumps to it ask, for each way that leads there.

    Never less than comes to the rule: where no way leads there, or too many do, what the rule itself asks.
    """
    found: dict[_Asked, Match] = {}
    for base in bases:
        ways = _ways_in(base)
        for name in (name for name, rules in base.chains.items() if any(rule.line == line for rule in rules)):
            for way in ways.get(name, {}).values():
                match = matching([*asks.items(), *way.items()])
                found[tuple(match.items())] = match
    possible = [match for match in found.values() if all(match.values())]
    return possible if 0 < len(possible) <= _MOST_WAYS else [asks]


def _ways_in(base: BaseChain) -> Mapping[str, Mapping[_Asked, Match]]:
    """Give what the jumps ask on each way to each chain; every way asks nothing where there are too many."""
    found: dict[str, dict[_Asked, Match]] = {base.name: {(): {}}}
    left: list[tuple[str, Match]] = [(base.name, {})]
    while left:
        name, way = left.pop()
        for jump, asks in _jumps(base.chains.get(name, ())):
            match = matching([*way.items(), *asks])
            known, asked = found.setdefault(jump.chain, {}), tuple(match.items())
            if len(known) > _MOST_WAYS:
                return {chain: {(): {}} for chain in base.chains}
            if asked not in known and all(match.values()):
                known[asked] = match
                left.append((jump.chain, match))
    return found


def _jumps(rules: Iterable[Rule]) -> Iterator[tuple[Jump, _Asked]]:
    for rule in rules:
        if isinstance(rule.action, Jump):
            yield rule.action, tuple(pair for pair in rule.match.items() if pair[0] in _TOLD)


# --- what is left -----------------------------------------------------------------------------------------------------

_SENT: Final = (Field.PORT, Field.PROTOCOL, Field.DESTINATION, Field.SOURCE, Field.CAME_IN)


def as_asked(packets: Box) -> Match:
    """Give what a forward could ask of packets: of which fields, as the client sent them."""
    return {field: packets[field] for field in _SENT}


def left_of(packets: Box, gone: Iterable[Stop]) -> list[Box] | None:
    """Give what is left of packets without those that were stopped; `None` if that is in too many pieces."""
    pieces = [packets]
    for stop in gone:
        pieces = without(pieces, as_asked(stop.packets))
        if len(pieces) > _MOST_PIECES:
            return None
    return pieces


# --- which address is seen --------------------------------------------------------------------------------------------

# A guest's network is not in the rules; most have this prefix.
_NEAR: Final = {Family.IPV4: 24, Family.IPV6: 64}


def near(guest: Address, space: Space) -> Spans:
    """Give the addresses that count as a guest's own network, none where it is of another family."""
    if Family.of(guest) is not space.family:
        return EMPTY
    return space.addresses_in(f"{guest}/{_NEAR[space.family]}")


def single(devices: Spans, space: Space) -> Spans:
    """Give the one interface these are; none where others may be among them, as with those known by a pattern only."""
    names = [name for number, name in enumerate(space.interfaces) if number in devices]
    return devices if len(names) == 1 and not names[0].endswith("+") else EMPTY


def is_of_all(outcome: Outcome, candidate: Candidate, space: Space) -> bool:
    """Whether all clients from elsewhere are renamed on their way to the guest, and not only on some way out.

    Those from the guest's own network still are with a forward.
    """
    to_guest = outcome.rule is not None and Field.DESTINATION in outcome.rule.match
    is_renamed = outcome.end is End.RENAME
    on_its_way = to_guest or outcome.packets[Field.GOES_OUT] == candidate.goes_out
    elsewhere = candidate.packets[Field.CAME_IN].minus(single(candidate.goes_out, space))
    own = near(candidate.address, space)
    renamed, clients = (packets[Field.SOURCE].minus(own) for packets in (outcome.packets, candidate.packets))
    return is_renamed and on_its_way and bool(elsewhere) and bool(renamed) and renamed == clients
