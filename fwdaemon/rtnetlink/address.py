"""Addresses of the host's interfaces (rtnetlink(7))."""

import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from fwdaemon.model import Address, Family, Subnet
from fwdaemon.netlink import attribute, attributes
from fwdaemon.rtnetlink.client import FAMILIES, Rtnetlink

_NEW, _DELETE, _GET = 20, 21, 22  # RTM_NEWADDR, …
_CREATE, _EXCLUSIVE = 0x400, 0x200
_FIXED = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ADDRESS, _LOCAL, _LIFETIMES = 1, 2, 6  # IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO
_NO_DUPLICATE_DETECTION = 0x02  # IFA_F_NODAD
# ifa_cacheinfo: preferred and valid seconds, and two that only the kernel fills in.
_CACHEINFO = struct.Struct("=IIII")
_FOREVER: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class KernelAddress:
    """An address on the interface with this number."""

    address: Address
    index: int


def addresses(kernel: Rtnetlink, family: Family, index: int = 0) -> list[KernelAddress]:
    """Give the addresses of one interface, or of all."""
    listed = kernel.entries(_GET, _FIXED.pack(FAMILIES[family], 0, 0, 0, index))
    return [entry for entry in map(_read, listed) if Family.of(entry.address) is family]


def subnets(kernel: Rtnetlink) -> list[tuple[KernelAddress, Subnet]]:
    """Give all addresses of the host, each with the subnet it is configured with."""
    listed = [body for family in Family for body in kernel.entries(_GET, _FIXED.pack(FAMILIES[family], 0, 0, 0, 0))]
    return [(_read(body), _subnet(body)) for body in listed]


def add_address(kernel: Rtnetlink, entry: KernelAddress) -> None:
    """Give an interface one more address, without its subnet.

    One of IPv6 can be used at once, and is deprecated, so that the host picks it for no connection of its own
    (RFC 6724, section 5, rule 3). One of IPv4 is not picked either, since it is not the first.
    """
    kernel.change(_NEW, _CREATE | _EXCLUSIVE, _entry(entry, _NO_DUPLICATE_DETECTION, _lifetimes(entry)))


def delete_address(kernel: Rtnetlink, entry: KernelAddress) -> None:
    """Take an address away from an interface."""
    kernel.remove(_DELETE, _entry(entry))


def _lifetimes(entry: KernelAddress) -> bytes:
    if Family.of(entry.address) is Family.IPV4:
        return b""
    return attribute(_LIFETIMES, _CACHEINFO.pack(0, _FOREVER, 0, 0))


def _entry(entry: KernelAddress, flags: int = 0, more: bytes = b"") -> bytes:
    address = entry.address
    fixed = _FIXED.pack(FAMILIES[Family.of(address)], address.max_prefixlen, flags, 0, entry.index)
    return fixed + attribute(_LOCAL, address.packed) + attribute(_ADDRESS, address.packed) + more


def _read(body: bytes) -> KernelAddress:
    *_rest, index = _FIXED.unpack_from(body)
    found = attributes(body[_FIXED.size :])
    # On a point-to-point link IFA_ADDRESS is the other end.
    return KernelAddress(ip_address(found.get(_LOCAL) or found[_ADDRESS]), index)


def _subnet(body: bytes) -> Subnet:
    _family, prefix_length, *_rest = _FIXED.unpack_from(body)
    return ip_network((attributes(body[_FIXED.size :])[_ADDRESS], prefix_length), strict=False)
