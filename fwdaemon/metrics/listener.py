"""Serves the metrics by HTTP, one request for each connection. What is asked and answered is `exposition`'s to say.

Clients are bounded in number, rate, size and time, so that a slow or hostile one affects no other. Those that
have not asked yet and those that take an answer have places apart. When places run out, the slowest client is cut off,
so a crowd that says nothing or takes nothing delays no other.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.core.types import Endpoint
from fwdaemon.errors import PortfwdError

# So many clients at a time, of which the slowest makes place for one more.


class Crowd:
    """The tasks that serve clients, at most `most` of them, in the order in which they moved last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._slowest_first: dict[asyncio.Task[None], None] = {}

    @contextmanager
    def joined_by(self, task: asyncio.Task[None]) -> Iterator[None]:
        """Count a task in; where that is one too many, cancel the one that has not moved for longest."""
        if len(self._slowest_first) >= self._most:
            slowest = next(iter(self._slowest_first))
            del self._slowest_first[slowest]
            slowest.cancel()
        self._slowest_first[task] = None
        try:
            yield
        finally:
            self._slowest_first.pop(task, None)

    def moved(self, task: asyncio.Task[None]) -> None:
        """Note that its client took something just now. One that has lost its place does not get it back."""
        if task in self._slowest_first:
            del self._slowest_first[task]
            self._slowest_first[task] = None


_log = logging.getLogger(__name__)

_LONGEST_REQUEST: Final = 1 << 13
_BACKLOG: Final = 32
# Between two clients, and between two pieces of a request: neither can keep the loop busy.
_NEXT_CLIENT_S: Final = 0.01
_NEXT_PIECE_S: Final = 0.05
# How much of an answer a client has to take to count as moving.
_PIECE: Final = 1 << 16
# When no client could be taken, for want of file descriptors.
_AGAIN_S: Final = 1.0

_END: Final = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """How many clients may be asking and taking, and how long a request may take to come, and its answer to be taken.

    In seconds; `None` is for ever.
    """

    asking: int = 32
    taking: int = 32
    ask: float | None = 5.0
    take: float | None = 10.0


_LIMITS: Final = Limits()


class Listener:
    """Answers at `endpoint` with what `answered` makes of a request's head. On the loop's thread only."""

    def __init__(
        self,
        endpoint: Endpoint,
        answered: Callable[[bytes], Awaitable[Iterable[bytes]]],
        limits: Limits = _LIMITS,
    ) -> None:
        self._endpoint = endpoint
        self._answered = answered
        self._limits = limits
        self._listening: socket.socket | None = None
        self._asking = Crowd(limits.asking)
        self._taking = Crowd(limits.taking)
        self._accepting: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()
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
                # Nothing shows a packet that systemd.resource-control(5) keeps from us.
                _log.info(
                    "metrics are served on %s, to the addresses in IPAddressAllow= of the service", self._endpoint
                )
            self._accepting = asyncio.create_task(self._accept(self._listening))

    async def close(self) -> None:
        """Take no more clients, and let go of those there are."""
        tasks = [*self._serving, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as error:
                _log.debug("no client of the metrics can be accepted: %s", error)
                await asyncio.sleep(_AGAIN_S)
            else:
                self._serve(client)
                await asyncio.sleep(_NEXT_CLIENT_S)

    def _serve(self, client: socket.socket) -> None:
        task = asyncio.create_task(self._answer(client))
        self._serving.add(task)
        # A task that is cut off before its first step never runs, so it cannot close its client.
        task.add_done_callback(lambda _: client.close())
        task.add_done_callback(self._serving.discard)

    async def _answer(self, client: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  only a task gets here
        try:
            with self._asking.joined_by(task):
                async with asyncio.timeout(self._limits.ask):
                    request = await _request_of(client)
            with self._taking.joined_by(task):
                answer = await self._answered(request)
                async with asyncio.timeout(self._limits.take):
                    for piece in _cut(answer):
                        self._taking.moved(task)
                        await asyncio.get_running_loop().sock_sendall(client, piece)
        except (OSError, TimeoutError, PortfwdError) as error:  # no thread is available, either
            _log.debug("a client of the metrics is gone: %r", error)


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
    """Read up to the empty line that ends a request's head.

    Raises:
        ConnectionError: it ended before, or is longer than it may be.

    """
    request = b""
    while _END not in request:
        if request:
            await asyncio.sleep(_NEXT_PIECE_S)
        piece = await asyncio.get_running_loop().sock_recv(client, _LONGEST_REQUEST - len(request))
        if not piece:  # nothing more came, or nothing more is taken
            raise ConnectionAbortedError
        request += piece
    return request


def _cut(answer: Iterable[bytes]) -> Iterator[bytes]:
    """Cut an answer up, so that it shows whether its client takes it."""
    for part in answer:
        for start in range(0, len(part), _PIECE):
            yield part[start : start + _PIECE]


# The file for the textfile collector of Prometheus' node exporter.
#
# prometheus_client's own write_to_textfile follows a link beside the file, and leaves it readable to root alone.
# A reader sees the whole of it or none. It goes when the daemon stops, so that it is not taken for the present;
# after a crash its own `metrics_timestamp_seconds` says how old it is.


class Textfile:
    """The file at `path`. That it cannot be written is a warning, once, and no error. Its methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # The collector reads every *.prom.
        self._beside = path.with_name(f".{path.name}.new")
        self._warning = WarnOnce()

    def write(self, text: bytes) -> None:
        """Replace it."""
        try:
            self._write(text)
        except OSError as error:
            self._warning.warn(f"no metrics in {self._path}: {error.strerror}; {self._remedy(error)}")
        else:
            self._warning.settle()

    def remove(self) -> None:
        """Take it away."""
        for path in (self._path, self._beside):
            with suppress(OSError):
                path.unlink()

    def _write(self, text: bytes) -> None:
        # O_EXCL follows no link that another user left there.
        self._beside.unlink(missing_ok=True)
        opened = os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        with os.fdopen(opened, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
        self._beside.replace(self._path)

    def _remedy(self, error: OSError) -> str:
        directory = self._path.parent
        if isinstance(error, FileNotFoundError):
            return f"the directory {directory} has to exist"
        # systemd.exec(5): ProtectSystem=strict makes everything read-only that is not named.
        return (
            f'the service may write there once "systemctl edit kvm-portfwd" adds "[Service]" and'
            f' "ReadWritePaths=-{directory}", and after a restart of it'
        )
