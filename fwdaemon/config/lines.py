"""On which line of a TOML text each value stands.

The TOML parser gives values without positions, and a message without a line is of little use. This is no second parser:
it reads only texts which the parser has accepted, so it follows keys and brackets and believes the rest.
"""

import re
from dataclasses import dataclass, field
from typing import Final

import tomli

from fwdaemon.config.line_index import KeyPath, LineIndex, lexemes

# Unrolled loops, in which no two branches begin alike: a text of any length is read in one pass.
_TOKEN: Final = re.compile(
    r"(?P<newline>\n)"
    r"|(?P<comment>#[^\n]*)"
    r'|(?P<string>"{3}[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"{3,5}'
    r"|'{3}[^']*(?:'(?!'')[^']*)*'{3,5}"
    r'|"[^"\\\n]*(?:\\.[^"\\\n]*)*"'
    r"|'[^'\n]*')"
    r"|(?P<mark>[][{},=])"
    r"""|(?P<word>[^\s\[\]{},=.#"']+)""",
    re.DOTALL,
)


def toml_lines(text: str) -> LineIndex:
    """Index a text that the TOML parser has accepted."""
    walk = _Walk()
    for kind, lexeme, line in lexemes(_TOKEN, text):
        if kind != "comment":
            walk.take(kind, lexeme, line)
    return LineIndex(walk.lines)


@dataclass(slots=True)
class _Frame:
    """An open array or inline table; `index` counts an array's elements."""

    path: KeyPath
    is_array: bool
    index: int = 0


@dataclass(slots=True)
class _Walk:
    """Where the reading stands; tokens go in, `lines` grows.

    `table` is the path of the last `[header]`, `header` the words of one being read. `words` is the key being read and
    `value` the path of the value that follows it, `None` while still in the key.
    """

    lines: dict[KeyPath, int] = field(default_factory=dict)
    table: KeyPath = ()
    header: list[str] | None = None
    header_is_array: bool = False
    sizes: dict[KeyPath, int] = field(default_factory=dict)
    frames: list[_Frame] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    value: KeyPath | None = None

    def take(self, kind: str, lexeme: str, line: int) -> None:
        """Take the next lexeme, which begins on `line`."""
        if kind == "newline":
            if not self.frames:
                self._begin_key()
        elif self.header is not None:
            self._take_header(self.header, kind, lexeme, line)
        elif kind == "mark":
            self._take_mark(lexeme, line)
        elif self.frames and self.frames[-1].is_array:
            self._note(self._place(), line)
        elif self.value is None:
            self.words.append(_key(lexeme))

    def _take_header(self, header: list[str], kind: str, lexeme: str, line: int) -> None:
        if kind != "mark":
            header.append(_key(lexeme))
        elif lexeme == "[":
            self.header_is_array = True
        else:
            self.table = self._open_table(header, line)
            self.header = None

    def _open_table(self, header: list[str], line: int) -> KeyPath:
        """Resolve a header's words; within an array of tables they speak of its last element."""
        path: KeyPath = ()
        for word in header[:-1]:
            path = (*path, word)
            self._note(path, line)
            if path in self.sizes:
                path = (*path, self.sizes[path] - 1)
        path = (*path, header[-1])
        self._note(path, line)
        if self.header_is_array:
            self.sizes[path] = self.sizes.get(path, 0) + 1
            path = (*path, self.sizes[path] - 1)
            self._note(path, line)
        return path

    def _take_mark(self, lexeme: str, line: int) -> None:
        match lexeme:
            case "=":
                self._end_key(line)
            case "[" | "{":
                self._open_bracket(lexeme, line)
            case ",":
                self._next_element()
            case _ if self.frames:
                self.frames.pop()

    def _end_key(self, line: int) -> None:
        path = self.frames[-1].path if self.frames else self.table
        for word in self.words:
            path = (*path, word)
            self._note(path, line)
        self.value = path

    def _open_bracket(self, lexeme: str, line: int) -> None:
        if not self.frames and self.value is None:
            self.header = []
            self.header_is_array = False
            return
        path = self._place()
        self._note(path, line)
        self.frames.append(_Frame(path, lexeme == "["))
        self._begin_key()

    def _next_element(self) -> None:
        if self.frames[-1].is_array:
            self.frames[-1].index += 1
        else:
            self._begin_key()

    def _begin_key(self) -> None:
        self.words.clear()
        self.value = None

    def _place(self) -> KeyPath:
        """Return the path of the value that stands here."""
        if self.frames and self.frames[-1].is_array:
            return (*self.frames[-1].path, self.frames[-1].index)
        return self.value or ()

    def _note(self, path: KeyPath, line: int) -> None:
        self.lines.setdefault(path, line)


def _key(lexeme: str) -> str:
    """Return the name a key's lexeme writes; escapes are left to the TOML parser, which knows them."""
    if not lexeme.startswith(('"', "'")):
        return lexeme
    if "\\" not in lexeme:
        return lexeme[1:-1]
    return str(tomli.loads(f"key = {lexeme}")["key"])
