"""The control socket as a part of the daemon: it comes and goes with it, and is never a reason not to run.

The one exception is another daemon on this host: two of them would undo each other's work.
"""

import asyncio
import grp
import logging
from pathlib import Path
from typing import Final

from fwdaemon.control.listener import SOCKET, Listener
from fwdaemon.control.manager import Manager
from fwdaemon.control.server import ControlServer
from fwdaemon.worker import Worker

_log = logging.getLogger(__name__)

_CLOSE_S: Final = 2.0


class ControlSocket:
    """Listens at `path`, and has `manager` answer."""

    def __init__(self, manager: Manager, path: Path = SOCKET) -> None:
        self._manager = manager
        self._listener = Listener(path)
        self._server = ControlServer(manager.service())
        # Groups may be kept on the network, which may not be there yet.
        self._groups = Worker("group database")
        self._admitting: asyncio.Task[None] | None = None
        self._is_open = False

    async def open(self, group: str) -> None:
        """Begin to listen, for root and soon for the members of `group`.

        Raises:
            AlreadyRunningError: another daemon runs on this host.

        """
        try:
            self._listener.lock()
            await self._server.start(self._listener.listen())
        except OSError as error:
            _log.warning("no control socket, so neither status nor reload will work: %s", error)
            return
        self._is_open = True
        self.admit(group)

    def admit(self, group: str) -> None:
        """Let the members of another group ask how things are."""
        if self._is_open:
            if self._admitting is not None:
                self._admitting.cancel()
            self._admitting = asyncio.create_task(self._admit(group))

    async def close(self) -> None:
        """Let go of everybody, and take the socket away."""
        if self._admitting is not None:
            self._admitting.cancel()
        await self._server.close()
        await asyncio.gather(self._manager.close(), self._groups.close(_CLOSE_S))
        self._listener.close()

    async def _admit(self, name: str) -> None:
        group = await self._groups.submit(lambda: _number_of(name))
        if group is None:
            _log.warning("there is no group %r, so only root may ask for the status; see [control] group", name)
        try:
            self._listener.admit(group)
        except OSError as error:
            _log.warning("only root may ask for the status: the socket is not given away (%s)", error.strerror)
        else:
            self._server.group = group


def _number_of(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None
