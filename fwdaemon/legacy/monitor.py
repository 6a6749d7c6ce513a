"""Notices that somebody changed the legacy tables, of which the kernel tells nobody.

Once a second the kernel is asked how large the tables are, and where there are none, more seldom: that costs
microseconds, but to wake up costs more. And iptables' programs lock a file, so when one of them lets go of it, that is
a reason to look. Nobody tells who it was.
"""

import asyncio
import ctypes
import logging
import os

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.core.report import Actor, ActorKind, RulesChanged
from fwdaemon.core.types import Family
from fwdaemon.errors import KernelError
from fwdaemon.legacy.info import TableInfo, existing_tables, table_info
from fwdaemon.legacy.lock import lock_path
from fwdaemon.legacy.model import TableName

_log = logging.getLogger(__name__)

# The kernel does not tell who.
_SOMEBODY = Actor(ActorKind.LEGACY_TABLES)
POLL = 1.0
# How many times longer the pause is while no legacy tables are there.
_LONGER = 3
# Programs that change tables come in bursts.
_PAUSE = 0.05
_CLOSED = 0x18  # IN_CLOSE_WRITE and IN_CLOSE_NOWRITE, inotify(7)
_BUFFER = 1 << 16


class LegacyMonitor:
    """Calls `changed` on the asyncio loop's thread when the legacy tables may have changed."""

    def __init__(self, changed: RulesChanged, poll: float = POLL) -> None:
        self._changed = changed
        self._poll_every = poll
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = -1
        self._warning = WarnOnce()
        self._seen: dict[tuple[Family, TableName], TableInfo] = {}
        self._polling: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch. While the kernel has no inotify left, changes are noticed by their size alone."""
        self._seen = _sizes()
        self._poll()

    def close(self) -> None:
        """Stop watching."""
        for timer in (self._polling, self._telling):
            if timer is not None:
                timer.cancel()
        if self._inotify >= 0:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1

    def _open(self) -> None:
        self._inotify = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._inotify >= 0:
            self._warning.settle()
            asyncio.get_running_loop().add_reader(self._inotify, self._read)
        else:
            reason = os.strerror(ctypes.get_errno())
            self._warning.warn(f"cannot watch {lock_path()}, trying again: {reason}")

    def _poll(self) -> None:
        if self._inotify < 0:
            self._open()
        if self._inotify >= 0:
            # Does nothing while the file is the same; it may not be there yet, or somebody may have replaced it.
            self._libc.inotify_add_watch(self._inotify, lock_path().encode(), _CLOSED)
        sizes = _sizes()
        pause = self._poll_every if sizes else self._poll_every * _LONGER
        self._polling = asyncio.get_running_loop().call_later(pause, self._poll)
        if sizes != self._seen:
            self._seen = sizes
            self._changed(_SOMEBODY, full=True)

    def _read(self) -> None:
        try:
            os.read(self._inotify, _BUFFER)
        except BlockingIOError:
            return
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_PAUSE, self._tell)

    def _tell(self) -> None:
        self._telling = None
        self._seen = _sizes()
        self._changed(_SOMEBODY, full=True)


def _sizes() -> dict[tuple[Family, TableName], TableInfo]:
    try:
        return {(family, table): table_info(family, table) for family in Family for table in existing_tables(family)}
    except KernelError as error:
        _log.debug("the sizes of the legacy tables are not known: %s", error)
        return {}
