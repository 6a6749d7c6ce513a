"""Frames of UDP and TCP with a number in them by which they are known wherever they come."""

import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from fwdaemon.core.types import Address
from tests.packets.promise import Packet

_MAGIC: Final = b"KVMP"
_NUMBERS: Final = {"tcp": 6, "udp": 17}
_ETHERTYPES: Final = {4: 0x0800, 6: 0x86DD}
_TTL: Final = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """A packet as it was received."""

    number: int
    source: Address
    source_port: int
    to: Address
    port: int


def frame(packet: Packet, from_mac: str, to_mac: str) -> bytes:
    """Write a packet as its sender puts it on the link."""
    version, number = packet.to.version, _NUMBERS[packet.protocol]
    body = _with_checksum(packet, number, _segment(packet))
    head = _head4(packet, number, len(body)) if version == 4 else _head6(packet, number, len(body))
    return _mac(to_mac) + _mac(from_mac) + struct.pack("!H", _ETHERTYPES[version]) + head + body


def seen(data: bytes) -> Seen | None:
    """Read what a link carried, from the header of IP on; `None` for whatever is none of these packets."""
    if not data or _MAGIC not in data:
        return None
    version = data[0] >> 4
    length = (data[0] & 15) * 4 if version == 4 else 40
    protocol = data[9] if version == 4 else data[6]
    ends = (data[12:16], data[16:20]) if version == 4 else (data[8:24], data[24:40])
    if protocol not in _NUMBERS.values():
        return None
    return segment_seen(data[length:], *map(ip_address, ends))


def segment_seen(segment: bytes, source: Address, to: Address) -> Seen | None:
    """Read a packet from the ports on."""
    _, magic, number = segment.partition(_MAGIC)
    if not magic or len(number) < 4:
        return None
    source_port, port = struct.unpack_from("!HH", segment)
    return Seen(struct.unpack_from("!I", number)[0], source, source_port, to, port)


def _segment(packet: Packet) -> bytes:
    data = _MAGIC + struct.pack("!I", packet.number)
    if packet.protocol == "udp":
        return struct.pack("!HHHH", packet.source_port, packet.port, 8 + len(data), 0) + data
    return struct.pack("!HHIIBBHHH", packet.source_port, packet.port, 1, 0, 5 << 4, packet.flags, 1024, 0, 0) + data


def _with_checksum(packet: Packet, number: int, segment: bytes) -> bytes:
    pseudo = packet.source.packed + packet.to.packed + struct.pack("!II", len(segment), number)
    place = 6 if packet.protocol == "udp" else 16
    return segment[:place] + struct.pack("!H", _checksum(pseudo + segment) or 0xFFFF) + segment[place + 2 :]


def _head4(packet: Packet, number: int, length: int) -> bytes:
    ends = packet.source.packed, packet.to.packed
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0, _TTL, number, 0, *ends)
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:]


def _head6(packet: Packet, number: int, length: int) -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, length, number, _TTL, packet.source.packed, packet.to.packed)


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
