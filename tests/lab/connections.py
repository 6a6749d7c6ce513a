"""Tracked connections written into the kernel's table by hand, one or a hundred thousand, with or without a label.

A connection can have labels only if the kernel holds a rule that sets one: `label_rule` loads one that no packet meets.
"""

import socket
import struct
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from fwdaemon.kernel.netlink import NETFILTER, attribute, packed
from fwdaemon.kernel.process import Runner
from tests.lab.netns import open_socket

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_NEW, _FLAGS = 0x100, 0x1 | 0x400  # IPCTNL_MSG_CT_NEW; NLM_F_REQUEST and NLM_F_CREATE
_ORIGINAL, _REPLY, _STATE, _HELPER, _TIMEOUT, _MASTER, _LABELS = 1, 2, 4, 5, 7, 14, 22
# The attribute of each protocol's state in CTA_PROTOINFO, and what is in it of an open connection.
_OPEN = {
    6: (1, attribute(1, bytes([3]))),
    132: (3, attribute(1, bytes([4])) + attribute(2, b"\0\0\0\1") + attribute(3, b"\0\0\0\2")),
}
_A_BATCH = 64


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a connection."""

    source: str
    destination: str
    source_port: int
    destination_port: int

    def written(self, protocol: int) -> bytes:
        """Write it as the kernel takes it."""
        addresses = [ip_address(self.source), ip_address(self.destination)]
        first = 1 if addresses[0].version == 4 else 3
        ends = b"".join(attribute(first + number, address.packed) for number, address in enumerate(addresses))
        ports = [struct.pack("!H", port) for port in (self.source_port, self.destination_port)]
        numbers = b"".join(attribute(2 + number, port) for number, port in enumerate(ports))
        return _nested(1, ends) + _nested(2, attribute(1, bytes([protocol])) + numbers)


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as it is to be tracked; `master` is the way of the one that expected it."""

    protocol: str
    original: Tuple
    reply: Tuple
    label: int | None = None
    master: Tuple | None = None
    helper: str = ""

    def written(self) -> bytes:
        """Write the request for the kernel to track it."""
        number = PROTOCOLS[self.protocol]
        parts = [_nested(_ORIGINAL, self.original.written(number)), _nested(_REPLY, self.reply.written(number))]
        if number in _OPEN:
            parts.append(_nested(_STATE, _nested(*_OPEN[number])))
        parts.append(attribute(_TIMEOUT, struct.pack("!I", 600)))
        if self.label is not None:
            parts.append(attribute(_LABELS, (1 << self.label).to_bytes(16, sys.byteorder)))
        if self.helper:
            parts.append(_nested(_HELPER, attribute(1, self.helper.encode() + b"\0")))
        if self.master is not None:
            parts.append(_nested(_MASTER, self.master.written(number)))
        family = socket.AF_INET if ip_address(self.original.source).version == 4 else socket.AF_INET6
        return packed(_NEW, _FLAGS, 0, struct.pack("!BBH", family, 0, 0) + b"".join(parts))


def label_rule(runner: Runner, label: int = 25) -> None:
    """Load a rule that could set this label."""
    runner.run("nft", "-f", "-", stdin=f"table inet labels {{ chain none {{ ct label set {label}; }}; }}\n")


def track(connections: Iterable[Connection], namespace: Path | None = None) -> None:
    """Have the kernel track these, in a network namespace or else in this thread's."""
    here = Path(f"/proc/self/task/{threading.get_native_id()}/ns/net")
    with open_socket(namespace or here, socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER) as kernel:
        batch: list[bytes] = []
        for connection in connections:
            batch.append(connection.written())
            if len(batch) == _A_BATCH:
                _send(kernel, batch)
        _send(kernel, batch)


def _send(kernel: socket.socket, batch: list[bytes]) -> None:
    """Send requests of which the kernel answers only those it refuses."""
    kernel.send(b"".join(batch))
    batch.clear()
    try:
        answer = kernel.recv(1 << 16, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    raise OSError(-struct.unpack_from("=i", answer, 16)[0], "the kernel does not track a connection")


def _nested(kind: int, value: bytes) -> bytes:
    return attribute(kind | 0x8000, value)
