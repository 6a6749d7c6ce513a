"""What one reconcile commits to the tables of one family, and what that says of the time before it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from fwdaemon.config.model import Gate
from fwdaemon.desired import Desired, Forward
from fwdaemon.legacy.difference import Change, difference
from fwdaemon.legacy.model import PRE, Head, ObservedTable, Table, TableName, family_name
from fwdaemon.legacy.ruleset import EVERY_ADDRESS, forwards_of
from fwdaemon.model import Family

Tables = Mapping[TableName, Table]
Observed = Mapping[TableName, ObservedTable]


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes of one family's tables, in the order in which they are to be committed.

    `mended` are the forwards that do not work before it, `damaged` those of them whose rules differ from what was
    committed last; `stale` names what holds rules of forwards nobody asks for. `moved` are links that are not as they
    should be.
    """

    changes: tuple[tuple[TableName, Change], ...]
    mended: frozenset[Forward]
    damaged: frozenset[Forward]
    stale: frozenset[str]
    moved: tuple[tuple[Gate, Head], ...]

    @classmethod
    def of(cls, family: Family, wanted: Tables, observed: Observed, desired: Desired, committed: Tables) -> "Plan":
        """Compare what shall be with what is, and what is with what we committed last."""
        served = forwards_of(desired, family)
        changes = _differences(wanted, observed, served)
        damage = (
            _differences(committed, observed, served) if any(not change.empty for change in changes.values()) else {}
        )
        mended = _concerned(changes, served)
        return cls(
            tuple((table, changes[table]) for table in _order(wanted) if table in changes and not changes[table].empty),
            mended,
            mended & _concerned(damage, served),
            _stale(family, wanted, observed),
            tuple(_moved(family, wanted, observed)),
        )


def _order(wanted: Tables) -> tuple[TableName, ...]:
    """Open the way before anything takes it, and close it after."""
    return (TableName.FILTER, TableName.NAT) if wanted else (TableName.NAT, TableName.FILTER)


def _differences(wanted: Tables, observed: Observed, served: Mapping[str, Forward]) -> dict[TableName, Change]:
    found = {}
    for table, seen in observed.items():
        rules = wanted.get(table, Table())
        framework = {rule.comment for chain in rules.chains.values() for rule in chain} - served.keys()
        found[table] = difference(rules, seen, framework)
    return found


def _concerned(changes: Mapping[TableName, Change], served: Mapping[str, Forward]) -> frozenset[Forward]:
    """Name the forwards that did not work before the changes."""
    if any(change.broken for change in changes.values()):
        return frozenset(served.values())
    placed = frozenset().union(*(change.placed for change in changes.values()))
    return frozenset(served[comment] for comment in placed if comment in served)


def _stale(family: Family, wanted: Tables, observed: Observed) -> frozenset[str]:
    """Name the domains whose rules are there for nothing, as far as their comments tell."""
    seen = observed[TableName.NAT].chains.get(PRE, ()) if TableName.NAT in observed else ()
    asked_for = {rule.comment for rule in wanted.get(TableName.NAT, Table()).chains.get(PRE, ())}
    labels = {comment.partition(" ")[0] for comment in seen if comment not in asked_for}
    return frozenset(f"{family_name(family)} {TableName.NAT} {PRE} {label}" for label in labels - {EVERY_ADDRESS, ""})


def _moved(family: Family, wanted: Tables, observed: Observed) -> list[tuple[Gate, Head]]:
    return [
        (Gate(family_name(family), table.value, chain), observed[table].heads[chain])
        for table, rules in wanted.items()
        for chain in rules.heads
        if not observed[table].heads[chain].holds
    ]
