"""The socket in the file system: one daemon, no leftovers, nobody let in by accident."""

import os
import socket
import stat
from pathlib import Path

import pytest

from fwdaemon.control.listener import AlreadyRunningError, Listener


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


def test_it_is_there_while_it_is_open_and_for_its_owner_alone(path: Path) -> None:
    umask = os.umask(0)
    try:
        listener = Listener(path)
        listener.lock()
        with listener.listen():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_ISSOCK(path.stat().st_mode)
        listener.close()
    finally:
        os.umask(umask)
    assert not path.exists()


def test_a_second_one_is_refused_until_the_first_has_gone(path: Path) -> None:
    first, second = Listener(path), Listener(path)
    first.lock()
    with first.listen(), pytest.raises(AlreadyRunningError, match="another kvm-portfwd runs already"):
        second.lock()
    second.close()
    assert path.exists()
    first.close()
    third = Listener(path)
    third.lock()
    third.close()


@pytest.mark.parametrize("left", ["socket", "file", "link"])
def test_what_is_left_there_is_replaced(path: Path, left: str) -> None:
    path.parent.mkdir()
    if left == "socket":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
    elif left == "file":
        path.write_text("x")
    else:
        path.symlink_to("/nonexistent")
    listener = Listener(path)
    listener.lock()
    with listener.listen(), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()


def test_the_lock_follows_no_link(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.with_suffix(".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"control\.lock"):
        Listener(path).lock()
    assert not (tmp_path / "elsewhere").exists()


def test_its_end_without_a_socket_takes_nobody_elses(path: Path) -> None:
    first, second = Listener(path), Listener(path)
    first.lock()
    with first.listen():
        second.close()
        assert path.exists()
    first.close()
