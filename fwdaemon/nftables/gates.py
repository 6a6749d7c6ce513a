"""Gates: one constant rule at the head of each foreign forward chain that could refuse our connections.

An accept in a table of our own does not help: the packet still meets every other base chain of the hook, and one
refusal is enough. So the rule has to be *in* that chain, and *first*: a rule that is present below a refusal is dead.
Only bans stay ahead of it (`fwdaemon.core.bans`).

A chain of iptables-nft is changed through iptables-nft alone, since a native rule in it can make iptables refuse the
whole table. Chains are never created here.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, TypeVar

from fwdaemon.config.names import NFT_NAME
from fwdaemon.core import bans
from fwdaemon.core.bans import Judge, Kind, Rule, RulesOf, not_listed, place
from fwdaemon.core.report import LIBVIRT_TABLE
from fwdaemon.core.state import Desired
from fwdaemon.core.text import rule_lines
from fwdaemon.core.types import Family, Gate, GateFault, GuestPath
from fwdaemon.nftables.dispatch_chains import labelled
from fwdaemon.nftables.guest_paths import (
    OUR_COMMENT,
    Paths,
    iptables_lines,
    iptables_rules,
    is_iptables_ours,
    is_iptables_path,
    is_native_path,
    native_script,
)
from fwdaemon.nftables.model import Item, items

# How programs write our connection label when they list rules: by its number, or by the name that a file gives it.

# Where nft and iptables look for names; each line is a number and a name.
NFT_NAMES: Final = Path("/etc/connlabel.conf")
IPTABLES_NAMES: Final = Path("/etc/xtables/connlabel.conf")

COMMENT: Final = OUR_COMMENT

Spellings: TypeAlias = frozenset[int | str]


def spellings(bit: int, names: Path) -> Spellings:
    """Give all ways in which a program that reads its names from this file may write a label."""
    try:
        text = names.read_text(errors="replace")
    except OSError:
        text = ""
    return frozenset((bit, *_names(bit, text)))


def _names(bit: int, text: str) -> Iterator[str]:
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and _number(words[0]) == bit:
            yield words[1]


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


_LABEL: Final = {"ct": {"key": "label"}}
_T = TypeVar("_T")
_KNOWN_CHAINS = ((LIBVIRT_TABLE, "forward"), ("filter", "FORWARD"))


_NO_PATHS: Final = Paths()


class FoundRule(NamedTuple):
    """Where a rule is, its number there, and its comment as `nft` keeps it; iptables-nft keeps its own elsewhere."""

    family: str
    table: str
    chain: str
    handle: int
    comment: str


@dataclass(frozen=True, slots=True)
class GateState:
    """A foreign forward chain as it is.

    `ours` refers to each of our rules in it, and `staying` to each rule of others that stays ahead of a gate, in the
    form its own program takes. `ahead` counts the rules of others ahead of the foremost of ours, and `good` says
    whether that one is right to the letter. `paths` are rules of ours for guests, which are none of these.
    """

    gate: Gate
    ours: tuple[str, ...]
    good: bool = False
    staying: tuple[str, ...] = ()
    ahead: int = 0
    paths: Paths = _NO_PATHS

    @property
    def open(self) -> bool:
        """Whether our connections, and guests, pass: exactly one rule of ours for those, and where it belongs."""
        return self._lets_ours_through and self.paths.good

    @property
    def _lets_ours_through(self) -> bool:
        return self.good and self.ahead == len(self.staying) and len(self.ours) == 1

    @property
    def every(self) -> tuple[str, ...]:
        """References to all rules of ours."""
        return self.ours + self.paths.found

    @property
    def fault(self) -> GateFault:
        """What is wrong with a gate that is not open."""
        if self._lets_ours_through:
            return GateFault.GUESTS
        if not self.ours:
            return GateFault.ABSENT
        if self.ahead != len(self.staying):
            return GateFault.BEHIND_RULE if self.ahead > len(self.staying) else GateFault.AHEAD_OF_BAN
        return GateFault.REPEATED if len(self.ours) > 1 else GateFault.ALTERED


def is_iptables_gate(gate: Gate) -> bool:
    """Whether a chain is iptables-nft's FORWARD."""
    return gate.family in ("ip", "ip6") and (gate.table, gate.chain) == ("filter", "FORWARD")


def iptables_program(gate: Gate, suffix: str = "") -> str:
    """Name iptables' nft variant for a gate's family, `ip6tables-nft-restore` with suffix `-restore`."""
    return f"{gate.family}tables-nft{suffix}"


def wanted_gates(families: Iterable[Family], configured: Iterable[Gate]) -> tuple[Gate, ...]:
    """List the chains that are to have a gate where they exist: libvirt's, iptables-nft's and those configured."""
    names = [family.word for family in families]
    known = [Gate(name, *chain) for name in names for chain in _KNOWN_CHAINS]
    return tuple(dict.fromkeys([*known, *(gate for gate in configured if gate.family in {*names, "inet"} and names)]))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look for: gates of the families that have exposures, with this label, in these further chains too.

    `behind` are patterns of chains: jumps to these may stay ahead of a gate. In families with `paths` there are gates
    too; without exposures they let nothing through.
    """

    families: frozenset[Family]
    configured: tuple[Gate, ...]
    label: int
    behind: tuple[str, ...]
    paths: frozenset[GuestPath] = frozenset()

    @classmethod
    def of(cls, desired: Desired) -> "Wanted":
        """Give what a state needs."""
        families = desired.families.union(path.family for path in desired.guest_paths)
        return cls(families, desired.gates, desired.label, desired.behind, desired.guest_paths)


def only_chain(gate: Gate, listing: str) -> str:
    """Cut `nft -j list ruleset` down to the rules that `list chain` shows; empty where there is no such chain."""
    place = gate.family, gate.table, gate.chain
    chains = [{"chain": chain} for chain in items(listing, "chain") if _place(chain, "name") == place]
    rules = [{"rule": rule} for rule in items(listing, "rule") if _place(rule, "chain") == place]
    return json.dumps({"nftables": [*chains, *rules]}) if chains else ""


def _place(item: Item, name: str) -> tuple[str, str, str]:
    return item["family"], item["table"], item[name]


def read_native(
    gate: Gate,
    listing: str,
    spelled: Spellings,
    behind: Collection[str],
    lookup: tuple[RulesOf, bans.EndsOf] = (not_listed, not_listed),
) -> GateState:
    """Read `nft -j list chain` of one gate; `spelled` are the ways in which it may write our label (`labels`).

    By `lookup`, the rules of other chains are found, and what the elements of named maps lead to.
    """
    rules = [rule for rule in items(listing, "rule") if not is_native_path(rule)]
    is_ours = [rule.get("comment") == COMMENT for rule in rules]
    rules_of, ends_of = lookup
    judge = Judge(behind, rules_of)
    accepts = any(chain.get("policy") == "accept" for chain in items(listing, "chain"))
    read = (bans.read_native(rule["expr"], ends_of) for rule in _without(rules, is_ours))
    references = [f"handle {rule['handle']}" for rule in rules]
    kinds = (judge.kind(rule, accepts=accepts) for rule in read)
    return _state(gate, references, is_ours, kinds, good=lambda number: _is_gate(rules[number], spelled))


def read_rules(listing: str, ends_of: bans.EndsOf) -> list[Rule] | None:
    """Read what `nft -j list chain` shows; `None` where there is no such chain."""
    return [bans.read_native(rule["expr"], ends_of) for rule in items(listing, "rule")] if listing else None


def read_iptables(
    gate: Gate, listing: str, spelled: Spellings, behind: Collection[str], rules_of: RulesOf = not_listed
) -> GateState:
    """Read `iptables-nft -S FORWARD`; `spelled` is as above, and `rules_of` lists other chains."""
    rules = [rule for rule in iptables_rules(listing) if not is_iptables_path(rule)]
    is_ours = list(map(is_iptables_ours, rules))
    judge, accepts = Judge(behind, rules_of), "-P FORWARD ACCEPT" in rule_lines(listing)
    kinds = (judge.kind(bans.read_iptables(rule), accepts=accepts) for rule in _without(rules, is_ours))
    return _state(gate, rules, is_ours, kinds, good=lambda number: rules[number] in set(map(_iptables_rule, spelled)))


def _state(
    gate: Gate, rules: Sequence[str], is_ours: Sequence[bool], kinds: Iterable[Kind], good: Callable[[int], bool]
) -> GateState:
    """Put together what was read of a chain: a reference to each rule, whether it is ours, and what the others are."""
    ours = [number for number, own in enumerate(is_ours) if own]
    return GateState(
        gate,
        tuple(rules[number] for number in ours),
        good=bool(ours) and good(ours[0]),
        staying=tuple(_without(rules, is_ours)[: place(kinds)]),
        ahead=ours[0] if ours else 0,
    )


def _without(rules: Iterable[_T], is_ours: Iterable[bool]) -> list[_T]:
    return [rule for rule, own in zip(rules, is_ours, strict=True) if not own]


def orphaned_gates(found: Iterable[FoundRule], gates: Collection[Gate]) -> tuple[GateState, ...]:
    """Pick the native rules with our comment in chains that are to have none.

    We make them where `nft` has a name for the chain, and without one could not take them away.
    """
    commented = (rule for rule in found if rule.comment == COMMENT)
    named = (rule for rule in commented if NFT_NAME.fullmatch(rule.table) and NFT_NAME.fullmatch(rule.chain))
    chains = [(Gate(rule.family, rule.table, rule.chain), rule.handle) for rule in named]
    return tuple(GateState(gate, (f"handle {handle}",)) for gate, handle in chains if gate not in gates)


def closing_script(state: GateState) -> list[str]:
    """Take every rule of ours out of a native chain."""
    return [f"delete rule {state.gate} {reference}" for reference in state.every]


def opening_script(state: GateState, bit: int) -> list[str]:
    """Make or move a gate: what there is of ours goes and one rule comes to its place, in one transaction."""
    where = f"add rule {state.gate} {state.staying[-1]}" if state.staying else f"insert rule {state.gate}"
    gate = f'{where} {labelled(bit)} accept comment "{COMMENT}"'
    return [*closing_script(state), gate, *native_script(state.paths, state.gate)]


def iptables_script(state: GateState, bit: int | None) -> str:
    """Write what `iptables-nft-restore --noflush` takes: our rules go, and with a `bit` one comes to its place."""
    lines = [f"-D FORWARD {rule}" for rule in state.every]
    if bit is not None:
        lines.append(f"-I FORWARD {len(state.staying) + 1} {_iptables_rule(bit)}")
        lines += iptables_lines(state.paths)
    return "\n".join(["*filter", *lines, "COMMIT", ""])


def gate_script(state: GateState, bit: int | None) -> str:
    """Write what makes or moves a gate, or without a `bit` closes it, for the program that changes its chain."""
    if is_iptables_gate(state.gate):
        return iptables_script(state, bit)
    lines = closing_script(state) if bit is None else opening_script(state, bit)
    return "".join(f"{line}\n" for line in lines)


def _iptables_rule(label: int | str) -> str:
    return f'-m connlabel --label "{label}" -m comment --comment {COMMENT} -j ACCEPT'


def _is_gate(rule: Item, spelled: Spellings) -> bool:
    """Whether a rule is ours to the letter; this one body is simple enough that nft prints it back the same."""
    match rule:
        case {"comment": str(comment), "expr": [{"match": {"op": "in", **test}}, {"accept": None}]}:
            return comment == COMMENT and test.get("left") == _LABEL and test.get("right") in spelled
    return False
