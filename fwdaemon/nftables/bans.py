"""Bans of others that stay ahead of a gate, in both ways to write them. Pure."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

from fwdaemon.core.bans import Kind, are_named, between, is_behind
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
# A chain whose rules have these targets alone gives no verdict.
_HARMLESS_TARGETS: Final = _IDLE_TARGETS | {"RETURN"}
_BUILT_IN: Final = _HARMLESS_TARGETS | _REFUSALS | {"ACCEPT", "QUEUE", "NFQUEUE"}


class Known(NamedTuple):
    """Chains that were looked at: those that give no verdict, and those that refuse and give no other one."""

    idle: Collection[str] = ()
    refusing: Collection[str] = ()


NONE_KNOWN: Final = Known()


class _Option(NamedTuple):
    name: str
    values: tuple[str, ...]
    inverted: bool


def kind_of_iptables(rule: str, behind: Collection[str], known: Known = NONE_KNOWN) -> Kind:
    """Judge a rule without its `-A CHAIN`."""
    options = list(_options(rule))
    jump, target = _target(options)
    if jump and is_behind(target, behind):
        return Kind.BAN
    if (target in _REFUSALS or target in known.refusing) and _refuses_named(options):
        return Kind.BAN
    return Kind.IDLE if target in _IDLE_TARGETS or (jump and target in known.idle) else Kind.DECIDES


def suspects(rules: Iterable[str], behind: Collection[str]) -> list[str]:
    """Name the chains that have to be looked at: led to ahead of a ban, or from named sources, and not known."""
    found: list[str] = []
    waiting: list[str] = []
    for rule in rules:
        options = list(_options(rule))
        judged, (returns, target) = kind_of_iptables(rule, behind), _target(options)
        if judged is Kind.DECIDES:
            may_refuse = _refuses_named(options)
            if target in _BUILT_IN or not (returns or may_refuse):
                break
            waiting.append(target)
            judged = Kind.BAN if may_refuse else judged
        if judged is Kind.BAN:
            found, waiting = found + waiting, []
    return found


def gives_no_verdict(listing: str) -> bool:
    """Whether no rule of a chain, as `-S CHAIN` lists it, decides anything."""
    return _HARMLESS_TARGETS.issuperset(_targets(listing))


def only_refuses(listing: str) -> bool:
    """Whether a chain, as `-S CHAIN` lists it, gives verdicts, and each refuses."""
    verdicts = set(_targets(listing)) - _HARMLESS_TARGETS
    return bool(verdicts) and verdicts <= _REFUSALS


def _targets(listing: str) -> Iterator[str]:
    rules = (line.split(" ", 2)[2:] for line in rule_lines(listing) if line.startswith("-A "))
    return (_target(list(_options(rule[0] if rule else "")))[1] for rule in rules)


def _target(options: Iterable[_Option]) -> tuple[bool, str]:
    """Give what a rule leads to, and whether packets may come back from there, unlike after `-g`."""
    for option in options:
        if option.name in ("-j", "-g") and option.values:
            return option.name == "-j", option.values[0]
    return False, ""


def _refuses_named(options: Sequence[_Option]) -> bool:
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
_NATIVE_REFUSALS: Final = frozenset({"drop", "reject"})
_IDLE: Final = frozenset({"counter", "limit", "log", "match"})
# A chain of these statements alone gives no verdict.
_HARMLESS: Final = _IDLE | {"return"}


def kind_of_native(expression: Iterable[Any], behind: Collection[str], refusing: Collection[str] = ()) -> Kind:
    """Judge a rule by its `expr`: conditions, all of which have to hold, and a verdict; `refusing` as in `Known`."""
    *conditions, last = list(expression) or [{}]
    match last:
        case {"jump": {"target": str(chain)}} if is_behind(chain, behind):
            return Kind.BAN
        case {"vmap": {"key": key, "data": {"set": [*elements]}}}:
            named = _are_named_sources(key, {"set": [found for found, _ in elements]})
            return Kind.BAN if named and all("drop" in verdict for _, verdict in elements) else Kind.DECIDES
        case {"jump": {"target": chain}} | {"goto": {"target": chain}} if chain in refusing and any(
            map(_native_names_sources, conditions)
        ):
            return Kind.BAN
        case {**verdict} if not _NATIVE_REFUSALS.isdisjoint(verdict) and any(map(_native_names_sources, conditions)):
            return Kind.BAN
    return Kind.IDLE if all(_IDLE.issuperset(statement) for statement in (*conditions, last)) else Kind.DECIDES


def native_suspects(expressions: Iterable[Sequence[Any]], behind: Collection[str]) -> list[str]:
    """Name the chains that have to be looked at: led to from named sources, ahead of the first rule that decides."""
    found: list[str] = []
    for expression in expressions:
        if kind_of_native(expression, behind) is not Kind.DECIDES:
            continue
        match expression:
            case [*conditions, {"jump": {"target": str(chain)}} | {"goto": {"target": str(chain)}}] if any(
                map(_native_names_sources, conditions)
            ):
                found.append(chain)
            case _:
                break
    return found


def native_only_refuses(expressions: Iterable[Sequence[Any]]) -> bool:
    """Whether a chain gives verdicts, and each refuses."""
    verdicts = {name for expression in expressions for statement in expression for name in statement} - _HARMLESS
    return bool(verdicts) and verdicts <= _NATIVE_REFUSALS


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
