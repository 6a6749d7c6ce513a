"""The kernel's listing of sockets, sock_diag(7): what is asked, and what is answered. Pure.

It lists waiting sockets alone, while /proc/net/tcp lists all, and tells what that does not: the interface a socket is
bound to, whether one of IPv6 takes IPv4 too, and its control group. Sources: linux/inet_diag.h, linux/sock_diag.h and
the states in net/tcp_states.h.
"""

import struct
import sys
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from fwdaemon.model import Address, Family, Protocol
from fwdaemon.netlink import attributes
from fwdaemon.sockets.model import Listener

BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY
_AF: Final = {Family.IPV4: 2, Family.IPV6: 10}
_NUMBERS: Final = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
# TCP_LISTEN; of UDP those without a fixed peer, which are in the state TCP_CLOSE.
_STATES: Final = {Protocol.TCP: 1 << 10, Protocol.UDP: 1 << 7, Protocol.SCTP: 1 << 10}

_REQUEST: Final = struct.Struct("=BBBBI48x")
# Up to the addresses all is in network byte order, or a single byte.
_ADDRESSES: Final = struct.Struct("!BBBBHH16s16s")
_REST: Final = struct.Struct("=I8sIIIII")
_ONLY_IPV6, _CGROUP = 11, 21


def request(protocol: Protocol, family: Family) -> bytes:
    """Write the body of a request for all sockets of a kind that wait."""
    return _REQUEST.pack(_AF[family], _NUMBERS[protocol], 0, 0, _STATES[protocol])


def read(protocol: Protocol, body: bytes, devices: Mapping[int, str]) -> Listener:
    """Read the body of one answer; `devices` names interfaces by their numbers."""
    family, _, _, _, port, _, source, _ = _ADDRESSES.unpack_from(body)
    device, *_, inode = _REST.unpack_from(body, _ADDRESSES.size)
    more = attributes(body[_ADDRESSES.size + _REST.size :])
    address = ip_address(source[:4] if family == _AF[Family.IPV4] else source)
    families, plain = _taken(address, only_ipv6=any(more.get(_ONLY_IPV6, b"")))
    cgroup = int.from_bytes(more.get(_CGROUP, b""), sys.byteorder)
    return Listener(protocol, families, plain, port, devices.get(device), inode, cgroup)


def _taken(address: Address, *, only_ipv6: bool) -> tuple[frozenset[Family], Address | None]:
    """Tell what comes to an address; all of IPv6 is all of IPv4 too, unless the socket says otherwise (ipv6(7))."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    if mapped is not None:
        return frozenset({Family.IPV4}), None if mapped.is_unspecified else mapped
    if not address.is_unspecified:
        return frozenset({Family.of(address)}), address
    return frozenset({Family.of(address)} if only_ipv6 or isinstance(address, IPv4Address) else Family), None
