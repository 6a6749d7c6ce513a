"""Messages of netlink(7), questions to the kernel, and sockets on which it sends news."""

import asyncio
import logging
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from types import TracebackType
from typing import Final, NamedTuple, Self

from fwdaemon.core.text import shown
from fwdaemon.core.types import Subnet
from fwdaemon.errors import KernelError
from fwdaemon.kernel.packets import Field, attach
from fwdaemon.triggers import Budget

# Messages and attributes of netlink(7), taken apart and put together. Pure.
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
# linux/netlink.h: the two upper bits of a type say how its value is written.
_TYPE_MASK = 0x3FFF
_FIRST_KIND = 0x10  # NLMSG_MIN_TYPE: those below are netlink's own


class Message(NamedTuple):
    """One message: `sequence` is repeated in all that follows from a request, `port` is who sent it."""

    kind: int
    flags: int
    sequence: int
    port: int
    body: bytes


def packed(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Put a request together."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def messages(datagram: bytes, holding: Sequence[re.Pattern[bytes]] = ()) -> Iterator[Message]:
    """Take a datagram apart; what is cut short is left out.

    With `holding`, messages in which none of these patterns is found are passed over, which is quick, except netlink's
    own. One pattern with alternatives would be slow.
    """
    offset = 0
    hits = sorted((found.start() for each in holding for found in each.finditer(datagram)), reverse=True)
    while offset + _HEADER.size <= len(datagram):
        length, kind, flags, sequence, port = _HEADER.unpack_from(datagram, offset)
        if not _HEADER.size <= length <= len(datagram) - offset:
            return
        end = offset + length
        while hits and hits[-1] < offset:
            hits.pop()
        if not holding or kind < _FIRST_KIND or (hits and hits[-1] < end):
            yield Message(kind, flags, sequence, port, datagram[offset + _HEADER.size : end])
        offset += _aligned(length)


def attribute(kind: int, value: bytes) -> bytes:
    """Put an attribute together."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def attributes(data: bytes) -> dict[int, bytes]:
    """Take apart what follows a message's fixed part, or what is inside a nested attribute."""
    found: dict[int, bytes] = {}
    # As `nested` does, in half the time: there may be hundreds of thousands of messages.
    offset, size, read, last = 0, _ATTRIBUTE.size, _ATTRIBUTE.unpack_from, len(data) - _ATTRIBUTE.size
    while offset <= last:
        length, kind = read(data, offset)
        if length < size:
            break
        found[kind & _TYPE_MASK] = data[offset + size : offset + length]
        offset += (length + 3) & ~3
    return found


def nested(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give the attributes in order, of which several may be of one kind, as in a list."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        yield kind & _TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)


def number(value: bytes | None) -> int | None:
    """Read an attribute that is a number in the machine's own byte order, as all of rtnetlink's are."""
    return int.from_bytes(value, sys.byteorder) if value else None


def _aligned(length: int) -> int:
    return (length + 3) & ~3


# Routes in its messages (linux/rtnetlink.h): RTA_OIF and RTA_MULTIPATH say where one leads.
_OIF, _MULTIPATH = 4, 9
_HOP = struct.Struct("=HBBi")  # rtnexthop: length, flags, weight less one, interface


@dataclass(frozen=True, slots=True)
class Way:
    """Routes leave by the interface with this number; `leads_on` says that one leads beyond its own link.

    `is_advertised` says that only a router advertisement says so: any machine on the link can send one.
    """

    index: int
    leads_on: bool
    is_advertised: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """A route to packed addresses that begin with so many bits; none are a default route's."""

    destination: bytes
    length: int
    ways: tuple[Way, ...]

    @property
    def subnet(self) -> Subnet:
        """Where it leads."""
        return ip_network((self.destination, self.length), strict=False)


def is_telling(route: Listed) -> bool:
    """Whether it says something of its interfaces: one to a single address, or a link-local one, does not."""
    if not route.destination:
        return True
    address = ip_address(route.destination)
    return not (address.is_link_local or address.is_multicast) and route.length < address.max_prefixlen


def hops(found: dict[int, bytes]) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Give the interface of each hop, with its attributes."""
    if (index := number(found.get(_OIF))) is not None:
        yield index, found
    rest = found.get(_MULTIPATH, b"")
    offset = 0
    while offset + _HOP.size <= len(rest):
        length, _flags, _weight, index = _HOP.unpack_from(rest, offset)
        if length < _HOP.size:
            return
        yield index, attributes(rest[offset + _HOP.size : offset + length])
        offset += (length + 3) & ~3


# One short-lived netlink(7) socket: asks the kernel, and gives what it answers up to the end, which it marks.
#
# What is asked concerns this thread's network namespace. Each call blocks until the kernel has answered, which it does
# at once.
NETFILTER: Final = 12  # NETLINK_NETFILTER, for which Python has no name
# linux/netlink.h: SOL_NETLINK is in linux/socket.h.
SOL_NETLINK: Final = 270
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
    """A context manager, whose requests all have the number 0: it asks one thing after the other.

    Every method raises OSError: the kernel did not answer. `RefusalError` is one that says why.
    """

    def __init__(self, protocol: int) -> None:
        self._whole = True
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(_TIMEOUT_S)
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)

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

    def stream(self, kind: int, body: bytes, holding: Sequence[re.Pattern[bytes]] = ()) -> Iterator[Message]:
        """List the same once, a part at a time, as they come; with patterns, only messages that hold one."""
        return self._answers(kind, _REQUEST | _DUMP, body, holding)

    def ask(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        """Ask for one thing, or have it changed."""
        return list(self._answers(kind, _REQUEST | _ACK | flags, body))

    def change(self, kind: int, bodies: Sequence[bytes]) -> list[int]:
        """Have several things changed at once; the errno of each, which is 0 where it was done."""
        self._socket.send(b"".join(packed(kind, _REQUEST | _ACK, 0, body) for body in bodies))
        codes: list[int] = []
        while len(codes) < len(bodies):
            answers = messages(self._socket.recv(_BUFFER))
            codes += [-_NUMBER.unpack_from(answer.body)[0] for answer in answers if answer.kind == _ERROR]
        return codes

    def _answers(
        self, kind: int, flags: int, body: bytes, holding: Sequence[re.Pattern[bytes]] = ()
    ) -> Iterator[Message]:
        self._socket.send(packed(kind, flags, 0, body))
        while True:
            for message in messages(self._socket.recv(_BUFFER), holding):
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


# A socket on which the kernel sends news, read by the asyncio loop.
_log = logging.getLogger(__name__)


class Subscription:
    """Opens a non-blocking socket, and has it read on the loop's thread whenever something is there."""

    def __init__(self, opened: Callable[[], socket.socket], read: Callable[[socket.socket], None]) -> None:
        self._opened = opened
        self._read = read
        self._socket: socket.socket | None = None
        self._resuming: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to listen, in the network namespace of this thread.

        Raises:
            OSError: the kernel refused.

        """
        self._socket = self._opened()
        self._resume()

    def pause(self, seconds: float) -> None:
        """Read nothing for so long; the kernel keeps what it has room for, and says if that was not all."""
        if self._socket is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            self._resuming = loop.call_later(seconds, self._resume)

    def close(self) -> None:
        """Stop listening; does nothing if not listening."""
        if self._resuming is not None:
            self._resuming.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _resume(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._read, self._socket)


class RouteNews:
    """Hands on what rtnetlink sends to `groups` about routes, on the loop's thread; a filter keeps all but `only` away.

    `lost` is called where the kernel had more to tell than it had room for. Of what guests can cause, reading takes
    from `guests`.
    """

    def __init__(
        self,
        groups: int,
        receive: Callable[[Message], None],
        lost: Callable[[], None],
        only: Sequence[Sequence[Field]],
        guests: Budget | None = None,
    ) -> None:
        self._guests = guests
        self._receive = receive
        self._lost = lost
        self._subscription = Subscription(lambda: rtnetlink_socket(groups, only), self._read)

    def start(self) -> None:
        """Begin to listen, in the network namespace of this thread.

        Raises:
            KernelError: the kernel refused.

        """
        try:
            self._subscription.start()
        except OSError as error:
            raise KernelError(f"the kernel does not report changes to routes: {error}") from error

    def close(self) -> None:
        """Stop listening; does nothing if not listening."""
        self._subscription.close()

    def _read(self, source: socket.socket) -> None:
        if self._guests is None:
            return self._take(source)
        with self._guests.charged(time.thread_time):
            self._take(source)
        if rest := self._guests.rest():
            self._subscription.pause(rest)
        return None

    def _take(self, source: socket.socket) -> None:
        try:
            datagram = source.recv(_BUFFER)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:  # ENOBUFS
            _log.debug("some changes of routes went unheard: %s", error)
            self._lost()
            return
        for message in messages(datagram):
            self._receive(message)


def rtnetlink_socket(groups: int, only: Sequence[Sequence[Field]] = ()) -> socket.socket:
    """Open a socket for what the kernel sends to `groups`; a filter keeps all but `only` away.

    Raises:
        OSError: the kernel refused.

    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    subscribed = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
    try:
        if only:
            attach(subscribed, only)
        subscribed.bind((0, groups))
    except OSError:
        subscribed.close()
        raise
    return subscribed
