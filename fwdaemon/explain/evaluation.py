"""What becomes of packets in a base chain. Pure.

Where it cannot be told whether a rule matches, both cases are followed. A chain refuses only if every case ends so; if
some do, it may refuse.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from fwdaemon.explain.packet import Packet, Place, Surroundings
from fwdaemon.explain.rules import (
    BaseChain,
    Chains,
    Change,
    Choice,
    End,
    Jump,
    Match,
    Return,
    Rule,
    Statement,
    Translate,
    Verdict,
)
from fwdaemon.explain.truth import Truth

# Cases differ in marks only; where there are more than this, the marks count as unknown.
_MOST_CASES = 16
# The kernel allows 16 jumps in nftables (NFT_JUMP_STACK_SIZE); only a listing that is broken has more.
_DEEPEST = 64


class Judgement(StrEnum):
    """What a chain does."""

    ACCEPTS = "accepts"
    REFUSES = "refuses"
    MAY_REFUSE = "may refuse"


@dataclass(frozen=True, slots=True)
class Passage:
    """Packets' way through a base chain: who refuses them, or may, and what they are like after it."""

    chain: BaseChain
    judgement: Judgement
    culprit: Place | None
    packets: frozenset[Packet]


@dataclass(slots=True)
class _Cases:
    """What may have become of a packet: still in the chain, back from it, or at an end."""

    staying: set[Packet] = field(default_factory=set)
    returned: set[Packet] = field(default_factory=set)
    ended: list[tuple[End, Place, Packet]] = field(default_factory=list)


def pass_through(chain: BaseChain, packets: Iterable[Packet], surroundings: Surroundings) -> Passage:
    """Follow packets through a base chain."""
    walker = _Walker(chain.chains, surroundings)
    policy = End.ACCEPT if chain.accepts else End.REFUSE
    ended: list[tuple[End, Place, Packet]] = []
    for packet in packets:
        cases = walker.walk(chain.name, {packet}, 0)
        ended += cases.ended
        ended += ((policy, chain.policy, packet) for packet in cases.staying | cases.returned)
    accepted = frozenset(packet for end, _, packet in ended if end is not End.REFUSE)
    refusals = [place for end, place, _ in ended if end is not End.ACCEPT]
    return Passage(chain, _judge(ended), refusals[0] if refusals else None, accepted)


def _judge(ended: Iterable[tuple[End, Place, Packet]]) -> Judgement:
    ends = {end for end, _, _ in ended}
    if ends <= {End.ACCEPT}:
        return Judgement.ACCEPTS
    return Judgement.REFUSES if ends == {End.REFUSE} else Judgement.MAY_REFUSE


class _Walker:
    def __init__(self, chains: Chains, surroundings: Surroundings) -> None:
        self._chains = chains
        self._surroundings = surroundings

    def walk(self, name: str, packets: set[Packet], depth: int) -> _Cases:
        """Follow packets through a chain by name; one that is not there does nothing."""
        cases = _Cases(staying=packets)
        if depth > _DEEPEST:
            return cases
        for rule in self._chains.get(name, ()):
            staying: set[Packet] = set()
            for packet in cases.staying:
                staying |= self._apply(rule, packet, cases, depth)
            cases.staying = _few(staying)
            if not staying:
                break
        return cases

    def _apply(self, rule: Rule, packet: Packet, cases: _Cases, depth: int) -> set[Packet]:
        """Apply one rule: gives what goes on to the next one."""
        current, truth = packet, Truth.YES
        for statement in rule.statements:
            match statement:
                case Match(test):
                    holds = test(current, self._surroundings)
                    if holds is Truth.NO:
                        # What an earlier statement changed stays changed.
                        break
                    truth = min(truth, holds)
                case Change(change):
                    current = change(current)
                case Choice(choose):
                    return self._choose(choose(current, self._surroundings), rule, current, cases, depth) | _if_unsure(
                        truth, packet
                    )
                case _:
                    return self._end(statement, rule, current, cases, depth) | _if_unsure(truth, packet)
        return {current} | _if_unsure(truth, packet)

    def _choose(
        self, choices: Iterable[tuple[Truth, Statement]], rule: Rule, packet: Packet, cases: _Cases, depth: int
    ) -> set[Packet]:
        staying: set[Packet] = set()
        for truth, statement in choices:
            if truth is not Truth.NO:
                staying |= self._end(statement, rule, packet, cases, depth)
            if truth is Truth.YES:
                return staying
        return staying | {packet}

    def _end(self, statement: Statement, rule: Rule, packet: Packet, cases: _Cases, depth: int) -> set[Packet]:
        """Carry out a verdict: gives what goes on in this chain."""
        match statement:
            case Verdict(end):
                cases.ended.append((end, rule.place, packet))
            case Translate(translate):
                cases.ended.append((End.ACCEPT, rule.place, translate(packet, rule.place)))
            case Jump(chain, goto):
                below = self.walk(chain, {packet}, depth + 1)
                cases.ended += below.ended
                back = below.staying | below.returned
                if not goto:
                    return back
                cases.returned |= back
            case Return():
                cases.returned.add(packet)
            case _:  # a verdict map may say `continue`
                return {packet}
        return set()


def _if_unsure(truth: Truth, packet: Packet) -> set[Packet]:
    return {packet} if truth is Truth.UNKNOWN else set()


def _few(packets: set[Packet]) -> set[Packet]:
    if len(packets) <= _MOST_CASES:
        return packets
    return {replace(packet, mark=None, connmark=None) for packet in packets}
