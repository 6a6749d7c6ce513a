"""What the host shows of others' doings: legacy tables, counters in our own, leases, links, mounts, names of labels."""

import json
import os
import re
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fwdaemon.core.types import Family
from fwdaemon.hypervisor.networks import lease_claims, written_leases
from fwdaemon.kernel.host_watch import who_took_link
from fwdaemon.kernel.listeners import hierarchies
from fwdaemon.kernel.netlink import attribute
from fwdaemon.legacy import info as legacy
from fwdaemon.legacy.info import decode, read_chains
from fwdaemon.legacy.model import TableName, is_own
from fwdaemon.nftables.gates import spellings
from fwdaemon.nftables.table_cache import read_packets
from fwdaemon.resolve.snapshot import LeaseNews, read_leases
from tests.fuzz.choices import Choices
from tests.fuzz.guests import MAC, believed
from tests.unit.saying import said

_COUNTERS: Final = (Path(__file__).parent / "listings" / "counters.txt").read_text(encoding="utf-8")
_COMMENT: Final = re.compile('(?<=comment ")[^"]*')
_LABEL: Final = 25


def _bytes(choices: Choices) -> bytes:
    """Give a hostile text, or bytes that need not be UTF-8."""
    if choices.number(2):
        return choices.taken(choices.number(64))
    return choices.text().encode("utf-8", "surrogateescape")


# --- legacy tables ----------------------------------------------------------------------------------------------------

# struct ipt_entry and ip6t_entry: the header with a word after it, then as `fwdaemon.legacy.info` says.
_ENTRIES: Final = {Family.IPV4: struct.Struct("@88sHHIQQ"), Family.IPV6: struct.Struct("@140sHHIQQ")}
_EXTENSION: Final = struct.Struct("=H29sB")
_MATCHES: Final = (b"comment", b"connlabel", b"tcp")
# XT_FUNCTION_MAXNAMELEN - 1, and the same for an extension
_LONGEST_CHAIN, _LONGEST_NAME = 29, 28


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule, or with the target ERROR what a user-defined chain begins with; extensions are names and data."""

    header: bytes
    matches: tuple[tuple[bytes, bytes], ...]
    target: tuple[bytes, bytes]
    packets: int

    @property
    def comment(self) -> str:
        """Its first comment."""
        return next((_text(data) for name, data in self.matches if name == b"comment"), "")

    def raw(self, family: Family) -> bytes:
        """Write it as the kernel holds it."""
        layout, matches = _ENTRIES[family], b"".join(_extension(*match) for match in self.matches)
        target, target_at = _extension(*self.target), layout.size + len(matches)
        fixed = layout.pack(self.header, target_at, target_at + len(target), 0, self.packets, 0)
        return fixed + matches + target


def legacy_table(data: bytes) -> None:
    """Read a legacy table, of whole entries as the kernel's are, in which names and comments are any text."""
    choices = Choices(data)
    family = choices.one_of(list(Family))
    chains = [(_chain_name(choices), _rules(choices)) for _ in range(choices.number(5))]
    for rule in (rule for _, rules in chains for rule in rules):
        read = decode(family, rule.raw(family))
        assert (read.comment, read.target) == (rule.comment, _text(rule.target[0]))
    parts = [_begin(name).raw(family) + b"".join(rule.raw(family) for rule in rules) for name, rules in chains]
    table = b"".join([*(rule.raw(family) for rule in _rules(choices)), *parts, _begin(b"ERROR").raw(family)])
    assert list(read_chains(family, table)) == [_text(name) for name, _ in chains]
    assert [(chain, comment, packets) for (_, chain, comment), packets in _counted(family, table)] == [
        (_text(name), rule.comment, rule.packets) for name, rules in chains if is_own(_text(name)) for rule in rules
    ]


def _counted(family: Family, table: bytes) -> list[tuple[legacy.Counter, int]]:
    return list(legacy.read_packets(family, TableName.NAT, table))


def _begin(chain: bytes) -> _Rule:
    return _Rule(b"", (), (b"ERROR", chain.ljust(_LONGEST_CHAIN + 1, b"\0")), 0)


def _rules(choices: Choices) -> list[_Rule]:
    return [_rule(choices) for _ in range(choices.number(4))]


def _rule(choices: Choices) -> _Rule:
    matches = tuple((choices.one_of(_MATCHES), _bytes(choices)) for _ in range(choices.number(4)))
    target = choices.one_of((b"DNAT", b"", b"ERROR", _bytes(choices)[:_LONGEST_NAME]))
    return _Rule(choices.taken(4), matches, (target, choices.taken(8)), choices.number(1 << 16))


def _chain_name(choices: Choices) -> bytes:
    given = _bytes(choices).split(b"\0")[0]
    return choices.one_of((b"KVMPF_PRE", b"KVMPF_" + given, given or b"\xff"))[:_LONGEST_CHAIN]


def _extension(name: bytes, data: bytes) -> bytes:
    """Write a match or a target, aligned as all of them are."""
    data += bytes(-len(data) % 8)
    return _EXTENSION.pack(_EXTENSION.size + len(data), name, 0) + data


def _text(written: bytes) -> str:
    return written.split(b"\0")[0].decode("utf-8", "replace")


# --- all else ---------------------------------------------------------------------------------------------------------


def nft_counters(data: bytes) -> None:
    """Read what was counted from `nft list table`, with any comments, and from what is no listing at all."""
    choices = Choices(data)
    changed = _COMMENT.sub(lambda found: choices.text() if choices.number(2) else found[0], _COUNTERS)
    for listing in (changed, data.decode("utf-8", "backslashreplace")):
        list(read_packets(Family.IPV4, listing))


def lease_list(data: bytes) -> None:
    """Read the leases of a network, in the shape libvirt gives them; the texts in them come from a guest."""
    choices, leases = Choices(data), list[dict[str, Any]]()
    while not choices.over:
        address = choices.one_of((".".join(map(str, choices.taken(4))), choices.text(), None))
        mac = choices.one_of((MAC, MAC.upper(), choices.text(), None))
        leases.append({"mac": mac, "ipaddr": address, "expirytime": choices.one_of((0, 1, 1 << 62, choices.number(9)))})
    believed(lease_claims(leases, {MAC}))
    told = LeaseNews(lambda: 0.0)
    told.follow({MAC}, {MAC})
    for text in (json.dumps([{"mac-address": item["mac"], "ip-address": item["ipaddr"]} for item in leases]), ""):
        assert told.kind("virbr0", read_leases(text.encode())) is not None
    told.kind("virbr0", read_leases(data))
    believed(lease_claims(written_leases(data, 0.0) or [], {MAC}))


def link_change(data: bytes) -> None:
    """Read that a link was taken up or down: a fixed part, which the kernel always writes whole, and attributes."""
    choices = Choices(data)
    fixed = choices.taken(16)
    named = attribute(3, _bytes(choices)[:15] + b"\0") if choices.number(2) else b""
    told = who_took_link(fixed + named + choices.rest())
    assert told is None or said(told).isprintable()


def mounts(data: bytes) -> None:
    """Read /proc/self/mounts, in which sources and places are any bytes."""
    choices, lines, expected = Choices(data), [], []
    for _ in range(choices.number(8)):
        source, place, kind = _mangled(choices), _mangled(choices), choices.one_of((b"cgroup2", b"tmpfs"))
        lines.append(b"%b %b %b rw 0 0\n" % (source, place, kind))
        expected += [os.fsdecode(place)] if kind == b"cgroup2" else []
    assert hierarchies(b"".join(lines)) == expected
    hierarchies(data)


def _mangled(choices: Choices) -> bytes:
    """Write a name as the kernel's mangle() in fs/proc_namespace.c does."""
    return re.sub(rb"[ \t\n\\#]", lambda found: b"\\%03o" % found[0][0], _bytes(choices))


def label_names(data: bytes) -> None:
    """Read a file that gives connection labels names: ours goes by its number, and by what names that number alone."""
    choices, lines, ours = Choices(data), list[str](), set[str]()
    for _ in range(choices.number(8)):
        number = choices.one_of(("25", "0x19", "24", "-25", "9" * 5000, choices.text()))
        words = choices.text().split()[:1]
        lines.append(" ".join([number, *words]))
        ours |= set(words) if number in {"25", "0x19"} else set()
    with tempfile.NamedTemporaryFile(prefix="kvm-portfwd-fuzz-") as file:
        path = Path(file.name)
        path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
        assert spellings(_LABEL, path) >= {_LABEL, *(name for name in ours if name.isascii())}
        path.write_bytes(data)
        assert _LABEL in spellings(_LABEL, path)
    assert spellings(_LABEL, path) == {_LABEL}


READERS: dict[str, Callable[[bytes], None]] = {
    "legacy-table": legacy_table,
    "nft-counters": nft_counters,
    "lease-list": lease_list,
    "link-change": link_change,
    "mounts": mounts,
    "label-names": label_names,
}
