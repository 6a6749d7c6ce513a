"""Rules that keep libvirt's guests online in foreign forward chains which refuse whatever is left. Pure.

Docker, for one, sets the policy of iptables' FORWARD to drop. Where libvirt's own rules are elsewhere, its guests then
lose the network, though libvirt lets them through. So each of their paths gets a rule that accepts, which is right
ahead of the refusal: whatever others refuse by a rule of theirs stays refused, and libvirt's chains decide as before.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from fwdaemon.core import bans
from fwdaemon.core.bans import Rule, RulesOf, Verdict, before_refusal, not_listed
from fwdaemon.core.report import LIBVIRT_TABLE
from fwdaemon.core.text import rule_lines
from fwdaemon.core.types import Family, Gate, GuestPath
from fwdaemon.nftables.model import items

# What each rule of ours in a chain of others says of itself.
OUR_COMMENT: Final = "kvm-portfwd"

_PROTOCOLS: Final = {Family.IPV4: "ipv4", Family.IPV6: "ipv6"}
_ANSWERS: Final = frozenset({"established", "related"})
_LIBVIRTS: Final = "LIBVIRT_"
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)

_Own: TypeAlias = tuple[str, GuestPath | None]
"""A reference to a rule of ours, and its path as far as it is the rule of one."""


@dataclass(frozen=True, slots=True)
class Paths:
    """What a foreign chain has of these rules, and is to have.

    `found` refers to each of ours, in the form that the chain's program takes. The rules `wanted` belong together ahead
    of the rule of others with the number `place`, which `before` refers to; it is empty where they belong to the end.
    """

    found: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    place: int = 0
    before: str = ""
    good: bool = True

    @classmethod
    def of(cls, order: Sequence[_Own | str], wanted: Mapping[GuestPath, str], place: int | None) -> "Paths":
        """Compare a chain with the rules that it is to have at a place, none without; a text in it refers to others."""
        ours = [(number, item) for number, item in enumerate(order) if not isinstance(item, str)]
        others = [item for item in order if isinstance(item, str)]
        places = {sum(isinstance(item, str) for item in order[:number]) for number, _ in ours}
        found = tuple(reference for _, (reference, _) in ours)
        if place is None:
            return cls(found, good=not found)
        good = [path for _, (_, path) in ours] == list(wanted) and places <= {place}
        return cls(found, tuple(wanted.values()), place, others[place] if place < len(others) else "", good)


def _place_of(rules: Sequence[Rule], rules_of: RulesOf, behind: Collection[str], *, accepts: bool) -> int | None:
    """Say where the rules belong in a chain: nowhere if it refuses no more than it names, or has libvirt's own."""
    ends = [end for rule in rules for end in rule.ends if end.verdict is Verdict.LEADS]
    if any(end.chain.startswith(_LIBVIRTS) and rules_of(end.chain) for end in ends):
        return None
    return before_refusal(rules, rules_of, behind, accepts=accepts)


def _passing(paths: Iterable[GuestPath], gate: Gate) -> list[GuestPath]:
    """Give those of the paths whose packets pass a chain, in order: none are let through libvirt's own."""
    own = gate.table == LIBVIRT_TABLE
    return sorted(path for path in paths if not own and gate.family in (path.family.word, "inet"))


# --- rules of nft ----------------------------------------------------------------------------------------------------


def native_paths(
    gate: Gate,
    listing: str,
    paths: Iterable[GuestPath],
    behind: Collection[str],
    lookup: tuple[RulesOf, bans.EndsOf] = (not_listed, not_listed),
) -> Paths:
    """Read `nft -j list chain`; see `fwdaemon.nftables.gates.read_native` for `lookup`."""
    rules_of, ends_of = lookup
    accepts = any(chain.get("policy") == "accept" for chain in items(listing, "chain"))
    rules = [rule for rule in items(listing, "rule") if rule.get("comment") != OUR_COMMENT or is_native_path(rule)]
    order = [_native_item(gate, rule) for rule in rules]
    wanted = {path: native_rule(path, gate) for path in _passing(paths, gate)}
    if not wanted:
        return Paths.of(order, {}, None)
    others = [bans.read_native(rule["expr"], ends_of) for rule in rules if not is_native_path(rule)]
    return Paths.of(order, wanted, _place_of(others, rules_of, behind, accepts=accepts))


def native_rule(path: GuestPath, gate: Gate) -> str:
    """Write the rule of a path."""
    family = f"meta nfproto {_PROTOCOLS[path.family]} " if gate.family == "inet" else ""
    state = "ct state established,related " if path.answers else ""
    return f'{family}iifname "{path.came_in}" oifname "{path.goes_out}" {state}accept comment "{OUR_COMMENT}"'


def is_native_path(rule: Mapping[str, Any]) -> bool:
    """Whether a rule that `nft -j` lists is one of ours, for a path and no gate."""
    return rule.get("comment") == OUR_COMMENT and any(_meta(statement) is not None for statement in rule["expr"])


def _native_item(gate: Gate, rule: Mapping[str, Any]) -> _Own | str:
    reference = f"handle {rule['handle']}"
    return (reference, _read_native(rule["expr"], gate)) if is_native_path(rule) else reference


def _read_native(expression: Sequence[Mapping[str, Any]], gate: Gate) -> GuestPath | None:
    """Read a rule of ours; `None` where it is not as we write it."""
    *conditions, last = expression
    named = dict(filter(None, map(_meta, conditions)))
    states = [found for condition in conditions if (found := _states(condition)) is not None]
    if last != {"accept": None} or len(named) + len(states) != len(conditions) or states not in ([], [_ANSWERS]):
        return None
    word = named.pop("nfproto", "") if gate.family == "inet" else _PROTOCOLS[Family.called(gate.family)]
    family = next((family for family, name in _PROTOCOLS.items() if name == word), None)
    if family is None or named.keys() != {"iifname", "oifname"}:
        return None
    return GuestPath(family, named["iifname"], named["oifname"], answers=bool(states))


def _meta(condition: Mapping[str, Any]) -> tuple[str, str] | None:
    match condition:
        case {"match": {"op": "==", "left": {"meta": {"key": str(key)}}, "right": str(value)}}:
            return key, value
    return None


def _states(condition: Mapping[str, Any]) -> frozenset[str] | None:
    match condition:
        case {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": [*states]}}:
            return frozenset(map(str, states))
    return None


def native_script(paths: Paths, gate: Gate) -> Iterator[str]:
    """Have the rules in a native chain where they belong, once those of before are gone."""
    where = f"insert rule {gate} {paths.before}" if paths.before else f"add rule {gate}"
    yield from (f"{where} {rule}" for rule in paths.wanted)


# --- rules of iptables -----------------------------------------------------------------------------------------------


def iptables_paths(
    gate: Gate, listing: str, paths: Iterable[GuestPath], behind: Collection[str], rules_of: RulesOf = not_listed
) -> Paths:
    """Read `iptables-nft -S FORWARD`; `rules_of` lists other chains."""
    rules = [rule for rule in iptables_rules(listing) if not is_iptables_ours(rule) or is_iptables_path(rule)]
    wanted = {path: iptables_rule(path) for path in _passing(paths, gate)}
    by_rule = {rule: path for path, rule in wanted.items()}
    order: list[_Own | str] = [(rule, by_rule.get(rule)) if is_iptables_path(rule) else rule for rule in rules]
    if not wanted:
        return Paths.of(order, {}, None)
    others = [bans.read_iptables(rule) for rule in rules if not is_iptables_path(rule)]
    accepts = "-P FORWARD ACCEPT" in rule_lines(listing)
    return Paths.of(order, wanted, _place_of(others, rules_of, behind, accepts=accepts))


def iptables_rule(path: GuestPath) -> str:
    """Write the rule of a path as `-S` lists it."""
    state = "-m conntrack --ctstate RELATED,ESTABLISHED " if path.answers else ""
    return f"-i {path.came_in} -o {path.goes_out} {state}-m comment --comment {OUR_COMMENT} -j ACCEPT"


def iptables_rules(listing: str) -> list[str]:
    """Give the rules of FORWARD without its name."""
    lines = rule_lines(listing)
    return [line.removeprefix("-A FORWARD ") for line in lines if line.startswith("-A FORWARD ")]


def is_iptables_ours(rule: str) -> bool:
    """Whether a rule says that it is ours."""
    # What stands inside quotes is text of others, ours needs none.
    return f"--comment {OUR_COMMENT} " in _QUOTED.sub('""', rule)


def is_iptables_path(rule: str) -> bool:
    """Whether a rule is one of ours, for a path and no gate."""
    return rule.startswith("-i ") and is_iptables_ours(rule)


def iptables_lines(paths: Paths) -> Iterator[str]:
    """Have the rules in FORWARD where they belong, once those of before are gone and the gate is there."""
    for number, rule in enumerate(paths.wanted, paths.place + 2):
        yield f"-I FORWARD {number} {rule}" if paths.before else f"-A FORWARD {rule}"
