"""Neighbour solicitations as bytes, right ones and wrong ones; written apart from what reads them."""

import struct
from ipaddress import IPv6Address

ICMPV6 = 58


def solicitation(  # noqa: PLR0913  a test bends one field at a time
    target: str,
    *,
    source: str = "fe80::2",
    destination: str = "",
    options: bytes = b"",
    hop_limit: int = 255,
    kind: int = 135,
    code: int = 0,
    checksum: int | None = None,
    next_header: int = ICMPV6,
) -> bytes:
    """Ask for `target`; the destination is its solicited-node group unless another is given."""
    asked = IPv6Address(target)
    ends = IPv6Address(source).packed + (IPv6Address(destination) if destination else group(asked)).packed
    body = struct.pack("!BBHI", kind, code, 0, 0) + asked.packed + options
    right = _checksum(ends + struct.pack("!II", len(body), ICMPV6) + body)
    body = body[:2] + struct.pack("!H", right if checksum is None else checksum) + body[4:]
    return struct.pack("!IHBB", 6 << 28, len(body), next_header, hop_limit) + ends + body


def source_option(mac: str) -> bytes:
    """The option with the asker's own MAC address."""
    return b"\x01\x01" + bytes.fromhex(mac.replace(":", ""))


def group(target: IPv6Address) -> IPv6Address:
    """The solicited-node group of an address (RFC 4291, section 2.7.1)."""
    return IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(target) & 0xFFFFFF)


def is_sound(packet: bytes) -> bool:
    """Whether the checksum of an ICMPv6 packet is right."""
    return _checksum(packet[8:40] + struct.pack("!II", len(packet) - 40, ICMPV6) + packet[40:]) == 0


def _checksum(data: bytes) -> int:
    total = sum(data[at] << 8 | data[at + 1] for at in range(0, len(data) - 1, 2)) + (
        data[-1] << 8 if len(data) % 2 else 0
    )
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
