"""Which rules of others may stand ahead of a gate: bans, and nothing else. Pure.

A ban refuses named sources only, or is a jump to a chain that `behind` of the configuration names, such as fail2ban's
and Docker's for the administrator. What such a chain accepts needs no gate, and what it refuses is refused on purpose.

A chain that does nothing but refuse is led to from named sources, or names them itself; such chains may lead to others.

A gate belongs right after the bans at the head of its chain. A rule that decides nothing, such as one that logs, may
stand between them. So the same rules always give the same place, whichever came first.

Rules are read here as iptables-nft lists them, and as nft does; those of iptables-legacy in `fwdaemon.legacy.info`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum, StrEnum
from fnmatch import fnmatchcase
from ipaddress import collapse_addresses, ip_address, ip_network, summarize_address_range
from itertools import chain, groupby
from typing import Any, Final, NamedTuple, TypeAlias

from fwdaemon.core.text import is_mac, rule_lines, unquoted
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
    """A rule of others: its ends, of which a verdict map has several; if it names sources; if it has no conditions."""

    ends: tuple[End, ...]
    named: bool = False
    always: bool = False


RulesOf: TypeAlias = Callable[[str], Iterable[Rule] | None]
"""Lists the rules of a chain by name; `None` where they are not available."""


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


def before_refusal(rules: Sequence[Rule], rules_of: RulesOf, behind: Collection[str], *, accepts: bool) -> int | None:
    """Count the rules ahead of where a base chain refuses whatever is left; `None` if it does not.

    That is its policy, or a rule without conditions. A chain of `behind` that refuses everything does so on purpose.
    """
    found = (number for number, rule in enumerate(rules) if _refuses_the_rest(rule, rules_of, behind))
    return next(found, None if accepts else len(rules))


def _refuses_the_rest(rule: Rule, rules_of: RulesOf, behind: Collection[str]) -> bool:
    end = rule.ends[0]
    if not rule.always or end.verdict is not Verdict.LEADS or is_behind(end.chain, behind):
        return rule.always and end.verdict is Verdict.REFUSES
    led = next((found for found in rules_of(end.chain) or () if found.ends[0].verdict is not Verdict.NONE), None)
    return led is not None and led.always and led.ends[0].verdict is Verdict.REFUSES


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


# Bans among the rules that `iptables-nft -S` prints. Pure.

# Options that take one word of free text, which may look like an option.
_FREE: Final = frozenset({"--comment", "--log-prefix", "--nflog-prefix", "--string", "--hex-string", "--name"})
# Whether a source is in a list that the match `recent` keeps.
_RECENT: Final = frozenset({"--rcheck", "--update"})
# The last ones are those of xtables-addons, which keep the client waiting or lie to it.
_REFUSALS: Final = frozenset({"DROP", "REJECT", "TARPIT", "DELUDE", "CHAOS", "STEAL"})
# What names sources whatever its value is.
_NAMING: Final = _RECENT | {"--mac-source", "--source-country", "--src-cc"}
_IDLE_TARGETS: Final = frozenset({"", "LOG", "NFLOG", "TRACE"})
_OTHERS: Final = frozenset({"ACCEPT", "QUEUE", "NFQUEUE"})
# What is no condition.
_NO_CONDITIONS: Final = frozenset({"-j", "-g", "--comment", "--reject-with"})
_VERDICTS: Final = (
    dict.fromkeys(_IDLE_TARGETS, Verdict.NONE)
    | dict.fromkeys(_REFUSALS, Verdict.REFUSES)
    | dict.fromkeys(_OTHERS, Verdict.DECIDES)
    | {"RETURN": Verdict.RETURNS}
)


class _Option(NamedTuple):
    name: str
    values: tuple[str, ...]
    inverted: bool


def read_iptables(rule: str) -> Rule:
    """Read a rule without its `-A CHAIN`."""
    options = list(_options(rule))
    comes_back, target = _target(options)
    end = End(_VERDICTS.get(target, Verdict.LEADS), target, comes_back)
    return Rule((end,), _names_any(options), all(map(_is_no_condition, options)))


def read_listing(listing: str) -> list[Rule] | None:
    """Read a chain as `-S CHAIN` lists it; `None` where there is none."""
    rules = [line.split(" ", 2)[2:] for line in rule_lines(listing) if line.startswith("-A ")]
    return [read_iptables(rule[0] if rule else "") for rule in rules] if listing else None


def _is_no_condition(option: _Option) -> bool:
    return option.name in _NO_CONDITIONS or (option.name, option.values) == ("-m", ("comment",))


def _target(options: Iterable[_Option]) -> tuple[bool, str]:
    """Give what a rule leads to, and whether packets may come back from there, unlike after `-g`."""
    for option in options:
        if option.name in ("-j", "-g") and option.values:
            return option.name == "-j", option.values[0]
    return False, ""


def _names_any(options: Sequence[_Option]) -> bool:
    """Whether one of the conditions, all of which have to hold, names sources."""
    if any(option.name == "--rdest" for option in options):
        options = [option for option in options if option.name not in _RECENT]
    return any(map(_names_sources, options))


def _names_sources(option: _Option) -> bool:
    if option.inverted:
        return False
    match option.name, option.values:
        case "-s" | "--src-range" | "--ctorigsrc", (text,):
            return are_named(_subnets(text))
        case "--match-set", (_, directions, *_):
            return directions.split(",")[0] == "src"
    return option.name in _NAMING


def _subnets(text: str) -> list[Subnet]:
    """Read a subnet or a range; nothing where it is neither, as with a mask that is no prefix length."""
    first, _, last = text.partition("-")
    try:
        if last:
            return between(ip_address(first), ip_address(last))
        address, slash, length = text.partition("/")
        return [ip_network((address, int(length)) if slash else address, strict=False)]
    except ValueError:
        return []


def _options(rule: str) -> Iterator[_Option]:
    """Take a rule apart: each option with its values, which go on to the next option."""
    words = unquoted(rule).split()
    position, inverted = 0, False
    while position < len(words):
        name, position = words[position], position + 1
        if name == "!":
            inverted = True
            continue
        end = position + 1 if name in _FREE else position
        while name not in _FREE and end < len(words) and not words[end].startswith(("-", "!")):
            end += 1
        yield _Option(name, tuple(words[position:end]), inverted)
        position, inverted = end, False


# Bans among the rules that `nft -j list chain` gives. Pure; the schema is libnftables-json(5).
_IDLE: Final = frozenset({"counter", "limit", "log", "match"})
_NO_CONDITION: Final = frozenset({"counter", "log"})
_NATIVE_VERDICTS: Final = {
    "drop": Verdict.REFUSES,
    "reject": Verdict.REFUSES,
    "return": Verdict.RETURNS,
    "continue": Verdict.NONE,
}

EndsOf: TypeAlias = Callable[[str], Iterable[End] | None]
"""Gives the ends that a named verdict map leads to; `None` where they are not available."""


def read_native(expression: Iterable[Any], ends_of: EndsOf = not_listed) -> Rule:
    """Read a rule by its `expr`: conditions, all of which have to hold, and a verdict."""
    *conditions, last = list(expression) or [{}]
    named = any(map(_native_names_sources, conditions))
    match last:
        case {"vmap": {"key": key, "data": str(name)}} if name.startswith("@"):
            return _by_map(key, ends_of(name[1:]), named=named)
        case {"vmap": {"key": key, "data": {"set": [*elements]}}}:
            named = named or _are_named_sources(key, {"set": [found for found, _ in elements]})
            return Rule(tuple(_native_end(verdict) for _, verdict in elements), named)
        case {**verdict} if not _IDLE.issuperset(verdict):
            return Rule((_native_end(last),), named, _NO_CONDITION.issuperset(chain.from_iterable(conditions)))
    idle = all(_IDLE.issuperset(statement) for statement in conditions)
    return Rule((End(Verdict.NONE if idle else Verdict.DECIDES),), named)


def _by_map(key: Any, ends: Iterable[End] | None, *, named: bool) -> Rule:
    """Give the rule of a verdict map; one of sources is there to refuse, though it may be empty now."""
    if ends is None:
        return Rule((End(Verdict.DECIDES),), named)
    if not _are_named_sources(key, "@"):
        return Rule(tuple(ends), named)
    return Rule((End(Verdict.REFUSES), *ends), named=True)


def _native_end(verdict: Mapping[str, Any]) -> End:
    match verdict:
        case {"jump": {"target": str(chain)}}:
            return End(Verdict.LEADS, chain)
        case {"goto": {"target": str(chain)}}:
            return End(Verdict.LEADS, chain, comes_back=False)
    return End(_NATIVE_VERDICTS.get(next(iter(verdict), ""), Verdict.DECIDES))


def _native_names_sources(condition: Any) -> bool:
    match condition:
        case {"match": {"op": "==" | "in", "left": left, "right": right}}:
            return _are_named_sources(left, right)
    return False


def _are_named_sources(what: Any, right: Any) -> bool:
    """Whether something is compared with sources, and these are not all there are."""
    parts = what["concat"] if isinstance(what, dict) and "concat" in what else [what]
    position = next((number for number, part in enumerate(parts) if _is_source(part)), None)
    if position is None:
        return False
    if isinstance(right, str) and right.startswith("@"):
        return True
    elements = right["set"] if isinstance(right, dict) and "set" in right else [right]
    if _is_mac_source(parts[position]):
        return all(isinstance(mac := _part(element, position), str) and is_mac(mac) for element in elements)
    try:
        return are_named(subnet for element in elements for subnet in _native_subnets(_part(element, position)))
    except ValueError:
        return False


def _is_mac_source(part: Any) -> bool:
    match part:
        case {"payload": {"protocol": "ether", "field": "saddr"}}:
            return True
    return False


def _is_source(part: Any) -> bool:
    match part:
        case _ if _is_mac_source(part):
            return True
        case {"payload": {"protocol": "ip" | "ip6", "field": "saddr"}}:
            return True
        case {"ct": {"key": "ip saddr" | "ip6 saddr", "dir": "original"}}:
            return True
    return False


def _part(element: Any, position: int) -> Any:
    match element:
        case {"elem": {"val": inner}}:
            return _part(inner, position)
        case {"concat": [*parts]}:
            return parts[position]
    return element


def _native_subnets(element: Any) -> Iterator[Subnet]:
    """Read an element; a name instead of an address, or anything else, is none."""
    match element:
        case str(address):
            yield ip_network(address)
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            yield ip_network((address, length), strict=False)
        case {"range": [str(first), str(last)]}:
            yield from between(ip_address(first), ip_address(last))
        case _:
            raise ValueError(element)
