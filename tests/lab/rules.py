"""Distinguishing this project's rules from all others, in text the system's own programs print."""

import re
from collections.abc import Iterable

_OWN_TABLES = re.compile(r"^table (?:ip|ip6) kvm_portfwd \{$")
# nft does not show the comment of a rule that iptables-nft wrote, so a gate is also known by the label it lets through.
_GATE = re.compile(r'comment "kvm-portfwd"|ct label 25\b')
# Four names exactly: what else begins like that belongs to others.
_CHAINS = re.compile(r"\bKVMPF_(?:PRE|OUT|POST|FWD|LEAD|DENY|[0-9a-f]{12})(?![\w-])")
# What a set with a time of its own remembers for a while, as connections that were ended, is not its owner's state.
_REMEMBERED = re.compile(r"(^\t\ttimeout \w+\n(?:\t\t(?!elements)[^\n]*\n)*)\t\telements = \{[^}]*\}\n", re.MULTILINE)
_LEGACY_COUNTERS = re.compile(r"\[\d+:\d+\]")


def _split_nft(listing: str) -> tuple[list[str], list[str]]:
    ours: list[str] = []
    foreign: list[str] = []
    inside = False
    for line in listing.splitlines():
        inside = inside or bool(_OWN_TABLES.match(line))
        (ours if inside or _GATE.search(line) else foreign).append(line)
        inside = inside and line != "}"
    return ours, foreign


def _is_legacy_ours(line: str) -> bool:
    return bool(_CHAINS.search(line)) or "kvm-portfwd" in line


def _legacy_lines(save: str) -> Iterable[str]:
    # The comments carry the time of day.
    return (_LEGACY_COUNTERS.sub("[0:0]", line) for line in save.splitlines() if not line.startswith("#"))


def foreign_rules(nft: str, legacy: str) -> str:
    """All other rules, for comparison byte for byte."""
    _, foreign = _split_nft(nft)
    return "\n".join([*foreign, *(line for line in _legacy_lines(legacy) if not _is_legacy_ours(line))])


def own_rules(nft: str, legacy: str) -> str:
    """What this project left in the kernel; empty when it left nothing."""
    ours, _ = _split_nft(_REMEMBERED.sub(r"\1", nft))
    # iptables-nft writes its comments into nft rules as well, so a chain of ours there is found, too.
    orphaned = [line for line in nft.splitlines() if _CHAINS.search(line)]
    return "\n".join([*ours, *orphaned, *(line for line in _legacy_lines(legacy) if _is_legacy_ours(line))])
