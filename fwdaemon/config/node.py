"""A value of the configuration together with its place, and the typed getters that read it.

Getters record what is wrong in the document's `problems`, with the path of the bad value, and go on, so that one run
reports everything. What they then return is a harmless stand-in (`None`, or a tuple without the bad element).
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, time
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Final, TypedDict, TypeVar

from fwdaemon.config.addresses import parse_guest
from fwdaemon.config.lines import MOST_ELEMENTS, KeyPath, LineIndex
from fwdaemon.config.model import ARRAYS, ENTRIES, KEYS, SETTINGS, TABLES
from fwdaemon.config.names import parse_domain, parse_mac, parse_network
from fwdaemon.core.text import GrammarError, flag_meant, quote, show, suggest
from fwdaemon.core.types import Address, Origin
from fwdaemon.errors import Problem

T = TypeVar("T")

# Those that make an entry narrower.
_NARROWING: Final = frozenset({"interface", "listen", "ports", "sources"})
# What other programs call them, and the key that each word is, in the table that has one.
_MEANT: Final[Mapping[str, tuple[str, ...]]] = {
    word: keys
    for keys, words in {
        ("address",): "guest_ip guest_address internal_ip ip to_address",
        ("domain",): "container guest instance machine name vm",
        ("interface",): "dev device iface in_interface nic",
        ("sources",): "allow allowed clients from source_range source_ranges src whitelist",
        ("listen",): "bind bind_address host_ip listen_address",
        ("public", "listen"): "external external_ip public public_ip",
        ("addresses",): "prefix prefixes subnet subnets",
    }.items()
    for word in words.split()
}
_COMMENTS: Final = frozenset({"comment", "description", "note", "notes", "title"})
_PROTOCOLS: Final = frozenset({"proto", "protocol", "protocols"})
# Those that let fewer connect, in the ways that there are none for here.
_KEEPING_OUT: Final = frozenset(
    {"ban", "banned", "blacklist", "block", "blocked", "blocklist", "deny", "denied", "except", "exclude", "limit"}
    | {"burst", "connlimit", "geoip", "max_connections", "max_open", "rate", "rate_limit", "ratelimit", "reject"}
)
_SWITCHES: Final = {"active": True, "enable": True, "enabled": True, "disable": False, "disabled": False}


@dataclass(frozen=True, slots=True)
class Document:
    """One configuration file that is TOML, and the problems found in it so far."""

    file: Path
    lines: LineIndex
    problems: list[Problem]

    def origin(self, path: KeyPath) -> Origin:
        """Where a value was written."""
        return _origin(self.file, self.lines.line_of(path))


@lru_cache(maxsize=1)
def _origin(file: Path, line: int) -> Origin:
    """Give the very same for all that stands on a line: thousands of ports may."""
    return Origin(file, line)


@dataclass(frozen=True, slots=True)
class Node:
    """One value, its path from the document's root, and the document."""

    value: object
    path: KeyPath
    document: Document

    @property
    def origin(self) -> Origin:
        """Where the value was written."""
        return self.document.origin(self.path)

    def refuse(self, text: str) -> None:
        """Record that this value is wrong; `text` says why and what to write instead."""
        self._record(self.path, text)

    def fields(self, known: Collection[str], former: Collection[str] = ()) -> dict[str, "Node"]:
        """Return a table's values by key, without the unknown ones, which are refused.

        Those of `former` are returned too, and not suggested.
        """
        if not isinstance(self.value, dict):
            self.refuse(f"must be a table, not {show(self.value)}; {self._as_table()}")
            return {}
        nodes = {key: Node(value, (*self.path, key), self.document) for key, value in self.value.items()}
        for key, node in nodes.items():
            if key not in known and key not in former:
                node.refuse_key(node.about_strange(key, known))
        return {key: node for key, node in nodes.items() if key in known or key in former}

    def about_strange(self, key: str, known: Collection[str]) -> str:
        """Say what to do about this value, whose key is not among those that are `known` in its table."""
        if key in TABLES and isinstance(self.value, dict | list):
            return f"{key} is no table in another; write {header(key)} in place of this header"
        if isinstance(self.value, dict) or _holds_tables(self.value):
            return f"{quote(key)} is a table in a table, and no key holds one; move its keys up, and remove its header"
        if meant := key_meant(key, known):
            return f"unknown key {quote(key)}; did you mean {quote(meant)}?"
        return self._about_habit(key) or _elsewhere(key, str(self.path[0])) or _unknown(key, known)

    def _about_habit(self, key: str) -> str | None:
        """Say what to do about a key that other programs have, and this one has none for."""
        if self.path[0] not in ENTRIES:
            return None
        if key in _COMMENTS:
            return f'unknown key {quote(key)}; write "#" before it, as a comment'
        if key in _PROTOCOLS and self.path[0] == "forward":
            return f'unknown key {quote(key)}; write the protocol in ports, as in "53/udp"'
        if key in _KEEPING_OUT:
            keep = "sources with those that may, or " if self.path[0] == "forward" else ""
            return f'unknown key {quote(key)}, and without it more may connect; write {keep}"#" before each line of it'
        is_on = flag_meant(self.value)
        if key not in _SWITCHES or is_on is None:
            return None
        remedy = "remove it" if is_on is _SWITCHES[key] else 'write "#" before each line of it'
        return f"unknown key {quote(key)}, as an entry is in force while it is written; {remedy}"

    def refuse_key(self, text: str) -> None:
        """Record that the key of this value is wrong: its line, but the path of the table that holds it."""
        self._record(self.path[:-1], text)

    def _as_table(self) -> str:
        if len(self.path) == 1 and isinstance(self.value, list):
            return f"write [{self.path[0]}] in single brackets, once"
        return "write its keys on lines of their own"

    def elements(self, example: str) -> tuple["Node", ...]:
        """Return an array's elements; `example` is a valid element, for the message if this is no array."""
        if not isinstance(self.value, list):
            parts = _parts(self.value, example) if isinstance(self.value, str) else []
            right = f"[{', '.join(map(quote, parts))}]" if parts else f"one such as [{quote(example)}]"
            self.refuse(f"must be an array, not {show(self.value)}; write {right}")
            return ()
        if len(self.value) > MOST_ELEMENTS:
            self.refuse(f"has {len(self.value):,} elements, more than {MOST_ELEMENTS:,}; write fewer, and wider ones")
            return ()
        return tuple(Node(item, (*self.path, index), self.document) for index, item in enumerate(self.value))

    def one_or_more(self, example: str) -> tuple["Node", ...]:
        """Return the elements of an array, or this node itself where a single string is written without brackets."""
        return (self,) if isinstance(self.value, str) else self.elements(example)

    def text(self, parse: Callable[[str], T], example: str) -> T | None:
        """Read a string with `parse`, which raises `GrammarError` on a bad one; `example` is a valid one."""
        if not isinstance(self.value, str):
            self.refuse(f"must be a string, not {show(self.value)}; {self._as_string(parse, example)}")
            return None
        try:
            return parse(self.value)
        except GrammarError as error:
            self.refuse(str(error))
            return None

    def count(self, most: int, example: int) -> int | None:
        """Give a whole number from 1 to `most`; `None` where it is none, which is a problem."""
        number, remedy = self.value, f"write a number from 1 to {most:,} such as {example}, without quotes"
        if isinstance(number, bool) or not isinstance(number, int):
            self.refuse(f"must be an integer, not {show(number)}; {remedy}")
        elif not 1 <= number <= most:
            self.refuse(f"{show(number)} is out of range; {remedy}")
        else:
            return number
        return None

    def flag(self, *, default: bool) -> bool:
        """Read true or false."""
        if isinstance(self.value, bool):
            return self.value
        meant = flag_meant(self.value)
        remedy = "one of the two" if meant is None else show(meant)
        self.refuse(f"must be true or false, not {show(self.value)}; write {remedy} without quotes")
        return default

    def _as_string(self, parse: Callable[[str], object], example: str) -> str:
        """Say how a value that is no string is to be written: as what it says, where that is right as a string."""
        path, value = self.path, self.value
        if isinstance(value, list) and len(value) == 1:
            path, value = (*path, 0), value[0]
        if isinstance(value, str | bool | int | float | date | time):
            with suppress(ValueError):
                written = value if isinstance(value, str) else self.document.lines.bare.get(path, "")
                return _as_word(value, written, parse, example)
        if self.path[0] in ENTRIES and isinstance(value, list) and _are_right(parse, value):
            return f"write {quote(value[0])}, and an entry of its own for each of the others"
        return f"write a string such as {quote(example)}"

    def _record(self, path: KeyPath, text: str) -> None:
        where = _label(path)
        said = f"{where}: {text}" if where else text
        self.document.problems.append(Problem(self.document.file, self.origin.line, said))


def key_meant(key: str, known: Collection[str]) -> str | None:
    """Give the known key that another word stands for, where that is clear."""
    plain = key.lower().replace("-", "_")
    return next((meant for meant in _MEANT.get(plain, ()) if meant in known), None) or next(
        iter(get_close_matches(plain[:80], known, n=1, cutoff=0.8)), None
    )


def _elsewhere(key: str, own: str) -> str | None:
    """Say what to do about a key of other tables. To move a setting may open more, as all entries have it then."""
    tables = [header(table) for table in (*ARRAYS, *SETTINGS) if key in KEYS[table]]
    if not tables:
        return None
    what = f"{key} is a key of {tables[0] if own in ARRAYS else ' and '.join(tables)}"
    if own in SETTINGS:
        return f"{what}; move it there"
    if own not in ("forward", "allow") and key in _NARROWING:
        return f"{what}, and {header(own)} opens every port to everyone; write a [[forward]] in its place"
    return f"{what}; remove it here"


def _unknown(key: str, known: Collection[str]) -> str:
    return f"unknown key {quote(key)}; {suggest(key, known)}"


def header(table: str) -> str:
    """Give the header of a table."""
    return f"[[{table}]]" if table in ARRAYS else f"[{table}]"


def _holds_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def read_distinct(nodes: Iterable[Node], parse: Callable[[str], T], example: str) -> tuple[T, ...]:
    """Read strings, each with `parse`, and refuse what says the same as one before it."""
    found: dict[T, Node] = {}
    for node in nodes:
        item = node.text(parse, example)
        if item is None:
            continue
        if item in found:
            node.refuse(f"{quote(str(item))} is already named on line {found[item].origin.line}; remove one of the two")
        else:
            found[item] = node
    return tuple(found)


def among_several(parse: Callable[[str], T], example: str, array: str = "") -> Callable[[str], T]:
    """Let `parse` refuse a text that is a list in itself with what it is to be, behind which `array` is said."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except GrammarError:
            parts = _parts(text, example)
            if len(parts) > 1 and all(_is_right(parse, part) for part in parts):
                raise GrammarError(f"{quote(text)} is several in one string", array, right=parts) from None
            raise

    return read


def _parts(text: str, example: str) -> list[str]:
    """Take a list in one string apart, at blanks only where the elements, such as `example`, have none."""
    parts = (part.strip() for part in re.split(r"[,;]" if " " in example else r"[\s,;]", text))
    return list(dict.fromkeys(filter(None, parts)))


def _is_right(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except GrammarError:
        return False
    return True


def _are_right(parse: Callable[[str], object], values: Sequence[object]) -> bool:
    return len(values) > 1 and all(isinstance(value, str) and _is_right(parse, value) for value in values)


def _as_word(value: object, written: str, parse: Callable[[str], object], example: str) -> str:
    """Say how a number, a date or a flag is a string: as it is written, or, where that is no right one, as it reads."""
    # The example would switch on what a flag may have switched off.
    remedy, is_meant = "", isinstance(value, bool)
    for meant in (written, show(value) if isinstance(value, bool) else str(value)):
        try:
            parse(meant)
        except GrammarError as error:
            remedy, is_meant = error.remedy, isinstance(value, bool) or error.right is not None
        else:
            return f"write {quote(meant)}"
    return remedy if is_meant else f"write a string such as {quote(example)}"


def _label(path: KeyPath) -> str:
    """Write a path for people, who count from 1: `forward 3: ports[2]`."""
    parts: list[str] = []
    for depth, step in enumerate(path):
        if isinstance(step, str):
            parts.append(step if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", step) else quote(step))
        else:
            parts[-1] += f" {step + 1}" if depth == 1 else f"[{step + 1}]"
    return ": ".join(parts)


# What the kinds of entries have in common: how a key is read, and which guest an entry speaks of.


class Guest(TypedDict):
    """The keys that name a guest, its address and, where it has several, which of its interfaces is meant."""

    domain: str
    address: Address | None
    network: str | None
    mac: str | None


def read_key(fields: Mapping[str, Node], key: str, parse: Callable[[str], T], example: str) -> T | None:
    """Read a key that holds one string; `None` where it is left out or wrong."""
    return fields[key].text(parse, example) if key in fields else None


def read_guest(node: Node, fields: Mapping[str, Node], parse: Callable[[str], str] = parse_domain) -> Guest:
    """Read the keys of `Guest`; a domain that is missing or wrong is recorded and stands as the empty name."""
    require(node, fields, "domain", 'domain = "…" with the name or UUID that virsh shows')
    return Guest(
        domain=read_key(fields, "domain", parse, "web1") or "",
        address=read_key(fields, "address", parse_guest, "192.168.122.50"),
        network=read_key(fields, "network", parse_network, "default"),
        mac=read_key(fields, "mac", parse_mac, "52:54:00:12:34:56"),
    )


def require(node: Node, fields: Mapping[str, Node], key: str, remedy: str) -> None:
    """Record that an entry lacks a key; one that is no table at all has been refused for that already."""
    if not isinstance(node.value, dict):
        return
    if key not in fields and not any(key_meant(other, KEYS[str(node.path[0])]) == key for other in node.value):
        node.refuse(f"has no {key}; write {remedy}")
