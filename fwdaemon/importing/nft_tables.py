"""An nft text as words with their lines, and its tables: chains with their rules as words, sets and maps (nft(8))."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
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


# Tables: what the commands of a text make, whatever its rules say.

_FAMILIES: Final = ("ip", "ip6", "inet", "arp", "bridge", "netdev")
_PRIORITIES: Final = {"": 0, "raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
_PRIORITY: Final = re.compile(r"([a-z]*)([+-]?[0-9]{1,9})?")
# Objects of a table that decide nothing until a rule names them.
_OBJECTS: Final = ("counter", "quota", "limit", "ct", "flowtable", "secmark", "synproxy", "comment", "flags", "tunnel")
_CHANGING: Final = ("timeout", "dynamic")


@dataclass(frozen=True, slots=True)
class Hook:
    """What makes a chain one that the kernel calls."""

    kind: str
    hook: str
    priority: int
    devices: tuple[str, ...] = ()


@dataclass(slots=True)
class Chain:
    """A chain; `line` is where it begins, or its policy stands."""

    line: int
    hook: Hook | None = None
    accepts: bool = True
    rules: list[tuple[Item, ...]] = field(default_factory=list)


@dataclass(slots=True)
class NamedSet:
    """A named set or map; `changes` says that its elements come and go."""

    changes: bool = False
    elements: list[tuple[Item, ...]] = field(default_factory=list)


@dataclass(slots=True)
class Table:
    """A table of a family."""

    family: str
    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, NamedSet] = field(default_factory=dict)
    dormant: bool = False


@dataclass(slots=True)
class Tables:
    """All tables, and the lines whose effect on them is not known."""

    tables: dict[tuple[str, str], Table] = field(default_factory=dict)
    unread: list[tuple[int, str]] = field(default_factory=list)


def tables_of(items: tuple[Item, ...]) -> Tables:
    """Carry out the commands of a text, as `nft -f` would on an empty kernel."""
    reader = _Reader(Tables(), {})
    for statement in statements(items):
        reader.read(statement)
    return reader.ruleset


@dataclass(frozen=True, slots=True)
class _Reader:
    ruleset: Tables
    variables: dict[str, tuple[Item, ...]]

    def read(self, statement: tuple[Item, ...]) -> None:
        """Carry out one command."""
        if self.define(statement):
            return
        verb, named = _verb(statement)
        family, words = _family(named[1:])
        if not self._carry_out(verb, _text(named[:1]), family, words):
            self.unread(statement)

    def unread(self, statement: tuple[Item, ...]) -> None:
        """Take note of a statement whose effect is not known."""
        self.ruleset.unread.append((line_of(statement), shown(statement)))

    def _carry_out(self, verb: str, kind: str, family: str, words: tuple[Item, ...]) -> bool:
        match verb, kind:
            case "flush", "ruleset":
                self.ruleset.tables.clear()
            case "delete" | "destroy", "table":
                self.ruleset.tables.pop((family, _text(words[:1])), None)
            case "flush", "table":
                self._flush(self._of(family, words).chains.values())
            case "flush", "chain" if len(words) > 1:
                chain = self._of(family, words).chains.get(_text(words[1:2]))
                self._flush([] if chain is None else [chain])
            case "add", "table":
                self._table(family, words)
            case "add" | "insert", "rule":
                self._rule(verb, self._of(family, words), words[1:])
            case "add", "chain" | "set" | "map" | "element" if len(words) > 1:
                self.member(self._of(family, words), kind, words[1:])
            case _:
                return False
        return bool(words) or kind == "ruleset"

    def define(self, statement: tuple[Item, ...]) -> bool:
        """Take note of a variable; return whether the statement is one."""
        if not is_mark(statement[0], "define", "redefine") or len(statement) < 4 or not is_mark(statement[2], "="):  # noqa: PLR2004  define, name, =, value
            return False
        self.variables[_text(statement[1:2])] = tuple(self._filled(statement[3:]))
        return True

    def _filled(self, items: tuple[Item, ...]) -> Iterator[Item]:
        """Yield items with the values of variables in place of their names."""
        for item in items:
            if isinstance(item, Group):
                yield replace(item, items=tuple(self._filled(item.items)))
            elif not item.quoted and item.text.startswith("$") and item.text[1:] in self.variables:
                yield from (replace(value, line=item.line) for value in self.variables[item.text[1:]])
            else:
                yield item

    def _of(self, family: str, words: tuple[Item, ...]) -> Table:
        return self.ruleset.tables.setdefault((family, _text(words[:1])), Table(family))

    def _table(self, family: str, words: tuple[Item, ...]) -> None:
        table = self._of(family, words)
        inner = replace(self, variables=dict(self.variables))
        for statement in _inside(words):
            if inner.define(statement):
                continue
            kind = _text(statement[:1])
            if kind in ("chain", "set", "map") and len(statement) > 1:
                inner.member(table, kind, statement[1:])
            elif kind == "flags":
                table.dormant = any(is_mark(item, "dormant") for item in statement)
            elif kind not in _OBJECTS:
                inner.unread(statement)

    def member(self, table: Table, kind: str, words: tuple[Item, ...]) -> None:
        """Add a chain or a set to a table, or elements to a set."""
        name, block = _text(words[:1]), tuple(self._filled(words))
        if kind == "element":
            table.sets.setdefault(name, NamedSet()).elements += elements_of(block[1:])
        elif kind == "chain":
            chain = table.chains.setdefault(name, Chain(line_of(words)))
            for statement in _inside(block):
                self._in_chain(chain, statement)
        else:
            found = table.sets.setdefault(name, NamedSet())
            for statement in _inside(block):
                _in_set(found, statement)

    def _flush(self, chains: Iterable[Chain]) -> None:
        for chain in chains:
            chain.rules.clear()

    def _rule(self, verb: str, table: Table, words: tuple[Item, ...]) -> None:
        chain = table.chains.setdefault(_text(words[:1]), Chain(line_of(words) if words else 0))
        rule = tuple(self._filled(words[1:]))
        if rule and is_mark(rule[0], "position", "handle", "index"):
            rule = rule[2:]
        if rule and verb == "insert":
            chain.rules.insert(0, rule)
        elif rule:
            chain.rules.append(rule)

    def _in_chain(self, chain: Chain, statement: tuple[Item, ...]) -> None:
        match _text(statement[:1]):
            case "type" if (hook := _hook(statement)) is not None:
                chain.hook, chain.line = hook, line_of(statement)
            case "policy":
                chain.accepts, chain.line = _text(statement[1:2]) == "accept", line_of(statement)
            case "comment" | "devices":
                pass
            case "type" | "include" | "define" | "redefine" | "undefine":
                self.unread(statement)
            case _:
                chain.rules.append(statement)


def _verb(statement: tuple[Item, ...]) -> tuple[str, tuple[Item, ...]]:
    """Part a command from its object; without one, it adds."""
    verb = _text(statement[:1])
    if verb in ("add", "create", "insert", "replace", "delete", "destroy", "flush", "list", "reset", "rename"):
        return "add" if verb == "create" else verb, statement[1:]
    return "add", statement


def _family(words: tuple[Item, ...]) -> tuple[str, tuple[Item, ...]]:
    if _text(words[:1]) in _FAMILIES and len(words) > 1 and isinstance(words[1], Word):
        return _text(words[:1]), words[1:]
    return "ip", words


def _text(items: tuple[Item, ...]) -> str:
    return items[0].text if items and isinstance(items[0], Word) else ""


def _inside(words: tuple[Item, ...]) -> Iterator[tuple[Item, ...]]:
    if words and isinstance(words[-1], Group):
        yield from statements(words[-1].items)


def _in_set(found: NamedSet, statement: tuple[Item, ...]) -> None:
    match _text(statement[:1]):
        case "elements":
            found.elements += elements_of(statement[1:])
        case "flags":
            found.changes |= any(is_mark(item, *_CHANGING) for item in statement)
        case "timeout":
            found.changes = True


def _hook(statement: tuple[Item, ...]) -> Hook | None:
    """Read `type nat hook prerouting priority dstnat - 5`."""
    words = [item.text for item in statement if isinstance(item, Word)]
    if len(words) < 6 or words[2] != "hook" or "priority" not in words:  # noqa: PLR2004  type T hook H priority P
        return None
    at = words.index("priority")
    match = _PRIORITY.fullmatch("".join(words[at + 1 :]))
    if match is None or match[1] not in _PRIORITIES:
        return None
    devices = [word for word in words[4:at] if word not in ("device", "devices", "=")]
    for group in (item for item in statement if isinstance(item, Group)):
        devices += [_text(element[:1]) for element in listed(group)]
    return Hook(words[1], words[3], _PRIORITIES[match[1]] + int(match[2] or 0), tuple(devices))
