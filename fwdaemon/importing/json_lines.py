"""On which line of a JSON text each value stands, since the JSON reader gives values without positions.

This is no second reader: it follows keys and brackets of texts that were accepted, and believes the rest. Where one key
stands twice, the later one counts, as it does for the reader.
"""

import re
from dataclasses import dataclass, field
from typing import Final

import json5

from fwdaemon.config.line_index import KeyPath, LineIndex, lexemes

_TOKEN: Final = re.compile(
    r"(?P<newline>\n)"
    r"|(?P<comment>//[^\n]*|/\*.*?\*/)"
    r'|(?P<word>"[^"\\]*(?:\\.[^"\\]*)*"'
    r"|'[^'\\]*(?:\\.[^'\\]*)*'"
    r"|[^\s\"'\[\]{},:/]+)"
    r"|(?P<mark>[][{},:])",
    re.DOTALL,
)


def json_lines(text: str) -> LineIndex:
    """Index a text that the JSON reader has accepted."""
    walk = _Walk()
    for kind, lexeme, line in lexemes(_TOKEN, text):
        if kind in {"word", "mark"}:
            walk.take(kind, lexeme, line)
    return LineIndex(walk.lines)


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


def _key(lexeme: str) -> str:
    """Give the name a key's lexeme writes; escapes are left to the JSON reader, which knows them."""
    if not lexeme.startswith(('"', "'")):
        return lexeme
    return str(json5.loads(lexeme)) if "\\" in lexeme else lexeme[1:-1]
