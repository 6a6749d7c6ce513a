"""Everybody else's rules: a bystander's, and what must be left of them after a fault."""

import re
from collections.abc import Iterable

from tests.chaos.listing import Listing
from tests.lab.host import Host
from tests.lab.rules import foreign_rules

_NATIVE = """\
table inet bystander
delete table inet bystander
table inet bystander {
    set known { type ipv4_addr; elements = { 192.0.2.10, 192.0.2.11 } }
    chain forward {
        type filter hook forward priority 10; policy accept;
        ip saddr 192.0.2.1 counter drop
        ip saddr @known tcp dport 1-1024 counter reject comment "it's \\\\ theirs"
    }
}
"""
_PROGRAMS = (
    ("iptables-nft", "192.0.2.2"),
    ("ip6tables-nft", "2001:db8:ffff::2"),
    ("iptables-legacy", "192.0.2.3"),
    ("ip6tables-legacy", "2001:db8:ffff::3"),
)


def install_bystander(host: Host) -> None:
    """Write rules in every rule system that has nothing to do with us, where they are not there already."""
    host.run("nft", "-f", "-", stdin=_NATIVE)
    for program, source in _PROGRAMS:
        rule = ("FORWARD", "-s", source, "-m", "comment", "--comment", "theirs, -j ACCEPT", "-j", "DROP")
        if host.run(program, "-w", "-C", *rule, check=False).returncode != 0:
            host.run(program, "-w", "-A", *rule)


def lines_of(foreign: str) -> list[str]:
    """The same rules whatever their order, for what libvirt itself wrote anew."""
    return sorted(line for line in foreign.splitlines() if line)


def changed_lines(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """Say what is missing and what is more, as `- line` and `+ line`."""
    before, after = list(before), list(after)
    missing = [f"- {line}" for line in before if before.count(line) > after.count(line)]
    more = [f"+ {line}" for line in after if after.count(line) > before.count(line)]
    return missing + more or ["the order of lines"] * (before != after)


def left_by(wipe: str, listing: Listing) -> str:
    """What must be left of everybody else's rules: `wipe` is words like `nft`, `nft ip filter`, `legacy ip6 nat`."""
    system, *where = wipe.split()
    ruleset, legacy = listing["ruleset"], {family: listing[f"legacy-{family}"] for family in ("ip", "ip6")}
    if system == "nft":
        ruleset = _without_rules(ruleset, where) if where else ""
    else:
        family, table, *rest = where
        legacy[family] = _without_legacy_rules(legacy[family], table, chains=not rest)
    return foreign_rules(ruleset, legacy["ip"] + "\n" + legacy["ip6"])


def _without_rules(ruleset: str, table: list[str]) -> str:
    """Take every rule out of one table; chains stay."""
    inside, kept = False, []
    for line in ruleset.splitlines():
        inside = line == f"table {' '.join(table)} {{" or (inside and line != "}")
        if not (inside and line.startswith("\t\t") and not line.startswith("\t\ttype ")):
            kept.append(line)
    return "\n".join(kept)


def _without_legacy_rules(save: str, table: str, *, chains: bool) -> str:
    """Take every rule out of one table, and with `chains` every chain that is not the kernel's own."""
    inside, kept = False, []
    for line in save.splitlines():
        inside = line == f"*{table}" or (inside and line != "COMMIT")
        own_chain = chains and re.match(r":\S+ - ", line)
        if not (inside and (line.startswith("-A ") or own_chain)):
            kept.append(line)
    return "\n".join(kept)
