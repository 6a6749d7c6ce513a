"""Serves the metrics by HTTP: `GET /metrics`, one request for each connection, and nothing else.

Clients are bounded in number, rate, size and time, so that a slow or hostile one is nobody else's business; who comes
while too many are there waits in the kernel. RFC 9112 is what little of HTTP/1.1 is spoken.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from ipaddress import IPv6Address
from typing import Final

from fwdaemon.config.model import Endpoint
from fwdaemon.metrics.exposition import CONTENT_TYPE
from fwdaemon.metrics.once import WarnOnce

_log = logging.getLogger(__name__)

_LONGEST_REQUEST: Final = 1 << 13
_MOST_CLIENTS: Final = 16
_BACKLOG: Final = 16
# Between two clients, and between two pieces of a request: neither can keep the loop busy.
_PAUSE_S: Final = 0.01
# How long a request may take to come, and its answer to be taken.
_ASK_S: Final = 5.0
_TAKE_S: Final = 10.0
# When no client could be taken, for want of file descriptors.
_AGAIN_S: Final = 1.0

_END: Final = b"\r\n\r\n"
_REQUEST: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) HTTP/1\.[0-9]\r\n")


class Listener:
    """Answers at `endpoint` with what `text` gives. On the loop's thread only."""

    def __init__(self, endpoint: Endpoint, text: Callable[[], Awaitable[bytes]]) -> None:
        self._endpoint = endpoint
        self._text = text
        self._listening: socket.socket | None = None
        self._places = asyncio.Semaphore(_MOST_CLIENTS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._warning = WarnOnce()

    def open(self) -> None:
        """Begin to listen, unless we do; that it cannot be done is a warning, once."""
        if self._listening is not None:
            return
        try:
            self._listening = _listening(self._endpoint)
        except (OSError, ValueError) as error:  # ValueError: this host has no IPv6
            self._warning.warn(f"metrics are not served on {self._endpoint}, trying again: {error}")
        else:
            self._warning.settle()
            if not self._endpoint.address.is_loopback:
                # Nobody notices a packet that systemd.resource-control(5) keeps from us.
                _log.info("metrics are served on %s, to whom IPAddressAllow= of the service lets in", self._endpoint)
            self._begin(self._accept(self._listening))

    async def close(self) -> None:
        """Take no more clients, and let go of those there are."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            await self._places.acquire()
            try:
                client, _ = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as error:
                _log.debug("no client of the metrics can be taken: %s", error)
                self._places.release()
                await asyncio.sleep(_AGAIN_S)
            else:
                self._begin(self._serve(client))
                await asyncio.sleep(_PAUSE_S)

    async def _serve(self, client: socket.socket) -> None:
        try:
            await self._answer(client)
        except (OSError, TimeoutError) as error:
            _log.debug("a client of the metrics is gone: %r", error)
        finally:
            client.close()
            self._places.release()

    async def _answer(self, client: socket.socket) -> None:
        async with asyncio.timeout(_ASK_S):
            status = _status_of(await _request_of(client))
        body = await self._text() if status is HTTPStatus.OK else f"{status.phrase}\n".encode()
        async with asyncio.timeout(_TAKE_S):
            await asyncio.get_running_loop().sock_sendall(client, _head(status, len(body)) + body)


def _listening(endpoint: Endpoint) -> socket.socket:
    """Make the socket; `[::]` is every address of both families. Raises OSError, or ValueError without IPv6."""
    address = endpoint.address
    is_ipv6 = isinstance(address, IPv6Address)
    listening = socket.create_server(
        (str(address), endpoint.port),
        family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
        backlog=_BACKLOG,
        dualstack_ipv6=is_ipv6 and address.is_unspecified,
    )
    listening.settimeout(0)
    return listening


async def _request_of(client: socket.socket) -> bytes:
    """Read up to the empty line that ends a request's head, or as much as it may have."""
    request = b""
    while _END not in request and len(request) < _LONGEST_REQUEST:
        if request:
            await asyncio.sleep(_PAUSE_S)
        piece = await asyncio.get_running_loop().sock_recv(client, _LONGEST_REQUEST - len(request))
        if not piece:
            raise ConnectionResetError
        request += piece
    return request


def _status_of(request: bytes) -> HTTPStatus:
    """Judge a request by its first line; what follows changes nothing."""
    match = _REQUEST.match(request)
    if match is None or _END not in request:
        return HTTPStatus.BAD_REQUEST
    method, target = match.groups()
    if target.partition(b"?")[0] != b"/metrics":
        return HTTPStatus.NOT_FOUND
    return HTTPStatus.OK if method == b"GET" else HTTPStatus.METHOD_NOT_ALLOWED


def _head(status: HTTPStatus, length: int) -> bytes:
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {CONTENT_TYPE}",
        f"Content-Length: {length}",
        "Connection: close",
        *(["Allow: GET"] if status is HTTPStatus.METHOD_NOT_ALLOWED else []),
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii")
