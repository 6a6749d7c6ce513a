"""What one reconcile commits: the differences of our tables, and the gates that are to be opened or closed. Pure."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeAlias

from fwdaemon.model import Family
from fwdaemon.nftables.difference import Difference, mended, tables_difference
from fwdaemon.nftables.gates import GateState
from fwdaemon.nftables.model import VERDICT, Table
from fwdaemon.nftables.observed import Observed
from fwdaemon.nftables.places import Places

WithPlaces: TypeAlias = Mapping[Family, Places]
"""Places in our table of each family."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One commit, which is `script` for `nft -f`, and the gates to be opened (`shut`) or closed (`strays`).

    Each gate is changed by itself: it stands in a table of others, who may refuse it. `tables` are what our tables will
    be, `mended` the places in them whose openings do not work before it.
    """

    tables: dict[Family, Table]
    script: str
    shut: tuple[GateState, ...]
    strays: tuple[GateState, ...]
    mended: WithPlaces

    @classmethod
    def of(cls, wanted: dict[Family, Table], observed: Observed) -> "Plan":
        """Compare what shall be with what is."""
        changes = tables_difference(wanted, observed.tables)
        shut = tuple(state for state in observed.gates if not state.open)
        script = "".join(f"{line}\n" for change in changes.values() for line in change.script)
        return cls(wanted, script, shut, observed.strays, _mended(changes))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.script or self.shut or self.strays)

    def damaged(self, committed: Mapping[Family, Table], observed: Observed) -> WithPlaces:
        """Name those of `mended` that differ from what was committed last."""
        return {
            family: places & mended(committed.get(family), observed.tables.get(family))
            for family, places in self.mended.items()
        }


def stale(wanted: Mapping[Family, Table], observed: Mapping[Family, Table]) -> frozenset[str]:
    """Name the places of openings nobody asks for."""
    return frozenset(
        f"{table.name} {name} {{ {key} }}"
        for family, table in observed.items()
        for name, content in table.sets.items()
        if content.type.data == VERDICT
        for key in content.elements.keys() - _keys(wanted.get(family), name)
    )


def _keys(table: Table | None, name: str) -> AbstractSet[str]:
    return table.sets[name].elements.keys() if table and name in table.sets else set()


def _mended(changes: Mapping[Family, Difference]) -> WithPlaces:
    return {family: change.mended for family, change in changes.items() if change.mended}
