"""Hears of every change to nftables in this network namespace, and tells who made it, unless we did."""

import logging
import socket

from fwdaemon.errors import KernelError
from fwdaemon.naming import shown
from fwdaemon.nftables.generation import Generation, open_monitor, receive
from fwdaemon.outcome import RulesChanged
from fwdaemon.process import Runner
from fwdaemon.subscription import Subscription

_log = logging.getLogger(__name__)


class RulesMonitor:
    """Calls `changed` on the asyncio loop's thread with the name and pid of whoever changed rules.

    When so much happened that some of it was lost, it asks for a thorough look.
    """

    def __init__(self, runner: Runner, changed: RulesChanged) -> None:
        self._runner = runner
        self._changed = changed
        self._subscription = Subscription(open_monitor, self._read)

    def start(self) -> None:
        """Begin to listen.

        Raises:
            KernelError: this kernel has no nftables, or we may not listen.

        """
        try:
            self._subscription.start()
        except OSError as error:
            raise KernelError(
                f"the kernel does not let us listen to nftables ({error.strerror}); are we root?"
            ) from error

    def close(self) -> None:
        """Stop listening."""
        self._subscription.close()

    def _read(self, monitor: socket.socket) -> None:
        try:
            commits = receive(monitor)
        except OSError as error:
            _log.debug("some changes of nftables went unheard: %s", error)
            self._changed("somebody, in more commits than could be followed", thorough=True)
            return
        for commit in commits:
            if not self._runner.started(commit.port):
                self._changed(_name(commit), thorough=False)


def _name(commit: Generation) -> str:
    return f"{shown(commit.process)}, pid {commit.pid}"
