"""Routes of our own protocol number in the main table, and whoever else routes the same (rtnetlink(7))."""

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from fwdaemon.model import Address, Family, Subnet
from fwdaemon.netlink import attribute, attributes, number
from fwdaemon.rtnetlink.client import FAMILIES, Rtnetlink

# What marks a route as ours: none of linux/rtnetlink.h or iproute2's rt_protos.
PROTOCOL: Final = 107

_NEW, _DELETE, _GET = 24, 25, 26  # RTM_NEWROUTE, …
_CREATE, _EXCLUSIVE = 0x400, 0x200  # NLM_F_CREATE, NLM_F_EXCL: never replace anybody's
# rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
_ROUTE = struct.Struct("=BBBBBBBBI")
_MAIN_TABLE = 254
_UNICAST, _LOCAL = 1, 2  # RTN_UNICAST, RTN_LOCAL
_SCOPE_LINK, _ANY_SCOPE = 253, 255  # RT_SCOPE_LINK, RT_SCOPE_NOWHERE
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: the entry of the table, and not what follows from it for one address
_PARTS = 4
_DST, _OIF = 1, 4
_NUMBER = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route the kernel holds; `index` is the interface's, `None` where there is none or more than one.

    `is_local` says that it leads to the host itself.
    """

    subnet: Subnet
    index: int | None
    protocol: int
    is_local: bool

    def leads_to(self, index: int) -> bool:
        """Whether it leads to what is plugged into the interface with this number."""
        return self.index == index and not self.is_local


def our_routes(kernel: Rtnetlink, family: Family) -> list[KernelRoute]:
    """Give the routes with our protocol number; the kernel picks them, as there may be a million others."""
    listed = kernel.entries(_GET, _fixed(FAMILIES[family], 0, PROTOCOL))
    return [route for route in map(_read, listed) if Family.of(route.subnet) is family]


def route_of(kernel: Rtnetlink, subnet: Subnet) -> KernelRoute | None:
    """Give the route for exactly this subnet that counts, whoever made it.

    The kernel tells by which entry an address is routed. Some addresses of a subnet may have entries of their own, as
    those of the host have, and the first of IPv6 (RFC 4291, section 2.6.1); so several are tried.
    """
    last = subnet.num_addresses - 1
    for part in range(_PARTS + 1):
        route = _matching(kernel, subnet[last * part // _PARTS])
        if route is not None and route.subnet == subnet:
            return route
    return None


def add_route(kernel: Rtnetlink, subnet: Subnet, index: int) -> None:
    """Route a subnet to what is plugged into an interface.

    Raises:
        RefusedError: among others with EEXIST, if somebody has a route for it.

    """
    fixed = _fixed(FAMILIES[Family.of(subnet)], subnet.prefixlen, PROTOCOL, _SCOPE_LINK, _UNICAST)
    kernel.change(_NEW, _CREATE | _EXCLUSIVE, fixed + _destination(subnet, index))


def delete_route(kernel: Rtnetlink, route: KernelRoute) -> None:
    """Remove a route of ours."""
    fixed = _fixed(FAMILIES[Family.of(route.subnet)], route.subnet.prefixlen, PROTOCOL, _ANY_SCOPE)
    kernel.remove(_DELETE, fixed + _destination(route.subnet, route.index))


def _matching(kernel: Rtnetlink, address: Address) -> KernelRoute | None:
    """Give the entry by which an address is routed."""
    fixed = _ROUTE.pack(FAMILIES[Family.of(address)], address.max_prefixlen, 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    found = kernel.entry(_GET, fixed + attribute(_DST, address.packed))
    return None if found is None else _read(found)


def _destination(subnet: Subnet, index: int | None) -> bytes:
    interface = b"" if index is None else attribute(_OIF, _NUMBER.pack(index))
    return attribute(_DST, subnet.network_address.packed) + interface


def _fixed(family: int, length: int, protocol: int, scope: int = 0, kind: int = 0) -> bytes:
    return _ROUTE.pack(family, length, 0, 0, _MAIN_TABLE, protocol, scope, kind, 0)


def _read(body: bytes) -> KernelRoute:
    family, length, _, _, _, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    found = attributes(body[_ROUTE.size :])
    address = found.get(_DST) or bytes(4 if family == socket.AF_INET else 16)
    return KernelRoute(ip_network((address, length)), number(found.get(_OIF)), protocol, kind == _LOCAL)
