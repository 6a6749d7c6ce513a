"""How `status` looks, as texts for a reader to review; `--refresh-golden` writes them anew."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from rich.console import Console

from fwdaemon.commands import status as command
from fwdaemon.core.exposures import Owner
from fwdaemon.core.inventory import Hindrance, HindranceKind
from fwdaemon.core.state import Desired, Waiting
from fwdaemon.status.model import Status, Usage
from fwdaemon.status.rows import Facts, Readings, rows
from tests.unit.forwards import forward, route
from tests.unit.statuses import HOSTILE, header, read, status

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Show times as on a host whose clock shows UTC."""
    import time  # noqa: PLC0415  only for this

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def drawn(width: int, *, colour: bool = False) -> str:
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=colour, color_system="standard" if colour else None)
    command.draw(json.loads(status().encode()), console)
    return output.getvalue()


def agrees(name: str, text: str, request: pytest.FixtureRequest) -> None:
    lines = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    if request.config.getoption("refresh_golden"):
        (GOLDEN / name).write_text(lines, encoding="utf-8")
    assert lines == (GOLDEN / name).read_text(encoding="utf-8")


README = Path(__file__).parents[2] / "README.md"
FIRST = """

[[forward]]
domain = "web1"
ports = ["8000:80"]
[[forward]]
domain = "db"
ports = ["5432"]





[[route]]
network = "public"
addresses = ["203.0.113.64/29"]
"""


def test_the_readme_shows_what_it_looks_like() -> None:
    """Its table is of the forward that it begins with, and of others."""
    config, known = read(f"\n{FIRST}"), HindranceKind.NO_SUCH_DOMAIN
    web = replace(forward("tcp *:8000", "192.168.122.10:80"), origin=config.forwards[0].mappings[0].origin)
    public = replace(route("203.0.113.64/29", "virbr1", network="public"), origin=config.routes[0].origin)
    waits = Waiting(Owner("db"), Hindrance(known), config.forwards[1].origin)
    wanted = Desired(waiting=(waits,)).having([web, public])
    facts = Facts(config, wanted, wanted, refused={}, since={web: datetime(2026, 11, 21, 14, 55, 5, tzinfo=UTC)})
    shown = Status(header(), rows(facts, Readings({web: 3}, {web: (1, None)})))
    table = command.as_text(json.loads(shown.encode())).partition("\n\n")[2]
    assert "\n".join(line.rstrip() for line in table.splitlines()) in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 200])
def test_on_a_terminal(width: int, request: pytest.FixtureRequest) -> None:
    text = drawn(width)
    assert max(map(len, text.splitlines())) <= width
    agrees(f"status-{width}.txt", text, request)


def test_elsewhere(request: pytest.FixtureRequest) -> None:
    agrees("status-plain.txt", command.as_text(json.loads(status().encode())), request)


@pytest.mark.parametrize("width", [72, 80, 200])
def test_what_matters_most_is_whole_at_any_width(width: int) -> None:
    """However narrow: where each exposure listens, and where it leads or why it does not, are wrapped and never cut."""
    lines = drawn(width).partition("\nSTATE")[2].splitlines()
    heading = f"STATE{lines[0]}"
    starts = [heading.index(title) for title in ("LISTENS", "TARGET", "CONNS")]
    for row in status().rows:
        for start, end, text in zip(starts, starts[1:], (row.listens, row.reason or row.leads), strict=False):
            column = "".join(line[start:end].replace(" ", "") for line in lines[1:])
            assert text.replace(" ", "") in column


def test_names_are_no_markup_and_reach_no_terminal() -> None:
    text = drawn(200)
    assert "[red]" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "connect: \\x1b[31mno" in text
    assert HOSTILE in {row["owner"] for row in json.loads(status().encode())["openings"]}


def test_states_have_colours() -> None:
    assert "\x1b[32mactive" in drawn(80, colour=True)
    assert "\x1b[33mwaiting" in drawn(80, colour=True)
    assert "\x1b[31mrefused" in drawn(80, colour=True)


def test_the_first_sources_over_a_limit_are_named_once_for_an_entry() -> None:
    clients = tuple((ip_address(f"192.0.2.{number}"), None if number > 2 else 9 - number) for number in range(1, 6))
    used = Usage(dropped=15, limited=clients, limited_sources=40)
    first = next(row for row in status().rows if row.owner.name == "web1")
    limited = [replace(first, usage=used), replace(first, usage=used, listens="tcp *:81")]
    lines = command.as_text(json.loads(Status(header(), tuple(limited)).encode())).splitlines()
    told = "limited        web1: 192.0.2.1 (8 dropped), 192.0.2.2 (7 dropped), 192.0.2.3 and 37 more"
    assert [line for line in lines if line.startswith("limited")] == [told]


def test_with_nothing_to_show_there_is_no_table() -> None:
    text = command.as_text(json.loads(Status(header(), ()).encode()))
    assert text.splitlines()[-1] == "exposures      0 active, 0 waiting, 0 refused"
