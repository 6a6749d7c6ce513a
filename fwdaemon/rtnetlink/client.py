"""One short-lived rtnetlink socket: lists what the kernel picks, and has it change one thing.

Each call blocks until the kernel has answered, which it does at once.
"""

import errno
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from fwdaemon.errors import KernelError
from fwdaemon.model import Family
from fwdaemon.netlink import Message
from fwdaemon.netlink_socket import NetlinkSocket, RefusalError

FAMILIES: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

# What is said of an entry, or of its interface, that is not there.
_GONE = (errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO)

# The kernel repeats a request's sequence number in what it tells everybody about the change.
_SEQUENCE: Final = secrets.randbits(32)


class RefusedError(KernelError):
    """The kernel refused a request; `number` is the errno."""

    def __init__(self, number: int, reason: str) -> None:
        self.number = number
        super().__init__(reason)


def is_ours(message: Message) -> bool:
    """Whether what the kernel tells everybody follows from a request of this process."""
    return message.sequence == _SEQUENCE


def interface_index(name: str) -> int | None:
    """Give the number of an interface, or `None` if there is none of this name."""
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError):  # ValueError: what no interface can be called
        return None


def interface_name(index: int) -> str:
    """Give the name of an interface, for people."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"an interface that has gone ({index})"


class Rtnetlink:
    """A context manager; what is asked concerns this thread's network namespace.

    Raises:
        KernelError: the kernel does not answer. `RefusedError` is one that says why.

    """

    def __enter__(self) -> Self:
        try:
            self._asking = NetlinkSocket(socket.NETLINK_ROUTE, _SEQUENCE)
        except OSError as error:
            raise KernelError(f"the kernel does not let us ask about routes and addresses: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._asking.__exit__(kind, error, trace)

    def entries(self, kind: int, body: bytes) -> list[bytes]:
        """Give the bodies of all entries that the kernel picks by the fields of `body`."""
        try:
            with _explained():
                # Where they change without end, as on a router of the Internet, those that were seen have to do.
                return [message.body for message in self._asking.listing(kind, body).messages]
        except RefusedError as error:
            if error.number != errno.ENOENT:  # the table is made with its first entry
                raise
            return []

    def entry(self, kind: int, body: bytes) -> bytes | None:
        """Give the body of the one entry that is asked for, or `None` if there is no such thing."""
        try:
            with _explained():
                answers = self._asking.ask(kind, body)
        except RefusedError:
            return None
        return answers[0].body if answers else None

    def change(self, kind: int, flags: int, body: bytes) -> None:
        """Make or remove an entry."""
        with _explained():
            self._asking.ask(kind, body, flags)

    def remove(self, kind: int, body: bytes) -> None:
        """Remove an entry; that it has gone meanwhile is fine."""
        try:
            self.change(kind, 0, body)
        except RefusedError as error:
            if error.number not in _GONE:
                raise


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RefusalError as error:
        raise RefusedError(error.errno or 0, error.strerror or "") from error
    except OSError as error:
        raise KernelError(f"the kernel does not answer about routes and addresses: {error}") from error
