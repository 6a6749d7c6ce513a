"""One short-lived rtnetlink socket: lists what the kernel picks, and has it change one thing.

Each call blocks until the kernel has answered, which it does at once.
"""

import errno
import os
import secrets
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from fwdaemon.errors import KernelError
from fwdaemon.model import Family
from fwdaemon.naming import shown
from fwdaemon.netlink import Message, attributes, messages, packed

FAMILIES: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

# linux/netlink.h: SOL_NETLINK is in linux/socket.h.
_SOL_NETLINK = 270
_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 10, 11, 12
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_INTERRUPTED = 0x10
_NUMBER = struct.Struct("=i")
_FAILED_HEADER = 16
_ERROR_TEXT = 1  # NLMSGERR_ATTR_MSG

# What is said of an entry, or of its interface, that is not there.
_GONE = (errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO)

_BUFFER = 1 << 16
_TIMEOUT = 5.0
_TRIES = 3

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
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            self._socket.settimeout(_TIMEOUT)
            for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        except OSError as error:
            raise KernelError(f"the kernel does not let us ask about routes and addresses: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def entries(self, kind: int, body: bytes) -> list[bytes]:
        """Give the bodies of all entries that the kernel picks by the fields of `body`."""
        listed: list[bytes] = []
        for _ in range(_TRIES):
            try:
                answers = list(self._answers(kind, _REQUEST | _DUMP, body))
            except RefusedError as error:
                if error.number != errno.ENOENT:  # the table is made with its first entry
                    raise
                return []
            listed = [answer.body for answer in answers]
            if not any(answer.flags & _INTERRUPTED for answer in answers):
                break  # otherwise the table changed meanwhile, and something may be missing
        return listed

    def entry(self, kind: int, body: bytes) -> bytes | None:
        """Give the body of the one entry that is asked for, or `None` if there is no such thing."""
        try:
            answers = list(self._answers(kind, _REQUEST | _ACK, body))
        except RefusedError:
            return None
        return answers[0].body if answers else None

    def change(self, kind: int, flags: int, body: bytes) -> None:
        """Make or remove an entry."""
        list(self._answers(kind, _REQUEST | _ACK | flags, body))

    def remove(self, kind: int, body: bytes) -> None:
        """Remove an entry; that it has gone meanwhile is fine."""
        try:
            self.change(kind, 0, body)
        except RefusedError as error:
            if error.number not in _GONE:
                raise

    def _answers(self, kind: int, flags: int, body: bytes) -> Iterator[Message]:
        """Give what is answered up to the end, which is marked."""
        try:
            self._socket.send(packed(kind, flags, _SEQUENCE, body))
            while True:
                for message in messages(self._socket.recv(_BUFFER)):
                    if message.kind in (_ERROR, _DONE):
                        _raise_if_refused(message)
                        return
                    yield message
        except OSError as error:
            raise KernelError(f"the kernel does not answer about routes and addresses: {error}") from error


def _raise_if_refused(final: Message) -> None:
    """Raise what a final message says, unless it says that all went well."""
    (code,) = _NUMBER.unpack_from(final.body)
    if code == 0:
        return
    begin = _NUMBER.size + (_FAILED_HEADER if final.kind == _ERROR else 0)
    text = attributes(final.body[begin:]).get(_ERROR_TEXT, b"").rstrip(b"\0").decode(errors="replace")
    raise RefusedError(-code, shown(text) or os.strerror(-code))
