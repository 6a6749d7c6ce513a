"""Our configuration as text: entries with the place each of them comes from, and comments on what was left out.

Every value is written by tomlkit, and whatever else comes from outside stands in comments, printable and on one line.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import tomlkit

from fwdaemon.config.model import Origin
from fwdaemon.importing.findings import Findings
from fwdaemon.importing.values import printable

_HEAD: Final = (
    "Made by kvm-portfwd import. `kvm-portfwd check FILE` says whether a configuration is right.",
    "What is left out, or different from before, is said here.",
)

Keys: TypeAlias = tuple[tuple[str, str | tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Opening:
    """One element of an entry: `element` of the array `array`, in a `[[table]]` with these other keys.

    `reason` says why it is written commented out, if it is.
    """

    table: str
    keys: Keys
    array: str
    element: str
    origin: Origin
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the configuration, and the openings that it holds for; none where it is only a comment."""

    text: str
    openings: tuple[Opening, ...] = ()


def write(files: Iterable[Findings], openings: Iterable[Opening]) -> list[Line]:
    """Write the remarks on each file, then the entries: one for all openings that differ in nothing but the element."""
    lines = [_comment(text) for text in _HEAD]
    for findings in files:
        lines += _remarks(findings)
    groups: dict[tuple[str, str, Keys], list[Opening]] = {}
    for opening in sorted(openings, key=lambda opening: bool(opening.reason)):
        groups.setdefault((opening.reason, opening.table, opening.keys), []).append(opening)
    for group in groups.values():
        lines += [Line(""), *(_entry(group) if not group[0].reason else _commented_out(group))]
    return lines


def _remarks(findings: Findings) -> Iterator[Line]:
    yield _comment("")
    yield _comment(f"From {findings.file}, {findings.kind}")
    for remark in findings.in_order():
        yield _comment(f"  line {remark.origin.line}: {remark.text}")


def _entry(group: Sequence[Opening]) -> Iterator[Line]:
    every, first = tuple(group), group[0]
    yield Line(f"[[{first.table}]]", every)
    for key, value in first.keys:
        yield Line(f"{key} = {_value(value)}", every)
    yield Line(f"{first.array} = [", every)
    for opening in group:
        yield Line(f"    {_value(opening.element)}, # {printable(str(opening.origin))}", (opening,))
    yield Line("]", every)


def _commented_out(group: Sequence[Opening]) -> Iterator[Line]:
    yield _comment(f"Left out: {group[0].reason}")
    yield from (_comment(line.text) for line in _entry(group))


def _comment(text: str) -> Line:
    return Line(f"# {printable(text)}".rstrip())


def _value(value: str | tuple[str, ...]) -> str:
    """Write a value as TOML; tomlkit leaves characters in it that a terminal would obey, such as U+009B."""
    text = tomlkit.item(value if isinstance(value, str) else list(value)).as_string()
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08X}" for letter in text)
