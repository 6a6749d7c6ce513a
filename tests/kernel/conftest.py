"""A network namespace of its own for each test, so that the real kernel can be used without a trace."""

import ctypes
import os
from collections.abc import Iterator

import pytest

from fwdaemon.process import SystemRunner

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
