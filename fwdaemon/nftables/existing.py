"""Which nftables tables there are, asked of the kernel itself: `nft list tables` reads every rule of the host first.

Sources: nfnetlink(7) framing, `enum nft_msg_types` and `NFTA_TABLE_NAME` in linux/netfilter/nf_tables.h, families in
linux/netfilter.h.
"""

import errno
import os
import socket
import struct
import sys
from typing import Final

from fwdaemon.errors import KernelError
from fwdaemon.netlink import attributes, messages, packed

_NETLINK_NETFILTER: Final = 12
_NEWTABLE, _GETTABLE = 10 << 8, 10 << 8 | 1
_REQUEST_DUMP: Final = 0x301
_ERROR, _DONE = 2, 3
_INTERRUPTED: Final = 0x10
_NAME: Final = 1
_NFGENMSG: Final = struct.Struct("!BBH")
_FAMILIES: Final = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_BUFFER: Final = 1 << 16
_TIMEOUT_S: Final = 5.0
# A commit in between makes a listing worth nothing; they come in bursts.
_TRIES: Final = 20


def existing_tables() -> frozenset[tuple[str, str]]:
    """Give family (`ip`, `inet`…) and name of every table in this network namespace.

    Raises:
        KernelError: the kernel does not tell.

    """
    try:
        for _ in range(_TRIES):
            found, ended = _listed()
            if ended != errno.EINTR:
                break
    except OSError as error:
        raise KernelError(f"the kernel does not list its nftables tables: {error.strerror or error}") from error
    if ended:
        raise KernelError(f"the kernel does not list its nftables tables: {os.strerror(ended)}")
    return frozenset(found)


def _listed() -> tuple[list[tuple[str, str]], int]:
    found: list[tuple[str, str]] = []
    ended = None
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as asking:
        asking.settimeout(_TIMEOUT_S)
        asking.send(packed(_GETTABLE, _REQUEST_DUMP, 0, _NFGENMSG.pack(0, 0, 0)))
        while ended is None:
            tables, ended = read_tables(asking.recv(_BUFFER))
            found += tables
    return found, ended


def read_tables(datagram: bytes) -> tuple[list[tuple[str, str]], int | None]:
    """Read the tables in one datagram of the answer, and the errno it ends with.

    That is 0 for the end of the listing, EINTR where it was interrupted, and `None` where more is to come.
    """
    found: list[tuple[str, str]] = []
    for message in messages(datagram):
        if message.flags & _INTERRUPTED:
            return [], errno.EINTR
        if message.kind in (_ERROR, _DONE):
            return found, -int.from_bytes(message.body[:4], sys.byteorder, signed=True)
        if message.kind == _NEWTABLE and len(message.body) >= _NFGENMSG.size:
            family, _, _ = _NFGENMSG.unpack_from(message.body)
            name = attributes(message.body[_NFGENMSG.size :]).get(_NAME, b"").rstrip(b"\0")
            found.append((_FAMILIES.get(family, str(family)), name.decode(errors="replace")))
    return found, None
