"""Asks the kernel by rtnetlink: by pyroute2, and by hand what is too much for it (`first_listed`)."""

import errno
import os
import secrets
import socket
from asyncio import Runner, new_event_loop
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import IntEnum
from functools import cache
from itertools import count, islice
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

from fwdaemon.core.text import shown
from fwdaemon.core.types import Family
from fwdaemon.errors import KernelError
from fwdaemon.kernel.netlink import Message, NetlinkSocket, RefusalError

# One short-lived rtnetlink socket: lists what the kernel picks, and has it change one thing.
#
# Each call blocks until the kernel has answered, which it does at once.
FAMILIES: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

# What marks routes and proxy entries as ours: none of linux/rtnetlink.h or iproute2's rt_protos.
PROTOCOL: Final = 107

# What is said of an entry, or of its interface, that is not there.
_GONE = (errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO)
_TRIES: Final = 3
_DESCRIPTORS: Final = 5


class Kind(IntEnum):
    """What is asked about (linux/rtnetlink.h): RTM_NEWLINK, …, which RTM_DEL…, RTM_GET… and RTM_SET… follow."""

    LINK = 16
    ADDRESS = 20
    ROUTE = 24
    NEIGHBOUR = 28
    RULE = 32


_DELETE, _GET, _SET = 1, 2, 3
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 0x1, 0x4, 0x300, 0x10  # NLM_F_REQUEST, …
REPLACE: Final = 0x100  # NLM_F_REPLACE
CREATE: Final = 0x400  # NLM_F_CREATE: one that is there stays
EXCLUSIVE: Final = CREATE | 0x200  # NLM_F_EXCL: one that is there is an error

# The kernel repeats a request's sequence number in what it broadcasts about the change. Ours are of 65,536 that
# others hardly use: ip(8) counts from the seconds since 1970, routing daemons from one.
_FIRST: Final = 0x8000_0000 | secrets.randbits(15) << 16


class RefusedError(KernelError):
    """The kernel refused a request; `number` is the errno."""

    def __init__(self, number: int, reason: str) -> None:
        self.number = number
        super().__init__(reason)


def is_ours(message: Message) -> bool:
    """Whether what the kernel broadcasts follows from a request of this process."""
    return _FIRST <= message.sequence < _FIRST + _Numbers.COUNT


def interface_index(name: str) -> int | None:
    """Give the number of an interface, or `None` if there is none of this name."""
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError):  # ValueError: what no interface can be called
        return None


def interface_names() -> frozenset[str]:
    """Name all interfaces there are."""
    return frozenset(name for _, name in socket.if_nameindex())


def interface_name(index: int) -> str:
    """Give the name of an interface, for people."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"an interface that has gone ({index})"


class Entry(NamedTuple):
    """One thing that the kernel lists, with pyroute2's names of its fields and attributes."""

    fields: Mapping[str, Any]
    attributes: Mapping[str, Any]


class Asking(Protocol):
    """What asks: a socket of pyroute2, or what stands for one."""

    def message(self, kind: int, /) -> Any:
        """Give an empty message of what a kind is about."""

    def ask(self, message: Any, kind: int, flags: int, noted: Callable[[Any], None], /) -> Iterable[Any]:
        """Ask, and have everything noted that comes, also the end of it."""

    def close(self) -> None:
        """Close it."""


class Rtnetlink:
    """A context manager; what is asked concerns this thread's network namespace. For a thread without a running loop.

    It opens with the first question, as a keeper that finds nothing to do has none.

    Raises:
        KernelError: the kernel does not answer. `RefusedError` is one that says why.

    """

    def __init__(self, opened: Callable[[], Asking] | None = None) -> None:
        self._opened = opened or _Pyroute2
        self._open: Asking | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            self._open.close()

    def entries(self, kind: Kind, fields: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> list[Entry]:
        """Give all entries that the kernel picks by fields and attributes.

        Where they change without end, as on a router of the Internet, those that were seen have to do.
        """
        for _ in range(_TRIES):
            found, whole = self._listed(kind, fields, given or {})
            if whole:
                break
        return found

    def entry(self, kind: Kind, fields: Mapping[str, Any], given: Mapping[str, Any]) -> Entry | None:
        """Give the one entry that is asked for, or `None` if there is no such thing."""
        try:
            with _explained():
                answers = list(self._answers(kind + _GET, _ACK, fields, given, []))
        except RefusedError:
            return None
        return answers[0] if answers else None

    def add(self, kind: Kind, how: int, fields: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Make an entry, or change the one that is there, as `how` allows."""
        with _explained():
            list(self._answers(kind, _ACK | how, fields, given, []))

    def remove(self, kind: Kind, fields: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Remove an entry; that it has gone meanwhile is fine."""
        try:
            with _explained():
                list(self._answers(kind + _DELETE, _ACK, fields, given, []))
        except RefusedError as error:
            if error.number not in _GONE:
                raise

    @property
    def _asking(self) -> Asking:
        if self._open is None:
            with _explained("does not let us ask"):
                self._open = self._opened()
        return self._open

    def _listed(self, kind: Kind, fields: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[list[Entry], bool]:
        """List once, and return whether nothing changed meanwhile."""
        found: list[Entry] = []
        flags: list[int] = []
        try:
            with _explained():
                found.extend(self._answers(kind + _GET, _DUMP, fields, given, flags))
        except RefusedError as error:
            # pyroute2 0.7 raises for a listing that was interrupted, after all of it; 0.9 says nothing.
            if error.number != errno.ENOENT and not _is_interrupted(flags):  # a table is made with its first entry
                raise
        return found, not _is_interrupted(flags)

    def _answers(
        self,
        kind: int,
        flags: int,
        fields: Mapping[str, Any],
        given: Mapping[str, Any],
        seen: list[int],
    ) -> Iterator[Entry]:
        """Ask, and note the flags of all that is answered, also of the end."""
        message = self._asking.message(kind)
        for name, value in fields.items():
            message[name] = value
        message["attrs"] = list(given.items())
        for answer in self._asking.ask(message, kind, flags, lambda each: seen.append(each["header"]["flags"])):
            yield Entry(answer, {slot[0]: slot[1] for slot in answer.get("attrs") or ()})


def _is_interrupted(flags: list[int]) -> bool:
    return any(each & _INTERRUPTED for each in flags)


class _Pyroute2:
    """A socket of pyroute2, which can be asked from one thread without a running loop in every version the same.

    The synchronous one of 0.9 goes through its loop for each entry of a listing, so its asynchronous one is asked.
    """

    def __init__(self) -> None:
        import pyroute2  # noqa: PLC0415 - 100 ms and 11 MB

        _see_that_there_is_room()
        self._runner = Runner(loop_factory=new_event_loop) if hasattr(pyroute2, "AsyncIPRoute") else None
        self._socket: Any = self._opened(pyroute2)
        self._socket.addr_pool = _Numbers()
        self._socket.register_policy(dict.fromkeys(range(Kind.NEIGHBOUR, Kind.NEIGHBOUR + _SET), _neighbour()))

    def message(self, kind: int) -> Any:
        """Give an empty message of what a kind is about."""
        return self._socket.marshal.msg_map[kind & ~_SET]()

    def ask(self, message: Any, kind: int, flags: int, noted: Callable[[Any], None]) -> Iterable[Any]:
        """Ask, and have everything noted that comes, also the end of it."""
        asked = self._socket.nlm_request(message, kind, _REQUEST | flags, None, noted)
        return asked if self._runner is None else self._runner.run(_collected(asked))

    def close(self) -> None:
        """Close it."""
        if self._runner is None:
            self._socket.close()
        else:
            self._runner.run(_closed(self._socket))
            self._runner.close()

    def _opened(self, pyroute2: Any) -> Any:
        options = {"strict_check": True, "ext_ack": True, "nlm_generator": True}
        if self._runner is None:
            return pyroute2.IPRoute(**options)
        try:
            self._runner.get_loop()
            return self._runner.run(_made(pyroute2.AsyncIPRoute, options))
        except BaseException:
            self._runner.close()
            raise


def _see_that_there_is_room() -> None:
    """Open as many descriptors as pyroute2 and a loop of asyncio do, and close them.

    Where it gets some and not all, 0.7 loses two for ever, and the loop writes a traceback to standard error.

    Raises:
        OSError: there are too few.

    """
    with ExitStack() as opened:
        for _ in range(_DESCRIPTORS):
            opened.callback(os.close, os.open("/", os.O_PATH | os.O_CLOEXEC))


async def _made(kind: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    made = kind(**options)
    await made.setup_endpoint()
    return made


async def _closed(asking: Any) -> None:
    asking.close()


async def _collected(asked: Any) -> list[Any]:
    return [answer async for answer in await asked]


class _Numbers:
    """Gives pyroute2 the sequence numbers of requests, of which no answer is awaited any more once they come again."""

    COUNT: Final = 1 << 16
    _next = count()

    def alloc(self) -> int:
        """Give the next."""
        return _FIRST + next(self._next) % self.COUNT

    def free(self, _number: int, ban: int = 0) -> None:
        """Note nothing."""


_LATER_FROM: Final = 10
_LATER: Final = (("NDA_LINK_NETNSID", "uint32"), ("NDA_SRC_VNI", "uint32"), ("NDA_PROTOCOL", "uint8"))


@cache
def _neighbour() -> Any:
    """Give pyroute2's message about a neighbour; that of 0.7 does not know whose an entry is."""
    from pyroute2.netlink.rtnl.ndmsg import ndmsg  # noqa: PLC0415 - as above

    known = tuple(ndmsg.nla_map)
    if "NDA_PROTOCOL" in dict(known):
        return ndmsg
    return type("ndmsg", (ndmsg,), {"__slots__": (), "nla_map": (*known, *_LATER[len(known) - _LATER_FROM :])})


@contextmanager
def _explained(what: str = "does not answer") -> Iterator[None]:
    try:
        from pyroute2.netlink.exceptions import NetlinkDecodeError, NetlinkError  # noqa: PLC0415 - as above

        yield
    except OSError as error:
        raise KernelError(f"the kernel {what} about routes and addresses: {error}") from error
    except NetlinkError as error:
        raise RefusedError(error.code, shown(str(error.args[-1]))) from error
    except NetlinkDecodeError as error:
        raise KernelError(f"pyroute2 does not understand what the kernel answers: {error}") from error


def first_listed(kind: int, body: bytes, most: int | None = None) -> list[bytes]:
    """List by hand, on a socket of its own: the bodies of the first entries that the kernel picks, or of all.

    Raises:
        KernelError: the kernel does not answer.

    """
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as asking:
            found = asking.listing(kind, body).messages if most is None else islice(asking.stream(kind, body), most)
            return [message.body for message in found]
    except RefusalError as error:
        if error.errno == errno.ENOENT:  # a table is made with its first entry
            return []
        raise RefusedError(error.errno or 0, error.strerror or "") from error
    except OSError as error:
        raise KernelError(f"the kernel does not answer about routes and addresses: {error}") from error
