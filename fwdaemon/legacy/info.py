"""Whether a legacy table is there, how large it is and which chains it has, without bringing it into being; its lock.

Asking the kernel for a table makes it where it was not, with hooks that every packet passes from then on. So the list
of tables comes first. Sources: `struct ipt_getinfo` and `ipt_get_entries` in linux/netfilter_ipv4/ip_tables.h, and
their IPv6 sisters.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, TypeAlias

from fwdaemon.core.bans import End, Rule, Verdict, are_named, between
from fwdaemon.core.types import Address, Family
from fwdaemon.errors import KernelError
from fwdaemon.legacy.model import COMMENT, TableName, is_own

# The entries of a legacy table in the kernel's own form, where names and comments are any bytes. Pure.
#
# Sources: `struct ipt_entry` in linux/netfilter_ipv4/ip_tables.h, its IPv6 sister, and `struct xt_entry_match` and
# `xt_error_target` in linux/netfilter/x_tables.h.
Match: TypeAlias = tuple[bytes, int, bytes]
"""A match's name, revision and data."""

# What says which addresses, interfaces and protocol are matched: struct ipt_ip, and ip6t_ip6.
_HEADER: Final = {Family.IPV4: 84, Family.IPV6: 136}
# After that and a word of no use: the offsets of the target and of the next entry, where it came from, packets and
# bytes. The last two are aligned as the machine does it.
LAYOUT: Final = {family: struct.Struct(f"@{size + 4}xHHIQQ") for family, size in _HEADER.items()}
# The size with the data, name and revision, of a match as of a target.
MATCH: Final = struct.Struct("=H29sB")
# A user-defined chain begins with an entry whose target is named ERROR, and holds the chain's name.
_ERROR: Final = struct.Struct("=H29sB30s")


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule as the kernel holds it: its addresses and protocol, its matches, of which one can be there twice."""

    header: bytes
    matches: tuple[Match, ...]
    target: str

    @property
    def comment(self) -> str:
        """What it says of itself."""
        return comment(self.matches)


def decode(family: Family, raw: bytes, target: bytes = b"") -> Entry:
    """Read one entry; where it leads to a chain or a verdict, only libiptc can tell, and `target` is its word."""
    target_at, *_ = LAYOUT[family].unpack_from(raw)
    found = tuple(matches(raw, LAYOUT[family].size, target_at))
    return Entry(raw[: _HEADER[family]], found, word(target or MATCH.unpack_from(raw, target_at)[1]))


def matches(entries: bytes, at: int, end: int) -> Iterator[Match]:
    """Read the matches of an entry."""
    while at + MATCH.size <= end:
        size, name, revision = MATCH.unpack_from(entries, at)
        yield name.split(b"\0", 1)[0], revision, entries[at + MATCH.size : at + size]
        at += size


def comment(of: Iterable[Match]) -> str:
    """Give what a rule with these matches says of itself."""
    return next((word(data) for name, _, data in of if name == b"comment"), "")


def begun_chain(entries: bytes, at: int, size: int) -> str:
    """Give the name of the chain that begins with a target of this place and size; empty where none does.

    The table's last entry is like that, too, and its name is ERROR.
    """
    if size < _ERROR.size:
        return ""
    _, kind, _, name = _ERROR.unpack_from(entries, at)
    return word(name) if kind.startswith(b"ERROR\0") else ""


# What is at the start of `struct nf_nat_ipv4_multi_range_compat`, with which SNAT of IPv4 begins, and of
# `nf_nat_range` (linux/netfilter/nf_nat.h): numbers, and the first address to translate to.
_RANGE_AT: Final = {Family.IPV4: 8, Family.IPV6: 4}


def source_translations(family: Family, entries: bytes, chain: str) -> Iterator[tuple[Address, Address]]:
    """Read the source that each rule of a chain asks for which translates it, and to which address."""
    layout, found, start, size = LAYOUT[family], "", 0, family.bits // 8
    while start < len(entries):
        target, following, *_ = layout.unpack_from(entries, start)
        found = begun_chain(entries, start + target, following - target) or found
        _, name, revision = MATCH.unpack_from(entries, start + target)
        if found == chain and word(name) == "SNAT":
            at = start + target + MATCH.size + (_RANGE_AT[family] if revision == 0 else _RANGE_AT[Family.IPV6])
            yield ip_address(entries[start : start + size]), ip_address(entries[at : at + size])
        start += following


def word(text: bytes) -> str:
    """Read a text up to its end; what is not UTF-8 is nothing of ours, and only has to be unlike it."""
    return text.split(b"\0", 1)[0].decode(errors="replace")


# Bans among the entries of a legacy table, read from the kernel's own form. Pure.
#
# Sources: `struct ipt_ip` in linux/netfilter_ipv4/ip_tables.h and its IPv6 sister, `xt_iprange_mtinfo` in
# linux/netfilter/xt_iprange.h, `xt_set_info` in linux/netfilter/xt_set.h, `xt_recent_mtinfo` in
# linux/netfilter/xt_recent.h, `xt_mac_info` in linux/netfilter/xt_mac.h, `xt_conntrack_mtinfo3` in
# linux/netfilter/xt_conntrack.h, `xt_geoip_match_info` in xt_geoip.h of xtables-addons.
# The last ones are those of xtables-addons, which keep the client waiting or lie to it.
_REFUSALS: Final = frozenset({"DROP", "REJECT", "TARPIT", "DELUDE", "CHAOS", "STEAL"})
_VERDICTS: Final = (
    dict.fromkeys(("", "LOG", "NFLOG", "TRACE"), Verdict.NONE)
    | dict.fromkeys(_REFUSALS, Verdict.REFUSES)
    | dict.fromkeys(("ACCEPT", "QUEUE", "NFQUEUE"), Verdict.DECIDES)
    | {"RETURN": Verdict.RETURNS}
)


@dataclass(frozen=True, slots=True)
class _Header:
    """Where a rule's header holds the first byte of the source's mask, and the bits that say more."""

    mask: int
    flags: int
    inverted: int


_HEADERS: Final = {
    Family.IPV4: _Header(8, 82, 83),
    Family.IPV6: _Header(32, 131, 132),
}
# IPT_F_GOTO and IPT_INV_SRCIP, and the same for IPv6.
_GOTO: Final = {Family.IPV4: 0x02, Family.IPV6: 0x04}
_INVERTED_SOURCE: Final = 0x08

# The first and last source, four addresses of 16 bytes in all, and flags: IPRANGE_SRC and IPRANGE_SRC_INV.
_RANGE: Final = struct.Struct("@16s16s32xB")
_RANGE_OF_SOURCE, _RANGE_INVERTED = 0x01, 0x10
# The set's number, how many parts of an element are compared, and bits: IPSET_INV_MATCH, and one for each part that is
# the packet's source.
_SET: Final = struct.Struct("@HBB")
_SET_INVERTED, _FIRST_IS_SOURCE = 0x01, 0x02
# Seconds and hits, what is done, whether it is inverted, the list's name, and whose address counts.
_RECENT: Final = struct.Struct("@IIBB200sB")
_RECENT_CHECKS: Final = 0x01 | 0x04  # XT_RECENT_CHECK, XT_RECENT_UPDATE
# The address, and whether it is inverted.
_MAC: Final = struct.Struct("@6si")
# Bits: XT_GEOIP_SRC and XT_GEOIP_INV.
_GEOIP_SOURCE, _GEOIP_INVERTED = 0x01, 0x04
# The first byte of the mask of the connection's source; after all addresses, times, the protocol and ports, what is
# compared and what is inverted. The bit is XT_CONNTRACK_ORIGSRC.
_CONNECTION: Final = struct.Struct("@16xB15x96x8x2x8xHH")
_FROM_SOURCE: Final = 0x04
_INTERFACES: Final = {Family.IPV4: (16, 32), Family.IPV6: (64, 80)}  # where a header names those of the way in and out


def read_rule(family: Family, entry: Entry) -> Rule:
    """Read a rule of others; one of the conditions, all of which have to hold, is enough to name sources."""
    comes_back = not entry.header[_HEADERS[family].flags] & _GOTO[family]
    end = End(_VERDICTS.get(entry.target, Verdict.LEADS), entry.target, comes_back)
    always = all(name == b"comment" for name, *_ in entry.matches) and not any(_asked(family, entry.header))
    return Rule((end,), _is_from_named(family, entry) or any(map(_names_sources, entry.matches)), always)


def _asked(family: Family, header: bytes) -> bytes:
    """Give what a header asks of packets, without the bit that says where a rule leads."""
    at = _HEADERS[family].flags
    return header[:at] + bytes([header[at] & ~_GOTO[family]]) + header[at + 1 :]


def _is_from_named(family: Family, entry: Entry) -> bool:
    """Whether the header asks for a source: a mask that is a prefix begins with a one, unless it is empty."""
    header = _HEADERS[family]
    return bool(entry.header[header.mask] & 0x80) and not entry.header[header.inverted] & _INVERTED_SOURCE


def _names_sources(match: Match) -> bool:
    name, revision, data = match
    reader = _READERS.get(name)
    return reader is not None and reader(revision, data)


def _is_range(_: int, data: bytes) -> bool:
    first, last, flags = _RANGE.unpack_from(data)
    if not flags & _RANGE_OF_SOURCE or flags & _RANGE_INVERTED:
        return False
    # An IPv4 address is the first of four words, and a range of IPv6 addresses is never from 0.0.0.0 on by that.
    size = 16 if any(first[4:]) or any(last[4:]) else 4
    return are_named(between(ip_address(first[:size]), ip_address(last[:size])))


def _is_set(revision: int, data: bytes) -> bool:
    _, _, flags = _SET.unpack_from(data)
    return revision > 0 and bool(flags & _FIRST_IS_SOURCE) and not flags & _SET_INVERTED


def _is_list(_: int, data: bytes) -> bool:
    _, _, checks, inverted, _, of_destination = _RECENT.unpack_from(data)
    return bool(checks & _RECENT_CHECKS) and not inverted and not of_destination


def _is_mac(_: int, data: bytes) -> bool:
    _, inverted = _MAC.unpack_from(data)
    return not inverted


def _is_country(_: int, data: bytes) -> bool:
    return data[0] & (_GEOIP_SOURCE | _GEOIP_INVERTED) == _GEOIP_SOURCE


def _is_connection(revision: int, data: bytes) -> bool:
    mask, compared, inverted = _CONNECTION.unpack_from(data)
    return revision > 0 and bool(mask & 0x80 and compared & _FROM_SOURCE) and not inverted & _FROM_SOURCE


_READERS: Final[Mapping[bytes, Callable[[int, bytes], bool]]] = {
    b"iprange": _is_range,
    b"set": _is_set,
    b"recent": _is_list,
    b"mac": _is_mac,
    b"geoip": _is_country,
    b"conntrack": _is_connection,
}


def is_path(family: Family, entry: Entry) -> bool:
    """Whether an entry is a rule of ours for a path of guests, which alone names two interfaces."""
    named = all(entry.header[at] for at in _INTERFACES[family])
    return named and entry.comment == COMMENT and entry.target in ("", "ACCEPT")


_HOOKS = 5
_FORWARD = 2  # NF_INET_FORWARD
# IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES; the IPv6 ones have the same numbers.
_GET_INFO, _GET_ENTRIES = 64, 65
_ENTRIES_HEADER = 40
_TRIES = 10
_LEVELS = {Family.IPV4: socket.IPPROTO_IP, Family.IPV6: socket.IPPROTO_IPV6}
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
    """Say which of the tables we use are there in this network namespace."""
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
        KernelError: it does not answer.

    """
    info = _get_info(family, table)
    has_rule = table is TableName.FILTER and info.hook_entry[_FORWARD] != info.underflow[_FORWARD]
    return TableInfo(info.num_entries, info.size, has_rule)


def chain_names(family: Family, table: TableName) -> frozenset[str]:
    """Name the chains that were added to a table; none where the table is not there.

    Raises:
        KernelError: the kernel does not answer.

    """
    return frozenset(read_chains(family, table_entries(family, table)))


def table_entries(family: Family, table: TableName) -> bytes:
    """Read a table's entries as the kernel holds them; none where the table is not there.

    Raises:
        KernelError: the kernel does not answer.

    """
    if table not in existing_tables(family):
        return b""
    for _ in range(_TRIES):
        size = _get_info(family, table).size
        buffer = ctypes.create_string_buffer(struct.pack("=32sI", table.value.encode(), size), _ENTRIES_HEADER + size)
        if _ask(family, _GET_ENTRIES, buffer) != errno.EAGAIN:
            return buffer.raw[_ENTRIES_HEADER:]
    raise KernelError(f"the iptables-legacy table {table} of IPv{family} keeps changing")


def read_chains(family: Family, entries: bytes) -> Iterator[str]:
    """Name the chains that were added, from a table's entries."""
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
        raise KernelError(f"the kernel says nothing about iptables-legacy's {table}, IPv{family}: {os.strerror(error)}")
    return info


def _ask(family: Family, option: int, answer: Any) -> int:
    """Fill in `answer`, which says what the question is about; the number of the error, or 0."""
    length = ctypes.c_uint(ctypes.sizeof(answer))
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(family.domain, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        failed = libc.getsockopt(asking.fileno(), _LEVELS[family], option, ctypes.byref(answer), ctypes.byref(length))
    return ctypes.get_errno() if failed else 0


# What rules have counted, straight from the kernel's own form of a table.
#
# No program runs for that, and no lock is taken: the kernel gives a table as a whole.
Counter: TypeAlias = tuple[str, str, str]
"""A rule: the family and name of its table, its chain, its comment."""


def packets(family: Family, table: TableName) -> Iterator[tuple[Counter, int]]:
    """Read the packets of each rule in chains of ours.

    Raises:
        KernelError: the kernel does not answer.

    """
    yield from read_packets(family, table, table_entries(family, table))


def read_packets(family: Family, table: TableName, entries: bytes) -> Iterator[tuple[Counter, int]]:
    """Read them from one table's entries."""
    layout, chain, start = LAYOUT[family], "", 0
    while start < len(entries):
        target, following, _, counted, _ = layout.unpack_from(entries, start)
        if name := begun_chain(entries, start + target, following - target):
            chain = name
        elif is_own(chain):
            said = comment(matches(entries, start + layout.size, start + target))
            yield (counted_table(family, table), chain, said), counted
        start += following


def counted_table(family: Family, table: TableName) -> str:
    """Name a table in a `Counter`."""
    return f"{family.word} {table.value}"


# The lock that all of iptables' own programs take, as libxtables finds it; the variable is libxtables', too.
_LOCK = "/run/xtables.lock"
PATH_VARIABLE = "XTABLES_LOCKFILE"


def lock_path() -> str:
    """Where the lock file is."""
    return os.environ.get(PATH_VARIABLE) or _LOCK
