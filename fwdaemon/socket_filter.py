"""Filters on sockets, run by the kernel, so that what is of no interest costs no wakeup (SO_ATTACH_FILTER, socket(7)).

A filter is a list of alternatives, each a list of fields that must all have their value. Sources of the instructions:
linux/filter.h and linux/bpf_common.h.
"""

import socket
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

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
    """`size` bytes at `offset`, in network byte order and under `mask`, are `value`."""

    size: int
    offset: int
    value: int
    mask: int | None = None


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
        program = _INSTRUCTION.pack(_JUMP_IF_EQUAL, 0, left, field.value) + program
        if field.mask is not None:
            program = _INSTRUCTION.pack(_AND, 0, 0, field.mask) + program
        program = _INSTRUCTION.pack(_LOAD[field.size], 0, 0, field.offset) + program
    return program


def _swapped(size: int, value: int) -> int:
    return int.from_bytes(struct.pack({1: "=B", 2: "=H", 4: "=I"}[size], value), "big")
