"""Asks a guest as a client off its link would, and watches on every interface how the guest answers.

A guest that answers this host on their common link may have no way back to anyone else. So it is asked from an address
off that link: a TCP connection to the port, and a ping. Both leave by the guest's bridge, whatever else is routed. The
answers are read off the wire, since they may go to another machine, or come in where the kernel drops them.
"""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from secrets import token_bytes
from typing import Final

from fwdaemon.core.types import Address, Family
from fwdaemon.errors import KernelError
from fwdaemon.explain.report import FarAnswer, Sighting
from fwdaemon.kernel import packets
from fwdaemon.kernel.packets import Field

_PATIENCE_S: Final = 2.0
# A guest that answers by more than one way does so at once.
_AFTER_FIRST_S: Final = 0.2
_IDENT_BYTES: Final = 4
_EVERY_PROTOCOL: Final = 0x0003  # ETH_P_ALL, linux/if_ether.h
_TO_HOST, _OUTGOING = 0, 4  # PACKET_HOST and PACKET_OUTGOING, linux/if_packet.h
_TRANSPARENT: Final = {  # linux/in.h, linux/in6.h
    Family.IPV4: (socket.SOL_IP, 19),
    Family.IPV6: (socket.IPPROTO_IPV6, 75),
}
_LINK_HEADER: Final = 14
_ICMP_HEADER: Final = 8
# RFC 826: in IPv4 a guest that does not know its gateway's link address asks for it aloud.
_ARP: Final = 0x0806
_ARP_SENDER_AT, _ARP_WANTED_AT = 14, 24


@dataclass(frozen=True, slots=True)
class Layout:
    """Where in a frame a family keeps what identifies a packet, and how a ping is written."""

    domain: socket.AddressFamily
    ether_type: int
    protocol_at: int
    source_at: int
    destination_at: int
    ping: int
    ping_type: int
    pong_type: int
    error_types: frozenset[int]

    def header(self, packet: bytes) -> int:
        """Give the length of the IP header that a packet begins with."""
        return 40 if self.domain == socket.AF_INET6 else (packet[0] & 0xF) * 4


# Unreachable, time exceeded and a bad parameter, and for IPv6 too big (RFC 792, RFC 4443).
LAYOUTS: Final = {
    Family.IPV4: Layout(socket.AF_INET, 0x0800, 9, 12, 16, socket.IPPROTO_ICMP, 8, 0, frozenset({3, 11, 12})),
    Family.IPV6: Layout(socket.AF_INET6, 0x86DD, 6, 8, 24, socket.IPPROTO_ICMPV6, 128, 129, frozenset({1, 2, 3, 4})),
}


@dataclass(frozen=True, slots=True)
class Probe:
    """What distinguishes this probe from earlier ones, and from what a client at its address has to do with the guest.

    `ours` is the port that is asked from, `port` the guest's; `ident` are identifier and number of the ping.
    """

    layout: Layout
    port: int
    ours: int
    ident: bytes

    def is_asking(self, packet: bytes) -> bool:
        """Whether a packet is one of this probe's."""
        return self._asks_port(packet) or self._pings(packet)

    def answered(self, packet: bytes) -> bool | None:
        """Whether the guest's port answers, or refuses, and not its ping; `None` for what is no answer to this."""
        protocol, payload = self._payload(packet)
        if protocol == socket.IPPROTO_TCP:
            return True if payload[:4] == struct.pack("!HH", self.port, self.ours) else None
        if protocol != self.layout.ping or not payload:
            return None
        if payload[0] in self.layout.error_types:
            about = payload[_ICMP_HEADER:]
            return True if self._asks_port(about) else False if self._pings(about) else None
        return False if payload[0] == self.layout.pong_type and payload[4:8] == self.ident else None

    def _asks_port(self, packet: bytes) -> bool:
        protocol, payload = self._payload(packet)
        return protocol == socket.IPPROTO_TCP and payload[:4] == struct.pack("!HH", self.ours, self.port)

    def _pings(self, packet: bytes) -> bool:
        protocol, payload = self._payload(packet)
        return (
            protocol == self.layout.ping
            and payload[:1] == bytes([self.layout.ping_type])
            and payload[4:8] == self.ident
        )

    def _payload(self, packet: bytes) -> tuple[int | None, bytes]:
        """Give the protocol of a packet, and what it carries."""
        if len(packet) <= self.layout.protocol_at:
            return None, b""
        return packet[self.layout.protocol_at], packet[self.layout.header(packet) :]


def ask_from_afar(address: Address, port: int, device: str, source: Address) -> FarAnswer:
    """See `World.ask_from_afar`; the source need not be an address of the host.

    Raises:
        KernelError: the kernel does not let this process ask.

    """
    layout = LAYOUTS[Family.of(address)]
    try:
        with ExitStack() as at_end:
            tap, ident = at_end.enter_context(_tap(layout, address, source)), token_bytes(_IDENT_BYTES)
            kinds = ((socket.SOCK_STREAM, 0), (socket.SOCK_RAW, layout.ping))
            stream, ping = (at_end.enter_context(socket.socket(layout.domain, *kind)) for kind in kinds)
            for asking in (stream, ping):
                asking.settimeout(0)
                _become(asking, Family.of(address), device, source)
                _ask(asking, _ping(layout, ident), address, port)
            return _watched(tap, Probe(layout, port, stream.getsockname()[1], ident))
    except OSError as error:
        raise KernelError(f"{address} cannot be asked from {source}: {error}") from error


def _tap(layout: Layout, guest: Address, source: Address) -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(_EVERY_PROTOCOL))
    there = [*_address(layout.source_at, source), *_address(layout.destination_at, guest)]
    back = [*_address(layout.source_at, guest), *_address(layout.destination_at, source)]
    kind = Field(2, 12, layout.ether_type)
    arp = [Field(2, 12, _ARP), *_address(_ARP_SENDER_AT, guest)] if layout.domain == socket.AF_INET else []
    packets.attach(tap, [[kind, *there], [kind, *back], *([arp] if arp else [])])
    _empty(tap)
    return tap


def _empty(tap: socket.socket) -> None:
    """Forget what came before there was a filter."""
    tap.settimeout(0)
    with suppress(BlockingIOError):
        while True:
            tap.recv(1)


def _address(offset: int, address: Address) -> Iterator[Field]:
    packed = address.packed
    for start in range(0, len(packed), 4):
        yield Field(4, _LINK_HEADER + offset + start, int.from_bytes(packed[start : start + 4], "big"))


def _become(asking: socket.socket, family: Family, device: str, source: Address) -> None:
    """Speak from any address, and only through one device."""
    asking.setsockopt(*_TRANSPARENT[family], 1)
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    asking.bind((str(source), 0))


def _ask(asking: socket.socket, ping: bytes, address: Address, port: int) -> None:
    if asking.type & socket.SOCK_RAW == socket.SOCK_RAW:
        with suppress(OSError):  # the port is asked, too
            asking.sendto(ping, (str(address), 0))
        return
    with suppress(BlockingIOError):
        asking.connect((str(address), port))


def _ping(layout: Layout, ident: bytes) -> bytes:
    """Write an echo request (RFC 792, RFC 4443); the kernel fills in the checksum of ICMPv6 only."""
    message = struct.pack("!BBH", layout.ping_type, 0, 0) + ident
    if layout.domain == socket.AF_INET6:
        return message
    total = sum(struct.unpack("!4H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return message[:2] + struct.pack("!H", total ^ 0xFFFF) + message[4:]


def _watched(tap: socket.socket, probe: Probe) -> FarAnswer:
    """Watch until the guest's port has answered ours, or for as long as a guest may take."""
    found = FarAnswer(sent=False)
    deadline = time.monotonic() + _PATIENCE_S
    while (left := deadline - time.monotonic()) > 0:
        tap.settimeout(left)
        try:
            frame, (device, _, kind, *_rest) = tap.recvfrom(128)
        except TimeoutError:
            break
        if frame[12:14] == _ARP.to_bytes(2, "big"):
            wanted = IPv4Address(frame[_LINK_HEADER + _ARP_WANTED_AT :][:4])
            found = found if kind == _OUTGOING else replace(found, wanted=found.wanted | {(device, wanted)})
            continue
        packet = frame[_LINK_HEADER:]
        if kind == _OUTGOING:
            # A bridge sends an answer on to another of its ports as well.
            found = replace(found, sent=found.sent or probe.is_asking(packet))
            continue
        by_port = probe.answered(packet)
        if by_port is None:
            continue
        found = replace(found, seen=found.seen | {Sighting(device, kind == _TO_HOST, by_port)})
        if by_port:
            deadline = min(deadline, time.monotonic() + _AFTER_FIRST_S)
    return found
