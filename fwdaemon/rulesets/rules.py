"""Rules of whatever language as plain data: what they ask, and what they do with a packet that matches. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias

from fwdaemon.errors import PortfwdError
from fwdaemon.rulesets.region import Box, Match


class End(StrEnum):
    """How a packet's way through a base chain ends.

    `TRANSLATE` sends it elsewhere, `RENAME` gives it another source. `UNCLEAR` is whatever is not understood.
    """

    ACCEPT = "accept"
    REFUSE = "refuse"
    TRANSLATE = "translate"
    RENAME = "rename"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Jump:
    """Goes on in another chain; with `goto`, without coming back to this one."""

    chain: str
    goto: bool = False


@dataclass(frozen=True, slots=True)
class Return:
    """Goes back to where the chain was jumped to from."""


Action: TypeAlias = End | Jump | Return | None
"""What a rule does; `None` lets the packet go on to the next one."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, by the line it stands on.

    Where it asks for more than `match` says, it is not `certain`: what matches may be taken, or go on.
    """

    line: int
    match: Match
    action: Action
    certain: bool = True


Chains: TypeAlias = Mapping[str, Sequence[Rule]]


def led_to(chains: Chains, base: str) -> frozenset[str]:
    """Give the chains that jumps lead to from one, with itself, whatever the rules ask."""
    found = {base}
    left = [base]
    while left:
        below = {rule.action.chain for rule in chains.get(left.pop(), ()) if isinstance(rule.action, Jump)}
        left += below - found
        found |= below
    return frozenset(found)


# What becomes of a set of packets in a base chain. Pure.
#
# Every end that a packet may come to is given. A packet for which a rule is not certain has several, so what is said of
# all its ends holds whatever that rule asks.

# The kernel refuses chains that lead in a circle, and deep ones too; only a text that no kernel printed has more.
_DEEPEST: Final = 64
_MOST_STEPS: Final = 100_000
# More of them are not compared with each other.
_FEW: Final = 32


class TangledError(PortfwdError):
    """Chains lead in a circle, or into more cases than can be followed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Packets, how their way ends, and the rule that ends it; `None` is the chain's policy."""

    packets: Box
    end: End
    rule: Rule | None


def walk(chains: Chains, base: str, packets: Box, policy: End) -> list[Outcome]:
    """Follow packets through a base chain; raise `TangledError` where that leads nowhere."""
    walker = _Walker(chains)
    through = walker.follow(base, [packets], 0)
    return [*walker.outcomes, *(Outcome(box, policy, None) for box in through)]


@dataclass(slots=True)
class _Walker:
    chains: Chains
    outcomes: list[Outcome] = field(default_factory=list)
    steps: int = 0

    def follow(self, name: str, boxes: list[Box], depth: int) -> list[Box]:
        """Follow packets through a chain, and give those that come out at its end or by a return."""
        returned: list[Box] = []
        staying = boxes
        for rule in self.chains.get(name, ()):
            self._count(len(staying), depth)
            met = [box.meet(rule.match) for box in staying] if rule.action is not None else []
            if not any(met):
                continue
            pairs = zip(staying, met, strict=True)
            staying = _distinct(rest for box, part in pairs for rest in self._apply(rule, box, part, returned, depth))
        return _distinct([*staying, *returned])

    def _count(self, steps: int, depth: int) -> None:
        self.steps += steps
        if depth > _DEEPEST or self.steps > _MOST_STEPS:
            raise TangledError("its chains lead in a circle, or into more cases than can be followed")

    def _apply(self, rule: Rule, box: Box, met: Box | None, returned: list[Box], depth: int) -> list[Box]:
        """Apply one rule to what it matches of a box: give what goes on to the next one."""
        if met is None:
            return [box]
        back = self._act(rule, met, returned, depth)
        # What may come back from a rule that is not certain is among what may go on anyway.
        return [*box.minus(rule.match), *back] if rule.certain else [box]

    def _act(self, rule: Rule, met: Box, returned: list[Box], depth: int) -> list[Box]:
        match rule.action:
            case End() as end:
                self.outcomes.append(Outcome(met, end, rule))
            case Return():
                returned.append(met)
            case Jump(chain, goto):
                back = self.follow(chain, [met], depth + 1)
                if not goto:
                    return back
                returned += back
        return []


def _distinct(found: Iterable[Box]) -> list[Box]:
    """Drop boxes that lie within another one."""
    boxes = list(dict.fromkeys(found))
    if not 1 < len(boxes) <= _FEW:
        return boxes
    return [box for box in boxes if not any(other is not box and box.is_within(other) for other in boxes)]
