"""What `iptables-save` or `ip6tables-save` prints: the DNAT rules that nat PREROUTING leads to, in whatever chain.

What becomes a forward is what these rules, and those of every other table, are known to have let in. Whatever they did
not let in, or may not have, is left out with the line that stopped it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from fwdaemon.core.text import GrammarError, quote
from fwdaemon.core.types import Address, Family, Protocol
from fwdaemon.importing.adopting import Adopter, Origin, protocol_of
from fwdaemon.importing.findings import BrokenFileError, Findings, Forward, Kind, Nat
from fwdaemon.importing.iptables_nat import (
    Carrier,
    NatTable,
    Sending,
    WayOut,
    base_chain,
    target_of,
    why_way_out,
)
from fwdaemon.importing.judging import AFTER, BaseChain, Candidate, Ruleset, is_reached, stops, takers
from fwdaemon.rulesets import xt_tables
from fwdaemon.rulesets.rules import Field, Space, TangledError, led_to, one
from fwdaemon.rulesets.xt_matches import Services
from fwdaemon.rulesets.xt_tables import RuleLine, Table, Text, Tools, chains_of

# DNAT rules that nothing from outside comes to: most are for connections of the host itself, which forwards serve.
_LOOPBACK: Final = {Family.IPV4: ("127.0.0.0/8", "127.0.0.1"), Family.IPV6: ("::1", "::1")}


def about(rule: RuleLine, nat: NatTable, ruleset: Ruleset, found: Findings) -> str:
    """Say why a rule that nothing from outside comes to is left out, given what was found."""
    if (whole := next((each for each in found.nats if _is_whole(rule, nat, each)), None)) is not None:
        return f"the [[nat]] of line {whole.origin.line} answers this host itself too"
    outgoing = replace(ruleset, nat=nat.chain("OUTPUT"))
    try:
        candidates = list(nat.candidates(rule))
        is_outgoing = any(is_reached(candidate, outgoing) for candidate in candidates)
    except (GrammarError, TangledError) as error:
        return str(error)
    if not is_outgoing:
        return "no rule of PREROUTING leads to it"
    twins = [_twin(candidate, found.forwards, ruleset.space) for candidate in candidates]
    if None in twins:
        return "it is for connections of this host itself, and no forward from here takes those"
    lines = ", ".join(dict.fromkeys(str(twin.origin.line) for twin in twins if twin is not None))
    where = (_where(candidate, twin, ruleset.space) for candidate, twin in zip(candidates, twins, strict=True) if twin)
    return f"the forward of line {lines} answers {next(where)}"


def _is_whole(rule: RuleLine, nat: NatTable, whole: Nat) -> bool:
    """Whether a rule sends this host itself where a live `[[nat]]` does, for the same address."""
    public, target = int(whole.public), nat.targets.get(rule.number)
    to_public = nat.asks[rule.number].match.get(Field.DESTINATION) == one(public)
    is_same = to_public and target is not None and (target.address, target.ports) == (whole.address, None)
    return is_same and not whole.reason and rule.chain in led_to(nat.chains, "OUTPUT")


def _twin(candidate: Candidate, forwards: Sequence[Forward], space: Space) -> Forward | None:
    twins = (forward for forward in forwards if _answers(forward, candidate))
    return next((twin for twin in twins if _where(candidate, twin, space)), None)


def _where(candidate: Candidate, forward: Forward, space: Space) -> str:
    """Say where a forward answers this host itself of all that a rule took; nothing where it is nowhere."""
    if forward.listen is not None:
        return "this host itself too"
    network, name = _LOOPBACK[space.family]
    loopback, asked = space.addresses_in(network), candidate.packets[Field.DESTINATION]
    is_served = bool(asked.meet(space.addresses_in(name))) and forward.protocol is not Protocol.SCTP
    if asked.minus(loopback):
        proxied = f"; on {name} with {_LOCALHOST}" if is_served else ""
        return f"this host itself on its own addresses only{proxied}"
    where = "there" if asked.size == 1 else f"there on {name} only,"
    return f"{where} with {_LOCALHOST}" if is_served else ""


_LOCALHOST: Final = "`localhost = true` in [daemon]"


def _answers(forward: Forward, candidate: Candidate) -> bool:
    """Whether a forward takes connections of this host itself, as a rule of OUTPUT did."""
    return (
        not forward.reason
        and forward.protocol is protocol_of(candidate.packets)
        and forward.address == candidate.address
        and forward.interface is None
        and _serves_host(forward)
        and forward.host.first <= candidate.host.first
        and candidate.host.last <= forward.host.last
        and forward.shift == candidate.shift
        and (forward.listen is None or _is_for(candidate, forward.listen))
    )


def _serves_host(forward: Forward) -> bool:
    """Whether this host itself is among the sources: it connects to its own address from that address."""
    return not forward.sources or (
        forward.listen is not None and any(forward.listen in source for source in forward.sources)
    )


def _is_for(candidate: Candidate, listen: Address) -> bool:
    return candidate.packets[Field.DESTINATION].ranges == ((int(listen), int(listen)),)


# DNAT rules of iptables for every protocol and one address, each a guest where an SNAT rule leads the other way.


@dataclass(frozen=True, slots=True)
class Pairs:
    """What is known while such rules are read."""

    carrier: Carrier
    nat: NatTable

    @classmethod
    def of(cls, adopter: Adopter, nat: NatTable) -> "Pairs":
        """Make it for one table."""
        return cls(Carrier(adopter, nat.way_out, (nat.chain("POSTROUTING"),), dict(_names(nat))), nat)

    def carry(self, rule: RuleLine) -> bool:
        """Write a rule as a `[[nat]]`, or a comment why it is none; return whether it may be one of a pair."""
        asked = self.nat.asked(rule)
        is_whole = all(Field.PROTOCOL not in match and Field.DESTINATION in match for match in asked)
        if self.nat.asks[rule.number].unread or not is_whole:
            return False
        try:
            target = target_of(rule.options or ())
        except GrammarError:
            return False
        found = [target.ports is None and self.carrier.carry(Sending(rule.number, match, target)) for match in asked]
        return any(found)


def _names(nat: NatTable) -> Iterator[tuple[int, Address]]:
    """Yield the address that each SNAT rule gives, by line."""
    for rule in nat.table.rules:
        for option in rule.options or ():
            if rule.target == "SNAT" and option.name == "--to-source" and len(option.values) == 1:
                try:
                    yield rule.number, ip_address(option.values[0])
                except ValueError:
                    continue


# The DNAT rules of one table nat of iptables, read in the order of their lines, and what is known of each.


@dataclass(slots=True)
class Reader:
    """What is known while the rules are read; `tangled` says why no more is followed."""

    adopter: Adopter
    nat: NatTable
    pairs: Pairs
    tangled: str = ""

    def read(self) -> None:
        """Read all rules; those that nothing from outside comes to last, as they ask what was found."""
        inward = led_to(self.nat.chains, "PREROUTING")
        others = [rule for rule in self.nat.rules.values() if rule.chain not in inward or not self._read_rule(rule)]
        findings, ruleset = self.adopter.findings, self.adopter.ruleset
        for rule in others:
            self._leave_out(rule, about(rule, self.nat, ruleset, findings))
        for rule in self.nat.strangers():
            self._leave_out(rule, f"what {quote(rule.target)} does is not followed")

    def _read_rule(self, rule: RuleLine) -> bool:
        """Read a rule; return whether connections from outside may come to it."""
        try:
            self._refuse_tangled()
            return self.pairs.carry(rule) or self._is_read(rule, list(self.nat.candidates(rule)))
        except GrammarError as error:
            self._leave_out(rule, str(error))
        except TangledError as error:
            self.tangled = str(error)
            self._leave_out(rule, self.tangled)
        return True

    def _refuse_tangled(self) -> None:
        if self.tangled:
            raise TangledError(self.tangled)

    def _is_read(self, rule: RuleLine, candidates: Sequence[Candidate]) -> bool:
        if why := why_way_out(self.nat.asks[rule.number].match, self.nat.space):
            raise GrammarError(why)
        if not any(is_reached(candidate, self.adopter.ruleset) for candidate in candidates):
            return self._is_passed_over(rule, candidates)
        self._remark_any_address(rule, candidates[0])
        for candidate in candidates:
            if self.adopter.adopt(candidate):
                self.pairs.carrier.remark_masquerade(candidate)
        return True

    def _is_passed_over(self, rule: RuleLine, candidates: Sequence[Candidate]) -> bool:
        """Say what took all that a rule asks for; where nothing did, no chain leads to it."""
        ruleset, findings = self.adopter.ruleset, self.adopter.findings
        lines = sorted({line for candidate in candidates for line in takers(candidate, ruleset)})
        if not lines:
            return False
        is_lost = any(stop.line for candidate in candidates for stop in stops(candidate, ruleset))
        tell = findings.warn if is_lost else findings.note
        tell(rule.number, f"{quote(rule.text)} left out: {self.adopter.named(lines)} took all of it before")
        return True

    def _remark_any_address(self, rule: RuleLine, candidate: Candidate) -> None:
        ruleset = self.adopter.ruleset
        if candidate.packets[Field.DESTINATION] != ruleset.space.everything[Field.DESTINATION]:
            return
        passing = replace(candidate, packets=candidate.packets.holding(translated=AFTER))
        if passing.packets.meet(self.nat.asks[rule.number].match) is not None and is_reached(passing, ruleset):
            self.adopter.findings.warn_once(rule.number, _ANY_ADDRESS)

    def _leave_out(self, rule: RuleLine, why: str) -> None:
        self.adopter.findings.warn(rule.number, f"{quote(rule.text)} left out: {why}")


_ANY_ADDRESS: Final = "a rule without -d took packets to any address; a forward takes those to this host's own"


_INCOMPATIBLE: Final = re.compile(r"# Table `(\w+)' (?:is|contains) incompatible.*", re.DOTALL)
_OTHER_TABLES: Final = re.compile(r"# Warning: (ip(6?)tables-legacy) tables present.*", re.DOTALL)
_BEFORE: Final = ("raw", "mangle")
_FORWARDING: Final = ("mangle", "filter", "security")
_LEAVING: Final = ("mangle",)
# The chains of this program: what they lead to a guest is in its configuration.
_OWN: Final = "KVMPF_"


def no_service(name: str, protocol: str) -> int | None:
    """Know no service by its name."""
    del name, protocol
    return None


def no_way(address: Address) -> str | None:
    """Know no way to any guest."""
    del address
    return None


def parse(file: Path, text: str, services: Services = no_service, way_out: WayOut = no_way) -> Findings:
    """Read the file, which may be several outputs one after the other.

    Raises:
        BrokenFileError: `iptables-save` itself says that it does not show everything.

    """
    found = xt_tables.read(text)
    findings = Findings(file, Kind.IPTABLES_SAVE)
    _read_remarks(findings, found)
    for number, line in found.unread:
        findings.warn(number, f"left out: {quote(line)} is no line of iptables-save")
    said = {number for number, _ in found.unread}
    findings.families.update(*(_families(table) for table in found.tables))
    for table in found.tables:
        for rule in table.rules:
            if rule.options is None and rule.number not in said:
                findings.warn(rule.number, f"{quote(rule.text)} left out: its quotes do not close")
            elif rule.target == "TPROXY":
                findings.warn(rule.number, f"{quote(rule.text)} left out: it leads to a proxy, not to a guest")
        if table.name == "nat":
            _read_nat(findings, found, table, services, way_out)
    return findings


def _read_remarks(findings: Findings, found: Text) -> None:
    for number, line in found.remarks:
        if (incompatible := _INCOMPATIBLE.fullmatch(line)) is not None:
            table = incompatible[1]
            said = f"there is more in the table {table} than iptables-save shows; give the output of `nft list ruleset`"
            raise BrokenFileError(findings.file, number, said)
        if (others := _OTHER_TABLES.fullmatch(line)) is not None:
            findings.warn(number, f"there are more rules, which {others[1]}-save prints, and they may refuse anything")


def _blocked(found: Text, tables: Iterable[Table], family: Family) -> str:
    """Say why nothing of a family may be live, if nothing may: not all of the rules are known."""
    remarks = [match for _, line in found.remarks if (match := _OTHER_TABLES.fullmatch(line)) is not None]
    others = [match[1] for match in remarks if bool(match[2]) == (family is Family.IPV6)]
    if others:
        return f"{others[0]}-save prints more rules, which may refuse it; uncomment what none of those does"
    if found.unread:
        return f"what line {found.unread[0][0]} does is not known; give just what iptables-save prints"
    filters = [table for table in tables if table.name == "filter"]
    if not filters:
        return _NO_FILTER
    # iptables-save prints the policy of every chain that the kernel calls; what programs such as ufw load in parts has
    # it in another file.
    return "" if any("FORWARD" in table.policies for table in filters) else _NO_FORWARD


def _read_nat(findings: Findings, found: Text, table: Table, services: Services, way_out: WayOut) -> None:
    family = table.family or Family.IPV4
    tools = Tools(Space.around(family, found.interfaces), services, _OWN)
    nat = NatTable.of(table, tools, way_out)
    tables = [table for table in found.tables if table.family in {None, family}]
    before = tuple(_chains(tables, _BEFORE, "PREROUTING", tools))
    after = *_chains(tables, _FORWARDING, "FORWARD", tools), *_chains(tables, _LEAVING, "POSTROUTING", tools)
    ruleset = Ruleset(tools.space, before, nat.chain("PREROUTING"), after, nat.targets)
    adopter = Adopter(findings, ruleset, dict(_origins(tables)), _blocked(found, tables, family))
    Reader(adopter, nat, Pairs.of(adopter, nat)).read()


def _families(table: Table) -> Iterable[Family]:
    """Give the families that a table may be for."""
    return Family if table.family is None else {table.family}


def _chains(tables: Iterable[Table], names: Iterable[str], chain: str, tools: Tools) -> Iterator[BaseChain]:
    for name in names:
        for table in tables:
            if table.name == name:
                yield base_chain(table, chain, chains_of(table, tools))


def _origins(tables: Iterable[Table]) -> Iterator[tuple[int, Origin]]:
    """Yield all rules and policies by line."""
    for table in tables:
        yield from ((rule.number, Origin(rule.number, rule.text)) for rule in table.rules)
        yield from ((policy.line, Origin(policy.line, policy.text)) for policy in table.policies.values())


_NO_FORWARD: Final = (
    "the table filter in the file has no policy of FORWARD, so what was refused is not known; give what iptables-save"
    " prints"
)
_NO_FILTER: Final = (
    "no table filter is in the file, so what was refused is not known; give all that iptables-save prints, every table;"
    " where it prints no *filter, nothing was refused there: then add `*filter`, `:FORWARD ACCEPT [0:0]` and `COMMIT`,"
    " three lines, below the table nat"
)
