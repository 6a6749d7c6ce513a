"""One short-lived netlink(7) socket: asks the kernel, and gives what it answers up to the end, which it marks.

What is asked concerns this thread's network namespace. Each call blocks until the kernel has answered, which it does
at once.
"""

import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

from fwdaemon.naming import shown
from fwdaemon.netlink import Message, attributes, messages, packed

NETFILTER: Final = 12  # NETLINK_NETFILTER, for which Python has no name
# linux/netlink.h: SOL_NETLINK is in linux/socket.h.
_SOL_NETLINK: Final = 270
_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 10, 11, 12
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_INTERRUPTED: Final = 0x10
_NUMBER: Final = struct.Struct("=i")
_FAILED_HEADER: Final = 16
_ERROR_TEXT: Final = 1  # NLMSGERR_ATTR_MSG

_BUFFER: Final = 1 << 16  # what the kernel puts into one part of a listing at most (af_netlink.c)
_TIMEOUT_S: Final = 10.0
_TRIES: Final = 3


class RefusalError(OSError):
    """The kernel refused what was asked, with this errno, and with its own reason if it gives one."""


class Listing(NamedTuple):
    """What was listed; not `whole` if it changed again and again meanwhile, so that something may be missing."""

    messages: list[Message]
    whole: bool


class NetlinkSocket:
    """A context manager; `sequence` is repeated in what the kernel answers, and in what it tells others of a change.

    Every method raises OSError: the kernel did not answer. `RefusalError` is one that says why.
    """

    def __init__(self, protocol: int, sequence: int = 0) -> None:
        self._sequence = sequence
        self._whole = True
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(_TIMEOUT_S)
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def listing(self, kind: int, body: bytes, *, tries: int = _TRIES, holding: bytes = b"") -> Listing:
        """List all that the kernel picks by `body`, again if it changed meanwhile; of that, what holds these bytes."""
        listed: list[Message] = []
        for _ in range(tries):
            self._whole = True
            listed = [message for message in self.stream(kind, body) if holding in message.body]
            if self._whole:
                break
        return Listing(listed, self._whole)

    def stream(self, kind: int, body: bytes) -> Iterator[Message]:
        """List the same once, a part at a time, as they come."""
        return self._answers(kind, _REQUEST | _DUMP, body)

    def ask(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        """Ask for one thing, or have it changed."""
        return list(self._answers(kind, _REQUEST | _ACK | flags, body))

    def _answers(self, kind: int, flags: int, body: bytes) -> Iterator[Message]:
        self._socket.send(packed(kind, flags, self._sequence, body))
        while True:
            for message in messages(self._socket.recv(_BUFFER)):
                # Also on the last message: what came behind the last entry is missing.
                self._whole = self._whole and not message.flags & _INTERRUPTED
                if message.kind in (_ERROR, _DONE):
                    _raise_if_refused(message)
                    return
                yield message


def _raise_if_refused(final: Message) -> None:
    """Raise what a final message says, unless it says that all went well, or nothing at all."""
    (code,) = _NUMBER.unpack_from(final.body) if len(final.body) >= _NUMBER.size else (0,)
    if code == 0:
        return
    begin = _NUMBER.size + (_FAILED_HEADER if final.kind == _ERROR else 0)
    text = attributes(final.body[begin:]).get(_ERROR_TEXT, b"").rstrip(b"\0").decode(errors="replace")
    raise RefusalError(-code, shown(text) or os.strerror(-code))
