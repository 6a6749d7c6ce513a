"""What a guest sends in a flood: ARP, neighbour discovery and DHCP, each packet from another address or client.

Run in the guest's network namespace, `… -m bench.flooding MAC`, until it is ended.
"""

import itertools
import socket
import struct
import sys
import time
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from fwdaemon.kernel.packets import multicast_mac, solicitation

SUBNET4: Final = "10.122.0.0/16"
SUBNET6: Final = "2001:db8:7a::/64"
_GATEWAY4, _GATEWAY6 = IPv4Address("10.122.0.1"), IPv6Address("2001:db8:7a::1")
_FIRST4, _FIRST6 = IPv4Address("10.122.1.0"), IPv6Address("2001:db8:7a::1:0")
_ADDRESSES4: Final = 60_000
_ARP, _IP, _IPV6 = 0x0806, 0x0800, 0x86DD
_EVERYBODY: Final = b"\xff" * 6
_PAUSE_S: Final = 0.001
_DISCOVER: Final = bytes.fromhex("63825363 350101 ff")


def arp(mac: bytes, source: IPv4Address) -> bytes:
    """Ask for the gateway from an address (RFC 826)."""
    return struct.pack("!HHBBH", 1, _IP, 6, 4, 1) + mac + source.packed + bytes(6) + _GATEWAY4.packed


def discover(number: int) -> bytes:
    """Look for a DHCP server as one of many clients (RFC 2131), without checksums that no server wants."""
    client = b"\x52\x54\x01" + number.to_bytes(3, "big")
    body = struct.pack("!BBBBIHH16x", 1, 1, 6, 0, number, 0, 0x8000) + client + bytes(10 + 64 + 128) + _DISCOVER
    udp = struct.pack("!HHHH", 68, 67, 8 + len(body), 0) + body
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    return head[:10] + _checksum(head).to_bytes(2, "big") + head[12:] + udp


def _checksum(head: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(head) // 2}H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def main() -> None:
    """Send until this is ended."""
    mac = bytes.fromhex(sys.argv[1].replace(":", ""))
    with closing(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)) as link:
        print("ready", flush=True)  # noqa: T201  the parent reads it
        for number in itertools.count():
            group, asked = solicitation(_FIRST6 + number, mac, _GATEWAY6)
            link.sendto(arp(mac, _FIRST4 + number % _ADDRESSES4), ("eth0", _ARP, 0, 0, _EVERYBODY))
            link.sendto(asked, ("eth0", _IPV6, 0, 0, multicast_mac(group)))
            link.sendto(discover(number % (1 << 24)), ("eth0", _IP, 0, 0, _EVERYBODY))
            time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()
