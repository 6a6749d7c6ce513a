"""The neighbour table: which link-layer address answered for which address (rtnetlink(7), linux/neighbour.h)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from fwdaemon.model import Address, Family
from fwdaemon.netlink import attribute, attributes
from fwdaemon.rtnetlink.client import FAMILIES, Rtnetlink

_NEW, _GET = 28, 30  # RTM_NEWNEIGH, …
_REPLACE = 0x100
_FIXED = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_DST, _LLADDR = 1, 2
_PROBE = 0x10
_ETHERNET_BYTES = 6

# REACHABLE, STALE, DELAY, PROBE, PERMANENT. In the others nobody answered, or was asked.
USABLE_STATES: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80


@dataclass(frozen=True, slots=True)
class KernelNeighbour:
    """`mac`, in lower case with colons, answered for `address` on the interface with this number."""

    address: Address
    mac: str
    index: int


def neighbours(kernel: Rtnetlink) -> Iterator[KernelNeighbour]:
    """Give the entries of Ethernet neighbours that answered."""
    for family in Family:
        for body in kernel.entries(_GET, _FIXED.pack(FAMILIES[family], 0, 0, 0, 0)):
            _family, index, state, *_rest = _FIXED.unpack_from(body)
            found = attributes(body[_FIXED.size :])
            mac = found.get(_LLADDR, b"")
            if state & USABLE_STATES and _DST in found and len(mac) == _ETHERNET_BYTES:
                yield KernelNeighbour(ip_address(found[_DST]), mac.hex(":"), index)


def probe(kernel: Rtnetlink, entry: KernelNeighbour) -> None:
    """Hold that an entry is so, and ask the neighbour.

    Raises:
        RefusedError: the entry, or its interface, is not there.

    """
    fixed = _FIXED.pack(FAMILIES[Family.of(entry.address)], entry.index, _PROBE, 0, 0)
    mac = bytes.fromhex(entry.mac.replace(":", ""))
    kernel.change(_NEW, _REPLACE, fixed + attribute(_DST, entry.address.packed) + attribute(_LLADDR, mac))
