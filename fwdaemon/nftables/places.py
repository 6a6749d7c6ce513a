"""Places: where in one of our tables openings are, which is how damage is told of the openings it concerns. Pure."""

from dataclasses import dataclass
from typing import TypeAlias

Place: TypeAlias = tuple[str, str]
"""The verdict map and the key by which packets come to an opening."""


@dataclass(frozen=True, slots=True)
class Places:
    """Some places of a table, or `every` one."""

    named: frozenset[Place] = frozenset()
    every: bool = False

    def __bool__(self) -> bool:
        return self.every or bool(self.named)

    def __and__(self, other: "Places") -> "Places":
        if self.every:
            return other
        return self if other.every else Places(self.named & other.named)


NOWHERE = Places()
EVERYWHERE = Places(every=True)
