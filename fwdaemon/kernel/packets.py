"""Packets as bytes, ARP and neighbour discovery, and the filters by which sockets hear no others."""

import socket
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from fwdaemon.core.types import PROTOCOL_NUMBERS, Address, Family, Subnet

# Messages of ARP (RFC 826) for IPv4 on Ethernet, as bytes. Pure; nothing that is read ever raises.
REQUEST: Final = 1
REPLY: Final = 2
# Where the operation is in a packet without its link-layer header.
OPERATION_AT: Final = 6
ARP_TARGET_AT: Final = 24
NOBODY: Final = bytes(6)

_ETHERNET = 1  # ARPHRD_ETHER, linux/if_arp.h
_IPV4 = 0x0800
_PACKET = struct.Struct("!HHBBH6s4s6s4s")
_HEAD = (_ETHERNET, _IPV4, 6, 4)


@dataclass(frozen=True, slots=True)
class Reply:
    """`sender` is at `mac`, as the sender itself says."""

    sender: IPv4Address
    mac: bytes


def packed(operation: int, sender: IPv4Address, mac: bytes, target: IPv4Address, target_mac: bytes = NOBODY) -> bytes:
    """Give a whole packet: `sender`, at `mac`, asks for `target`, or answers it."""
    return _PACKET.pack(*_HEAD, operation, mac, sender.packed, target_mac, target.packed)


def read_reply(packet: bytes) -> Reply | None:
    """Read a reply; `None` is anything else."""
    if len(packet) < _PACKET.size:
        return None
    *head, operation, mac, sender, _target_mac, _target = _PACKET.unpack_from(packet)
    return Reply(IPv4Address(sender), mac) if (*head, operation) == (*_HEAD, REPLY) else None


def read_request(packet: bytes) -> IPv4Address | None:
    """Read which address a request asks for; `None` is anything else."""
    if len(packet) < _PACKET.size:
        return None
    *head, operation, _mac, _sender, _target_mac, target = _PACKET.unpack_from(packet)
    return IPv4Address(target) if (*head, operation) == (*_HEAD, REQUEST) else None


# Neighbour solicitations and advertisements of IPv6 (RFC 4861) as bytes. Pure; nothing that is read ever raises.
ETHERNET: Final = 1  # ARPHRD_ETHER, linux/if_arp.h: links whose MAC addresses have six bytes
NEXT_HEADER: Final = PROTOCOL_NUMBERS["icmpv6"]
HOP_LIMIT: Final = 255  # no machine beyond the link can send a packet that arrives with it
SOLICITATION: Final = 135
# Where the fields are in a packet without extension headers, which a solicitation has none of.
NEXT_HEADER_AT: Final = 6
HOP_LIMIT_AT: Final = 7
KIND_AT: Final = 40
ND_TARGET_AT: Final = 48

ALL_NODES: Final = IPv6Address("ff02::1")
ADVERTISEMENT: Final = 136
ECHO_REPLY: Final = 129

_ROUTER, _SOLICITED, _OVERRIDE = 0x80000000, 0x40000000, 0x20000000
_SOURCE_OPTION, _TARGET_OPTION = 1, 2  # link-layer addresses
_IP = struct.Struct("!IHBB16s16s")  # version and class, payload length, next header, hop limit, source, destination
_ND = struct.Struct("!BBHI16s")  # type, code, checksum, flags, target
_VERSION = 6
_UNIT = 8  # bytes: what the length of an option counts
_NO_ERROR = 0xFFFF  # what 16-bit words add up to if their checksum is right
_ECHO_REQUEST = 128  # RFC 4443, section 4.1
_ECHO = struct.Struct("!BBHI")  # type, code, checksum, identifier and number
_SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")


@dataclass(frozen=True, slots=True)
class Solicitation:
    """A machine at `source` asks who has `target`."""

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
        return _packet(*ends, _ND.pack(ADVERTISEMENT, 0, 0, flags, self.target.packed) + option)


def solicitation(source: IPv6Address, mac: bytes, target: IPv6Address) -> tuple[IPv6Address, bytes]:
    """Give the group to ask who has `target`, and the whole packet, from `source` at `mac`."""
    group = IPv6Address(_SOLICITED_NODE + target.packed[-3:])
    option = bytes([_SOURCE_OPTION, 1]) + mac
    body = _ND.pack(SOLICITATION, 0, 0, 0, target.packed) + option
    return group, _packet(source.packed, group.packed, body)


def echo_to_all(source: IPv6Address) -> bytes:
    """Give an echo request to every node on the link; they answer from an address that fits `source`."""
    return _packet(source.packed, ALL_NODES.packed, _ECHO.pack(_ECHO_REQUEST, 0, 0, 0))


def source_of(packet: bytes) -> IPv6Address | None:
    """Give who sent a packet, or `None` for what is too short to be one."""
    return IPv6Address(_IP.unpack_from(packet)[4]) if len(packet) >= _IP.size else None


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


def _packet(source: bytes, destination: bytes, body: bytes) -> bytes:
    """Put a packet together; its body has no checksum yet."""
    checksum = _sum(_pseudo_header(source, destination, len(body)) + body) ^ _NO_ERROR
    body = body[:2] + checksum.to_bytes(2, "big") + body[4:]
    return _IP.pack(_VERSION << 28, len(body), NEXT_HEADER, HOP_LIMIT, source, destination) + body


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


# Filters on sockets, run by the kernel, so that what is of no interest costs no wakeup (SO_ATTACH_FILTER, socket(7)).
#
# A filter is a list of alternatives, each a list of fields that must all have their value. Sources of the instructions:
# linux/filter.h and linux/bpf_common.h.
SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; Python has no name for it

# Offsets from here on are facts about the packet that are not in it.
_AROUND: Final = 0xFFFFF000
INTERFACE_INDEX: Final = _AROUND + 8

_LOAD: Final = {1: 0x30, 2: 0x28, 4: 0x20}  # BPF_LD | BPF_ABS | BPF_B, _H or _W, by the number of bytes
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_EVERYTHING: Final = 0xFFFFFFFF
_INSTRUCTION = struct.Struct("=HBBI")  # sock_filter: code, how many to skip if true and if false, operand


@dataclass(frozen=True, slots=True)
class Field:
    """`size` bytes at `offset`, in network byte order and under `mask`, are `value`, or anything else if `differs`."""

    size: int
    offset: int
    value: int
    mask: int | None = None
    differs: bool = False


def native(size: int, offset: int, value: int, mask: int | None = None) -> Field:
    """Give a field that is in the machine's own byte order, as all of netlink's are."""
    return Field(size, offset, _swapped(size, value), None if mask is None else _swapped(size, mask))


def attach(filtered: socket.socket, alternatives: Iterable[Sequence[Field]]) -> None:
    """Let only through what has all fields of any alternative. Replaces the filter that was there.

    Raises:
        OSError: the kernel refuses it, since it is longer than 4,096 instructions.

    """
    instructions = array("B", _program(alternatives))
    address, size = instructions.buffer_info()
    filtered.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", size // _INSTRUCTION.size, address))


def _program(alternatives: Iterable[Sequence[Field]]) -> bytes:
    parts = [_alternative(fields) for fields in alternatives]
    return b"".join([*parts, _INSTRUCTION.pack(_RETURN, 0, 0, 0)])


def _alternative(fields: Sequence[Field]) -> bytes:
    """Let a packet through, or go on after the last instruction of this."""
    program = _INSTRUCTION.pack(_RETURN, 0, 0, _EVERYTHING)
    for field in reversed(fields):
        left = len(program) // _INSTRUCTION.size
        skipped = (left, 0) if field.differs else (0, left)
        program = _INSTRUCTION.pack(_JUMP_IF_EQUAL, *skipped, field.value) + program
        if field.mask is not None:
            program = _INSTRUCTION.pack(_AND, 0, 0, field.mask) + program
        program = _INSTRUCTION.pack(_LOAD[field.size], 0, 0, field.offset) + program
    return program


def _swapped(size: int, value: int) -> int:
    return int.from_bytes(struct.pack({1: "=B", 2: "=H", 4: "=I"}[size], value), "big")


# Questions of others for addresses of subnets.
_WORD: Final = 4
_WORD_MASK: Final = 0xFFFFFFFF


def questions(index: int, subnets: Iterable[Subnet], family: Family) -> list[list[Field]]:
    """Give the filter that passes questions for subnets, if they came by an interface itself and not by one on it."""
    by_it = Field(4, INTERFACE_INDEX, index)
    if family is Family.IPV4:
        question = [by_it, Field(2, OPERATION_AT, REQUEST)]
    else:
        question = [
            by_it,
            Field(1, NEXT_HEADER_AT, NEXT_HEADER),
            Field(1, HOP_LIMIT_AT, HOP_LIMIT),
            Field(1, KIND_AT, SOLICITATION),
        ]
    return [question + _target_in(subnet) for subnet in subnets if Family.of(subnet) is family]


def _target_in(subnet: Subnet) -> list[Field]:
    """Compare the target with a subnet, in words of four bytes."""
    at = ARP_TARGET_AT if isinstance(subnet.network_address, IPv4Address) else ND_TARGET_AT
    values, masks = _words(subnet.network_address), _words(subnet.netmask)
    return [
        Field(_WORD, at + _WORD * number, value, None if mask == _WORD_MASK else mask)
        for number, (value, mask) in enumerate(zip(values, masks, strict=True))
        if mask
    ]


def _words(address: Address) -> tuple[int, ...]:
    return struct.unpack(f"!{len(address.packed) // _WORD}I", address.packed)
