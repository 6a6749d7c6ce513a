"""The thread for calls that may hang."""

import asyncio
import errno
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fwdaemon.audit.journal import ARREARS
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Job
from fwdaemon.errors import KernelError
from fwdaemon.hostnet.local_proxy import LocalProxy
from fwdaemon.hypervisor.link import EventLoop
from fwdaemon.kernel import memory
from fwdaemon.kernel.memory import Beside
from fwdaemon.kernel.process import HASTE, Companion, Worker, processor_time, processor_time_here
from fwdaemon.triggers import Backoff
from tests.lab.place import wait_until
from tests.unit.forwards import forward


@contextmanager
def no_threads() -> Iterator[None]:
    """Have the kernel refuse new threads: no address space is left for a stack of this size."""
    before = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_a_thread_that_could_not_be_started_is_tried_again_at_the_next_call() -> None:
    async def work() -> tuple[int, bool]:
        worker = Worker("test", Job.STATUS)
        with no_threads(), pytest.raises(KernelError, match="the thread 'test' cannot be started"):
            await worker.submit(lambda: 1)
        return await worker.submit(lambda: 2), await worker.close(10)

    assert asyncio.run(work()) == (2, True)


def test_a_thread_for_what_there_is_to_do_is_tried_again_ever_more_seldom_and_that_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    now, ran, due = [10.0], threading.Event(), list[float | None]()
    beside = Beside("test", ran.set, "nothing is done", lambda: now[0], Backoff(1.0, 2.0))
    with no_threads():
        for now[0] in (10.0, 10.5, 11.0, 13.0):
            assert not beside.begin()
            due.append(beside.due)
    assert due == [11.0, 11.0, 13.0, 15.0]
    now[0] = 15.0
    assert beside.begin()
    assert ran.wait(10)
    beside.done()
    assert beside.due is None
    told = "nothing is done: can't start new thread; trying again, less and less often"
    assert caplog.messages == [told, "over: nothing is done"]


def test_what_is_short_is_tried_again_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    outcomes = iter([OSError(errno.EMFILE, "Too many open files")] * 3 + [None])

    def begin() -> None:
        if (error := next(outcomes)) is not None:
            raise error

    asyncio.run(memory.begun(begin, again=0.001))
    assert [record.message for record in caplog.records] == [
        "Too many open files: what the daemon listens to is not there yet; trying again, less and less often"
    ]


def test_what_is_refused_for_another_reason_is_not_tried_again() -> None:
    def begin() -> None:
        raise KernelError("are we root?")

    with pytest.raises(KernelError):
        asyncio.run(memory.begun(begin))


def test_libvirts_events_are_heard_once_a_thread_is_to_be_had() -> None:
    loop = EventLoop()
    with no_threads(), pytest.raises(KernelError, match="libvirt's events cannot be received"):
        loop.start()
    loop.start()
    loop.stop()


@pytest.mark.parametrize("full", [True, False])
def test_the_proxy_on_loopback_begins_once_a_thread_is_to_be_had(*, full: bool) -> None:
    web = forward("tcp *:48080", "192.168.122.50:8080")
    proxy, desired = LocalProxy(), Desired(frozenset({web}), localhost=True)
    for _ in range(2):
        with no_threads(), pytest.raises(KernelError, match="no forward answers on"):
            proxy.apply(desired, full=full)
    try:
        assert proxy.apply(desired, full=full).changed
    finally:
        proxy.close()


def test_a_pass_does_not_wait_for_a_proxy_that_is_busy() -> None:
    web, other = (forward(f"tcp *:{port}", "192.168.122.50:8080") for port in (48080, 48081))
    proxy, over, gave_up = LocalProxy(), threading.Event(), threading.Event()

    def is_held() -> None:
        if not over.wait(5.0):
            gave_up.set()

    assert proxy.apply(Desired(frozenset({web}), localhost=True)).changed
    running = proxy._running  # noqa: SLF001  its loop is held up
    assert running is not None
    running[0].call_soon_threadsafe(is_held)
    wanted = Desired(frozenset({other}), localhost=True)
    results = [proxy.apply(wanted, full=full) for full in (False, True)]
    assert not gave_up.is_set()
    assert [(result.short, len(result.faults)) for result in results] == [(True, 1)] * 2
    assert Job.LOOPBACK in {late.job for late in ARREARS.late(0.0)}, "the status shows that it waits"
    over.set()
    wait_until(lambda: not proxy.apply(wanted).short, "it is done")
    assert Job.LOOPBACK not in {late.job for late in ARREARS.late(0.0)}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 48080)).close()
    socket.create_connection(("127.0.0.1", 48081)).close()
    proxy.close()


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that answers once it, and a program that it runs, have used so many seconds."""
    work = "import sys, time\nwhile time.process_time() < float(sys.argv[1]): pass\n"
    (tmp_path / "work.py").write_text(work, encoding="utf-8")
    serve = (
        "import subprocess, sys, time\n"
        "for line in open(0):\n"
        "    subprocess.run([sys.executable, '-m', 'work', line.strip()])\n"
        "    while time.process_time() < float(line): pass\n"
        "    print(flush=True)\n"
    )
    (tmp_path / "busy.py").write_text(serve, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "busy"


def test_what_programs_take_is_counted_while_they_run_and_once_they_ended(busy: str) -> None:
    companion, began = Companion(busy, "", {}), processor_time()
    assert companion.exchange("0.3") == "\n"
    beside = companion.processor_time
    assert beside >= 0.3
    assert processor_time() >= began + 0.25
    companion.close()
    assert companion.processor_time == 0.0
    assert processor_time() >= began + 0.25
    assert processor_time_here() >= 0.25


def test_what_a_companion_takes_that_works_for_a_client_is_not_counted(busy: str) -> None:
    companion, began = Companion(busy, "", {}, counted=False), (processor_time(), processor_time_here())
    assert companion.exchange("0.4") == "\n"
    assert processor_time() < began[0] + 0.3
    assert companion.close() == 0
    assert processor_time() < began[0] + 0.3
    assert processor_time_here() < began[1] + 0.3


def test_a_companion_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = ("import time", "print(input(), flush=True)", "time.sleep(600)")
    (tmp_path / "stubborn.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(HASTE, "idle", 0.1)
    for counted in (True, False):
        companion = Companion("stubborn", "", {}, counted=counted)
        assert companion.exchange("there") == "there\n"
        assert companion.close() == -signal.SIGKILL


def test_a_thread_is_not_charged_with_what_others_take() -> None:
    before = processor_time(), processor_time_here()

    def work() -> None:
        began = time.thread_time()
        while time.thread_time() < began + 0.2:
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert processor_time() >= before[0] + 0.2
    assert processor_time_here() < before[1] + 0.2
