"""From what a table holds of ours to what it shall hold: the fewest edits. Pure.

Rules that stay are not touched, so their counters go on.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from fwdaemon.legacy.model import Head, ObservedTable, Rule, Table

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

    `create` and `drop` are chains of ours. `placed` are the comments of rules that were missing; `broken` are chains of
    ours with something wrong that concerns everything relying on them.
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
    """Tell what makes `observed` become `desired`; `framework` are comments of rules for all of a chain."""
    heads = [_head_edit(chain, desired.heads.get(chain), head) for chain, head in observed.heads.items()]
    chains = [_chain_edit(chain, rules, observed.chains.get(chain, ())) for chain, rules in desired.chains.items()]
    return Change(
        tuple(name for name in desired.chains if name not in observed.chains),
        tuple(edit for edit in [*chains, *heads] if edit.delete or edit.insert),
        tuple(name for name in observed.chains if name not in desired.chains),
        frozenset(rule.comment for edit in chains for _, rule in edit.insert),
        _unlinked(desired, observed) | _bent(chains, observed, framework),
    )


def _head_edit(chain: str, wanted: Rule | None, head: Head) -> Edit:
    if wanted is None:
        return Edit(chain, head.positions)
    return Edit(chain) if head.holds else Edit(chain, head.positions, ((0, wanted),))


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
    unknown = any(_OWN_COMMENT.fullmatch(comment) is None for comment in gone)
    return unknown or not gone.isdisjoint(rule.comment for _, rule in edit.insert)
