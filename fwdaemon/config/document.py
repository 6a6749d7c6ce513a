"""One configuration file: from what was read to its settings and entries."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar

import tomli

from fwdaemon.config.control import read_control
from fwdaemon.config.daemon import read_daemon
from fwdaemon.config.forward import read_forward
from fwdaemon.config.lines import toml_lines
from fwdaemon.config.metrics import read_metrics
from fwdaemon.config.model import ControlSettings, DaemonSettings, ForwardEntry, MetricsSettings, NatEntry, RouteEntry
from fwdaemon.config.nat import read_nat
from fwdaemon.config.node import Document, Node
from fwdaemon.config.route import read_routes
from fwdaemon.config.text import quote, show, suggest
from fwdaemon.errors import Problem

_TABLES: Final = ("control", "daemon", "forward", "metrics", "nat", "route")
_POSITION: Final = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Contents:
    """What one file says: its settings, `None` where it has no such table, and the entries fit to be compared."""

    daemon: DaemonSettings | None = None
    control: ControlSettings | None = None
    metrics: MetricsSettings | None = None
    forwards: tuple[ForwardEntry, ...] = ()
    nats: tuple[NatEntry, ...] = ()
    routes: tuple[RouteEntry, ...] = ()


def read_document(file: Path, source: bytes | str, problems: list[Problem], *, is_main: bool) -> Contents:
    """Read one file, adding what is wrong to `problems`."""
    parsed = _parse_toml(file, source)
    if isinstance(parsed, Problem):
        problems.append(parsed)
        return Contents()
    values, text = parsed
    document = Document(file, toml_lines(text), problems)
    tables = {key: Node(value, (key,), document) for key, value in values.items()}
    _refuse_strange_tables(tables)
    return Contents(
        daemon=_read_settings(tables, "daemon", read_daemon, is_main=is_main),
        control=_read_settings(tables, "control", read_control, is_main=is_main),
        metrics=_read_settings(tables, "metrics", read_metrics, is_main=is_main),
        forwards=tuple(entry for entry in _read_entries(tables, "forward", read_forward) if entry is not None),
        nats=tuple(entry for entry in _read_entries(tables, "nat", read_nat) if entry is not None),
        routes=tuple(chain.from_iterable(_read_entries(tables, "route", read_routes))),
    )


def _refuse_strange_tables(tables: dict[str, Node]) -> None:
    for key, node in tables.items():
        if key not in _TABLES:
            what = "table" if isinstance(node.value, dict | list) else "key"
            node.refuse_key(f"unknown {what} {quote(key)}; {suggest(key, _TABLES)}")


def _read_settings(tables: Mapping[str, Node], key: str, read: Callable[[Node], T], *, is_main: bool) -> T | None:
    if key not in tables:
        return None
    if is_main:
        return read(tables[key])
    tables[key].refuse_key(f"[{key}] does not belong in a drop-in file; move its keys to the main file")
    return None


def _read_entries(tables: Mapping[str, Node], key: str, read: Callable[[Node], T]) -> Iterable[T]:
    if key not in tables:
        return ()
    node = tables[key]
    if not isinstance(node.value, list):
        node.refuse(f"must be entries, not {show(node.value)}; write [[{key}]] in double brackets")
        return ()
    return map(read, node.elements(f"[[{key}]]"))


def _parse_toml(file: Path, source: bytes | str) -> tuple[dict[str, object], str] | Problem:
    try:
        text = source if isinstance(source, str) else source.decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return Problem(file, line, "is not UTF-8 text; save the file as UTF-8")
    if text.startswith("\ufeff"):
        return Problem(file, 1, "starts with a byte order mark; save the file as UTF-8 without one")
    try:
        return tomli.loads(text), text
    except RecursionError:
        return Problem(file, 1, "nests brackets too deeply; write plain arrays of strings")
    except ValueError as error:
        return _syntax_problem(file, text, str(error))


def _syntax_problem(file: Path, text: str, said: str) -> Problem:
    """Say where a text stops being TOML; a number longer than Python reads comes without a position."""
    position = _POSITION.search(said)
    if position is None:
        return Problem(file, _line_of_longest(text), "has a number with too many digits; write a shorter one")
    reason = said[: position.start()]
    if position["line"] is None:
        last = text.count("\n", 0, len(text.rstrip())) + 1
        return Problem(file, last, f"is not valid TOML: {reason} at the end of the file; mend the last lines")
    column = position["column"]
    return Problem(
        file, int(position["line"]), f"is not valid TOML: {reason} at column {column}; mend the line's syntax"
    )


def _line_of_longest(text: str) -> int:
    lines = text.split("\n")
    longest = max(range(len(lines)), key=lambda index: len(lines[index]))
    return longest + 1
