"""The backend itself: look, compare, commit."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain

from fwdaemon.config.model import Gate
from fwdaemon.desired import Desired, Opening
from fwdaemon.errors import ProcessError
from fwdaemon.flows import Flow
from fwdaemon.model import Family
from fwdaemon.nftables.difference import creation, refusal_script
from fwdaemon.nftables.gates import GateState, gate_script, is_iptables_gate
from fwdaemon.nftables.generation import current_generation
from fwdaemon.nftables.look import Observer, iptables_program
from fwdaemon.nftables.model import Table
from fwdaemon.nftables.observed import Observed, Wanted
from fwdaemon.nftables.plan import Plan, WithPlaces, stale
from fwdaemon.nftables.rulebook import Rulebook
from fwdaemon.nftables.ruleset import tables
from fwdaemon.outcome import GateChange, Outcome
from fwdaemon.process import Runner

_log = logging.getLogger(__name__)

# Between our look and our commit somebody else may commit. The last try does not build on what was seen.
_TRIES = 3
_LIBVIRT_MISSING = (
    "libvirt's own firewall rules are gone, so its guests may not reach the outside;"
    " restart libvirtd or virtnetworkd to have them written again"
)


class NftablesBackend:
    """Holds our rules in nftables; see `fwdaemon.netfilter.Backend`.

    With `gates_only` the rules themselves live elsewhere, and only the gates in foreign chains are kept here.
    """

    def __init__(self, runner: Runner, *, gates_only: bool = False) -> None:
        self._runner = runner
        self._gates_only = gates_only
        self._observer = Observer(runner)
        self._rulebook = Rulebook()
        self._wanted: Wanted | None = None
        self._observed: Observed | None = None
        self._committed: Mapping[Family, Table] = {}
        self._opened: set[tuple[Gate, int]] = set()
        self._seen_libvirt = False
        self._settled: tuple[Desired, Observed, tuple[str, ...]] | None = None

    def apply(self, desired: Desired, *, thorough: bool) -> Outcome:
        """See `Backend.apply`."""
        for _ in range(_TRIES - 1):
            try:
                return self._reconcile(desired, self._look(desired, thorough=thorough))
            except ProcessError as error:
                _log.debug("looking again after: %s", error)
                # Also for gates that are not wanted any more: nothing of what was seen has been done.
                self._observed = self._wanted = None
        return self._reconcile(desired, self._strange(desired))

    def render(self, desired: Desired) -> str:
        """See `Backend.render`."""
        return "\n\n".join(creation(table) for table in tables(desired).values())

    def preview(self, desired: Desired) -> Outcome:
        """See `Backend.preview`."""
        # A running daemon keeps the table of a family, empty as it may be: that is nothing to tell.
        there = self._look(desired, thorough=True).tables
        desired = replace(desired, kept=frozenset(there) if not self._gates_only else frozenset())
        observed = self._look(desired, thorough=True)
        rulebook = Rulebook()
        plan = Plan.of(self._tables(rulebook, desired), observed)
        gates = tuple(GateChange(state.gate, restored=False, fault=state.fault) for state in plan.shut)
        opened = [gate_script(state, desired.mark) for state in plan.shut]
        script = "".join([plan.script, *opened, *(gate_script(state, None) for state in plan.strays)])
        return Outcome(
            _served(rulebook, plan.mended),
            stale=stale(plan.tables, observed.tables),
            gates=gates,
            faults=observed.faults,
            script=script,
            changed=not plan.empty,
        )

    def refuse(self, flows: Collection[Flow]) -> None:
        """See `Backend.refuse`."""
        # A family whose table is not there any more has no openings, and nobody left to refuse.
        script = refusal_script(flow for flow in flows if flow.family in self._committed)
        if script:
            self._runner.run("nft", "-f", "-", stdin=script)
            if self._observed is not None:
                self._advance(self._observed, listed=self._observed.listed)

    def remove(self) -> Outcome:
        """See `Backend.remove`."""
        self._wanted = None
        return self.apply(Desired(), thorough=True)

    def _look(self, desired: Desired, *, thorough: bool) -> Observed:
        """Give what the kernel holds; without a listing where nobody can have changed it since we knew."""
        wanted = Wanted(desired.families, desired.gates, desired.mark)
        generation = current_generation()
        known = self._observed
        if known and known.generation == generation and wanted == self._wanted and (known.listed or not thorough):
            return known
        observed = self._observer.look(generation, wanted, self._committed, everywhere=wanted != self._wanted)
        # Without the search, the next look is everywhere again.
        self._observed, self._wanted = observed, wanted if observed.searched else None
        return observed

    def _strange(self, desired: Desired) -> Observed:
        """Look once more, and take our tables for others of the same name, which are replaced whole."""
        observed = self._look(desired, thorough=True)
        families = self._tables(self._rulebook, desired).keys() | observed.tables.keys()
        return replace(observed, tables={family: Table(family, {}, {}) for family in families})

    def _reconcile(self, desired: Desired, observed: Observed) -> Outcome:
        if self._settled is not None and desired is self._settled[0] and observed is self._settled[1]:
            return Outcome(faults=self._settled[2])
        plan = Plan.of(self._tables(self._rulebook, desired), observed)
        faults = [*observed.faults, *self._missing_libvirt(observed)]
        refused: Mapping[Gate, str] = {}
        committed = self._committed
        if plan.empty:
            self._settled = (desired, observed, tuple(faults))
        else:
            refused = self._commit(plan, desired.mark)
        self._remember(plan, observed, refused)
        # What was done is told after the commit: where it was much, that takes time.
        gates = self._moved(plan, observed, refused, desired.mark)
        return Outcome(
            _served(self._rulebook, plan.mended),
            _served(self._rulebook, plan.damaged(committed, observed)),
            stale(plan.tables, observed.tables),
            gates,
            (*faults, *refused.values()),
            plan.script,
            changed=bool(plan.script or gates or any(state.gate not in refused for state in plan.strays)),
        )

    def _moved(self, plan: Plan, observed: Observed, refused: Collection[Gate], mark: int) -> tuple[GateChange, ...]:
        """Tell which gates were opened, and which of them we had opened before and not closed ourselves."""
        opened = [state for state in plan.shut if state.gate not in refused]
        told = tuple(GateChange(state.gate, (state.gate, mark) in self._opened, state.fault) for state in opened)
        closed = {state.gate for state in plan.strays}
        self._opened = {(gate, other) for gate, other in self._opened if other == mark and gate not in closed}
        self._opened |= {(state.gate, mark) for state in observed.gates if state.gate not in refused}
        return told

    def _tables(self, rulebook: Rulebook, desired: Desired) -> dict[Family, Table]:
        return {} if self._gates_only else rulebook.tables(desired)

    def _missing_libvirt(self, observed: Observed) -> list[str]:
        """Tell when libvirt's rules were wiped: libvirt itself does not notice. Without openings nobody looks there."""
        self._seen_libvirt = self._seen_libvirt or observed.libvirt
        missing = self._committed and self._seen_libvirt and not observed.libvirt
        return [_LIBVIRT_MISSING] if missing else []

    def _commit(self, plan: Plan, mark: int) -> dict[Gate, str]:
        """Commit, and tell which gates could not be moved: one that cannot is no reason to leave the rest undone."""
        # A gate that opens early lets nothing through that is not marked; one that opens late refuses what is.
        faults = {state.gate: self._move(state, mark) for state in plan.shut}
        if plan.script:
            self._runner.run("nft", "-f", "-", stdin=plan.script)
        faults |= {state.gate: self._move(state, None) for state in plan.strays}
        return {gate: fault for gate, fault in faults.items() if fault}

    def _move(self, state: GateState, mark: int | None) -> str:
        """Make or move a gate, or without a `mark` close it; gives what is wrong where that is refused."""
        try:
            self._change(state, mark)
        except ProcessError as error:
            return f"the gate in {state.gate} could not be changed: {error}{_hint(state.gate, error)}"
        return ""

    def _change(self, state: GateState, mark: int | None) -> None:
        script = gate_script(state, mark)
        if is_iptables_gate(state.gate):
            self._runner.run(iptables_program(state.gate, "-restore"), "--noflush", "--wait", stdin=script)
        else:
            self._runner.run("nft", "-f", "-", stdin=script)

    def _remember(self, plan: Plan, observed: Observed, refused: Collection[Gate]) -> None:
        """Know what is there after a commit of tables alone; gates want a fresh look."""
        self._committed = plan.tables
        if plan.shut or plan.strays:
            self._observed = None
            if any(state.gate in refused for state in plan.strays):
                # The next look is to find it again.
                self._wanted = None
        elif plan.script:
            self._advance(replace(observed, tables=plan.tables), listed=False)

    def _advance(self, observed: Observed, *, listed: bool) -> None:
        """Go on to the generation that our own commit made, if nobody else committed at the same time."""
        generation = (observed.generation + 1) & 0xFFFFFFFF
        alone = current_generation() == generation
        self._observed = replace(observed, generation=generation, listed=listed) if alone else None


def _hint(gate: Gate, error: ProcessError) -> str:
    owned = not is_iptables_gate(gate) and "Operation not permitted" in str(error)
    return (
        "; a running program may own that table alone, as firewalld does unless NftablesTableOwner=no" if owned else ""
    )


def _served(rulebook: Rulebook, found: WithPlaces) -> frozenset[Opening]:
    """Name the openings that are in these places."""
    return frozenset(chain.from_iterable(rulebook.openings(family, places) for family, places in found.items()))
