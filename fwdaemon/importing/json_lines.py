"""On which line of a JSON text each value stands, since the JSON reader gives values without positions.

This is no second reader: it follows keys and brackets of texts that were accepted, and believes the rest. Where one key
stands twice, the later one counts, as it does for the reader.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import json5

KeyPath: TypeAlias = tuple[str | int, ...]

_TOKEN: Final = re.compile(
    r"(?P<newline>\n)"
    r"|(?P<comment>//[^\n]*|/\*.*?\*/)"
    r'|(?P<word>"[^"\\]*(?:\\.[^"\\]*)*"'
    r"|'[^'\\]*(?:\\.[^'\\]*)*'"
    r"|[^\s\"'\[\]{},:/]+)"
    r"|(?P<mark>[][{},:])",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class JsonLines:
    """The lines of one text, counted from 1, by path: `("web1", "port_map", "tcp", 0)`."""

    lines: dict[KeyPath, int]

    @classmethod
    def of(cls, text: str) -> "JsonLines":
        """Index a text that the JSON reader has accepted."""
        walk = _Walk()
        for kind, lexeme, line in _tokens(text):
            walk.take(kind, lexeme, line)
        return cls(walk.lines)

    def line_of(self, *path: str | int) -> int:
        """Give the line of a value, or else of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


@dataclass(slots=True)
class _Frame:
    """An open object or array; `step` is the key or the index of what is read in it, `None` before a key."""

    path: KeyPath
    is_array: bool
    step: str | int | None


@dataclass(slots=True)
class _Walk:
    """Where the reading stands; tokens go in, `lines` grows."""

    lines: dict[KeyPath, int] = field(default_factory=dict)
    frames: list[_Frame] = field(default_factory=list)

    def take(self, kind: str, lexeme: str, line: int) -> None:
        """Take the next token, which begins on `line`."""
        frame = self.frames[-1] if self.frames else None
        if kind == "word" and frame is not None and frame.step is None:
            frame.step = _key(lexeme)
            self.lines[(*frame.path, frame.step)] = line
        elif kind == "word" or lexeme in "{[":
            self._begin_value(frame, lexeme, line)
        elif lexeme in "}]":
            self.frames.pop()
        elif lexeme == "," and frame is not None:
            frame.step = frame.step + 1 if isinstance(frame.step, int) else None

    def _begin_value(self, frame: _Frame | None, lexeme: str, line: int) -> None:
        path: KeyPath = () if frame is None or frame.step is None else (*frame.path, frame.step)
        if frame is not None and frame.is_array:
            self.lines[path] = line
        if lexeme == "{":
            self.frames.append(_Frame(path, is_array=False, step=None))
        elif lexeme == "[":
            self.frames.append(_Frame(path, is_array=True, step=0))


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    line = 1
    for match in _TOKEN.finditer(text):
        lexeme = match.group()
        if match.lastgroup in {"word", "mark"}:
            yield match.lastgroup, lexeme, line
        line += lexeme.count("\n")


def _key(lexeme: str) -> str:
    """Give the name a key's lexeme writes; escapes are left to the JSON reader, which knows them."""
    if not lexeme.startswith(('"', "'")):
        return lexeme
    return str(json5.loads(lexeme)) if "\\" in lexeme else lexeme[1:-1]
