"""Tells the neighbours on a link that an address is here now, in case they know it elsewhere."""

import logging
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from fwdaemon import sysctl
from fwdaemon.errors import KernelError
from fwdaemon.model import Address, Family
from fwdaemon.naming import shown
from fwdaemon.ndp import ALL_NODES, ETHERNET, Advertisement, multicast_mac

_log = logging.getLogger(__name__)

_ETH_P_IP, _ETH_P_ARP, _ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
_ARP = struct.Struct("!HHBBH6s4s6s4s")  # RFC 826
_REQUEST, _REPLY = 1, 2
_NOBODY, _EVERYBODY = bytes(6), b"\xff" * 6


def announce(interface: str, address: Address) -> None:
    """Send a gratuitous ARP, or an unsolicited neighbour advertisement, for an address of an interface.

    Where there is no link, or one without MAC addresses, there is nobody to tell.
    """
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
            link.bind((interface, 0))
            *_rest, hardware, mac = link.getsockname()
            if hardware == ETHERNET:
                for protocol, destination, packet in _packets(interface, address, mac):
                    link.sendto(packet, (interface, protocol, 0, 0, destination))
    except (OSError, KernelError) as error:
        _log.debug("%s is not announced on %s: %s", address, shown(interface), error)


def _packets(interface: str, address: Address, mac: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Give each packet with its protocol and to whom it goes."""
    match address:
        case IPv4Address():
            for packet in gratuitous_arps(address, mac):
                yield _ETH_P_ARP, _EVERYBODY, packet
        case IPv6Address():
            is_router = sysctl.read(sysctl.of_interface(Family.IPV6, interface, "forwarding")) == "1"
            yield _ETH_P_IPV6, multicast_mac(ALL_NODES), unsolicited_advertisement(address, mac, is_router=is_router)


def gratuitous_arps(address: IPv4Address, mac: bytes) -> tuple[bytes, bytes]:
    """Give a request and a reply (RFC 5944, section 4.6): some neighbours heed only the one, some only the other."""
    return _arp(_REQUEST, address, mac, _NOBODY), _arp(_REPLY, address, mac, mac)


def _arp(operation: int, address: IPv4Address, mac: bytes, target: bytes) -> bytes:
    return _ARP.pack(ETHERNET, _ETH_P_IP, 6, 4, operation, mac, address.packed, target, address.packed)


def unsolicited_advertisement(address: IPv6Address, mac: bytes, *, is_router: bool) -> bytes:
    """Give what makes neighbours change an entry they have (RFC 4861, section 7.2.6)."""
    advertisement = Advertisement(
        source=address,
        destination=ALL_NODES,
        target=address,
        mac=mac,
        router=is_router,
        solicited=False,
        override=True,
    )
    return advertisement.packed()
