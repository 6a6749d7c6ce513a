"""One configuration file: from what was read to its settings and entries."""

import re
from pathlib import Path
from typing import Final

import tomli

from fwdaemon.config.daemon import read_daemon
from fwdaemon.config.forward import read_forward
from fwdaemon.config.lines import LineIndex
from fwdaemon.config.model import DaemonSettings, ForwardEntry
from fwdaemon.config.node import Document, Node
from fwdaemon.config.text import quote, show, suggest
from fwdaemon.config.unsupported import TABLES, refuse_table
from fwdaemon.errors import Problem

_TABLES: Final = ("daemon", "forward")
_POSITION: Final = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")


def read_document(
    file: Path, source: bytes | str, problems: list[Problem], *, is_main: bool
) -> tuple[DaemonSettings | None, list[ForwardEntry]]:
    """Read one file, adding what is wrong to `problems`.

    Returns its settings, `None` without a `[daemon]`, and the entries sound enough to be compared with others.
    """
    parsed = _parse_toml(file, source)
    if isinstance(parsed, Problem):
        problems.append(parsed)
        return None, []
    values, text = parsed
    document = Document(file, LineIndex.of(text), problems)
    tables = {key: Node(value, (key,), document) for key, value in values.items()}
    _refuse_strange_tables(tables)
    settings = _read_daemon(tables["daemon"], is_main=is_main) if "daemon" in tables else None
    return settings, _read_forwards(tables["forward"]) if "forward" in tables else []


def _refuse_strange_tables(tables: dict[str, Node]) -> None:
    for key, node in tables.items():
        if key in TABLES:
            refuse_table(node)
        elif key not in _TABLES:
            what = "table" if isinstance(node.value, dict | list) else "key"
            node.refuse_key(f"unknown {what} {quote(key)}; {suggest(key, _TABLES)}")


def _read_daemon(node: Node, *, is_main: bool) -> DaemonSettings | None:
    if is_main:
        return read_daemon(node)
    node.refuse_key("[daemon] does not belong in a drop-in file; move its keys to the main file")
    return None


def _read_forwards(node: Node) -> list[ForwardEntry]:
    if not isinstance(node.value, list):
        node.refuse(f"must be entries, not {show(node.value)}; write [[forward]] in double brackets")
        return []
    entries = map(read_forward, node.elements("[[forward]]"))
    return [entry for entry in entries if entry is not None]


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
