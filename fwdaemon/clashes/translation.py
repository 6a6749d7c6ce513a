"""Rules of other tools that send connections elsewhere, found along the jumps from a base chain. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from fwdaemon.clashes.scope import Scope, both
from fwdaemon.explain.packet import Place


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that translates, or that goes on in the chain `target`; one with a verdict map makes several."""

    place: Place
    scope: Scope
    target: str | None = None


Chains: TypeAlias = Mapping[str, Sequence[Step]]


@dataclass(frozen=True, slots=True)
class Translation:
    """A rule that translates what is in `scope`, in a NAT chain of this `priority` at prerouting."""

    place: Place
    scope: Scope
    priority: int


def translations(chains: Chains, base: str, priority: int) -> Iterator[Translation]:
    """Give each rule that translates, once for every way that leads to it."""

    @cache
    def leads_anywhere(chain: str) -> bool:
        steps = chains.get(chain, ())
        return any(step.target is None or leads_anywhere(step.target) for step in steps)

    def follow(chain: str, scope: Scope) -> Iterator[Translation]:
        for step in chains.get(chain, ()):
            narrowed = both(scope, step.scope)
            if narrowed is None:
                continue
            if step.target is None:
                yield Translation(step.place, narrowed, priority)
            elif leads_anywhere(step.target):
                yield from follow(step.target, narrowed)

    return follow(base, {})
