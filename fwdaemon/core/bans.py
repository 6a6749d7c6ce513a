"""Which rules of others may stand ahead of a gate: bans, and nothing else. Pure.

A ban refuses named sources only, or is a jump to a chain that `behind` of the configuration names, such as fail2ban's
and Docker's for the administrator. What such a chain accepts needs no gate, and what it refuses is refused on purpose.

A chain that does nothing but refuse is led to from named sources, or names them itself; such chains may lead to others.

A gate belongs right after the bans at the head of its chain. A rule that decides nothing, such as one that logs, may
stand between them. So the same rules always give the same place, whichever came first.
"""

import re
from collections.abc import Callable, Collection, Iterable
from enum import IntEnum, StrEnum
from fnmatch import fnmatchcase
from ipaddress import collapse_addresses, summarize_address_range
from itertools import groupby
from typing import Final, NamedTuple, TypeAlias

from fwdaemon.core.types import Address, Family, Subnet

# Shell patterns of the chains in which programs and administrators refuse sources: jumps to these stay ahead of a gate.
BEHIND = ("DOCKER-USER", "f2b-*", "CROWDSEC*", "crowdsec*", "ufw-before-forward", "ufw-user-forward")


# Chains of libvirt's, which hold no bans: they are not looked at each time.
_LIBVIRTS: Final = re.compile(r"LIBVIRT_FW[IOX]|guest_(input|output|cross)")
# So many chains are looked at to tell where one gate belongs.
_MOST_CHAINS: Final = 16


class Kind(IntEnum):
    """What a rule of another program, or a chain, does to packets that a gate would accept.

    Of several, the greatest counts. `REFUSES` is a refusal of sources that nothing there names.
    """

    IDLE = 0
    BAN = 1
    REFUSES = 2
    DECIDES = 3


class Verdict(StrEnum):
    """How a rule may end: it goes on, or back to where its chain was jumped to from, or to another chain."""

    NONE = "none"
    RETURNS = "returns"
    LEADS = "leads"
    REFUSES = "refuses"
    DECIDES = "decides"


class End(NamedTuple):
    """One of the ends a rule may have; packets may come back from `chain`, unless it was a `goto`."""

    verdict: Verdict
    chain: str = ""
    comes_back: bool = True


class Rule(NamedTuple):
    """A rule of another program: all its ends, of which a verdict map has several, and whether it names sources."""

    ends: tuple[End, ...]
    named: bool = False


RulesOf: TypeAlias = Callable[[str], Iterable[Rule] | None]
"""Lists the rules of a chain by name; `None` where they are not to be had."""


def not_listed(_: str) -> None:
    """List no chain: a `RulesOf`."""


class Judge:
    """Judges rules ahead of one gate, and looks at the chains that they lead to, each once."""

    def __init__(self, behind: Collection[str], rules_of: RulesOf = not_listed) -> None:
        self._behind = behind
        self._rules_of = rules_of
        self._chains: dict[str, Kind] = {}

    def kind(self, rule: Rule, *, accepts: bool = False) -> Kind:
        """Judge a rule of a base chain, which `accepts` by its policy or refuses."""
        found = self._of_rule(rule, accepts=accepts)
        return Kind.DECIDES if found is Kind.REFUSES else found

    def _of_rule(self, rule: Rule, *, accepts: bool) -> Kind:
        worst = max((self._of_end(end, accepts=accepts) for end in rule.ends), default=Kind.IDLE)
        return Kind.BAN if worst is Kind.REFUSES and rule.named else worst

    def _of_end(self, end: End, *, accepts: bool) -> Kind:
        match end.verdict:
            case Verdict.NONE:
                return Kind.IDLE
            case Verdict.RETURNS:
                return Kind.IDLE if accepts else Kind.DECIDES
            case Verdict.REFUSES:
                return Kind.REFUSES
            case Verdict.LEADS:
                found = self._of_chain(end.chain)
                # What comes back after a `goto` meets the policy.
                return found if end.comes_back or accepts or found is Kind.REFUSES else Kind.DECIDES
        return Kind.DECIDES

    def _of_chain(self, name: str) -> Kind:
        if is_behind(name, self._behind):
            return Kind.BAN
        if name not in self._chains:
            self._chains[name] = Kind.DECIDES
            if len(self._chains) <= _MOST_CHAINS and not _LIBVIRTS.fullmatch(name):
                self._chains[name] = self._of_rules(self._rules_of(name))
        return self._chains[name]

    def _of_rules(self, rules: Iterable[Rule] | None) -> Kind:
        if rules is None:
            return Kind.DECIDES
        worst = Kind.IDLE
        for rule in rules:
            # What returns, or comes back after a `goto`, goes on behind the jump.
            worst = max(worst, self._of_rule(rule, accepts=True))
            if worst is Kind.DECIDES:
                break
        return worst


def place(kinds: Iterable[Kind]) -> int:
    """Count the rules that stay ahead of a gate: all up to the last ban before the first rule that decides."""
    staying = 0
    for number, kind in enumerate(kinds, 1):
        if kind is Kind.DECIDES:
            break
        if kind is Kind.BAN:
            staying = number
    return staying


def is_behind(chain: str, behind: Collection[str]) -> bool:
    """Whether one of the patterns of `behind` names a chain."""
    return any(fnmatchcase(chain, pattern) for pattern in behind)


def are_named(sources: Iterable[Subnet]) -> bool:
    """Whether these are some sources, and not every one of a family."""
    ordered = sorted(sources, key=Family.of)
    families = [list(found) for _, found in groupby(ordered, Family.of)]
    return bool(ordered) and all(subnet.prefixlen for found in families for subnet in _merged(found))


def between(first: Address, last: Address) -> list[Subnet]:
    """Give a range of addresses as subnets; nothing where it is none."""
    if first.version != last.version or int(first) > int(last):
        return []
    return list(summarize_address_range(first, last))


def _merged(subnets: list[Subnet]) -> list[Subnet]:
    return list(collapse_addresses(subnets))  # type: ignore[type-var]  # all are of one family
