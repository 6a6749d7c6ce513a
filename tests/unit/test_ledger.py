"""What is written down of what we changed."""

import logging
from pathlib import Path

import pytest

from fwdaemon.ledger import Ledger


def test_a_later_run_reads_what_was_written(tmp_path: Path) -> None:
    ledger = Ledger("ports", tmp_path / "made")
    assert ledger.lines == frozenset()
    ledger.write(["vnet1", "vnet0"])
    assert (tmp_path / "made/ports").read_text() == "vnet0\nvnet1\n"
    assert Ledger("ports", tmp_path / "made").lines == {"vnet0", "vnet1"}
    ledger.write([])
    assert Ledger("ports", tmp_path / "made").lines == frozenset()


def test_it_is_replaced_as_a_whole(tmp_path: Path) -> None:
    ledger = Ledger("ports", tmp_path)
    ledger.write(["vnet0"])
    with (tmp_path / "ports").open() as reading:
        ledger.write(["vnet1"])
        assert reading.read() == "vnet0\n"
    assert [path.name for path in tmp_path.iterdir()] == ["ports"]


def test_it_is_not_written_where_nothing_changes(tmp_path: Path) -> None:
    Ledger("ports", tmp_path).write([])
    assert list(tmp_path.iterdir()) == []


def test_names_of_any_bytes_come_back(tmp_path: Path) -> None:
    name = b"eth\xff".decode(errors="surrogateescape")
    Ledger("ports", tmp_path).write([name])
    assert Ledger("ports", tmp_path).lines == {name}


def test_what_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    ledger = Ledger("ports", tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        ledger.write(["vnet0"])
    assert ledger.lines == {"vnet0"}
    assert "what is switched may stay so" in caplog.text
