"""Whether a legacy table is there, how large it is and which chains it has, without bringing it into being.

Asking the kernel for a table makes it where it was not, with hooks that every packet passes from then on. So the list
of tables comes first. Sources: `struct ipt_getinfo` and `ipt_get_entries` in linux/netfilter_ipv4/ip_tables.h, and
their IPv6 sisters.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fwdaemon.errors import KernelError
from fwdaemon.legacy.entry import LAYOUT, begun_chain
from fwdaemon.legacy.model import TableName
from fwdaemon.model import Family

_HOOKS = 5
_FORWARD = 2  # NF_INET_FORWARD
# IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES; the IPv6 ones have the same numbers.
_GET_INFO, _GET_ENTRIES = 64, 65
_ENTRIES_HEADER = 40
_TRIES = 10
_SOCKETS = {Family.IPV4: (socket.AF_INET, socket.IPPROTO_IP), Family.IPV6: (socket.AF_INET6, socket.IPPROTO_IPV6)}
# Of this thread, since a network namespace is a thread's.
_LISTS = {
    Family.IPV4: "/proc/thread-self/net/ip_tables_names",
    Family.IPV6: "/proc/thread-self/net/ip6_tables_names",
}
_LONGEST_LIST = 4096


class _GetInfo(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 32),
        ("valid_hooks", ctypes.c_uint),
        ("hook_entry", ctypes.c_uint * _HOOKS),
        ("underflow", ctypes.c_uint * _HOOKS),
        ("num_entries", ctypes.c_uint),
        ("size", ctypes.c_uint),
    )


@dataclass(frozen=True, slots=True)
class TableInfo:
    """How many entries a table has, its own ends of chains included, how many bytes, and whether FORWARD has a rule."""

    entries: int
    size: int
    forwards: bool


def existing_tables(family: Family) -> frozenset[TableName]:
    """Tell which of the tables we use are there in this network namespace."""
    try:
        names = _read(_LISTS[family]).split()
    except OSError:  # the kernel knows no legacy tables, or none of this family
        return frozenset()
    return frozenset(table for table in TableName if table.value.encode() in names)


def _read(path: str) -> bytes:
    """Read a short file of the kernel's; once a second, so without what Python puts around a file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _LONGEST_LIST)
    finally:
        os.close(descriptor)


def table_info(family: Family, table: TableName) -> TableInfo:
    """Ask the kernel about a table that is there.

    Raises:
        KernelError: it does not tell.

    """
    info = _get_info(family, table)
    has_rule = table is TableName.FILTER and info.hook_entry[_FORWARD] != info.underflow[_FORWARD]
    return TableInfo(info.num_entries, info.size, has_rule)


def chain_names(family: Family, table: TableName) -> frozenset[str]:
    """Name the chains that somebody added to a table; none where the table is not there.

    Raises:
        KernelError: the kernel does not tell.

    """
    return frozenset(read_chains(family, table_entries(family, table)))


def table_entries(family: Family, table: TableName) -> bytes:
    """Read a table's entries as the kernel holds them; none where the table is not there.

    Raises:
        KernelError: the kernel does not tell.

    """
    if table not in existing_tables(family):
        return b""
    for _ in range(_TRIES):
        size = _get_info(family, table).size
        buffer = ctypes.create_string_buffer(struct.pack("=32sI", table.value.encode(), size), _ENTRIES_HEADER + size)
        if _ask(family, _GET_ENTRIES, buffer) != errno.EAGAIN:
            return buffer.raw[_ENTRIES_HEADER:]
    raise KernelError(f"the legacy table {table} of IPv{family} changes all the time")


def read_chains(family: Family, entries: bytes) -> Iterator[str]:
    """Name the chains that somebody added, from a table's entries."""
    start = 0
    while start < len(entries):
        target, following, *_ = LAYOUT[family].unpack_from(entries, start)
        name = begun_chain(entries, start + target, following - target)
        start += following
        # That of the last entry is no chain.
        if name and start < len(entries):
            yield name


def _get_info(family: Family, table: TableName) -> _GetInfo:
    info = _GetInfo(name=table.value.encode())
    if error := _ask(family, _GET_INFO, info):
        raise KernelError(
            f"the kernel tells nothing about the legacy table {table} (IPv{family}): {os.strerror(error)}"
        )
    return info


def _ask(family: Family, option: int, answer: Any) -> int:
    """Fill in `answer`, which says what the question is about; the number of the error, or 0."""
    domain, level = _SOCKETS[family]
    length = ctypes.c_uint(ctypes.sizeof(answer))
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(domain, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        failed = libc.getsockopt(asking.fileno(), level, option, ctypes.byref(answer), ctypes.byref(length))
    return ctypes.get_errno() if failed else 0
