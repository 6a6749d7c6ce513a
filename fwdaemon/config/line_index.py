"""On which lines of a text its values stand: the readers of TOML and JSON give values without positions."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class LineIndex:
    """The lines of one text, counted from 1, by path: `("forward", 2, "ports", 1)`."""

    lines: Mapping[KeyPath, int]

    def line_of(self, path: KeyPath) -> int:
        """Give the line of a value, or else of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def lexemes(token: re.Pattern[str], text: str) -> Iterator[tuple[str, str, int]]:
    """Give each token's kind, which is its group in the pattern, its text, and the line it begins on."""
    line = 1
    for match in token.finditer(text):
        lexeme = match.group()
        yield match.lastgroup or "", lexeme, line
        line += lexeme.count("\n")
