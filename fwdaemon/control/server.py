"""Clients of the control socket, each within bounds, so that a slow or hostile one is nobody else's business.

A client has one call at a time, of 64 KiB at most, and not many of them in a second. What it sends that is no call, or
keeps us waiting for, ends its connection, and so does an answer that it does not take. Nothing here blocks the loop.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fwdaemon.control.interface import Service, Stream
from fwdaemon.control.peer import Peer
from fwdaemon.control.protocol import (
    END,
    EXPECTED_MORE,
    PERMISSION_DENIED,
    Call,
    CallError,
    MalformedError,
    error_reply,
    read_call,
    reply,
)

_log = logging.getLogger(__name__)

_LONGEST_CALL: Final = 1 << 16
# Of everybody, and of one user who is not root.
_MOST_CLIENTS: Final = 64
_MOST_OF_ONE_USER: Final = 8
# After each answer, so that nobody keeps the loop busy with small calls, or with large answers to them.
_PAUSE_S: Final = 0.02
_BYTES_A_SECOND: Final = 20_000_000
# How long a client may be silent, and how long it may leave an answer lying.
_IDLE_S: Final = 60.0
_TAKE_S: Final = 10.0

_ENDS = (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, MalformedError)


class ControlServer:
    """Serves everybody who may call; `group` is whose members may read, `None` for nobody but root."""

    def __init__(self, service: Service) -> None:
        self.group: int | None = None
        self._service = service
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], int] = {}

    async def start(self, listening: socket.socket) -> None:
        """Begin to take clients."""
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=_LONGEST_CALL)

    async def close(self) -> None:
        """Take no more, and let go of those there are."""
        if self._server is not None:
            self._server.close()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = Peer.of(writer.get_extra_info("socket"))
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
        too_many = len(self._clients) >= _MOST_CLIENTS or (of_user >= _MOST_OF_ONE_USER and not peer.is_root)
        if task is None or too_many:
            yield False
            return
        self._clients[task] = peer.uid
        try:
            yield True
        finally:
            del self._clients[task]

    async def _answered(self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one call, and tell whether another one may come."""
        async with asyncio.timeout(_IDLE_S):
            call = read_call((await reader.readuntil(END))[: -len(END)])
        try:
            found = await self._called(peer, call)
            if not isinstance(found, bytes):
                await _stream(found, reader, writer)
                return False
            answer = reply(found)
        except CallError as error:
            answer = error_reply(error)
        if not call.oneway:
            await _send(writer, answer)
        await asyncio.sleep(max(_PAUSE_S, len(answer) / _BYTES_A_SECOND))
        return True

    async def _called(self, peer: Peer, call: Call) -> bytes | Stream:
        """Give the answer, or what will stream it. Raises CallError."""
        if not peer.may_read(self.group):
            raise CallError(PERMISSION_DENIED)
        method = self._service.method(call.method)
        if method.for_root and not peer.is_root:
            raise CallError(PERMISSION_DENIED)
        method.check(call.parameters)
        if method.answer is not None:
            return await method.answer(call.parameters)
        if method.stream is None or not call.more or call.oneway:
            raise CallError(EXPECTED_MORE)
        return method.stream


async def _stream(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send until the client goes, or says anything: it cannot, while it is still being answered."""
    sending = asyncio.ensure_future(stream(lambda found: _send(writer, reply(found, continues=True))))
    hearing = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({sending, hearing}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            await sending
    finally:
        for task in (sending, hearing):
            task.cancel()
        await asyncio.gather(sending, hearing, return_exceptions=True)


async def _send(writer: asyncio.StreamWriter, message: bytes) -> None:
    # An answer counts as taken when nothing of it is left with us.
    writer.transport.set_write_buffer_limits(high=0)
    writer.write(message)
    async with asyncio.timeout(_TAKE_S):
        await writer.drain()
