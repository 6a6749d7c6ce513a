"""Texts in nft's own language: what `nft list ruleset` prints, and /etc/nftables.conf as people write it.

All tables are followed as the kernel would: what becomes a forward is what the rules are known to have let in.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from fwdaemon.core.text import quote
from fwdaemon.core.types import Family
from fwdaemon.importing.adopting import Adopter, Origin
from fwdaemon.importing.findings import BrokenFileError, Findings, Kind
from fwdaemon.importing.iptables_nat import Carrier, Sending, WayOut
from fwdaemon.importing.judging import BaseChain, Ruleset, asked_on_ways
from fwdaemon.importing.nft_matching import INTERFACES, SHORT, Scope, pattern_of
from fwdaemon.importing.nft_rule import NftRule, read_rule
from fwdaemon.importing.nft_tables import (
    BracesError,
    Chain,
    Group,
    Hook,
    Item,
    Table,
    Tables,
    is_mark,
    line_of,
    read,
    shown,
    tables_of,
)
from fwdaemon.rulesets.rules import Chains, End, Field, Jump, Rule, Space, Spans, TangledError, led_to
from fwdaemon.rulesets.xt_matches import Services

_WHOLE: Final = "give the output of `nft list ruleset`, which has everything"
_NO_FORWARD: Final = (
    f"no chain of hook forward is in the file, so what was refused is not known; {_WHOLE}; where that has none,"
    " nothing was refused: then add `table inet none { chain forward { type filter hook forward priority 0; }; }`,"
    " one line, at the end of the file"
)
# What leads to a proxy of this host, as nft writes it, and as it shows what iptables made.
_PROXIES: Final = frozenset({"tproxy", '"TPROXY"'})


@dataclass(frozen=True, slots=True)
class Said:
    """A rule, or a policy, by where the text has it."""

    origin: Origin
    rule: NftRule | None


@dataclass(frozen=True, slots=True)
class Chained:
    """The chains of one family that a connection to a guest passes, in their order.

    `forwards` says whether any has the hook forward; where none has, the text hardly shows all rules.
    """

    before: tuple[BaseChain, ...]
    nat: tuple[BaseChain, ...]
    after: tuple[BaseChain, ...]
    postrouting: tuple[BaseChain, ...]
    said: Mapping[int, Said]
    forwards: bool


def parse(file: Path, text: str, services: Services, way_out: WayOut) -> Findings:
    """Read the file.

    Raises:
        BrokenFileError: its braces do not match, or its rules lead in a circle.

    """
    findings = Findings(file, Kind.NFT_TEXT)
    try:
        tables = tables_of(read(text))
        _carry(findings, tables, services, way_out)
    except BracesError as error:
        raise BrokenFileError(file, error.line, f"{error}; {_WHOLE}") from None
    except TangledError as error:
        raise BrokenFileError(file, 1, f"{error}; write the forwards by hand") from None
    for origin in asleep(tables):
        _leave_out(findings, origin, "its table is dormant, so no connection came to it")
    return findings


def _carry(findings: Findings, tables: Tables, services: Services, way_out: WayOut) -> None:
    for line, text in tables.unread:
        findings.warn(line, f"{quote(text)} is not followed, and may refuse anything; {_WHOLE}")
    others = list(unfollowed(tables))
    for origin in others:
        findings.warn(origin.line, f"{quote(origin.text)} may refuse anything: its chain's hook is not followed")
    doubts = [
        *(f"what line {line} does is not known" for line, _ in tables.unread),
        *(f"line {origin.line}, {quote(origin.text)}, may have stopped it" for origin in others),
    ]
    reached: dict[Origin, bool] = {}
    findings.families.update(_families(tables))
    for family in Family:
        space = space_of(tables, family)
        found = chained(tables, space, services)
        blocked = next(iter(doubts), "" if found.forwards else _NO_FORWARD)
        carrier = _carrier(findings, space, found, way_out, blocked)
        strange = _strange(found)
        for number, said in found.said.items():
            if sendings := _sendings(number, said.rule, found.nat):
                is_reached = [carrier.carry(sending) for sending in sendings]
                reached[said.origin] = any(is_reached) or reached.get(said.origin, False)
            elif said.rule is not None and said.rule.action is End.TRANSLATE and said.rule.doubt:
                _leave_out(findings, said.origin, said.rule.doubt)
            elif number in strange or (said.rule is not None and _PROXIES & {*said.origin.text.split()}):
                _leave_out(findings, said.origin, "where it leads is not followed")
    for origin, is_met in reached.items():
        if not is_met:
            _leave_out(findings, origin, "no connection from outside comes to it")


def _strange(found: Chained) -> frozenset[int]:
    """Give the rules of connections from outside that may lead elsewhere in a way that is not followed."""
    return frozenset(
        rule.line
        for base in found.nat
        for name in led_to(base.chains, base.name)
        for rule in base.chains.get(name, ())
        if rule.action is End.UNCLEAR
    )


def _families(tables: Tables) -> Iterator[Family]:
    """Yield the families that any of it may be for."""
    for family in Family:
        foreign = next(other.word for other in Family if other is not family)
        if tables.unread or any(name != foreign for name, _ in tables.tables):
            yield family


def _carrier(findings: Findings, space: Space, found: Chained, way_out: WayOut, blocked: str) -> Carrier:
    targets = {number: said.rule.target for number, said in found.said.items() if said.rule and said.rule.target}
    first, *others = found.nat or [BaseChain({}, "")]
    ruleset = Ruleset(space, found.before, first, found.after, targets, tuple(others))
    origins = {number: said.origin for number, said in found.said.items()}
    names = {number: target.address for number, target in targets.items()}
    return Carrier(Adopter(findings, ruleset, origins, blocked), way_out, found.postrouting, names)


def _sendings(number: int, rule: NftRule | None, bases: Sequence[BaseChain]) -> list[Sending]:
    """Give what a rule sends to a guest, for each way that leads to it."""
    if rule is None or rule.action is not End.TRANSLATE or rule.target is None:
        return []
    return [Sending(number, asks, rule.target, rule.doubt) for asks in asked_on_ways(bases, number, rule.match)]


def _leave_out(findings: Findings, origin: Origin, why: str) -> None:
    said = f"{quote(origin.text)} left out: {why}"
    if all((remark.origin.line, remark.text) != (origin.line, said) for remark in findings.remarks):
        findings.warn(origin.line, said)


# The base chains of a text in the kernel's order, with their rules as rules of no language.
_FAMILIES: Final[Mapping[Family, tuple[str, ...]]] = {
    Family.IPV4: ("ip", "inet", "netdev"),
    Family.IPV6: ("ip6", "inet", "netdev"),
}
_DNAT_PRIORITY: Final = -100  # NF_IP_PRI_NAT_DST: all nat chains of prerouting are called there
_HOOKS: Final = ("ingress", "prerouting", "forward", "postrouting")
# A connection to a guest never comes to them; that to a bridge or out of a device does.
_HOSTS_OWN: Final = ("input", "output")
_OWN: Final = "kvm_portfwd"
# Leads into a base chain; no chain of nft has such a name.
_ENTRY: Final = " "


def space_of(ruleset: Tables, family: Family) -> Space:
    """Give the space in which all interfaces that the rules name differ."""
    names = {pattern_of(word) for table in ruleset.tables.values() for word in _interfaces(table)}
    return Space.around(family, names)


def _interfaces(table: Table) -> Iterator[str]:
    for chain in table.chains.values():
        yield from chain.hook.devices if chain.hook is not None else ()
        for rule in chain.rules:
            words = list(_words(rule))
            if any(word in INTERFACES for word in words):
                yield from (word for word in words if word not in SHORT and _may_be_name(word))
    for named in table.sets.values():
        for element in named.elements:
            yield from filter(_may_be_name, _words(element))


def _words(items: tuple[Item, ...]) -> Iterator[str]:
    for item in items:
        if isinstance(item, Group):
            yield from _words(item.items)
        else:
            yield item.text


def _may_be_name(text: str) -> bool:
    """Whether a word may name an interface; one too many does no harm."""
    if not text or text[0] in "@$" or not any(map(str.isalpha, text)):
        return False
    try:
        ip_network(text, strict=False)
    except ValueError:
        return True
    return False


def chained(ruleset: Tables, space: Space, services: Services) -> Chained:
    """Read the rules of all chains, and sort those that the kernel calls."""
    reader = _Reader(space, services)
    found: list[tuple[Hook, BaseChain]] = []
    for (family, name), table in ruleset.tables.items():
        if family in _FAMILIES[space.family] and not table.dormant and name != _OWN:
            found += reader.base_chains(table)
    found.sort(key=lambda item: (_HOOKS.index(item[0].hook), item[0].priority))
    before = [base for hook, base in found if _is_before(hook)]
    nat = [base for hook, base in found if hook.kind == "nat" and hook.hook == "prerouting"]
    after = [base for hook, base in found if _is_after(hook)]
    renaming = [base for hook, base in found if hook.kind == "nat" and hook.hook == "postrouting"]
    forwards = any(hook.hook == "forward" for hook, _ in found)
    return Chained(tuple(before), tuple(nat), tuple(after), tuple(renaming), reader.said, forwards)


def unfollowed(ruleset: Tables) -> Iterator[Origin]:
    """Yield what may refuse packets in base chains that are not followed: the first rule or the policy of each."""
    for (family, name), table in ruleset.tables.items():
        if table.dormant or name == _OWN:
            continue
        for called, chain in table.chains.items():
            if chain.hook is None or _is_followed(family, chain.hook):
                continue
            if chain.rules:
                yield Origin(line_of(chain.rules[0]), shown(chain.rules[0]))
            elif not chain.accepts:
                yield Origin(chain.line, f"the policy of chain {called}")


def asleep(ruleset: Tables) -> Iterator[Origin]:
    """Yield the DNAT rules of tables that are dormant, whose chains the kernel does not call."""
    for (_, name), table in ruleset.tables.items():
        if table.dormant and name != _OWN:
            rules = (rule for chain in table.chains.values() for rule in chain.rules)
            yield from (
                Origin(line_of(rule), shown(rule)) for rule in rules if any(is_mark(item, "dnat") for item in rule)
            )


def _is_followed(family: str, hook: Hook) -> bool:
    """Whether its rules are followed, or no connection to a guest comes to them."""
    return any(family in families for families in _FAMILIES.values()) and hook.hook in (*_HOOKS, *_HOSTS_OWN)


def _is_before(hook: Hook) -> bool:
    return hook.kind != "nat" and (
        hook.hook == "ingress" or (hook.hook == "prerouting" and hook.priority <= _DNAT_PRIORITY)
    )


def _is_after(hook: Hook) -> bool:
    """Whether a chain sees what a DNAT made; one of the same priority counts as both."""
    if hook.kind == "nat":
        return False
    return hook.hook in ("forward", "postrouting") or (hook.hook == "prerouting" and hook.priority >= _DNAT_PRIORITY)


@dataclass(frozen=True, slots=True)
class _Reader:
    """What rules are read with; `said` has each rule and policy by the number that stands for it."""

    space: Space
    services: Services
    said: dict[int, Said] = field(default_factory=dict)

    def base_chains(self, table: Table) -> Iterator[tuple[Hook, BaseChain]]:
        """Yield the base chains of a table that matter for a connection to a guest."""
        scope = Scope(self.space, self.services, table.sets)
        chains = {name: tuple(self._rules(chain, scope)) for name, chain in table.chains.items()}
        for name, chain in table.chains.items():
            if (hook := chain.hook) is not None and hook.hook in _HOOKS:
                policy = self._number(chain.line, f"the policy of chain {name}", None)
                end = End.ACCEPT if chain.accepts else End.REFUSE
                yield hook, BaseChain(self._entered(hook, name, chains), _ENTRY, end, policy)

    def _rules(self, chain: Chain, scope: Scope) -> Iterator[NftRule]:
        for items in chain.rules:
            for rule in read_rule(items, scope):
                yield replace(rule, line=self._number(rule.line, shown(items), rule))

    def _number(self, line: int, text: str, rule: NftRule | None) -> int:
        number = len(self.said) + 1
        self.said[number] = Said(Origin(line, text), rule)
        return number

    def _entered(self, hook: Hook, name: str, chains: Mapping[str, Sequence[NftRule]]) -> Chains:
        """Give the chains of a table with one that leads into a base chain, from its devices only where it has some."""
        entry = [Rule(0, {}, Jump(name))]
        if hook.devices:
            ranges = [pair for device in hook.devices for pair in self.space.interfaces_like(device).ranges]
            others = self.space.complement(Field.CAME_IN, Spans.of(ranges))
            entry.insert(0, Rule(0, {Field.CAME_IN: others}, End.ACCEPT))
        return {**chains, _ENTRY: tuple(entry)}
