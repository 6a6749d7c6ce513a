"""What is written down of what we changed."""

import json
import logging
from pathlib import Path

import pytest

from fwdaemon.hostnet.host_network import Renamings
from fwdaemon.hostnet.owned_state import OwnedStateFile, Record
from tests.unit.forwards import nat

ONE: Record = {"port": "vnet0", "index": 3}
OTHER: Record = {"port": "vnet1", "index": 4}


def test_a_later_run_reads_what_was_written(tmp_path: Path) -> None:
    state_file = OwnedStateFile("ports", tmp_path / "made")
    assert state_file.records == ()
    state_file.write([OTHER, ONE])
    assert json.loads((tmp_path / "made/ports.json").read_text()) == [ONE, OTHER]
    assert OwnedStateFile("ports", tmp_path / "made").records == (ONE, OTHER)
    state_file.write([])
    assert OwnedStateFile("ports", tmp_path / "made").records == ()


def test_it_is_replaced_as_a_whole(tmp_path: Path) -> None:
    state_file = OwnedStateFile("ports", tmp_path)
    state_file.write([ONE])
    with (tmp_path / "ports.json").open() as reading:
        state_file.write([OTHER])
        assert json.load(reading) == [ONE]
    assert [path.name for path in tmp_path.iterdir()] == ["ports.json"]


def test_it_is_not_written_where_nothing_changes(tmp_path: Path) -> None:
    OwnedStateFile("ports", tmp_path).write([])
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_again_where_its_file_went(tmp_path: Path) -> None:
    state_file = OwnedStateFile("ports", tmp_path)
    state_file.write([ONE])
    (tmp_path / "ports.json").unlink()
    state_file.write([ONE])
    assert OwnedStateFile("ports", tmp_path).records == (ONE,)


@pytest.mark.parametrize("name", [b"eth\xff", b"x\x85wan0", "x\x85wan0".encode(), b"x\x1ewan0", b'x"},{"port":"wan0'])
def test_a_name_of_any_bytes_is_one_name(tmp_path: Path, name: bytes) -> None:
    record: Record = {"port": name.decode(errors="surrogateescape"), "index": 1}
    OwnedStateFile("ports", tmp_path).write([record])
    assert OwnedStateFile("ports", tmp_path).records == (record,)


@pytest.mark.parametrize(
    "text", ["{", "vnet0\n", "[" * 100_000, '"vnet0"', '[["vnet0"], 1, {"port": ["vnet0"]}]', "\xff"]
)
def test_what_is_no_record_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "ports.json").write_text(text, encoding="latin-1")
    assert OwnedStateFile("ports", tmp_path).records == ()


def test_what_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    state_file = OwnedStateFile("ports", tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        state_file.write([ONE])
    assert state_file.records == (ONE,)
    assert "settings may stay as they are now" in caplog.text


def test_what_could_not_be_written_is_told_once_and_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state_file = OwnedStateFile("ports", tmp_path)
    state_file.write([ONE])
    (tmp_path / "ports.json.new").mkdir()
    assert not state_file.write([OTHER])
    assert not state_file.write([OTHER])
    assert len(caplog.records) == 1
    (tmp_path / "ports.json.new").rmdir()
    assert state_file.write([OTHER])
    assert OwnedStateFile("ports", tmp_path).records == (OTHER,)


def test_which_addresses_1_1_guests_used_is_told_to_the_next_run_once_and_kept_until_it_has_ended_connections(
    tmp_path: Path,
) -> None:
    mail, other = nat("198.51.100.8", "192.168.122.8"), nat("2001:db8:1::8", "2001:db8:122::8")

    def begin() -> Renamings:
        return Renamings(OwnedStateFile("one-to-one", tmp_path))

    assert begin().apply([mail, other]) == frozenset()
    assert begin().apply([other]) == {mail.renaming, other.renaming}
    renamings = begin()
    assert renamings.apply([other]) == {mail.renaming, other.renaming}, "the run before ended too soon"
    assert renamings.apply([other]) == frozenset()
    assert begin().apply([]) == {other.renaming}


def test_a_record_that_names_no_addresses_is_none_of_ours(tmp_path: Path) -> None:
    file = OwnedStateFile("one-to-one", tmp_path)
    file.write([{"guest": "x", "public": "198.51.100.8"}, {"guest": 1, "public": 2}, {"guest": "192.168.122.8"}])
    assert Renamings(OwnedStateFile("one-to-one", tmp_path)).apply([]) == frozenset()
