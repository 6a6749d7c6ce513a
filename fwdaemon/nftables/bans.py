"""Bans of others that stay ahead of a gate, in both ways to write them. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from itertools import chain
from typing import Any, Final, NamedTuple, TypeAlias

from fwdaemon.core.bans import End, Rule, Verdict, are_named, between, not_listed
from fwdaemon.core.text import is_mac, rule_lines, unquoted
from fwdaemon.core.types import Subnet

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
"""Gives the ends that a named verdict map leads to; `None` where they are not to be had."""


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
