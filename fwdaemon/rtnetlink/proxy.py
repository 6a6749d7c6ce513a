"""Proxy entries: addresses for which the kernel answers ARP and neighbour discovery (`ip neighbour show proxy`)."""

import struct
from dataclasses import dataclass
from ipaddress import ip_address

from fwdaemon.model import Address, Family
from fwdaemon.netlink import attribute, attributes
from fwdaemon.rtnetlink.client import FAMILIES, Rtnetlink
from fwdaemon.rtnetlink.route import PROTOCOL

_NEW, _DELETE, _GET = 28, 29, 30  # RTM_NEWNEIGH, …
_CREATE, _EXCLUSIVE = 0x400, 0x200
_FIXED = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_PROXY, _PERMANENT = 0x08, 0x80  # NTF_PROXY, NUD_PERMANENT
_DST, _PROTOCOL = 1, 12  # linux/neighbour.h: NDA_DST, NDA_PROTOCOL


@dataclass(frozen=True, slots=True)
class ProxyEntry:
    """The kernel answers for `address` on the interface with this number."""

    address: Address
    index: int


def proxy_entries(kernel: Rtnetlink, family: Family) -> dict[ProxyEntry, bool]:
    """Give all proxy entries, each with whether it has our protocol number."""
    listed = kernel.entries(_GET, _FIXED.pack(FAMILIES[family], 0, 0, _PROXY, 0))
    return dict(map(_read, listed))


def add_proxy_entry(kernel: Rtnetlink, entry: ProxyEntry) -> None:
    """Make an entry of ours. One that somebody else made would become ours: look first."""
    kernel.change(_NEW, _CREATE | _EXCLUSIVE, _body(entry, _PERMANENT) + attribute(_PROTOCOL, bytes([PROTOCOL])))


def delete_proxy_entry(kernel: Rtnetlink, entry: ProxyEntry) -> None:
    """Remove an entry."""
    kernel.remove(_DELETE, _body(entry, 0))


def _body(entry: ProxyEntry, state: int) -> bytes:
    fixed = _FIXED.pack(FAMILIES[Family.of(entry.address)], entry.index, state, _PROXY, 0)
    return fixed + attribute(_DST, entry.address.packed)


def _read(body: bytes) -> tuple[ProxyEntry, bool]:
    _family, index, *_rest = _FIXED.unpack_from(body)
    found = attributes(body[_FIXED.size :])
    is_ours = found.get(_PROTOCOL) == bytes([PROTOCOL])
    return ProxyEntry(ip_address(found[_DST]), index), is_ours
