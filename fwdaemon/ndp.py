"""Neighbour solicitations and advertisements of IPv6 (RFC 4861) as bytes. Pure; nothing that is read ever raises."""

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

ETHERNET: Final = 1  # ARPHRD_ETHER, linux/if_arp.h: links whose MAC addresses have six bytes
NEXT_HEADER: Final = 58  # ICMPv6
HOP_LIMIT: Final = 255  # nobody beyond the link can send a packet that arrives with it
SOLICITATION: Final = 135
# Where the fields are in a packet without extension headers, which a solicitation has none of.
NEXT_HEADER_AT: Final = 6
HOP_LIMIT_AT: Final = 7
KIND_AT: Final = 40
TARGET_AT: Final = 48

ALL_NODES: Final = IPv6Address("ff02::1")

_ADVERTISEMENT = 136
_ROUTER, _SOLICITED, _OVERRIDE = 0x80000000, 0x40000000, 0x20000000
_SOURCE_OPTION, _TARGET_OPTION = 1, 2  # link-layer addresses
_IP = struct.Struct("!IHBB16s16s")  # version and class, payload length, next header, hop limit, source, destination
_ND = struct.Struct("!BBHI16s")  # type, code, checksum, flags, target
_VERSION = 6
_UNIT = 8  # bytes: what the length of an option counts
_NO_ERROR = 0xFFFF  # what 16-bit words add up to if their checksum is right
_SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")


@dataclass(frozen=True, slots=True)
class Solicitation:
    """Somebody at `source` asks who has `target`."""

    source: IPv6Address
    target: IPv6Address

    @property
    def is_probe(self) -> bool:
        """Whether the one who asks wants `target` for itself, and has no address yet (RFC 4862, section 5.4.2)."""
        return self.source.is_unspecified


@dataclass(frozen=True, slots=True)
class Advertisement:
    """`target` is at `mac`; the flags are those of RFC 4861, section 4.4."""

    source: IPv6Address
    destination: IPv6Address
    target: IPv6Address
    mac: bytes
    router: bool
    solicited: bool
    override: bool

    def packed(self) -> bytes:
        """Give the whole packet, with its checksum."""
        flags = _ROUTER * self.router | _SOLICITED * self.solicited | _OVERRIDE * self.override
        option = bytes([_TARGET_OPTION, 1]) + self.mac
        ends = self.source.packed, self.destination.packed
        body = _ND.pack(_ADVERTISEMENT, 0, 0, flags, self.target.packed) + option
        checksum = _sum(_pseudo_header(*ends, len(body)) + body) ^ _NO_ERROR
        body = _ND.pack(_ADVERTISEMENT, 0, checksum, flags, self.target.packed) + option
        return _IP.pack(_VERSION << 28, len(body), NEXT_HEADER, HOP_LIMIT, *ends) + body


def read_solicitation(packet: bytes) -> Solicitation | None:
    """Read a solicitation; `None` is what RFC 4861, section 7.1.1, has us ignore."""
    if len(packet) < _IP.size + _ND.size:
        return None
    version, length, next_header, hop_limit, source, destination = _IP.unpack_from(packet)
    body = packet[_IP.size : _IP.size + length]
    if (version >> 28, next_header, hop_limit, len(body)) != (_VERSION, NEXT_HEADER, HOP_LIMIT, length):
        return None
    if length < _ND.size or _sum(_pseudo_header(source, destination, length) + body) != _NO_ERROR:
        return None
    return _read_body(IPv6Address(source), destination, body)


def _read_body(source: IPv6Address, destination: bytes, body: bytes) -> Solicitation | None:
    kind, code, _checksum, _flags, packed_target = _ND.unpack_from(body)
    target, options = IPv6Address(packed_target), _options(body[_ND.size :])
    if (kind, code) != (SOLICITATION, 0) or options is None or target.is_multicast or source.is_multicast:
        return None
    asked = Solicitation(source, target)
    if asked.is_probe and (_SOURCE_OPTION in options or not destination.startswith(_SOLICITED_NODE)):
        return None
    return asked


def multicast_mac(group: IPv6Address) -> bytes:
    """Give the link-layer address of a multicast group (RFC 2464, section 7)."""
    return b"\x33\x33" + group.packed[-4:]


def _options(data: bytes) -> set[int] | None:
    """Give the types of all options, or `None` if one of them cannot be right. Their lengths count 8 bytes each."""
    found = set()
    while data:
        if len(data) < _UNIT or not 0 < data[1] * _UNIT <= len(data):
            return None
        found.add(data[0])
        data = data[data[1] * _UNIT :]
    return found


def _pseudo_header(source: bytes, destination: bytes, length: int) -> bytes:
    """Give what the checksum covers besides the body (RFC 8200, section 8.1)."""
    return source + destination + struct.pack("!II", length, NEXT_HEADER)


def _sum(data: bytes) -> int:
    """Add up 16-bit words in ones' complement (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total > _NO_ERROR:
        total = (total & _NO_ERROR) + (total >> 16)
    return total
