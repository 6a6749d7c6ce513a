"""A network namespace of its own for each test, so that the real kernel can be used without a trace."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.process import SystemRunner
from tests.kernel.legacy import helpers

_CLONE_NEWNET = 0x40000000  # sched.h


@pytest.fixture
def namespace(lab: None) -> Iterator[None]:
    """Move this thread, and what it starts, into a fresh network namespace, and back afterwards."""
    del lab
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        yield
        if libc.setns(home, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(home)


@pytest.fixture
def runner(namespace: None) -> SystemRunner:
    """Give a runner whose programs work in the namespace."""
    del namespace
    return SystemRunner()


@pytest.fixture
def lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespace: None) -> Path:
    """Keep everybody in the namespace away from the machine's own lock."""
    del namespace
    path = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    return path


@pytest.fixture
def backend(lock_file: Path) -> Iterator[LegacyBackend]:
    """The backend of the legacy tables, whose helpers must end with it; the tests of nftables have their own."""
    del lock_file
    backend = LegacyBackend()
    yield backend
    backend.close()
    assert not helpers(), "a helper was left behind"
