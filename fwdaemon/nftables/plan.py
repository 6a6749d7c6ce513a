"""What one reconcile commits: the differences of our tables, and the gates that are to be opened or closed. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from fwdaemon.model import Family
from fwdaemon.nftables.difference import Difference, mended, tables_difference
from fwdaemon.nftables.gates import GateState
from fwdaemon.nftables.model import Table
from fwdaemon.nftables.observed import Observed

Chains = Mapping[Family, frozenset[str]]
"""Names of chains in our table of each family."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One commit, which is `script` for `nft -f`, and the gates to be opened (`shut`) or closed (`strays`).

    Each gate is changed by itself: it stands in a table of others, who may refuse it. `tables` are what our tables will
    be, `mended` their chains that do not do their work before it.
    """

    tables: dict[Family, Table]
    script: str
    shut: tuple[GateState, ...]
    strays: tuple[GateState, ...]
    mended: Chains

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

    def damaged(self, committed: Mapping[Family, Table], observed: Observed) -> Chains:
        """Name those of `mended` that differ from what was committed last."""
        return {
            family: chains & mended(committed.get(family), observed.tables.get(family))
            for family, chains in self.mended.items()
        }


def stale(wanted: Mapping[Family, Table], observed: Mapping[Family, Table]) -> frozenset[str]:
    """Name the chains of openings nobody asks for."""
    return frozenset(
        f"{table.name} {chain}"
        for family, table in observed.items()
        for chain in table.chains.keys() - (wanted[family].chains.keys() if family in wanted else set())
        if "." in chain
    )


def _mended(changes: Mapping[Family, Difference]) -> Chains:
    return {family: change.mended for family, change in changes.items() if change.mended}
