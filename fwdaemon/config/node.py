"""A value of the configuration together with its place, and the typed getters that read it.

Getters record what is wrong in the document's `problems`, with the path of the bad value, and go on, so that one run
tells everything. What they then return is a harmless stand-in (`None`, or a tuple without the bad element).
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fwdaemon.config.line_index import KeyPath, LineIndex
from fwdaemon.config.model import Origin
from fwdaemon.config.text import GrammarError, quote, show, suggest
from fwdaemon.errors import Problem

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Document:
    """One configuration file that is TOML, and the problems found in it so far."""

    file: Path
    lines: LineIndex
    problems: list[Problem]


@dataclass(frozen=True, slots=True)
class Node:
    """One value, its path from the document's root, and the document."""

    value: object
    path: KeyPath
    document: Document

    @property
    def origin(self) -> Origin:
        """Where the value was written."""
        return Origin(self.document.file, self.document.lines.line_of(self.path))

    def refuse(self, text: str) -> None:
        """Record that this value is wrong; `text` says why and what to write instead."""
        self._record(self.path, text)

    def fields(self, known: Collection[str]) -> dict[str, "Node"]:
        """Return a table's values by key, without the unknown ones, which are refused."""
        if not isinstance(self.value, dict):
            self.refuse(f"must be a table, not {show(self.value)}; write its keys on lines of their own")
            return {}
        nodes = {key: Node(value, (*self.path, key), self.document) for key, value in self.value.items()}
        for key, node in nodes.items():
            if key not in known:
                node.refuse_key(f"unknown key {quote(key)}; {suggest(key, known)}")
        return {key: node for key, node in nodes.items() if key in known}

    def refuse_key(self, text: str) -> None:
        """Record that the key of this value is wrong: its line, but the path of the table that holds it."""
        self._record(self.path[:-1], text)

    def elements(self, example: str) -> tuple["Node", ...]:
        """Return an array's elements; `example` is a valid element, for the message if this is no array."""
        if isinstance(self.value, list):
            return tuple(Node(item, (*self.path, index), self.document) for index, item in enumerate(self.value))
        self.refuse(f"must be an array, not {show(self.value)}; write [{quote(example)}]")
        return ()

    def one_or_more(self, example: str) -> tuple["Node", ...]:
        """Return the elements of an array, or this node itself where a single string is written without brackets."""
        return (self,) if isinstance(self.value, str) else self.elements(example)

    def text(self, parse: Callable[[str], T], example: str) -> T | None:
        """Read a string with `parse`, which raises `GrammarError` on a bad one; `example` is a valid one."""
        if not isinstance(self.value, str):
            self.refuse(f"must be a string, not {show(self.value)}; write {quote(example)}")
            return None
        try:
            return parse(self.value)
        except GrammarError as error:
            self.refuse(str(error))
            return None

    def flag(self, *, default: bool) -> bool:
        """Read true or false."""
        if isinstance(self.value, bool):
            return self.value
        self.refuse(f"must be true or false, not {show(self.value)}; write {show(default)} without quotes")
        return default

    def _record(self, path: KeyPath, text: str) -> None:
        where = _label(path)
        said = f"{where}: {text}" if where else text
        self.document.problems.append(Problem(self.document.file, self.origin.line, said))


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


def _label(path: KeyPath) -> str:
    """Write a path for people, who count from 1: `forward 3: ports[2]`."""
    parts: list[str] = []
    for depth, step in enumerate(path):
        if isinstance(step, str):
            parts.append(step if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", step) else quote(step))
        else:
            parts[-1] += f" {step + 1}" if depth == 1 else f"[{step + 1}]"
    return ": ".join(parts)
