"""Datagrams with any address, and sockets that send and see them."""

import socket
import struct
from ipaddress import IPv4Address
from pathlib import Path

from tests.lab.netns import open_socket

HEAD_BYTES = 28
_IP = 0x0800


def raw_socket(namespace: Path, protocol: int) -> socket.socket:
    """Open a socket that never waits: it sends whole packets with IPPROTO_RAW, and sees those of other protocols."""
    connection = open_socket(namespace, socket.AF_INET, socket.SOCK_RAW, protocol)
    connection.settimeout(0)
    return connection


def frames_socket(namespace: Path) -> socket.socket:
    """Open a socket that sees every packet of IPv4 that comes in, without its frame."""
    connection = open_socket(namespace, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_IP))
    connection.settimeout(0)
    return connection


def datagram(source: str, address: str, own_port: int, port: int, said: bytes) -> bytes:
    """Write a whole packet; the kernel fills in the checksum of its head, and the other may be left out."""
    udp = struct.pack("!HHHH", own_port, port, 8 + len(said), 0) + said
    addresses = IPv4Address(source).packed + IPv4Address(address).packed
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses + udp
