"""The `[daemon]` table."""

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Final, TypeVar

from fwdaemon.config.model import BackendChoice, DaemonSettings, Gate, OnStop
from fwdaemon.config.names import parse_gate, parse_uri
from fwdaemon.config.node import Node, read_distinct
from fwdaemon.config.text import GrammarError, quote, show, suggest

_DEFAULTS: Final = DaemonSettings()
KEYS: Final = ("backend", "gates", "ip_forward", "libvirt", "localhost", "mark", "on_stop", "resync")
_UNITS: Final = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
}
_SHORTEST_RESYNC: Final = timedelta(seconds=1)
_LONGEST_RESYNC: Final = timedelta(days=1)
_LAST_MARK: Final = 1 << 31

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


def read_daemon(node: Node) -> DaemonSettings:
    """Read the `[daemon]` table; a value that is wrong is recorded and stands as its default."""
    fields = node.fields(KEYS)
    return DaemonSettings(
        libvirt=_read_libvirt(fields["libvirt"]) if "libvirt" in fields else _DEFAULTS.libvirt,
        backend=_read(fields, "backend", _choice_of(BackendChoice), _DEFAULTS.backend, "auto"),
        resync=_read(fields, "resync", parse_resync, _DEFAULTS.resync, "30s"),
        on_stop=_read(fields, "on_stop", _choice_of(OnStop), _DEFAULTS.on_stop, "keep"),
        ip_forward=_read_flag(fields, "ip_forward", default=_DEFAULTS.ip_forward),
        localhost=_read_flag(fields, "localhost", default=_DEFAULTS.localhost),
        mark=_read_mark(fields["mark"]) if "mark" in fields else _DEFAULTS.mark,
        gates=_read_gates(fields["gates"]) if "gates" in fields else _DEFAULTS.gates,
    )


def parse_resync(text: str) -> timedelta:
    """Read a duration of 1 second to 24 hours: `30s`, `5m`, `1500ms`, `1h`."""
    match = re.fullmatch(r"([0-9]{1,9})(ms|s|m|h)", text)
    if match is None:
        raise GrammarError(f'{quote(text)} is not a duration; write a whole number and ms, s, m or h, as in "30s"')
    duration = int(match[1]) * _UNITS[match[2]]
    if not _SHORTEST_RESYNC <= duration <= _LONGEST_RESYNC:
        raise GrammarError(f'{quote(text)} is out of range; write a duration from "1s" to "24h"')
    return duration


def _read(fields: Mapping[str, Node], key: str, parse: Callable[[str], T], default: T, example: str) -> T:
    value = fields[key].text(parse, example) if key in fields else None
    return default if value is None else value


def _read_flag(fields: Mapping[str, Node], key: str, *, default: bool) -> bool:
    return fields[key].flag(default=default) if key in fields else default


def _choice_of(choices: type[E]) -> Callable[[str], E]:
    def parse(text: str) -> E:
        try:
            return choices(text)
        except ValueError:
            raise GrammarError(f"{quote(text)} is not one of its values; {suggest(text, choices)}") from None

    return parse


def _read_libvirt(node: Node) -> tuple[str, ...]:
    if node.value == []:
        node.refuse('is empty; write at least one URI, ["qemu:///system"]')
    return read_distinct(node.one_or_more("qemu:///system"), parse_uri, "qemu:///system")


def _read_gates(node: Node) -> tuple[Gate, ...]:
    return read_distinct(node.elements("inet filter forward"), parse_gate, "inet filter forward")


def _read_mark(node: Node) -> int:
    """Read a connection mark of exactly one bit of the 32."""
    mark = node.value
    remedy = f"write one bit such as {_DEFAULTS.mark:#010x}, without quotes"
    if isinstance(mark, bool) or not isinstance(mark, int):
        node.refuse(f"must be an integer, not {show(mark)}; {remedy}")
    elif not 1 <= mark <= _LAST_MARK or mark & (mark - 1):
        node.refuse(f"must be exactly one of the 32 bits of a mark, not {show(mark)}; {remedy}")
    else:
        return mark
    return _DEFAULTS.mark
