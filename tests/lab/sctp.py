"""Just enough SCTP to ask whether a port answers, over raw sockets, for kernels without SCTP.

A client sends INIT; the server answers INIT ACK with its greeting in the state cookie. That is what a NAT and a
connection tracker look at, and more than that no test needs. Shared by `serve.py` (in the guest) and `probe.py`.
"""

import struct

PROTOCOL = 132
INIT, INIT_ACK, ABORT = 1, 2, 6
_COOKIE = 7


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def packet(ports: tuple[int, int], tag: int, chunk: int, own_tag: int, cookie: bytes = b"") -> bytes:
    """An SCTP packet from and to these `ports`, with one INIT or INIT ACK chunk in it."""
    body = struct.pack("!IIHHI", own_tag, 65536, 1, 1, own_tag)
    if cookie:
        body += struct.pack("!HH", _COOKIE, 4 + len(cookie)) + cookie
    chunks = struct.pack("!BBH", chunk, 0, 4 + len(body)) + body
    chunks += b"\0" * (-len(chunks) % 4)
    header = struct.pack("!HHI", *ports, tag)
    checksum = struct.pack("<I", _crc32c(header + bytes(4) + chunks))
    return header + checksum + chunks


def parse(data: bytes) -> tuple[int, int, int, int, bytes]:
    """Source port, destination port, chunk type, initiate tag and cookie of a packet without its IP header."""
    source, destination = struct.unpack_from("!HH", data)
    chunk = data[12]
    (tag,) = struct.unpack_from("!I", data, 16) if len(data) >= 20 else (0,)
    cookie = b""
    if chunk == INIT_ACK and len(data) >= 36:
        kind, length = struct.unpack_from("!HH", data, 32)
        cookie = data[36 : 32 + length] if kind == _COOKIE else b""
    return source, destination, chunk, tag, cookie


def without_ip_header(data: bytes, version: int) -> bytes:
    """Raw IPv4 sockets deliver the IP header too, raw IPv6 sockets do not."""
    return data[(data[0] & 15) * 4 :] if version == 4 else data
