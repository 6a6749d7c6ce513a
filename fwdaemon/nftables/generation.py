"""nftables' generation: a number the kernel raises with every committed change, and who committed it.

The number makes "nothing has changed" cost one small message instead of a listing. The multicast group tells of each
new one at once, with the process that made it. Source: nfnetlink(7) framing, `enum nft_msg_types` and `NFTA_GEN_*` in
linux/netfilter/nf_tables.h.
"""

import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fwdaemon.errors import KernelError
from fwdaemon.netlink import attributes, messages
from fwdaemon.netlink_socket import NETFILTER, NetlinkSocket

_NFNLGRP_NFTABLES = 7
_SUBSYSTEM = 10 << 8
_NEWGEN = _SUBSYSTEM | 15
_GETGEN = _SUBSYSTEM | 16
_ID, _PROCESS_ID, _PROCESS_NAME = 1, 2, 3
_NFGENMSG = struct.pack("!BBH", 0, 0, 0)
_BUFFER = 1 << 16
# A transaction of 10,000 forwards announces each rule; what overflows even so is told as ENOBUFS.
_RECEIVE_BUFFER = 8 << 20


@dataclass(frozen=True, slots=True)
class Generation:
    """One commit: its number, the netlink port it came from, and the process, as the kernel names it.

    The port is the process id as its own pid namespace counts it, `pid` that of the machine: they differ in containers.
    """

    number: int
    port: int
    pid: int
    process: str


def current_generation() -> int:
    """Ask the kernel for the number of the last commit in this network namespace.

    Raises:
        KernelError: the kernel did not answer, or has no nftables.

    """
    try:
        with NetlinkSocket(NETFILTER) as asking:
            (answer,) = asking.ask(_GETGEN, _NFGENMSG)
    except (OSError, ValueError) as error:
        raise KernelError(
            f"the kernel does not tell its nftables generation ({error}); is nf_tables there, and are we root?"
        ) from error
    return _generation(attributes(answer.body[len(_NFGENMSG) :]), answer.port).number


def open_monitor() -> socket.socket:
    """Open a non-blocking socket that hears of every commit in this network namespace, to be read with `receive`."""
    monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETFILTER)
    try:
        _enlarge(monitor)
        monitor.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
    except OSError:
        monitor.close()
        raise
    return monitor


def receive(monitor: socket.socket) -> tuple[Generation, ...]:
    """Read all commits that are waiting.

    Raises:
        OSError: ENOBUFS, some were lost; whoever reads must look at everything.

    """
    found: list[Generation] = []
    while True:
        try:
            found += generations(monitor.recv(_BUFFER))
        except BlockingIOError:
            return tuple(found)


def generations(datagram: bytes) -> Iterator[Generation]:
    """Decode the new generations in a netlink datagram; other messages are passed over."""
    for message in messages(datagram):
        if message.kind == _NEWGEN:
            yield _generation(attributes(message.body[len(_NFGENMSG) :]), message.port)


def _generation(found: Mapping[int, bytes], port: int) -> Generation:
    name = found.get(_PROCESS_NAME, b"").rstrip(b"\0").decode(errors="replace") or "unknown"
    number, pid = (int.from_bytes(found.get(kind, b""), "big") for kind in (_ID, _PROCESS_ID))
    return Generation(number, port, pid, name)


def _enlarge(monitor: socket.socket) -> None:
    """Ask for a large buffer; past the machine's limit that takes CAP_NET_ADMIN, which whoever runs us has."""
    force = 33  # SO_RCVBUFFORCE, socket(7); Python has no name for it
    try:
        monitor.setsockopt(socket.SOL_SOCKET, force, _RECEIVE_BUFFER)
    except PermissionError:
        monitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
