"""`kvm-portfwd status`: show what is reachable, what is not and why, and the state of the daemon."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fwdaemon import __version__
from fwdaemon.audit.journal import LATE_JOBS
from fwdaemon.audit.lines import format_fault
from fwdaemon.commands.check import desired_now, previewed
from fwdaemon.commands.reload import ask
from fwdaemon.control import protocol
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.text import printable, show_duration, shown
from fwdaemon.fleet.claims import recorded
from fwdaemon.fleet.table import as_in_force
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.netfilter import Netfilter
from fwdaemon.status.model import Configuration, Header, LibvirtState, State, Status
from fwdaemon.status.records import UsageReader, rules_at
from fwdaemon.status.rows import Facts, rows
from fwdaemon.status.temporary import known, now, remaining

if TYPE_CHECKING:
    from rich.console import Console

# How it looks: a table on a terminal, aligned text elsewhere, of the JSON form, which every program gets. Names are any
# text: what could not be printed is escaped, and nothing in them is markup.

Json = Mapping[str, Any]

_COLOURS: Final = {"active": "green", "waiting": "yellow", "refused": "red"}
# What a terminal needs to have room for what is good to know, then for names in full, then for what is rarely needed.
_ROOMY, _WIDE, _WIDER = 100, 120, 160
_SHORT_NAME, _LONG_NAME = 13, 40
_LABEL: Final = 15
# So many sources over a limit are named.
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Line:
    """One line above the table; `colour` is empty for a good one."""

    label: str
    text: str
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column; it is left out on terminals narrower than `width`, and its numbers are to the right."""

    title: str
    cell: Callable[[Json], str]
    width: int = 0
    is_number: bool = False
    is_name: bool = False


def as_text(status: Json) -> str:
    """Write all of it as aligned text, a line for each exposure."""
    above = [f"{line.label:<{_LABEL}}{line.text}" for line in _header(status)]
    columns, exposures = _columns(status), status["openings"]
    if not exposures:
        return "\n".join(above)
    table = [[column.title for column in columns], *([column.cell(row) for column in columns] for row in exposures)]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    return "\n".join([*above, "", *(_aligned(cells, columns, widths) for cells in table)])


def draw(status: Json, console: "Console") -> None:
    """Draw it on a terminal."""
    from rich.table import Table  # noqa: PLC0415  takes 60 ms to import
    from rich.text import Text  # noqa: PLC0415  as above

    above = Table.grid(padding=(0, 2))
    for line in _header(status):
        above.add_row(Text(line.label, "bold"), Text(line.text, line.colour, overflow="fold"))
    console.print(above)
    if not status["openings"]:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    columns = [column for column in _columns(status) if console.width >= column.width]
    for column in columns:
        table.add_column(
            Text(column.title),
            justify="right" if column.is_number else "left",
            no_wrap=column.is_name or column.is_number,
            overflow="ellipsis" if column.is_name else "fold",
            max_width=(_LONG_NAME if console.width >= _WIDE else _SHORT_NAME) if column.is_name else None,
        )
    for row in status["openings"]:
        table.add_row(*(Text(column.cell(row), _colour(column, row)) for column in columns))
    console.print()
    console.print(table)


# --- above the table -------------------------------------------------------------------------------------------------


def _header(status: Json) -> Iterator[Line]:
    yield _daemon(status)
    if backend := status["backend"]:
        # A daemon from before an upgrade has no title for it.
        where = backend.get("title", backend["name"])
        yield Line("rules", printable(f"in {where}: {backend['reason']}"))
    yield from map(_libvirt, status["libvirt"])
    yield from _configuration(status["configuration"])
    if fleet := status.get("fleet"):
        yield _fleet(fleet)
    yield Line("uplinks", printable(", ".join(status["uplinks"]) or "none: no default or other route leads out"))
    if confined := status.get("confined"):
        yield _confined(confined)
    if interfaces := status.get("confined_interfaces"):
        yield _confined_from(interfaces)
    if last_pass := status["last_look"]:
        yield _last_pass(last_pass)
    yield from map(_restored, status["restored"])
    yield from (Line("problem", printable(problem), "red") for problem in status["problems"])
    yield from _limited(status["openings"])
    yield from map(_late, status.get("late", ()))
    if lost := status.get("lost_log_lines"):
        yield Line("lost", f"{lost} lines of the journal, which were not taken in time", "red")
    if lost := status.get("lost_connection_events"):
        yield Line("lost", f"{lost} begins and ends of connections, which could not be logged in time", "red")
    yield Line("exposures", ", ".join(f"{number} {state}" for state, number in status["counts"].items()))


def _daemon(status: Json) -> Line:
    if daemon := status["daemon"]:
        return Line("kvm-portfwd", f"{status['version']}, running since {_when(daemon['since'])}, pid {daemon['pid']}")
    return Line("kvm-portfwd", f"{status['version']}, not running: nothing keeps what is below up to date", "red")


def _libvirt(state: Json) -> Line:
    how = "connected" if state["connected"] else "not connected"
    error = f"; last error: {state['last_error']}" if state["last_error"] else ""
    text = printable(f"{state['uri']}, {how} since {_when(state['since'])}{error}")
    return Line("libvirt", text, "" if state["connected"] else "red")


def _configuration(configuration: Json) -> Iterator[Line]:
    what = "the last good one, loaded" if configuration["last_good"] else "loaded"
    loaded = f", {what} {_when(configuration['loaded_at'])}" if configuration["loaded_at"] else ""
    yield Line("configuration", printable(f"{configuration['file']}{loaded}"))
    if until := configuration.get("confirm_by"):
        yield Line("unconfirmed", f"the one before comes back at {_when(until)}: run kvm-portfwd confirm", "yellow")
    if configuration.get("unconfirmed"):
        yield Line(
            "unconfirmed", "the one above is what was in force before: the file as it is was not confirmed", "red"
        )
    if configuration["refused_at"]:
        yield Line("refused", f"{_when(configuration['refused_at'])}, a newer one; the one above stays in force", "red")
    for problem in configuration["refused_problems"]:
        yield Line("", printable(f"{problem['file']}:{problem['line']}: {problem['text']}"), "red")


def _fleet(fleet: Json) -> Line:
    answering, members, age = fleet["answering"], fleet["members"], fleet["age_seconds"]
    heard = "nothing heard yet" if age is None else f"{age:.1f} s old"
    text = f"{answering} of {members} answer, revision {fleet['revision']}, {heard}"
    return Line("etcd", text, "" if 2 * answering > members else "red")


def _confined(families: Sequence[int]) -> Line:
    which = " and ".join(f"IPv{family}" for family in families)
    rest = "only these exposures pass, and what libvirt forwards for its networks"
    return Line("forwarding", f"off for {which} before kvm-portfwd: {rest}")


def _confined_from(interfaces: Sequence[str]) -> Line:
    rest = "from there only these exposures pass, and what libvirt lets into its networks"
    return Line("forwarding", printable(f"off for IPv4 on {', '.join(interfaces)} before kvm-portfwd: {rest}"))


def _last_pass(last_pass: Json) -> Line:
    when = f"{_when(last_pass['at'])}, in {last_pass['seconds'] * 1000:.0f} ms"
    if last_pass["error"]:
        return Line("last pass", printable(f"{when}, and failed: {last_pass['error']}"), "red")
    return Line("last pass", when)


def _restored(entry: Json) -> Line:
    more = f" and {entry['more']} more" if entry["more"] else ""
    text = printable(f"{_when(entry['at'])}, {entry['what']}{more} ({entry['cause']})")
    return Line("restored", text, "yellow")


def _limited(rows: Iterable[Json]) -> Iterator[Line]:
    """Name some clients that `rate` and `max_open` stop; the ports of an entry are limited together, and named once."""
    for row in {(row["owner"], row.get("origin"), row["family"]): row for row in rows if row.get("limited")}.values():
        named = row["limited"][:_NAMED]
        told = [each["source"] + (f" ({each['dropped']} dropped)" if each["dropped"] else "") for each in named]
        rest = row["limited_sources"] - len(named)
        more = f" and {rest} more" if rest else ""
        yield Line("limited", printable(f"{row['owner']}: {', '.join(told)}{more}"), "yellow")


def _late(late: Json) -> Line:
    what = LATE_JOBS.get(late["job"], late["job"]).format(late["about"])
    return Line("late", printable(f"{what}, {late['seconds']:.0f} s so far"), "red")


# --- the table -------------------------------------------------------------------------------------------------------


def _columns(status: Json) -> Sequence[Column]:
    has_bytes = any(row["open_bytes"] for row in status["openings"])
    has_dropped = any(row.get("dropped") is not None for row in status["openings"])
    return (
        Column("STATE", lambda row: str(row["state"])),
        Column("GUEST", _guest, is_name=True),
        Column("LISTENS ON", _listens),
        Column("TARGET OR REASON", _leads),
        Column("CONNS", lambda row: _number(row["connections"]), is_number=True),
        Column("OPEN", lambda row: _number(row["open_connections"]), _ROOMY, is_number=True),
        *([Column("DROPPED", lambda row: _number(row.get("dropped")), _ROOMY, is_number=True)] if has_dropped else []),
        *([Column("BYTES", lambda row: _number(row["open_bytes"]), _WIDE, is_number=True)] if has_bytes else []),
        Column("COUNTED SINCE", lambda row: _when(row["connections_since"]), _WIDE),
        Column("CONFIGURED AT", _origin, _WIDER),
    )


def _guest(row: Json) -> str:
    """Name a domain by its name alone: most rows are about one."""
    return shown(row["owner"]) if row["owner_kind"] == "domain" else f"{row['owner_kind']} {shown(row['owner'])}"


def _listens(row: Json) -> str:
    interface = f" on {row['interface']}" if row["interface"] else ""
    first, *others = row["sources"] or [""]
    more = f" and {len(others)} more" if others else ""
    left = row.get("remaining_seconds")
    ends = "" if left is None else f" for {show_duration(left)} more"
    return printable(f"{row['listens']}{interface}{f' from {first}{more}' if first else ''}{ends}")


def _leads(row: Json) -> str:
    to = row["leads_to"] and row["leads_to"] + (" masqueraded" if row.get("masquerade") else "")
    return printable(row["reason"] or to or "-")


def _origin(row: Json) -> str:
    return printable(row.get("origin") or "-")


def _number(number: int | None) -> str:
    return "-" if number is None else str(number)


def _when(time: str | None) -> str:
    """Write a time as a clock on this host shows it."""
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S") if time else "-"


def _colour(column: Column, row: Json) -> str:
    return _COLOURS.get(row["state"], "") if column.title == "STATE" else ""


def _aligned(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = (
        cell.rjust(width) if column.is_number else cell.ljust(width)
        for cell, column, width in zip(cells, columns, widths, strict=True)
    )
    return "  ".join(padded).rstrip()


# A status without a daemon to ask: what the configuration and libvirt want, and what of it the kernel holds.
_NOT_THERE: Final = "not in the kernel; the daemon would put it there"


def status_without_daemon(path: Path) -> Status:
    """Look once.

    Raises:
        ConfigError: the configuration is wrong.
        PortfwdError: libvirt or the kernel does not answer, or not to this user.

    """
    temporary = known()
    config = as_in_force(path)
    desired = recorded().gate(desired_now(config))
    netfilter = Netfilter(SystemRunner(), config.daemon.backend)
    found = previewed(config, desired, netfilter)
    facts = Facts(
        config,
        desired,
        desired.lacking(found.mended),
        _NOT_THERE,
        State.WAITING,
        open_for=remaining(temporary, now()),
    )
    libvirt = tuple(LibvirtState(uri, connected=True, since=datetime.now(UTC)) for uri in config.daemon.libvirt)
    problems = (*found.faults, *(Fault(FaultKind.UNWANTED, detail=name) for name in found.stale))
    header = Header(
        __version__,
        Configuration(path),
        rules=rules_at(netfilter.locate()),
        libvirt=libvirt,
        problems=tuple(sorted(map(format_fault, problems))),
        uplinks=tuple(sorted(desired.uplinks)),
        confined=tuple(sorted(netfilter.confined())),
        confined_interfaces=tuple(sorted({name for _, name in netfilter.switched()})),
    )
    readings = UsageReader(netfilter.counters, netfilter.dropped).read(desired)
    return Status(header, rows(facts, readings), readings.dropped.by_set)


def run(options: argparse.Namespace) -> int:
    """Ask the daemon; without one, look at the kernel and at libvirt, and say so."""
    if options.watch:
        return _watch(options)
    try:
        status = ask()
        _show(status, options)
    except protocol.NotRunningError as error:
        if os.geteuid() != 0:
            raise  # the kernel and libvirt answer root only
        print(f"kvm-portfwd: {error}", file=sys.stderr)

        _show(json.loads(status_without_daemon(options.config).encode()), options)
        return 1
    return _missed(status, options.names)


def _missed(status: Mapping[str, Any], names: Collection[str]) -> int:
    """Say which names have no exposure; 1 if there are any."""
    missed = sorted(set(names) - {exposure["owner"] for exposure in status["openings"]})
    for name in missed:
        print(f"kvm-portfwd: nothing in the configuration is for {shown(name)}", file=sys.stderr)
    return int(bool(missed))


def _watch(options: argparse.Namespace) -> int:
    """Show it again whenever it changes, until interrupted."""
    # ECMA-48: go home and erase the page; xterm: and what was above it.
    before = "\033[H\033[2J\033[3J" if sys.stdout.isatty() and not options.json else ""
    try:
        for _ in protocol.watch():
            status = ask()
            print(before, end="")
            _show(status, options)
            print(end="" if before or options.json else "\n", flush=True)
    except KeyboardInterrupt:
        pass  # the usual way to end it
    return 0


def _show(status: Mapping[str, Any], options: argparse.Namespace) -> None:
    status = _of(status, options.names)
    if options.json:
        print(json.dumps(status, indent=None if options.watch else 2))
    elif sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415  takes 60 ms to import

        draw(status, Console())
    else:
        print(as_text(status))


def _of(status: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """Leave only the exposures of these domains and networks, all of them without a name; the counts stay of all."""
    if not names:
        return status
    return {**status, "openings": [exposure for exposure in status["openings"] if exposure["owner"] in names]}
