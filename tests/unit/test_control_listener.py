"""The socket in the file system: one daemon, no leftovers, no one let in by accident."""

import errno
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fwdaemon.control.listener import AlreadyRunningError, Listener
from fwdaemon.control.protocol import NoSocketError, NotRunningError, call


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
    with first.listen(), pytest.raises(AlreadyRunningError, match="another kvm-portfwd is already running"):
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


@pytest.mark.parametrize("gone", [["control.lock"], ["control.sock"], ["control.lock", "control.sock"], []])
def test_files_that_go_are_noticed_and_let_nobody_else_begin(path: Path, gone: list[str]) -> None:
    first, second = Listener(path), Listener(path)
    first.claim()
    first.lock()
    with first.listen():
        assert first.is_whole()
        for name in gone:
            (path.parent / name).unlink()
        if not gone:
            shutil.rmtree(path.parent)
        for _ in range(300):
            assert not first.is_whole()
            with pytest.raises(AlreadyRunningError, match="another kvm-portfwd is already running"):
                second.claim()
        first.lock()
        with first.listen():
            assert first.is_whole()
            first.close()
    second.claim()
    second.close()


def test_everybody_may_enter_the_directory_whatever_the_umask(path: Path) -> None:
    before, listener = os.umask(0o077), Listener(path)
    try:
        listener.lock()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    listener.close()


def test_who_asks_is_told_whether_the_daemon_or_its_socket_is_missing(path: Path) -> None:
    with pytest.raises(NotRunningError, match="the daemon is not running"):
        call("Status", 1.0, path)
    listener = Listener(path)
    listener.claim()
    with pytest.raises(NoSocketError, match=r"control\.sock was removed; .+: systemctl restart kvm-portfwd"):
        call("Status", 1.0, path)
    listener.close()


def test_a_socket_of_others_is_left_there(path: Path) -> None:
    listener = Listener(path)
    listener.lock()
    with listener.listen():
        path.unlink()
        path.touch()
        listener.close()
    assert path.exists()


@contextmanager
def taken_by_a_user(path: Path) -> Iterator[None]:
    """Have a user hold the name, and one that looks like the longer ones."""
    take = "s = [socket.socket(socket.AF_UNIX) for _ in range(2)]; "
    take += "[one.bind('\\0' + sys.argv[1] + more) for one, more in zip(s, ('', '.0'))]; [one.listen() for one in s]; "
    argv = [
        sys.executable,
        "-c",
        f"import os, socket, sys; os.setuid(65534); {take}print(flush=True); input()",
        str(path),
    ]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:  # noqa: S603  words of ours
        assert user.stdout is not None
        assert user.stdout.readline() == b"\n"
        yield
        user.communicate(b"\n")


def test_a_name_that_a_user_has_taken_lets_one_daemon_run_and_no_second(path: Path) -> None:
    first, second = Listener(path), Listener(path)
    with taken_by_a_user(path):
        first.claim()
        first.lock()
        with first.listen():
            for file in list(path.parent.iterdir()):
                file.unlink()
            for _ in range(300):
                first.is_whole()
                with pytest.raises(AlreadyRunningError, match="another kvm-portfwd is already running"):
                    second.claim()
    with pytest.raises(AlreadyRunningError):
        second.claim()
    first.close()
    second.claim()
    with pytest.raises(AlreadyRunningError):
        first.claim()
    second.close()


@contextmanager
def crowded(path: Path) -> Iterator[None]:
    """Fill the queue of connections to a name, as any user can."""
    with ExitStack() as crowd:
        for _ in range(1000):
            one = crowd.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            if one.connect_ex(f"\0{path}") == errno.EAGAIN:
                break
        else:
            pytest.fail("the queue did not fill up")
        yield


def test_a_crowd_that_connects_lets_no_second_daemon_begin(path: Path) -> None:
    first, second = Listener(path), Listener(path)
    first.claim()
    with crowded(path), pytest.raises(AlreadyRunningError):
        second.claim()
    first.close()
    second.claim()
    second.close()


def test_a_crowd_at_a_name_that_a_user_has_taken_keeps_no_daemon_from_starting(path: Path) -> None:
    first, second = Listener(path), Listener(path)
    with taken_by_a_user(path), crowded(path):
        first.claim()
        with pytest.raises(AlreadyRunningError):
            second.claim()
        first.close()


def test_those_who_ask_wait_where_no_descriptor_is_left(path: Path) -> None:
    first, second = Listener(path), Listener(path)
    first.claim()
    first.lock()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with first.listen():
        with pytest.raises(AlreadyRunningError):
            second.claim()
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            assert first.is_whole()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert first.is_whole()
        first.close()
