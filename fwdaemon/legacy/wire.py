"""What the daemon and a helper say to each other: one JSON object a line, in both directions.

A request is `{"do": …}`; the answer is `{"ok": …}` or `{"error": …, "final": …, "unusable": …}`
(`fwdaemon.legacy.errors`). Here our nouns become JSON and back; both sides are this program, so nothing is checked.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fwdaemon.legacy.difference import Change, Edit
from fwdaemon.legacy.model import Head, ObservedTable, Rule, TableName

# Which matches and targets work, as a list of sentences about those that do not.
SELF_TEST = "self-test"
# Take the lock, and read.
OBSERVE = "observe"
# Change one table.
COMMIT = "commit"
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
    return {"chains": dict(observed.chains), "heads": {chain: asdict(head) for chain, head in observed.heads.items()}}


def unpack_observed(packed: Mapping[str, Any]) -> ObservedTable:
    """Read it."""
    return ObservedTable(
        {chain: tuple(comments) for chain, comments in packed["chains"].items()},
        {chain: Head(**{**head, "positions": tuple(head["positions"])}) for chain, head in packed["heads"].items()},
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
