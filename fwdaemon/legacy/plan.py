"""What one reconcile commits to the tables of one family, and what that says of the time before it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from fwdaemon.config.model import Gate
from fwdaemon.desired import Desired, Opening
from fwdaemon.legacy.difference import Change, difference
from fwdaemon.legacy.model import FWD, PRE, Head, ObservedTable, Table, TableName, family_name
from fwdaemon.legacy.ruleset import openings_of, relying_on
from fwdaemon.legacy.translation import EVERY_ADDRESS
from fwdaemon.model import Family

Tables = Mapping[TableName, Table]
Observed = Mapping[TableName, ObservedTable]

# The chains whose rules serve one opening each, most of them.
_SERVING = ((TableName.NAT, PRE), (TableName.MANGLE, FWD))
_FRAMEWORK_LABELS = frozenset({EVERY_ADDRESS, "all", ""})


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes of one family's tables, in the order in which they are to be committed.

    `mended` are the openings that do not work before it, `damaged` those of them whose rules differ from what was
    committed last; `stale` names what holds rules of openings nobody asks for. `moved` are links that are not as they
    should be.
    """

    changes: tuple[tuple[TableName, Change], ...]
    mended: frozenset[Opening]
    damaged: frozenset[Opening]
    stale: frozenset[str]
    moved: tuple[tuple[Gate, Head], ...]

    @classmethod
    def of(cls, family: Family, wanted: Tables, observed: Observed, desired: Desired, committed: Tables) -> "Plan":
        """Compare what shall be with what is, and what is with what we committed last."""
        served = openings_of(desired, family)
        changes = _differences(wanted, observed, served)
        damage = (
            _differences(committed, observed, served) if any(not change.empty for change in changes.values()) else {}
        )
        mended = _concerned(changes, served, desired, family)
        return cls(
            tuple((table, changes[table]) for table in _order(wanted) if table in changes and not changes[table].empty),
            mended,
            mended & _concerned(damage, served, desired, family),
            _stale(family, wanted, observed),
            tuple(_moved(family, wanted, observed)),
        )


def _order(wanted: Tables) -> tuple[TableName, ...]:
    """Open the way before anything takes it, and close it after."""
    order = (TableName.FILTER, TableName.MANGLE, TableName.NAT)
    return order if wanted else order[::-1]


def _differences(wanted: Tables, observed: Observed, served: Mapping[str, Opening]) -> dict[TableName, Change]:
    found = {}
    for table, seen in observed.items():
        rules = wanted.get(table, Table())
        framework = {rule.comment for chain in rules.chains.values() for rule in chain} - served.keys()
        found[table] = difference(rules, seen, framework)
    return found


def _concerned(
    changes: Mapping[TableName, Change], served: Mapping[str, Opening], desired: Desired, family: Family
) -> frozenset[Opening]:
    """Name the openings that did not work before the changes."""
    broken = (relying_on(table, chain, desired, family) for table, change in changes.items() for chain in change.broken)
    placed = frozenset().union(*(change.placed for change in changes.values()))
    return frozenset(served[comment] for comment in placed if comment in served).union(*broken)


def _stale(family: Family, wanted: Tables, observed: Observed) -> frozenset[str]:
    """Name the owners whose rules are there for nothing, as far as their comments tell."""
    found = set()
    for table, chain in _SERVING:
        seen = observed[table].chains.get(chain, ()) if table in observed else ()
        asked_for = {rule.comment for rule in wanted.get(table, Table()).chains.get(chain, ())}
        labels = {comment.partition(" ")[0] for comment in seen if comment not in asked_for} - _FRAMEWORK_LABELS
        found |= {f"{family_name(family)} {table} {chain} {label}" for label in labels}
    return frozenset(found)


def _moved(family: Family, wanted: Tables, observed: Observed) -> list[tuple[Gate, Head]]:
    return [
        (Gate(family_name(family), table.value, chain), observed[table].heads[chain])
        for table, rules in wanted.items()
        for chain in rules.heads
        if not observed[table].heads[chain].holds
    ]
