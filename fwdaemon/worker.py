"""A thread of its own for calls that may hang, so that nothing else has to wait for them.

Calls run one after the other, which is what a libvirt connection needs: none of them ever runs beside its close. The
thread is a daemon thread on purpose, unlike those of `concurrent.futures`: a libvirtd that is frozen in the middle of a
call must not keep this program from ending.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """One thread, begun at the first call, that runs calls in the order they were given.

    `name` is the thread's, for whoever lists threads.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._name = name
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Queue a call; the future belongs to the running asyncio loop. Cancelling it drops a call not yet begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[T] = Future()
        self._calls.put(lambda: _settle(future, function))
        return asyncio.wrap_future(future)

    async def close(self, patience: float) -> bool:
        """End the thread after the calls already queued; whether it ended within `patience` seconds."""
        if self._thread is None:
            return True
        self._calls.put(None)
        clock = asyncio.get_running_loop().time
        deadline = clock() + patience
        while self._thread.is_alive() and clock() < deadline:  # noqa: ASYNC110 - see below
            await asyncio.sleep(0.01)  # nothing a thread could signal comes after its last instruction
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # or the last call's data stay alive until the next one


def _settle(future: Future[T], function: Callable[[], T]) -> None:
    """Run the call; whatever it raises is raised where its result is awaited."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - handed on unchanged, like concurrent.futures does
        future.set_exception(error)
    else:
        future.set_result(result)
