"""The file for a node exporter: whole or not there, readable, and never a reason to fail."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fwdaemon.metrics.listener import Textfile


@pytest.fixture(autouse=True)
def strict_umask() -> Iterator[None]:
    """As in the unit."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kvm_portfwd.prom"
    textfile = Textfile(path)
    textfile.write(b"first\n")
    with path.open("rb") as reading:
        textfile.write(b"second\n")
        # A reader meanwhile reads what was whole.
        assert reading.read() == b"first\n"
    assert path.read_bytes() == b"second\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_what_lies_beside_it_is_neither_followed_nor_in_the_way(tmp_path: Path) -> None:
    path, theirs = tmp_path / "kvm_portfwd.prom", tmp_path / "theirs"
    theirs.write_text("theirs")
    (tmp_path / ".kvm_portfwd.prom.new").symlink_to(theirs)
    path.symlink_to(theirs)
    Textfile(path).write(b"ours\n")
    assert theirs.read_text() == "theirs"
    assert not path.is_symlink()
    assert path.read_bytes() == b"ours\n"


def test_it_goes_with_all_that_a_crash_left(tmp_path: Path) -> None:
    path = tmp_path / "kvm_portfwd.prom"
    textfile = Textfile(path)
    textfile.write(b"x\n")
    (tmp_path / ".kvm_portfwd.prom.new").write_bytes(b"half")
    textfile.remove()
    assert list(tmp_path.iterdir()) == []
    textfile.remove()


def test_a_missing_directory_is_told_once_and_again_after_it_was_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "node-exporter"
    textfile = Textfile(directory / "kvm_portfwd.prom")
    textfile.write(b"x\n")
    textfile.write(b"x\n")
    said = (
        f"no metrics in {directory}/kvm_portfwd.prom: No such file or directory; the directory {directory} has to exist"
    )
    assert caplog.record_tuples == [("fwdaemon.audit.throttle", logging.WARNING, said)]
    directory.mkdir()
    textfile.write(b"x\n")
    textfile.remove()
    directory.rmdir()
    textfile.write(b"x\n")
    assert [record.message for record in caplog.records] == [said, said]


def test_a_directory_in_its_place_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "kvm_portfwd.prom").mkdir()
    Textfile(tmp_path / "kvm_portfwd.prom").write(b"x\n")
    (record,) = caplog.records
    assert "Is a directory" in record.message
