"""The record of assigned ports: kept whole, read with care, and not missed where it is lost."""

import json
import logging
import stat
from pathlib import Path
from uuid import UUID

import pytest

from fwdaemon.core.types import Protocol
from fwdaemon.resolve.claims import Turn
from fwdaemon.resolve.expansion import Assignments, AutoPort, Held
from fwdaemon.status.reloads import PortRecords

WEB, DB = UUID(int=1), UUID(int=2)
PORTS: Assignments = {
    AutoPort(WEB, 22, Protocol.TCP): Held(20000, 7200.0),
    AutoPort(WEB, 22, Protocol.UDP): Held(20000),
    AutoPort(DB, 22, Protocol.TCP): Held(20001),
}


def records(place: Path) -> PortRecords:
    return PortRecords(place / "state", place / "run")


def test_what_was_kept_is_read_and_is_roots_alone(tmp_path: Path) -> None:
    assert records(tmp_path).known() == {}
    assert records(tmp_path).keep(PORTS)
    assert records(tmp_path).known() == PORTS
    assert stat.S_IMODE((tmp_path / "state/auto-ports.json").stat().st_mode) == 0o600
    first, *_ = json.loads((tmp_path / "state/auto-ports.json").read_text())
    assert first["domain"] == str(WEB)


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "[{",
        "[" * 100_000,
        "{}[]",
        '[{"domain": "x", "guest": 22, "protocol": "tcp", "port": 1, "gone": 0}]',
        json.dumps([{"domain": str(WEB), "guest": 22, "protocol": "tcp", "port": 70000, "gone": 0}]),
        json.dumps([{"domain": str(each), "guest": 22, "protocol": "tcp", "port": 7, "gone": 0} for each in (WEB, DB)]),
        "\udcff",
    ],
)
def test_where_the_record_is_damaged_its_copy_counts_and_that_is_told(
    damaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records(tmp_path).keep(PORTS)
    (tmp_path / "state/auto-ports.json").write_bytes(damaged.encode(errors="surrogateescape"))
    again = records(tmp_path)
    assert again.known() == PORTS
    assert not again.is_intact
    assert "the ports that were assigned cannot be read" in caplog.text
    (tmp_path / "run/auto-ports.json").unlink()
    assert records(tmp_path).known() == {}


def test_a_full_disk_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "state").write_text("where a directory is to be")
    kept = records(tmp_path)
    assert not kept.keep(PORTS)
    assert not kept.keep(PORTS)
    assert caplog.text.count("are not kept") == 1
    (tmp_path / "state").unlink()
    assert kept.keep(PORTS)


def test_the_order_of_claims_is_kept(tmp_path: Path) -> None:
    numbers = (7, 3, 12, 1, 11, 2, 10, 5, 9, 4, 8, 6)
    turns = tuple(Turn(UUID(int=number % 5), f"tcp *:{number}", "", number % 3, number % 2 == 0) for number in numbers)
    (tmp_path / "run").mkdir()
    assert records(tmp_path).keep_turns((turns, turns[:3]))
    assert records(tmp_path).turns == (turns, turns[:3])
    (tmp_path / "run/claims.json").write_text('[{"number": "x"}]')
    assert records(tmp_path).turns == ((), ())
