"""The nouns of iptables-legacy: rules as iptables writes them, our chains, and the heads of the kernel's own chains."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from hashlib import blake2s
from typing import Any

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.types import Address, Family, GateFault, GuestPath, Until

# What every rule of ours in a chain that is not ours says of itself.
COMMENT = "kvm-portfwd"
PRE, OUT, POST, FWD = "KVMPF_PRE", "KVMPF_OUT", "KVMPF_POST", "KVMPF_FWD"
# Where exposures had their rules in versions before: it is taken away where it is found, and never made.
FORMER = "KVMPF_LEAD"
# What [daemon] denies to all.
DENY = "KVMPF_DENY"
# Chains of these names are ours, in any table; all others belong to others, however alike.
OWN_CHAINS = frozenset({PRE, OUT, POST, FWD, FORMER, DENY})
# So are those of the limits of an entry, where a rule of ours leads to one, or is in it.
LIMITS = r"KVMPF_[0-9a-f]{12}"


def is_own(chain: str) -> bool:
    """Whether a chain of this name is ours, or one of limits may be."""
    return chain in OWN_CHAINS or re.fullmatch(LIMITS, chain) is not None


def is_written(comment: str) -> bool:
    """Whether a rule in a chain of ours, with this comment, may be ours."""
    return _OWN_COMMENT.fullmatch(comment) is not None


def limits_chain(exposure: Exposure) -> str:
    """Name the chain of the limits of an exposure; all that one entry opens for one guest has the same."""
    return f"KVMPF_{exposure.counted_as}"


class TableName(StrEnum):
    """The iptables-legacy tables we use; the value is iptables' name."""

    FILTER = "filter"
    MANGLE = "mangle"
    NAT = "nat"


# What a rule asks that looks a packet up in an ipset, which has to be there before the rule can be made.
SET_MATCH = "--match-set"
# What ipsets begin with that cannot be named in a configuration.
LASTING = "KVMPF_+"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what it matches, and its target with options, each written the way `iptables-legacy-save` does.

    `comment` is plain ASCII; that of a rule in a chain of ours ends in a digest of the rest.
    """

    matches: str
    target: str
    comment: str

    @classmethod
    def of(cls, matches: str, target: str, label: str) -> "Rule":
        """Make a rule whose comment is `label` (plain ASCII, no quotes) and the digest of everything else."""
        digest = blake2s(f"{matches} -j {target}".encode(), digest_size=6).hexdigest()
        return cls(matches, target, f"{label} {digest}")

    def __str__(self) -> str:
        comment = f'"{self.comment}"' if " " in self.comment else self.comment
        return f"{self.matches} -m comment --comment {comment} -j {self.target}".lstrip()


# The rule that refuses all else where we turned forwarding on.
CONFINED = Rule.of("", "DROP", "confined")


def confined_from(interface: str) -> Rule:
    """Make the rule that does so with what came in by one interface, where we turned it on there alone."""
    return newcomers(f"-i {interface}")


def newcomers(matches: str) -> Rule:
    """Make a rule that refuses some of it."""
    return Rule.of(matches, "DROP", "newcomers")


@dataclass(frozen=True, slots=True)
class Table:
    """What is ours in one table: `chains` whole and in order, and one rule at the head of each chain in `heads`."""

    chains: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    heads: Mapping[str, Rule] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Head:
    """What was found of ours in one of the kernel's own chains.

    `positions` count from 0. `good` says that the only one is right to the letter, `first` that the foremost one is at
    its place: `place` counts the rules that stay ahead of it, which are bans. `foreign` counts the rules of others,
    `policy` is what becomes of the rest.
    """

    positions: tuple[int, ...] = ()
    good: bool = False
    first: bool = False
    foreign: int = 0
    policy: str = "ACCEPT"
    place: int = 0

    @property
    def holds(self) -> bool:
        """Whether it is as desired."""
        return self.good and self.first

    @property
    def fault(self) -> GateFault:
        """What is wrong with it."""
        if not self.positions:
            return GateFault.ABSENT
        if not self.first:
            return GateFault.AHEAD_OF_BAN if self.positions[0] < self.place else GateFault.BEHIND_RULE
        return GateFault.REPEATED if len(self.positions) > 1 else GateFault.ALTERED


@dataclass(frozen=True, slots=True)
class ObservedTable:
    """What one table holds of ours: the comments in each chain of ours, and the heads that were asked for.

    `held` are chains of ours that rules of others lead to, so that the kernel would not let them be deleted.
    """

    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    heads: Mapping[str, Head] = field(default_factory=dict)
    held: frozenset[str] = frozenset()


def host(address: Address) -> str:
    """Write one address the way listings do."""
    return f"{address}/{address.max_prefixlen}"


def set_name(name: str, family: Family) -> str:
    """Name the ipset that holds the addresses of one family of a set."""
    return f"KVMPF_{name}_{int(family)}"


def lasting_name(until: Until, family: Family) -> str:
    """Name the ipset that holds all addresses until the kernel has counted down to an end."""
    return f"{LASTING}{until.wall}.{until.boottime:.0f}_{int(family)}"


def in_set(name: str, family: Family) -> str:
    """Write the match of sources in a set."""
    return looked_up(set_name(name, family))


def looked_up(name: str) -> str:
    """Write the match of sources in an ipset."""
    return f"-m set {SET_MATCH} {name} src"


def labelled(bit: int) -> str:
    """Write the match of connections that our rules let in."""
    return f'-m connlabel --label "{bit}"'


def unlabelled(bit: int) -> str:
    """Write the match of all other connections."""
    return f'-m connlabel ! --label "{bit}"'


def labelling(bit: int) -> str:
    """Write what labels a connection, as the last of the matches; it fails where a connection can have no labels."""
    return f"{labelled(bit)} --set"


def path_rule(path: GuestPath) -> Rule:
    """Make the rule that lets guests of libvirt's take a path through a chain of others."""
    state = " -m conntrack --ctstate RELATED,ESTABLISHED" if path.answers else ""
    return Rule(f"-i {path.came_in} -o {path.goes_out}{state}", "ACCEPT", COMMENT)


# From what a table holds of ours to what is desired there: the fewest edits. Pure.
#
# Rules that stay are not touched, so their counters go on.

_OWN_COMMENT = re.compile(r"[A-Za-z0-9_.]* [0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Edit:
    """Changes of one chain: first the rules at the positions `delete` go, then each of `insert` goes to its position.

    Positions count from 0; those to delete are where the rules are before the edit, those to insert where they will be.
    """

    chain: str
    delete: tuple[int, ...] = ()
    insert: tuple[tuple[int, Rule], ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """The changes of one table, and what they say of the time before them.

    `create` and `drop` are chains of ours; one that rules of others lead to is emptied, and stays. `placed` are the
    comments of rules that were missing; `broken` are chains of ours with something wrong that concerns everything
    relying on them.
    """

    create: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()
    drop: tuple[str, ...] = ()
    placed: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.create or self.edits or self.drop)


def difference(desired: Table, observed: ObservedTable, framework: Collection[str] = ()) -> Change:
    """Say what makes `observed` become `desired`; `framework` are comments of rules for all of a chain."""
    heads = [_head_edit(chain, desired.heads.get(chain), head) for chain, head in observed.heads.items()]
    chains = [_chain_edit(chain, rules, observed.chains.get(chain, ())) for chain, rules in desired.chains.items()]
    gone = [name for name in observed.chains if name not in desired.chains]
    emptied = [_chain_edit(name, (), observed.chains[name]) for name in gone if name in observed.held]
    return Change(
        tuple(name for name in desired.chains if name not in observed.chains),
        tuple(edit for edit in [*chains, *emptied, *heads] if edit.delete or edit.insert),
        tuple(name for name in gone if name not in observed.held),
        frozenset(rule.comment for edit in chains for _, rule in edit.insert),
        _unlinked(desired, observed) | _bent(chains, observed, framework),
    )


def _head_edit(chain: str, wanted: Rule | None, head: Head) -> Edit:
    if wanted is None:
        return Edit(chain, head.positions)
    return Edit(chain) if head.holds else Edit(chain, head.positions, ((head.place, wanted),))


def _chain_edit(chain: str, wanted: Sequence[Rule], observed: Sequence[str]) -> Edit:
    """Keep what is there and in order; a chain whose order is wrong is written anew."""
    order = {rule.comment: number for number, rule in enumerate(wanted)}
    kept = {comment: position for position, comment in reversed([*enumerate(observed)]) if comment in order}
    numbers = [order[comment] for comment, _ in sorted(kept.items(), key=lambda item: item[1])]
    if numbers != sorted(numbers):
        kept = {}
    staying = set(kept.values())
    gone = tuple(position for position in range(len(observed)) if position not in staying)
    return Edit(chain, gone, tuple((number, rule) for number, rule in enumerate(wanted) if rule.comment not in kept))


def _unlinked(desired: Table, observed: ObservedTable) -> frozenset[str]:
    """Name the chains of ours to which nothing led, or something wrong."""
    heads = ((rule.target, observed.heads.get(chain)) for chain, rule in desired.heads.items())
    return frozenset(chain for chain, head in heads if head is not None and not head.good)


def _bent(edits: Iterable[Edit], observed: ObservedTable, framework: Collection[str]) -> frozenset[str]:
    """Name the chains that did not do what they are for: one rule of all that was missing is enough."""
    return frozenset(
        edit.chain
        for edit in edits
        if _is_strange(edit, observed.chains.get(edit.chain, ()))
        or any(rule.comment in framework for _, rule in edit.insert)
    )


def _is_strange(edit: Edit, observed: Sequence[str]) -> bool:
    """Whether rules that we never wrote were among ours, or ours were out of order."""
    gone = {observed[position] for position in edit.delete}
    unknown = not all(map(is_written, gone))
    return unknown or not gone.isdisjoint(rule.comment for _, rule in edit.insert)


# Our rules as text for people, in the form `iptables-legacy-restore --noflush` takes.


def restore_text(family: Family, tables: Mapping[TableName, Table]) -> str:
    """Write the tables of one family."""
    lines = [f"# {family.iptables}-legacy-restore --noflush"]
    for name, table in tables.items():
        lines += [f"*{name}", *_lines(table), "COMMIT"]
    return "".join(f"{line}\n" for line in lines)


def change_text(family: Family, table: TableName, change: Change) -> str:
    """Write the edits of one table; positions count from 1, each rule's as it is when its line's turn comes."""
    program = f"{family.iptables}-legacy-restore"
    lines = [f"# {program} --noflush", f"*{table}", *(f":{chain} - [0:0]" for chain in change.create)]
    for edit in change.edits:
        lines += [f"-D {edit.chain} {position + 1}" for position in sorted(edit.delete, reverse=True)]
        lines += [f"-I {edit.chain} {position + 1} {rule}" for position, rule in edit.insert]
    for chain in change.drop:
        lines += [f"-F {chain}", f"-X {chain}"]
    return "".join(f"{line}\n" for line in [*lines, "COMMIT"])


def _lines(table: Table) -> Iterator[str]:
    yield from (f":{chain} - [0:0]" for chain in table.chains)
    yield from (f"-I {chain} 1 {rule}" for chain, rule in table.heads.items())
    for chain, rules in table.chains.items():
        yield from (f"-A {chain} {rule}" for rule in rules)


# What the daemon and a helper say to each other: one JSON object a line, in both directions.
#
# A request is `{"do": …}`; the answer is `{"ok": …}` or `{"error": …, "final": …, "unusable": …}`
# (`fwdaemon.legacy.library`). Here our nouns become JSON and back; both sides are this program, so nothing is checked.

# Which matches and targets work, as a list of sentences about those that do not.
SELF_TEST = "self-test"
# Which of some rules could be made, as what hinders each, or nothing.
TRY = "try"
# Take the lock, and read; jumps to chains of `behind` may stay ahead of our rules.
OBSERVE = "observe"
# Change one table.
COMMIT = "commit"
# Take the lock, and return what has to change for rules of guests' paths to be where they belong.
PATHS = "paths"
# Give the lock back.
RELEASE = "release"

Heads = Mapping[TableName, Mapping[str, Rule]]


def pack_rule(rule: Rule) -> list[str]:
    """Write a rule."""
    return [rule.matches, rule.target, rule.comment]


def unpack_rule(packed: list[str]) -> Rule:
    """Read a rule."""
    return Rule(*packed)


def pack_heads(heads: Heads) -> dict[str, Any]:
    """Write which rules are looked for, by table and chain."""
    return {table.value: {chain: pack_rule(rule) for chain, rule in rules.items()} for table, rules in heads.items()}


def unpack_heads(packed: Mapping[str, Any]) -> Heads:
    """Read them."""
    return {
        TableName(table): {chain: unpack_rule(rule) for chain, rule in rules.items()} for table, rules in packed.items()
    }


def pack_observed(observed: ObservedTable) -> dict[str, Any]:
    """Write what a table holds."""
    heads = {chain: asdict(head) for chain, head in observed.heads.items()}
    return {"chains": dict(observed.chains), "heads": heads, "held": sorted(observed.held)}


def unpack_observed(packed: Mapping[str, Any]) -> ObservedTable:
    """Read it."""
    return ObservedTable(
        {chain: tuple(comments) for chain, comments in packed["chains"].items()},
        {chain: Head(**{**head, "positions": tuple(head["positions"])}) for chain, head in packed["heads"].items()},
        frozenset(packed["held"]),
    )


def pack_change(change: Change) -> dict[str, Any]:
    """Write what is to be done to a table."""
    return {
        "create": change.create,
        "edits": [
            [edit.chain, edit.delete, [[position, pack_rule(rule)] for position, rule in edit.insert]]
            for edit in change.edits
        ],
        "drop": change.drop,
    }


def unpack_change(packed: Mapping[str, Any]) -> Change:
    """Read it."""
    return Change(
        tuple(packed["create"]),
        tuple(
            Edit(chain, tuple(delete), tuple((position, unpack_rule(rule)) for position, rule in insert))
            for chain, delete, insert in packed["edits"]
        ),
        tuple(packed["drop"]),
    )
