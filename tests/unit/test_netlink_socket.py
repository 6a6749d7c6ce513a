"""What the kernel answers over netlink, to the end, again where it changed meanwhile, and why where it refuses."""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fwdaemon.kernel.netlink import NetlinkSocket, RefusalError, attribute

ENTRY, ERROR, DONE, INTERRUPTED = 24, 2, 3, 0x10


def message(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body + bytes(-len(body) % 4)


def code(number: int) -> bytes:
    return struct.pack("=i", -number)


class Kernel:
    """Answers each question with the next of these datagrams."""

    def __init__(self) -> None:
        self.asking = NetlinkSocket(socket.NETLINK_ROUTE)
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.asking._socket.close()  # noqa: SLF001  in place of the real kernel, which cannot be made to say all this
        self.asking._socket = ours  # noqa: SLF001  the same

    def says(self, *datagrams: bytes) -> NetlinkSocket:
        for datagram in datagrams:
            self.socket.send(datagram)
        return self.asking


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with ExitStack() as at_end:
        made = Kernel()
        at_end.enter_context(made.socket)
        at_end.enter_context(made.asking)
        yield made


@pytest.mark.parametrize("end", [message(DONE, code(0)), message(DONE), message(ERROR, code(0))])
def test_what_comes_in_parts_is_listed_to_its_end(kernel: Kernel, end: bytes) -> None:
    parts = message(ENTRY, b"one ") + message(ENTRY, b"two "), message(ENTRY, b"three   ") + end
    listed = kernel.says(*parts).listing(1, b"")
    assert ([entry.body for entry in listed.messages], listed.whole) == ([b"one ", b"two ", b"three   "], True)


def test_only_what_holds_some_bytes_is_kept(kernel: Kernel) -> None:
    asked = kernel.says(message(ENTRY, b"a rule  ") + message(ENTRY, b"ours") + message(DONE, code(0)))
    assert [entry.body for entry in asked.listing(1, b"", holding=b"our").messages] == [b"ours"]


@pytest.mark.parametrize(("first", "last"), [(INTERRUPTED, 0), (0, INTERRUPTED)])
def test_what_changed_meanwhile_is_listed_again(kernel: Kernel, first: int, last: int) -> None:
    """Also where the kernel says so with the end alone: something may have come behind the last entry."""
    half = message(ENTRY, b"one ", first) + message(DONE, code(0), last)
    whole = message(ENTRY, b"one ") + message(ENTRY, b"two ") + message(DONE, code(0))
    listed = kernel.says(half, whole).listing(1, b"")
    assert ([entry.body for entry in listed.messages], listed.whole) == ([b"one ", b"two "], True)
    listed = kernel.says(*[half] * 2).listing(1, b"", tries=2)
    assert ([entry.body for entry in listed.messages], listed.whole) == ([b"one "], False)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (message(ERROR, code(errno.EPERM) + bytes(16)), "Operation not permitted"),
        (message(ERROR, code(errno.EPERM) + bytes(16) + attribute(1, b"no\n\0")), r"no\n"),
        (message(DONE, code(errno.EPERM) + attribute(1, b"no\0")), "no"),
    ],
)
def test_a_refusal_says_why(kernel: Kernel, end: bytes, reason: str) -> None:
    with pytest.raises(RefusalError) as refused:
        kernel.says(end).ask(1, b"")
    assert (refused.value.errno, refused.value.strerror) == (errno.EPERM, reason)
