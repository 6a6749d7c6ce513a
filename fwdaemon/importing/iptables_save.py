"""What `iptables-save` or `ip6tables-save` prints: the DNAT rules of nat PREROUTING, as people write them by hand.

The first rule that takes a packet decides; among our forwards one on an address goes before one on every address. Rules
for which that makes a difference are found here. Chains of other programs are not looked into.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Final

from fwdaemon.config.text import GrammarError, quote
from fwdaemon.importing.findings import Findings, Forward
from fwdaemon.importing.iptables_rule import Rule
from fwdaemon.importing.recognise import Kind
from fwdaemon.model import Family, Subnet
from fwdaemon.naming import rule_lines, unquoted

_LINE: Final = re.compile(
    r"(?P<comment>#.*|)|\*(?P<table>[a-z]+)|:(?P<chain>\S+) .*|COMMIT"
    r"|(?:\[\d+:\d+\] )?(?P<rule>-A (?P<of>\S+)(?P<rest> .*)?)",
    re.DOTALL,
)
_TARGET: Final = re.compile(r" -[jg] (?P<target>\S+)")
_VERDICTS: Final = ("ACCEPT", "DROP", "REJECT")
# They let a packet go on to the next rule.
_PASSING: Final = ("LOG", "NFLOG", "MARK", "CONNMARK", "TRACE", "DNAT")


@dataclass(slots=True)
class _Table:
    """The table being read: the chains it declares, its forwards for every address, DNAT rules of other chains."""

    name: str = ""
    chains: set[str] = field(default_factory=set)
    everywhere: list[Forward] = field(default_factory=list)
    foreign: dict[str, list[int]] = field(default_factory=dict)


def parse(file: Path, text: str) -> Findings:
    """Read the file, which may be several outputs one after the other."""
    reader = _Reader(Findings(file, Kind.IPTABLES_SAVE))
    number = 1
    for line in rule_lines(text):
        reader.read_line(number, line.strip())
        number += line.count("\n") + 1
    reader.end_table()
    return reader.findings


@dataclass(slots=True)
class _Reader:
    """Where the reading stands; `said` holds what is remarked once only."""

    findings: Findings
    table: _Table = field(default_factory=_Table)
    said: set[str] = field(default_factory=set)

    def read_line(self, number: int, line: str) -> None:
        """Take one line; what no `iptables-save` prints is a warning."""
        match = _LINE.fullmatch(line)
        if match is None:
            self.findings.warn(number, f"left out: {quote(line)} is no line of iptables-save")
        elif match["table"]:
            self.end_table()
            self.table = _Table(match["table"])
        elif match["chain"]:
            self.table.chains.add(match["chain"])
        elif match["rule"]:
            target = _TARGET.search(unquoted(match["rule"]))
            self._read_rule(number, match["rule"], match["of"], "" if target is None else target["target"])

    def end_table(self) -> None:
        """Say of the table that ends what was passed over in it."""
        for chain, numbers in self.table.foreign.items():
            reason = "a forward answers this host itself too" if chain == "OUTPUT" else "only PREROUTING is read"
            self.findings.warn(numbers[0], f"DNAT rules of chain {quote(chain)} left out, {len(numbers)}: {reason}")

    def _read_rule(self, number: int, rule: str, chain: str, target: str) -> None:
        match self.table.name, chain:
            case "filter", "FORWARD" if target in _VERDICTS:
                self._warn_once(number, _FILTER)
            case "nat", "PREROUTING" if target == "DNAT":
                self._read_dnat(number, rule)
            case "nat", "PREROUTING" if target and target not in _PASSING and target not in self.table.chains:
                self.findings.warn(number, f"{quote(rule)} left out: what it took, no later rule forwarded")
            case "nat", _ if target == "DNAT":
                self.table.foreign.setdefault(chain, []).append(number)

    def _read_dnat(self, number: int, text: str) -> None:
        try:
            rule = Rule.of(text)
            forwards = list(rule.forwards(self.findings.origin(number)))
        except GrammarError as error:
            self.findings.warn(number, f"{quote(text)} left out: {error}")
            return
        if rule.is_for_any_address:
            self._warn_once(number, _ANY_ADDRESS)
        for forward in forwards:
            self._add(number, forward)

    def _add(self, number: int, forward: Forward) -> None:
        if forward.listen is None:
            self.table.everywhere.append(forward)
        elif (earlier := self._taken_before(forward)) is not None:
            ports, line = f"{forward.host}/{forward.protocol}", earlier.origin.line
            if _takes_all(earlier, forward):
                self.findings.warn(number, f"{ports} left out: the rule of line {line}, for every address, took it")
                return
            self.findings.warn(number, f"{ports}: the rule of line {line}, for every address, took some of it before")
        self.findings.forwards.append(forward)

    def _taken_before(self, forward: Forward) -> Forward | None:
        """Give the first forward for every address that took some of these packets, though here it goes after."""
        return next((earlier for earlier in self.table.everywhere if _overlap(earlier, forward)), None)

    def _warn_once(self, number: int, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.findings.warn(number, text)


def _overlap(one: Forward, other: Forward) -> bool:
    return (
        one.protocol is other.protocol
        and one.host.overlaps(other.host)
        and (None in {one.interface, other.interface} or one.interface == other.interface)
        and (not one.sources or not other.sources or _meet(one.sources, other.sources))
    )


def _meet(some: Iterable[Subnet], others: Iterable[Subnet]) -> bool:
    return any(Family.of(one) is Family.of(other) and one.overlaps(other) for one, other in product(some, others))


def _takes_all(earlier: Forward, later: Forward) -> bool:
    return (
        earlier.host.first <= later.host.first
        and later.host.last <= earlier.host.last
        and earlier.interface in {None, later.interface}
        and (not earlier.sources or earlier.sources == later.sources)
    )


_FILTER: Final = "the filter table is not read: where it kept anybody from a port, write sources"
_ANY_ADDRESS: Final = "a rule without -d took packets to any address; a forward takes those to this host's own"
