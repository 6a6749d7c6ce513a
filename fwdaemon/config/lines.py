"""On which line of a TOML text each value stands.

The TOML parser gives values without positions, and a message without a line is of little use. This is no second parser:
it reads only texts which the parser has accepted, so it follows keys and brackets and believes the rest.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import tomli

# On which lines of a text its values stand: the readers of TOML and JSON give values without positions.
KeyPath: TypeAlias = tuple[str | int, ...]
# Of one array: there are not more ports.
MOST_ELEMENTS: Final = 65_535


@dataclass(frozen=True, slots=True)
class LineIndex:
    """The lines of one text, counted from 1, by path: `("forward", 2, "ports", 1)`.

    `bare` are the values without quotes, as they are written.
    """

    lines: Mapping[KeyPath, int]
    bare: Mapping[KeyPath, str] = field(default_factory=dict)

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
        if "\n" in lexeme:
            line += lexeme.count("\n")


# Unrolled loops, in which no two branches begin alike: a text of any length is read in one pass.
TOKEN: Final = re.compile(
    r"(?P<newline>\n)"
    r"|(?P<comment>#[^\n]*)"
    r'|(?P<string>"{3}[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"{3,5}'
    r"|'{3}[^']*(?:'(?!'')[^']*)*'{3,5}"
    r'|"[^"\\\n]*(?:\\.[^"\\\n]*)*"'
    r"|'[^'\n]*')"
    r"|(?P<mark>[][{},=])"
    r"|(?P<dot>\.)"
    r"""|(?P<word>[^\s\[\]{},=.#"']+)""",
    re.DOTALL,
)


def toml_lines(text: str) -> LineIndex:
    """Index a text that the TOML parser has accepted."""
    walk = _Walk()
    for kind, lexeme, line in lexemes(TOKEN, text):
        if kind != "comment":
            walk.take(kind, lexeme, line)
    return LineIndex(walk.lines, walk.bare)


@dataclass(slots=True)
class _Frame:
    """An open array or inline table and its line; `index` counts an array's elements."""

    path: KeyPath
    is_array: bool
    line: int
    index: int = 0


@dataclass(slots=True)
class _Walk:
    """Where the reading stands; tokens go in, `lines` grows.

    `table` is the path of the last `[header]`, `header` the words of one being read. `words` is the key being read and
    `value` the path of the value that follows it, `None` while still in the key.
    """

    lines: dict[KeyPath, int] = field(default_factory=dict)
    bare: dict[KeyPath, str] = field(default_factory=dict)
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
        elif self.value is None and not (self.frames and self.frames[-1].is_array):
            if kind != "dot":
                self.words.append(_key(lexeme))
        else:
            self._take_value(kind, lexeme, line)

    def _take_value(self, kind: str, lexeme: str, line: int) -> None:
        is_element = bool(self.frames) and self.frames[-1].is_array
        if is_element and self.frames[-1].index >= MOST_ELEMENTS:
            return  # the array is refused as a whole
        is_told = is_element and self.frames[-1].line == line
        if is_told and kind == "string":
            return  # the line of an array stands for its elements too
        path = self._place()
        if not is_told:
            self._note(path, line)
        if kind != "string":
            self.bare[path] = self.bare.get(path, "") + lexeme

    def _take_header(self, header: list[str], kind: str, lexeme: str, line: int) -> None:
        if kind == "dot":
            return
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
        self.frames.append(_Frame(path, lexeme == "[", line))
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


# What stands before the place where the TOML parser stopped: the brackets that are open there, and the last words.
_LINE: Final = re.compile(r"[^\n]*")


@dataclass(frozen=True, slots=True)
class Token:
    """One lexeme, with the offsets of its beginning and end; `kind` is its group in the lexer's pattern."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def is_value(self) -> bool:
        """Whether a value may end with it."""
        return self.kind in {"string", "word"} or self.text in {"]", "}"}


@dataclass(slots=True)
class Spot:
    """A place in a text, and what is before it.

    `words` are all lexemes but comments and line ends; `opened` those of them that open a bracket which is not closed
    there. `key` is the name of the statement that goes on there, and `assigned` the offset behind its `=`.
    """

    text: str
    offset: int
    words: list[Token] = field(default_factory=list)
    opened: list[Token] = field(default_factory=list)
    key: str = ""
    assigned: int | None = None
    unclosed: int | None = None

    @property
    def rest(self) -> str:
        """What stands from there to the end of the line."""
        return self.line_from(self.offset)

    @property
    def line_start(self) -> int:
        """The offset at which its line begins."""
        return self.text.rfind("\n", 0, self.offset) + 1

    def line_from(self, offset: int) -> str:
        """Give the text from an offset to the end of its line."""
        match = _LINE.match(self.text, offset)
        return "" if match is None else match.group()

    def line_of(self, offset: int) -> int:
        """Give the number of the line of an offset."""
        return self.text.count("\n", 0, offset) + 1


def spot(text: str, offset: int) -> Spot:
    """Read a text up to an offset, as far as the parser came."""
    found = Spot(text, offset, unclosed=_unclosed(text, offset))
    # What stands in a text without an end is no lexeme, not even a bracket.
    for token in _tokens(text, offset if found.unclosed is None else found.unclosed):
        _take(found, token)
    return found


def _tokens(text: str, offset: int) -> Iterator[Token]:
    for match in TOKEN.finditer(text, 0, offset):
        yield Token(match.lastgroup or "", match.group(), match.start(), match.end())


def _take(found: Spot, token: Token) -> None:
    if token.kind in {"comment", "dot"}:
        return
    if token.kind == "newline":
        if not found.opened:
            found.key, found.assigned = "", None
        return
    if found.assigned is None:
        _take_key(found, token)
    elif token.text in {"[", "{"}:
        found.opened.append(token)
    elif token.text in {"]", "}"} and found.opened:
        found.opened.pop()
    found.words.append(token)


def _take_key(found: Spot, token: Token) -> None:
    if token.text == "=":
        found.assigned = token.end
    elif token.kind != "mark":
        found.key = token.text.strip("\"'")


def _unclosed(text: str, offset: int) -> int | None:
    """Give the offset of a quote that opens a text without an end, as no lexeme begins with it."""
    end = 0
    for match in TOKEN.finditer(text, 0, offset):
        quotes = re.search(r"[\"']", text[end : match.start()])
        if quotes:
            return end + quotes.start()
        end = match.end()
    quotes = re.search(r"[\"']", text[end:offset])
    return None if quotes is None else end + quotes.start()
