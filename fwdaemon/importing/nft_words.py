"""The words of nft's language (nft(8)) with their lines, and what stands in braces as groups of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, TypeAlias

from fwdaemon.core.text import GrammarError

_TOKEN: Final = re.compile(
    r"(?P<blank>[^\S\n]+|\\\n|#[^\n]*)"
    r'|"(?P<quoted>[^"\n]*)"'
    r"|(?P<mark>\n|[{}(),;]|==|!=|<=|>=|<<|>>|[=<>!|&])"
    r'|(?P<word>[^\s{}(),;"=<>!|&#]+)'
    r"|(?P<other>.)"
)
_BRACKETED: Final = re.compile(r"\[([^\]]*)\]")
_HARDWARE: Final = re.compile(r"[0-9A-Fa-f]{1,2}(?::[0-9A-Fa-f]{1,2}){5}")
_DEEPEST: Final = 32
SEPARATORS: Final = frozenset({"\n", ";"})


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or a mark such as `,`; what stood in quotes is never a mark."""

    text: str
    line: int
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """What stands in braces."""

    items: tuple["Item", ...]
    line: int


Item: TypeAlias = Word | Group


def is_mark(item: Item, *texts: str) -> bool:
    """Whether an item is one of these words or marks, not in quotes."""
    return isinstance(item, Word) and not item.quoted and item.text in texts


def read(text: str) -> tuple[Item, ...]:
    """Read a text into words and groups; raise `GrammarError` with the line where its braces do not match."""
    stack: list[tuple[int, list[Item]]] = [(1, [])]
    for word in _words(text):
        if is_mark(word, "{"):
            stack.append((word.line, []))
            if len(stack) > _DEEPEST:
                raise BracesError(word.line)
        elif is_mark(word, "}"):
            if len(stack) == 1:
                raise BracesError(word.line)
            line, items = stack.pop()
            stack[-1][1].append(Group(tuple(items), line))
        else:
            stack[-1][1].append(word)
    if len(stack) > 1:
        raise BracesError(stack[-1][0])
    return tuple(stack[0][1])


class BracesError(GrammarError):
    """Braces do not match, or stand in each other too deeply; `line` is where."""

    def __init__(self, line: int) -> None:
        self.line = line
        super().__init__("its braces do not match")


def _words(text: str) -> Iterator[Word]:
    line = 1
    for match in _TOKEN.finditer(text):
        if match["quoted"] is not None:
            yield Word(match["quoted"], line, quoted=True)
        elif match["word"] is not None:
            yield from (Word(part, line) for part in _parts(match["word"]))
        elif match["blank"] is None:
            yield Word(match["mark"] or match["other"], line)
        line += match[0].count("\n")


def _parts(text: str) -> Iterator[str]:
    """Part a word at colons that are not inside an address."""
    if ":" not in text or _HARDWARE.fullmatch(text) or all(map(_is_address, re.split("[-/]", text)[:1])):
        yield text
        return
    if (match := _BRACKETED.match(text)) is not None:
        yield match[1]
        text = text[match.end() :]
    for index, part in enumerate(text.split(":")):
        if index:
            yield ":"
        if part:
            yield part


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def statements(items: tuple[Item, ...]) -> Iterator[tuple[Item, ...]]:
    """Part what stands in a block at line ends and semicolons; a line also goes on after a comma."""
    found: list[Item] = []
    for item in items:
        if is_mark(item, *SEPARATORS) and not (found and is_mark(item, "\n") and is_mark(found[-1], ",", "=")):
            if found:
                yield tuple(found)
            found = []
        elif not is_mark(item, "\n"):
            found.append(item)
    if found:
        yield tuple(found)


def listed(group: Group) -> Iterator[tuple[Item, ...]]:
    """Part what stands in a set at its commas."""
    found: list[Item] = []
    for item in (*group.items, Word(",", group.line)):
        if is_mark(item, ","):
            if found:
                yield tuple(found)
            found = []
        elif not is_mark(item, *SEPARATORS):
            found.append(item)


def split(items: tuple[Item, ...], mark: str) -> Iterator[tuple[Item, ...]]:
    """Part items at a mark."""
    found: list[Item] = []
    for item in items:
        if is_mark(item, mark):
            yield tuple(found)
            found = []
        else:
            found.append(item)
    yield tuple(found)


def elements_of(items: tuple[Item, ...]) -> Iterator[tuple[Item, ...]]:
    """Yield the elements of groups, also of those that a variable put into another."""
    for item in items:
        if isinstance(item, Group):
            for element in listed(item):
                nested = len(element) == 1 and isinstance(element[0], Group)
                yield from elements_of(element) if nested else (element,)


def line_of(items: tuple[Item, ...]) -> int:
    """Give the line of the first item."""
    return items[0].line


def shown(items: tuple[Item, ...]) -> str:
    """Give items as one line of text."""
    return " ".join(_shown(item) for item in items)


def _shown(item: Item) -> str:
    if isinstance(item, Group):
        return "{ " + ", ".join(shown(part) for part in listed(item)) + " }"
    return f'"{item.text}"' if item.quoted else item.text
