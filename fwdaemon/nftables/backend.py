"""The backend itself: look, compare, commit."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

from fwdaemon.config.model import Gate
from fwdaemon.desired import Desired
from fwdaemon.errors import ProcessError
from fwdaemon.flows import Flow
from fwdaemon.model import Family
from fwdaemon.nftables.difference import creation, refusal_script
from fwdaemon.nftables.gates import GateState, iptables_script, is_iptables
from fwdaemon.nftables.generation import current_generation
from fwdaemon.nftables.look import Observer, iptables_program
from fwdaemon.nftables.model import Table
from fwdaemon.nftables.observed import Observed, Wanted
from fwdaemon.nftables.plan import Plan
from fwdaemon.nftables.ruleset import tables
from fwdaemon.outcome import GateChange, Outcome
from fwdaemon.process import Runner

_log = logging.getLogger(__name__)

# Between our look and our commit somebody else may commit. The last try does not build on what was seen.
_TRIES = 3


class NftablesBackend:
    """Holds our rules in nftables; see `fwdaemon.netfilter.Backend`."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._observer = Observer(runner)
        self._wanted: Wanted | None = None
        self._observed: Observed | None = None
        self._committed: Mapping[Family, Table] = {}
        self._opened: set[Gate] = set()
        self._settled: tuple[Desired, Observed] | None = None

    def apply(self, desired: Desired, *, thorough: bool) -> Outcome:
        """See `Backend.apply`."""
        for _ in range(_TRIES - 1):
            try:
                return self._reconcile(desired, self._look(desired, thorough=thorough))
            except ProcessError as error:
                _log.debug("looking again after: %s", error)
                self._observed = None
        return self._reconcile(desired, replace(self._look(desired, thorough=True), tables={}))

    def render(self, desired: Desired) -> str:
        """See `Backend.render`."""
        return "\n\n".join(creation(table) for table in tables(desired).values())

    def refuse(self, flows: Collection[Flow]) -> None:
        """See `Backend.refuse`."""
        script = refusal_script(flows)
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
        observed = self._observer.look(generation, wanted, everywhere=wanted != self._wanted)
        self._observed, self._wanted = observed, wanted
        return observed

    def _reconcile(self, desired: Desired, observed: Observed) -> Outcome:
        if self._settled is not None and desired is self._settled[0] and observed is self._settled[1]:
            return Outcome(faults=observed.faults)
        plan = Plan.of(desired, observed, self._committed)
        if plan.empty:
            self._settled = (desired, observed)
            self._committed = plan.tables
            self._opened.update(state.gate for state in observed.gates)
            return Outcome(faults=observed.faults)
        self._commit(plan, desired.mark)
        self._committed = plan.tables
        self._remember(plan, observed)
        gates = tuple(GateChange(state.gate, state.gate in self._opened, state.fault) for state in plan.shut)
        self._opened.update(state.gate for state in observed.gates)
        return Outcome(plan.mended, plan.damaged, plan.stale, gates, observed.faults, plan.script, changed=True)

    def _commit(self, plan: Plan, mark: int) -> None:
        # A gate that opens early lets nothing through that is not marked; one that opens late refuses what is.
        for state in filter(_through_iptables, plan.shut):
            self._restore(state, iptables_script(state, mark))
        if plan.script:
            self._runner.run("nft", "-f", "-", stdin=plan.script)
        for state in filter(_through_iptables, plan.strays):
            self._restore(state, iptables_script(state, None))

    def _restore(self, state: GateState, script: str) -> None:
        self._runner.run(iptables_program(state.gate, "-restore"), "--noflush", "--wait", stdin=script)

    def _remember(self, plan: Plan, observed: Observed) -> None:
        """Know what is there after a commit of tables alone; gates want a fresh look."""
        if plan.shut or plan.strays:
            self._observed = None
        else:
            self._advance(replace(observed, tables=plan.tables), listed=False)

    def _advance(self, observed: Observed, *, listed: bool) -> None:
        """Go on to the generation that our own commit made, if nobody else committed at the same time."""
        generation = (observed.generation + 1) & 0xFFFFFFFF
        alone = current_generation() == generation
        self._observed = replace(observed, generation=generation, listed=listed) if alone else None


def _through_iptables(state: GateState) -> bool:
    return is_iptables(state.gate)
