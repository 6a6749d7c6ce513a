"""libvirt's event loop, in a thread of its own.

Events and keepalive messages of every connection are served here, so it runs before the first connection is opened
and until after the last is closed (https://libvirt.org/html/libvirt-libvirt-event.html#virEventRegisterDefaultImpl).
"""

import threading
from functools import cache

import libvirt

from fwdaemon.errors import KernelError

_ASLEEP = -1
_LAST_ROUND_MS = 20


class EventLoop:
    """Runs from `start` until `stop`. libvirt allows one loop per process; several of these in turn are fine."""

    def __init__(self) -> None:
        self._stopping = False
        self._timer = _ASLEEP
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Register the loop with libvirt and run it.

        Raises:
            KernelError: no thread or no descriptor is to be had; to try again is fine.

        """
        try:
            _register()
            if self._timer == _ASLEEP:
                self._timer = libvirt.virEventAddTimeout(_ASLEEP, self._last_round, None)
            # Another one each time: from Python 3.13 on, one that could not be started never can.
            thread = threading.Thread(target=self._run, name="libvirt-events", daemon=True)
            thread.start()
        except (RuntimeError, libvirt.libvirtError) as error:
            raise KernelError(f"libvirt's events cannot be received: {error}") from error
        self._thread = thread

    def stop(self) -> None:
        """End the thread, if it runs, after it has freed what closed connections left to it; blocks for some 20 ms.

        libvirt frees the callbacks of a closed connection in the loop's idle time, hence a timer and not a flag.
        """
        if self._thread is not None and self._thread.is_alive():
            libvirt.virEventUpdateTimeout(self._timer, _LAST_ROUND_MS)
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            libvirt.virEventRunDefaultImpl()

    def _last_round(self, timer: int, _opaque: object) -> None:
        self._stopping = True
        libvirt.virEventRemoveTimeout(timer)


@cache
def _register() -> None:
    """Register once per process, and keep libvirt from printing every error: they reach us as exceptions."""
    libvirt.registerErrorHandler(_say_nothing, None)
    libvirt.virEventRegisterDefaultImpl()


def _say_nothing(_context: object, _error: object) -> None:
    """Stand in for libvirt's own handler, which prints to standard error."""
