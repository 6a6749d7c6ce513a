"""A neighbour of the host that asks who has an address."""

import socket
from ipaddress import ip_address

from fwdaemon.kernel import packets
from tests.kernel.links import NEIGHBOUR, Links
from tests.lab.netns import open_socket
from tests.unit.nd_packets import solicitation, source_option


class Asker:
    """Asks on the neighbour's link who has an address."""

    def __init__(self, links: Links) -> None:
        self.own = links.mac(links.neighbour)
        self._link = open_socket(links.neighbour.namespace, socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._link.bind(("eth0", 0x86DD))

    def close(self) -> None:
        """Stop asking."""
        self._link.close()

    def ask(self, target: str) -> None:
        """By ARP, or by neighbour discovery."""
        if ":" in target:
            self.solicit(solicitation(target, options=source_option(self.own)))
        else:
            mac = bytes.fromhex(self.own.replace(":", ""))
            request = packets.packed(packets.REQUEST, ip_address(NEIGHBOUR), mac, ip_address(target))  # type: ignore[arg-type]  # both are IPv4
            self._link.sendto(request, ("eth0", 0x0806, 0, 0, b"\xff" * 6))

    def solicit(self, packet: bytes, *, to: str = "") -> None:
        """Send such a packet of neighbour discovery, to a group or to one machine."""
        mac = bytes.fromhex(to.replace(":", "")) if to else b"\x33\x33" + packet[36:40]
        self._link.sendto(packet, ("eth0", 0x86DD, 0, 0, mac))
