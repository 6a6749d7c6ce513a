"""Asking whether an address and port answer, and telling a refusal from silence."""

import errno
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from tests.lab import sctp
from tests.lab.netns import open_socket


class Outcome(StrEnum):
    """What became of a probe."""

    ANSWERED = "answered"
    REFUSED = "refused"
    TIMED_OUT = "timed out"


@dataclass(frozen=True, slots=True)
class Answer:
    """`text` is what the server said if it ANSWERED, the error's name if REFUSED, and empty if TIMED_OUT."""

    outcome: Outcome
    text: str = ""

    @property
    def answered(self) -> bool:
        """Whether a server was reached."""
        return self.outcome is Outcome.ANSWERED


@dataclass(frozen=True, slots=True)
class UdpFlow:
    """Datagrams from one port to another."""

    connection: socket.socket

    def ask(self) -> Answer:
        """The answer to one more datagram."""

        def ask() -> bytes:
            self.connection.send(b"?")
            return self.connection.recv(4096)

        return _outcome_of(ask)


@dataclass(frozen=True, slots=True)
class Prober:
    """Probes that start in one network namespace."""

    namespace: Path

    def connect(self, address: str, port: int, *, source: str | None = None, timeout: float = 2) -> socket.socket:
        """An open TCP connection, for tests that hold it; raises OSError."""
        return self._connected(socket.SOCK_STREAM, address, port, source, timeout)

    def fetch(self, url: str, *, source: str | None = None, timeout: float = 2) -> Answer:
        """The body of a web page, without the white space around it."""
        parts = urlsplit(url)
        address, port = parts.hostname or "", parts.port or 80
        request = f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode()

        def ask() -> bytes:
            with self.connect(address, port, source=source, timeout=timeout) as connection:
                connection.sendall(request)
                head, _, body = _read_all(connection).partition(b"\r\n\r\n")
            return body if b" 200 " in head else b""

        return _outcome_of(ask)

    def tcp(self, address: str, port: int, *, source: str | None = None, timeout: float = 2) -> Answer:
        """The first line a server says of its own accord."""

        def ask() -> bytes:
            with self.connect(address, port, source=source, timeout=timeout) as connection:
                return connection.makefile("rb").readline()

        return _outcome_of(ask)

    def udp(
        self, address: str, port: int, payload: bytes = b"?", *, source: str | None = None, timeout: float = 1
    ) -> Answer:
        """The answer to one datagram."""

        def ask() -> bytes:
            with self._connected(socket.SOCK_DGRAM, address, port, source, timeout) as connection:
                connection.send(payload)
                return connection.recv(4096)

        return _outcome_of(ask)

    @contextmanager
    def flow(self, address: str, port: int, *, timeout: float = 1) -> Iterator["UdpFlow"]:
        """A socket that keeps its port, so that the kernel sees one flow."""
        with self._connected(socket.SOCK_DGRAM, address, port, None, timeout) as connection:
            yield UdpFlow(connection)

    def sctp(self, address: str, port: int, *, source: str | None = None, timeout: float = 1) -> Answer:
        """What the server says in answer to one INIT; see `tests.lab.sctp`."""

        def ask() -> bytes:
            with self._connected(socket.SOCK_RAW, address, 0, source, timeout) as connection:
                return _ask_sctp(connection, ip_address(address).version, port, timeout)

        return _outcome_of(ask)

    def _connected(self, kind: int, address: str, port: int, source: str | None, timeout: float) -> socket.socket:
        protocol = sctp.PROTOCOL if kind is socket.SOCK_RAW else 0
        family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
        connection = open_socket(self.namespace, family, kind, protocol)
        try:
            connection.settimeout(timeout)
            if source is not None:
                connection.bind((source, 0))
            connection.connect((address, port))
        except BaseException:
            connection.close()
            raise
        return connection


def _ask_sctp(connection: socket.socket, version: int, port: int, timeout: float) -> bytes:
    own_port = random.randint(20000, 60000)  # noqa: S311  only has to differ
    connection.send(sctp.packet((own_port, port), 0, sctp.INIT, own_port))
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        source, destination, chunk, _, cookie = sctp.parse(sctp.without_ip_header(connection.recv(4096), version))
        if (source, destination, chunk) == (port, own_port, sctp.ABORT):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "ABORT")
        if (source, destination, chunk) == (port, own_port, sctp.INIT_ACK):
            return cookie
    raise TimeoutError


def _read_all(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def _outcome_of(ask: Callable[[], bytes]) -> Answer:
    try:
        return Answer(Outcome.ANSWERED, ask().decode(errors="replace").strip())
    except TimeoutError:
        return Answer(Outcome.TIMED_OUT)
    except OSError as error:
        return Answer(Outcome.REFUSED, errno.errorcode.get(error.errno or 0, str(error)))
