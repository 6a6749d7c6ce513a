"""Clients of the control socket, each within limits, so that a slow or hostile one does not affect the others.

A client has one call at a time, of 64 KiB at most, and not many of them in a second. What it sends that is no call, or
keeps us waiting for, ends its connection, and so does an answer that it does not take. Nothing here blocks the loop.
"""

import asyncio
import errno
import grp
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.control.listener import RESTART, SOCKET, AlreadyRunningError, Listener, Peer
from fwdaemon.control.manager import Manager
from fwdaemon.control.protocol import (
    END,
    EXPECTED_MORE,
    PERMISSION_DENIED,
    Call,
    CallError,
    MalformedError,
    Service,
    Stream,
    error_reply,
    read_call,
    reply,
)
from fwdaemon.core.types import Job
from fwdaemon.errors import KernelError, PortfwdError
from fwdaemon.kernel.memory import begun
from fwdaemon.kernel.process import Worker
from fwdaemon.triggers import Backoff

_log = logging.getLogger(__name__)

_LONGEST_CALL: Final = 1 << 16
# After each answer, so that no client keeps the loop busy with small calls, or with large answers to them.
_PAUSE_S: Final = 0.02
_BYTES_A_SECOND: Final = 20_000_000

_ENDS = (OSError, PortfwdError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, MalformedError)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many clients there may be, in all and of one user who is not root; and how long each may take.

    `idle` is how long a client may be silent, and `take` how long it may leave an answer lying, in seconds.
    """

    clients: int = 64
    of_one_user: int = 8
    idle: float = 60.0
    take: float = 10.0


_LIMITS: Final = Limits()


class ControlServer:
    """Serves root, and for reading the members of `group`, if any.

    `peer` is the process at the other end, and `sleep` waits.
    """

    def __init__(
        self,
        service: Service,
        limits: Limits = _LIMITS,
        peer: Callable[[socket.socket], Peer] = Peer.of,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.group: int | None = None
        self._service = service
        self._limits, self._peer, self._sleep = limits, peer, sleep
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._clients: dict[asyncio.Task[None], int] = {}

    async def start(self, listening: socket.socket) -> None:
        """Begin to take clients, and from now on here only; those that are there stay."""
        if self._server is not None:
            self._server.close()
        self._server = await asyncio.start_unix_server(self._begin, sock=listening, limit=_LONGEST_CALL)

    async def close(self) -> None:
        """Take no more, and let go of those there are."""
        if self._server is not None:
            self._server.close()
        serving = list(self._serving)
        for client in serving:
            client.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client in a task of our own: Python 3.11 logs a traceback when one that it made is cancelled."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = self._peer(writer.get_extra_info("socket"))
            with self._admitted(peer) as is_admitted:
                while is_admitted and await self._answered(peer, reader, writer):
                    pass
        except _ENDS as error:
            _log.debug("a client of the control socket is gone: %r", error)
        finally:
            writer.transport.abort()

    @contextmanager
    def _admitted(self, peer: Peer) -> Iterator[bool]:
        """Count a client in while it is there, unless there are too many."""
        task = asyncio.current_task()
        of_user = Counter(self._clients.values())[peer.uid]
        too_many_of_user = of_user >= self._limits.of_one_user and not peer.is_root
        if task is None or too_many_of_user or len(self._clients) >= self._limits.clients:
            yield False
            return
        self._clients[task] = peer.uid
        try:
            yield True
        finally:
            del self._clients[task]

    async def _answered(self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one call, and return whether another one may come."""
        async with asyncio.timeout(self._limits.idle):
            call = read_call((await reader.readuntil(END))[: -len(END)])
        try:
            found = await self._called(peer, call)
            if not isinstance(found, bytes):
                await self._stream(found, reader, writer)
                return False
            answer = reply(found)
        except CallError as error:
            answer = error_reply(error)
        if not call.oneway:
            await self._send(writer, answer)
        await self._sleep(max(_PAUSE_S, len(answer) / _BYTES_A_SECOND))
        return True

    async def _called(self, peer: Peer, call: Call) -> bytes | Stream:
        """Give the answer, or what will stream it. Raises CallError."""
        if not peer.may_read(self.group):
            raise CallError(PERMISSION_DENIED)
        method = self._service.method(call.method)
        if method.for_root and not peer.is_root:
            raise CallError(PERMISSION_DENIED)
        method.check(call.parameters)
        if method.to is not None:
            return await method.to(call.parameters, peer)
        if method.answer is not None:
            return await method.answer(call.parameters)
        if method.stream is None or not call.more or call.oneway:
            raise CallError(EXPECTED_MORE)
        return method.stream

    async def _stream(self, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send until the client goes, or says anything: it cannot, while it is still being answered."""
        sending = asyncio.ensure_future(stream(lambda found: self._send(writer, reply(found, continues=True))))
        hearing = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({sending, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        finally:
            for task in (sending, hearing):
                task.cancel()
            await asyncio.gather(sending, hearing, return_exceptions=True)

    async def _send(self, writer: asyncio.StreamWriter, message: bytes) -> None:
        # An answer counts as taken when nothing of it is left with us.
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(message)
        async with asyncio.timeout(self._limits.take):
            await writer.drain()


# The control socket as a part of the daemon: it comes and goes with it, and is never a reason not to run.
#
# The one exception is another daemon on this host: two of them would undo each other's work.
_CLOSE_S: Final = 2.0
# How soon it is tried again to make it, doubled each time up to the second figure.
_AGAIN_S, _AGAIN_AT_MOST_S = 1.0, 30.0


class ControlSocket:
    """Listens at `path`, and has `manager` answer. `made_again` is called after files were lost and made again.

    `trouble` is why there is no socket, and nothing where there is one.
    """

    def __init__(
        self,
        manager: Manager,
        path: Path = SOCKET,
        made_again: Callable[[], None] = lambda: None,
        again: Backoff | None = None,
    ) -> None:
        self._manager = manager
        self._listener = Listener(path)
        self._server = ControlServer(manager.service())
        # Groups may be kept on the network, which may not be there yet.
        self._groups = Worker("group database", Job.GROUPS)
        self._admitting: asyncio.Task[None] | None = None
        self._unasked = WarnOnce()
        self._is_open = self._has_admitted = False
        self._group = ""
        self._mending: asyncio.Task[None] | None = None
        self._made_again = made_again
        self._again, self._due = again or Backoff(_AGAIN_S, _AGAIN_AT_MOST_S), 0.0
        self.trouble = ""

    async def open(self, group: str) -> None:
        """Begin to listen, for root and soon for the members of `group`.

        Raises:
            AlreadyRunningError: another daemon runs on this host.

        """
        await begun(self._listener.claim)
        self._group = group
        await self._listen()

    def check(self, *, at_once: bool = False) -> None:
        """Make the socket again if it has gone or could not be made, and admit its group if that has not been done.

        After a failure the pauses between attempts grow; `at_once` ignores them.
        """
        is_whole = self._listener.is_whole()
        if not at_once and asyncio.get_running_loop().time() < self._due:
            return
        if not is_whole and (self._mending is None or self._mending.done()):
            self._mending = asyncio.create_task(self._listen_again())
        elif is_whole and self._is_open and not self._has_admitted:
            self.admit(self._group)

    def admit(self, group: str) -> None:
        """Let the members of another group ask how things are."""
        self._group = group
        if self._is_open:
            if self._admitting is not None:
                self._admitting.cancel()
            self._has_admitted = True
            self._admitting = asyncio.create_task(self._admit(group))

    async def close(self) -> None:
        """Let go of all clients, and take the socket away."""
        for task in (self._admitting, self._mending):
            if task is not None:
                task.cancel()
        await self._server.close()
        await asyncio.gather(self._manager.close(), self._groups.close(_CLOSE_S))
        self._listener.close()

    async def _listen(self) -> None:
        try:
            self._listener.lock()
            await self._server.start(self._listener.listen())
        except OSError as error:
            self._warn(f"no control socket, so neither status nor reload will work: {_reason(error)}")
            return
        self._again.settle()
        self._is_open, self.trouble = True, ""
        self.admit(self._group)

    async def _listen_again(self) -> None:
        try:
            await self._listen()
        except AlreadyRunningError as error:
            self._warn(str(error))
        if not self.trouble:
            _log.warning("the control socket was removed, and has been made again")
            self._made_again()

    def _warn(self, trouble: str) -> None:
        """Log what is wrong when it begins to be, and try again later."""
        self._later()
        if trouble != self.trouble:
            self.trouble = trouble
            _log.warning("%s", trouble)

    def _later(self) -> None:
        self._due = asyncio.get_running_loop().time() + self._again.next()

    async def _admit(self, name: str) -> None:
        try:
            group = await self._groups.submit(lambda: _number_of(name))
        except (KernelError, OSError) as error:  # no thread or descriptor is available
            self._has_admitted = False
            self._later()
            self._unasked.warn(f"only root may ask for the status until group {name!r} is known: {error}; trying again")
            return
        self._unasked.settle(f"group {name!r} is known")
        if group is None:
            _log.warning("there is no group %r, so only root may ask for the status; see [control] group", name)
        try:
            self._listener.admit(group)
        except OSError as error:
            _log.warning("only root may ask for the status: the socket is not given away (%s)", error.strerror)
        else:
            self._server.group = group


def _reason(error: OSError) -> str:
    """Say why, and what helps: below a directory that went, a sandbox of systemd's is read-only until it is renewed."""
    remedy = f"; this makes it again, and forwards go on meanwhile: {RESTART}" if error.errno == errno.EROFS else ""
    return f"{error}{remedy}"


def _number_of(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None
