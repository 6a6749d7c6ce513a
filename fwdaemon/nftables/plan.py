"""What one reconcile commits: the differences of our tables, and the gates that are to be opened or closed. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from fwdaemon.desired import Desired, Opening
from fwdaemon.model import Family
from fwdaemon.nftables.difference import Difference, tables_difference
from fwdaemon.nftables.gates import GateState, closing_script, is_iptables, opening_script
from fwdaemon.nftables.model import Table
from fwdaemon.nftables.observed import Observed
from fwdaemon.nftables.ruleset import chains_of


@dataclass(frozen=True, slots=True)
class Plan:
    """One commit. `script` is for `nft -f`; gates of iptables-nft in `shut` and `strays` go through that program.

    `mended` are the openings that do not work before it, `damaged` those of them whose rules differ from what was
    `committed` last; `stale` are the chains of openings nobody asks for.
    """

    tables: dict[Family, Table]
    script: str
    shut: tuple[GateState, ...]
    strays: tuple[GateState, ...]
    mended: frozenset[Opening]
    damaged: frozenset[Opening]
    stale: frozenset[str]

    @classmethod
    def of(
        cls,
        desired: Desired,
        wanted: dict[Family, Table],
        observed: Observed,
        committed: Mapping[Family, Table],
    ) -> "Plan":
        """Compare the tables that shall be with those that are, and these with what we committed last."""
        changes = tables_difference(wanted, observed.tables)
        damage = tables_difference(committed, observed.tables) if changes else {}
        mended = _served(desired, changes)
        shut = tuple(state for state in observed.gates if not state.open)
        lines = [line for change in changes.values() for line in change.script]
        lines += [line for state in shut if not is_iptables(state.gate) for line in opening_script(state, desired.mark)]
        lines += [line for state in observed.strays if not is_iptables(state.gate) for line in closing_script(state)]
        return cls(
            wanted,
            "".join(f"{line}\n" for line in lines),
            shut,
            observed.strays,
            mended,
            mended & _served(desired, damage),
            _stale(wanted, observed.tables),
        )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.script or self.shut or self.strays)


def _served(desired: Desired, changes: Mapping[Family, Difference]) -> frozenset[Opening]:
    """Name the openings whose chains a difference mends."""
    if not any(change.mended for change in changes.values()):
        return frozenset()
    served = chains_of(desired).items()
    return frozenset(
        opening
        for (family, chain), openings in served
        if family in changes and chain in changes[family].mended
        for opening in openings
    )


def _stale(wanted: Mapping[Family, Table], observed: Mapping[Family, Table]) -> frozenset[str]:
    return frozenset(
        f"{table.name} {chain}"
        for family, table in observed.items()
        for chain in table.chains.keys() - (wanted[family].chains.keys() if family in wanted else set())
        if "." in chain
    )
