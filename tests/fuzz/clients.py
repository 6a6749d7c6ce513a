"""What clients of the control socket and of the metrics send, to the real servers on real sockets.

The servers run on a loop of their own, from the first client to `close`; a client that has said everything hangs up.
"""

import asyncio
import logging
import socket
import tempfile
from contextlib import ExitStack, suppress
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from unittest.mock import patch

from fwdaemon.control import server as control
from fwdaemon.control.listener import Listener as ControlListener
from fwdaemon.control.protocol import (
    CallError,
    MalformedError,
    Method,
    Parameters,
    Send,
    Service,
    encoded,
    read_call,
    read_reply,
)
from fwdaemon.control.server import ControlServer
from fwdaemon.core.types import Endpoint
from fwdaemon.metrics import listener as metrics
from fwdaemon.metrics.exposition import Exposition
from fwdaemon.metrics.listener import Listener as MetricsListener
from tests.fuzz.choices import Choices

_PATIENCE_S = 10.0
_LONGEST_ANSWER = 1 << 20


def call(data: bytes) -> None:
    """Read a call and a reply; what is a call is the same one when it is written again."""
    try:
        read = read_call(data)
    except MalformedError:
        pass
    else:
        assert read_call(read.encode()[:-1]) == read
    with suppress(MalformedError, CallError):
        read_reply(data)


def control_client(data: bytes) -> None:
    """Send anything to the control socket, in pieces."""
    _Servers.running().talk(socket.AF_UNIX, data)


def metrics_client(data: bytes) -> None:
    """Send anything to the metrics."""
    _Servers.running().talk(socket.AF_INET, data)


def close() -> None:
    """Close the servers, if there are any, and leave this process as it was before them."""
    if _Servers.running.cache_info().currsize:
        _Servers.running().close()
        _Servers.running.cache_clear()


PAUSES = ((control, "_PAUSE_S"), (metrics, "_NEXT_CLIENT_S"), (metrics, "_NEXT_PIECE_S"))


class _Servers:
    """Both servers, and what went wrong in them."""

    def __init__(self) -> None:
        self._at_end = ExitStack()
        self._loop = asyncio.new_event_loop()
        self._at_end.callback(self._loop.close)
        self._wrong: list[object] = []
        self._loop.set_exception_handler(lambda _loop, context: self._wrong.append(context))
        asyncio_log = logging.getLogger("asyncio")
        self._at_end.callback(asyncio_log.setLevel, asyncio_log.level)
        asyncio_log.setLevel(logging.CRITICAL)
        # Nothing waits here: what the pauses are for is shown in tests/unit.
        for module, pause in PAUSES:
            self._at_end.enter_context(patch.object(module, pause, 0.0))
        directory = self._at_end.enter_context(tempfile.TemporaryDirectory(prefix="kvm-portfwd-fuzz-"))
        self._path = Path(directory, "control.sock")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port: int = probe.getsockname()[1]
        self._control = ControlServer(Service({"test.a": {"Ping": Method(_ping, takes=("text",)), "Watch": _WATCH}}))
        self._metrics = MetricsListener(Endpoint(ip_address("127.0.0.1"), self._port), _answered)
        self._loop.run_until_complete(self._start())

    @staticmethod
    @cache
    def running() -> "_Servers":
        """Give the servers of this process."""
        return _Servers()

    async def _start(self) -> None:
        await self._control.start(ControlListener(self._path).listen())
        self._metrics.open()

    def close(self) -> None:
        """Let go of all of it."""
        with self._at_end:
            self._loop.run_until_complete(asyncio.wait_for(self._end(), _PATIENCE_S))

    async def _end(self) -> None:
        await self._control.close()
        await self._metrics.close()

    def talk(self, family: socket.AddressFamily, data: bytes) -> None:
        """Send bytes as one client, and wait until the server has let go of it."""
        self._loop.run_until_complete(self._talk(family, data))
        assert not self._wrong, self._wrong

    async def _talk(self, family: socket.AddressFamily, data: bytes) -> None:
        choices = Choices(data)
        pieces = [choices.taken(choices.number(64)) for _ in range(choices.number(4))] + [choices.rest()]
        async with asyncio.timeout(_PATIENCE_S):
            if family == socket.AF_UNIX:
                reader, writer = await asyncio.open_unix_connection(self._path)
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            with suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                writer.write_eof()
                assert len(await reader.read()) < _LONGEST_ANSWER
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def _ping(parameters: Parameters) -> bytes:
    return encoded(text=parameters["text"])


async def _watch(send: Send) -> None:
    await send(encoded(number=1))


async def _answered(request: bytes) -> list[bytes]:
    return Exposition(list).answer(request)


_WATCH = Method(stream=_watch)
