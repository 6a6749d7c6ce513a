"""The backend itself: look, compare, commit."""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import chain
from typing import Final

from fwdaemon.core.admission import Need
from fwdaemon.core.exposures import Exposure
from fwdaemon.core.report import (
    LIBVIRT_CHAIN,
    LIBVIRT_TABLE,
    ApplyResult,
    Fault,
    FaultKind,
    GateChange,
    RulesChanged,
    joined,
)
from fwdaemon.core.state import REFUSED_FOR_S, RENEWED_AFTER_S, Counted, Desired, Dropped
from fwdaemon.core.text import is_interface_name
from fwdaemon.core.types import Family, Gate, Presence, Stamp
from fwdaemon.errors import HangingError, ProcessError
from fwdaemon.kernel.external_sets import Externals, now
from fwdaemon.kernel.process import Runner
from fwdaemon.kernel.rtnetlink import interface_names
from fwdaemon.nftables.difference import Observed, Plan, altered, creation, stale, tables_difference
from fwdaemon.nftables.dispatch_chains import EVERYWHERE, STRANGERS
from fwdaemon.nftables.existing import Observer, comments, elements_of, existing_tables, has_rules
from fwdaemon.nftables.external import ExternalKeeper
from fwdaemon.nftables.gates import Wanted, gate_script
from fwdaemon.nftables.generation import Commits, RulesMonitor, current_generation, following_generation, lacking
from fwdaemon.nftables.model import TABLE_NAME, Table, table_name
from fwdaemon.nftables.ruleset import labels_of, newcomers_from, refusal_script, renamings_of, tables, uplinks_of
from fwdaemon.nftables.table_cache import (
    TableCache,
    counting_rules,
    dropping_rules,
    read_dropped,
    read_packets,
)
from fwdaemon.resolve.flows import Ended, Flow

_log = logging.getLogger(__name__)

# Between our look and our commit another program may commit. The last try does not build on what was seen.
_TRIES = 3
# Each pass lists what is refused, too. These take about 30 ms.
_REFUSED_ALONE, _MOST_REFUSED = 256, 2048


class NftablesBackend:
    """Holds our rules in nftables, or gates alone while the rules are elsewhere; see `fwdaemon.netfilter.Backend`."""

    name: Final = "nftables"
    title: Final = "nftables"
    variant: Final = "nf_tables"
    forgets: Final = False
    unusable: Final[Mapping[Family, Fault]] = {}

    def __init__(
        self,
        runner: Runner,
        commits: Commits | None = None,
        clock: Callable[[], float] = time.monotonic,
        externals: Externals | None = None,
    ) -> None:
        """Take `commits` where a monitor is to know which are ours; `clock` is a monotonic one."""
        self._clock = clock
        self._externals = externals or Externals()
        self._keeper = ExternalKeeper(self._externals, elements_of)
        self._runner = runner
        self._commits = commits or Commits(runner)
        self._observer = Observer(runner, self._commits.judged)
        self._counted, self._refusing = Counted(counting_rules), Counted(dropping_rules)
        self._gates_only = False
        self._forget()

    def _forget(self) -> None:
        """Forget an earlier stay: what is remembered of it would be reported as damage."""
        self._table_cache = TableCache()
        self._wanted: Wanted | None = None
        self._observed: Observed | None = None
        self._committed: Mapping[Family, Table] = {}
        self._listed: tuple[int, dict[Family, Table]] | None = None
        self._opened: dict[Gate, tuple[int, tuple[str, ...]]] = {}
        self._seen_libvirt = False
        self._settled: tuple[Desired, Observed, tuple[Fault, ...]] | None = None
        self._put_back = ApplyResult()
        self._ended = Ended(_REFUSED_ALONE, _MOST_REFUSED)
        self._refused = 0, 0.0

    def apply(self, desired: Desired, *, full: bool) -> ApplyResult:
        """See `Backend.apply`."""
        self._stay(gates_only=False)
        return self._apply(desired, full=full)

    def apply_gates(self, desired: Desired, *, full: bool) -> ApplyResult:
        """See `Backend.apply_gates`; this takes tables of ours away too, where they are left."""
        self._stay(gates_only=True)
        result = self._apply(desired, full=full)
        left = replace(ApplyResult(), labels=result.labels, renamings=result.renamings)
        return replace(left, gates=result.gates, faults=result.faults, changed=result.changed)

    def leave(self) -> ApplyResult:
        """See `Backend.leave`: that is done each time gates are kept."""
        return ApplyResult()

    def monitor(self, changed: RulesChanged) -> RulesMonitor:
        """See `Backend.monitor`."""
        return RulesMonitor(self._commits, changed, self._externals)

    def stamp(self) -> Stamp:
        """See `Backend.stamp`."""
        return Stamp(current_generation(), certain=True)

    def libvirt(self, family: Family = Family.IPV4) -> Presence:
        """See `Backend.libvirt`; it leaves its table behind when it moves, but empty."""
        there, word = existing_tables(), family.word
        if (word, LIBVIRT_TABLE) in there and has_rules(word, LIBVIRT_TABLE, "guest_input"):
            return Presence.TABLE
        chains = (word, "filter") in there and has_rules(word, "filter", LIBVIRT_CHAIN)
        return Presence.CHAINS if chains else Presence.NOTHING

    def held(self) -> frozenset[Family]:
        """See `Backend.held`."""
        there = existing_tables()
        return frozenset(family for family in Family if (family.word, TABLE_NAME) in there)

    def confined(self) -> frozenset[Family]:
        """See `Backend.confined`."""
        return frozenset(family for family in self.held() if has_rules(family.word, TABLE_NAME, STRANGERS))

    def switched(self) -> frozenset[tuple[Family, str]]:
        """See `Backend.switched`."""
        found = {family: comments(family.word, TABLE_NAME, "forward") for family in self.held()}
        names = filter(is_interface_name, interface_names() if found else ())
        ways = {name: newcomers_from(name).comment for name in names}
        return frozenset(
            (family, name) for family, known in found.items() for name, comment in ways.items() if comment in known
        )

    def counters(self, desired: Desired) -> Mapping[Exposure, int]:
        """See `Backend.counters`."""
        packets = (read_packets(family, self._listing(family)) for family in sorted(desired.families))
        return self._counted.of(desired, chain.from_iterable(packets))

    def dropped(self, desired: Desired) -> Dropped:
        """See `Backend.dropped`."""
        if desired.gatekeeper() is None:
            return Dropped()
        return read_dropped({family: self._listing(family) for family in desired.families}, self._refusing, desired)

    def lacks(self, needs: Collection[Need]) -> Mapping[Need, Fault]:
        """See `Backend.lacks`."""
        return lacking(self._runner, needs)

    def close(self) -> None:
        """See `Backend.close`: nothing of this one runs beside us."""

    def _listing(self, family: Family) -> str:
        try:
            return self._runner.run("nft", "list", "table", *table_name(family).split()).stdout
        except ProcessError:
            return ""

    def _stay(self, *, gates_only: bool) -> None:
        """Begin afresh where the rules came from elsewhere, or went there."""
        if gates_only != self._gates_only:
            self._gates_only = gates_only
            self._forget()

    def _apply(self, desired: Desired, *, full: bool) -> ApplyResult:
        self._keeper.expect(desired)
        # Before anything else is read: what others have may take long, or hang.
        self._put_back = joined(self._put_back, self._make_what_is_gone(desired))
        self._put_back = joined(self._put_back, self._mend_what_is_altered(desired))
        result = joined(self._put_back, self._reconciled(desired, full=full))
        self._put_back = ApplyResult()
        return result

    def render(self, desired: Desired) -> str:
        """See `Backend.render`."""
        return "\n\n".join(creation(table, now()) for table in tables(desired).values())

    def preview(self, desired: Desired) -> ApplyResult:
        """See `Backend.preview`."""
        self._stay(gates_only=False)
        return self._preview(desired)

    def preview_gates(self, desired: Desired) -> ApplyResult:
        """See `Backend.preview_gates`."""
        self._stay(gates_only=True)
        return self._preview(desired)

    def _preview(self, desired: Desired) -> ApplyResult:
        # A running daemon keeps the table of a family, empty as it may be: that is nothing to report.
        there = self._observe(desired, full=True).tables
        desired = replace(desired, kept=frozenset(there) if not self._gates_only else frozenset())
        observed = self._observe(desired, full=True)
        table_cache = TableCache()
        plan = self._plan(self._tables(table_cache, desired), observed)
        gates = tuple(GateChange(state.gate, restored=False, fault=state.fault) for state in plan.shut)
        opened = [gate_script(state, desired.label) for state in plan.shut]
        script = "".join([plan.script, *opened, *(gate_script(state, None) for state in plan.orphaned_gates)])
        return ApplyResult(
            table_cache.served(plan.mended),
            stale=stale(plan.tables, observed.tables),
            gates=gates,
            faults=observed.faults,
            script=script,
            changed=not plan.empty,
        )

    def _plan(self, wanted: dict[Family, Table], observed: Observed) -> Plan:
        return Plan.of(wanted, observed, self._keeper.refilling, now(), crowded=self._keeper.crowded)

    def refuse(self, flows: Collection[Flow]) -> None:
        """See `Backend.refuse`."""
        # A family whose table is not there any more has no exposures, and no one left to refuse.
        flows = [flow for flow in flows if flow.family in self._committed]
        if flows:
            self._ended.forget(now := self._clock())
            more, (generation, written_at) = self._ended.add(flows, now + REFUSED_FOR_S), self._refused
            if not more and now < written_at + RENEWED_AFTER_S and generation == current_generation():
                return
            held = {flow: left for flow, left in self._ended.left(now).items() if flow.family in self._committed}
            script = refusal_script(held, self._committed, crowded=self._keeper.crowded)
            self._refused = following_generation(current_generation()), now
            self._commits.commit("nft", "-f", "-", stdin=script)
            if self._observed is not None:
                self._advance(self._observed, listed=self._observed.listed)

    def remove(self) -> ApplyResult:
        """See `Backend.remove`."""
        self._wanted = None
        return self.apply(Desired(), full=True)

    def _make_what_is_gone(self, desired: Desired) -> ApplyResult:
        """Make tables of ours again that are gone."""
        if not self._committed or (self._observed and self._observed.generation == current_generation()):
            return ApplyResult()
        there = existing_tables()
        made = {
            family: table
            for family, table in self._tables(self._table_cache, desired).items()
            if family in self._committed and (family.word, TABLE_NAME) not in there
        }
        quick, elements = self._keeper.quickly(made)
        changes = tables_difference(quick, {}, now()).values()
        script = "".join(f"{line}\n" for change in changes for line in change.script) + elements
        if not script or not self._commits.try_commit(script):
            return ApplyResult()
        self._committed = {**self._committed, **made}
        served = self._table_cache.served(dict.fromkeys(made, EVERYWHERE))
        return ApplyResult(served, served, script=script, changed=True)

    def _mend_what_is_altered(self, desired: Desired) -> ApplyResult:
        """Mend those that are there. Where nothing is wrong, what was listed is not listed again."""
        generation, known = current_generation(), self._observed
        if not self._committed or (known and self._commits.same_since(known.generation, generation)):
            return ApplyResult()
        there, wanted = self._observer.tables(self._committed), self._tables(self._table_cache, desired)
        self._listed = generation, there
        ours = there.keys() & wanted.keys() & self._committed.keys()
        observed = Observed(generation, {family: there[family] for family in ours}, (), (), ())
        self._keeper.read(observed.tables)
        plan = self._plan({family: wanted[family] for family in ours}, observed)
        # What is new may need another gate, and waits for that.
        is_new = Wanted.of(desired) != self._wanted and not tables_difference(self._committed, observed.tables)
        if not plan.script or is_new or not self._commits.try_commit(plan.script):
            return ApplyResult()
        self._keeper.done()
        self._listed = None
        damaged = self._table_cache.served(plan.damaged(self._committed, observed))
        self._committed = {**self._committed, **plan.tables}
        gone = stale(plan.tables, observed.tables)
        return ApplyResult(self._table_cache.served(plan.mended), damaged, gone, script=plan.script, changed=True)

    def _reconciled(self, desired: Desired, *, full: bool) -> ApplyResult:
        for _ in range(_TRIES - 1):
            try:
                return self._reconcile(desired, self._observe(desired, full=full))
            except HangingError:
                raise
            except ProcessError as error:
                _log.debug("looking again after: %s", error)
                # Also for gates that are not wanted any more: nothing of what was seen has been done.
                self._observed = self._wanted = None
        self._keeper.give_up()
        return self._reconcile(desired, self._strange(desired))

    def _observe(self, desired: Desired, *, full: bool) -> Observed:
        """Give what the kernel holds; without a listing where nothing can have changed it since we knew.

        What could not be read is asked for again in each full pass.
        """
        wanted = Wanted.of(desired)
        generation = current_generation()
        known = self._observed
        if known is not None and self._commits.same_since(known.generation, generation):
            known = self._observed = replace(known, generation=generation)
        enough = known is not None and (not full or (known.listed and not known.faults))
        if known and enough and known.generation == generation and wanted == self._wanted:
            return known
        listed, self._listed = self._listed, None
        tables = listed[1] if listed and listed[0] == generation else self._observer.tables(self._committed)
        observed = self._observer.observe(generation, wanted, tables, everywhere=wanted != self._wanted)
        # Without the search, the next pass is everywhere again.
        self._observed, self._wanted = observed, wanted if observed.searched else None
        return observed

    def _strange(self, desired: Desired) -> Observed:
        """Look once more, and take our tables for others of the same name, which are replaced whole."""
        observed = self._observe(desired, full=True)
        families = self._tables(self._table_cache, desired).keys() | observed.tables.keys()
        return replace(observed, tables={family: Table(family, {}, {}) for family in families})

    def _reconcile(self, desired: Desired, observed: Observed) -> ApplyResult:
        if self._settled is not None and desired is self._settled[0] and observed is self._settled[1]:
            return ApplyResult(faults=self._settled[2])
        self._keeper.read(observed.tables)
        plan = self._plan(self._tables(self._table_cache, desired), observed)
        faults = [*observed.faults, *self._missing_libvirt(observed)]
        refused: Mapping[Gate, Fault] = {}
        committed = self._committed
        if plan.empty:
            if observed is self._observed:  # what was read of an earlier run is equal, and would be kept beside it
                self._observed = observed = replace(observed, tables=plan.tables)
            self._settled = (desired, observed, tuple(faults))
        else:
            refused = self._commit(plan, desired.label)
            self._keeper.done()
        self._remember(plan, observed, refused)
        # What was done is reported after the commit: where it was much, that takes time.
        gates = self._moved(plan, observed, refused, desired.label)
        result = ApplyResult(
            self._table_cache.served(plan.mended),
            self._table_cache.served(plan.damaged(committed, observed)),
            stale(plan.tables, observed.tables),
            gates,
            (*faults, *refused.values()),
            plan.script,
            changed=bool(plan.script or gates or any(state.gate not in refused for state in plan.orphaned_gates)),
        )
        return result if committed else self._beginning(result, plan, observed)

    def _beginning(self, result: ApplyResult, plan: Plan, observed: Observed) -> ApplyResult:
        """Say also how what an earlier run left differs."""
        others = self._table_cache.served(altered(plan.tables, observed.tables) if plan.script else {})
        labels = frozenset(chain.from_iterable(map(labels_of, observed.tables.values())))
        uplinks = frozenset(chain.from_iterable(map(uplinks_of, observed.tables.values())))
        renamings = frozenset(chain.from_iterable(map(renamings_of, observed.tables.values())))
        return replace(result, altered=others, labels=labels, uplinks=uplinks, renamings=renamings)

    def _moved(self, plan: Plan, observed: Observed, refused: Collection[Gate], bit: int) -> tuple[GateChange, ...]:
        """Say which gates were opened, and which of them we had opened before and not closed ourselves."""
        before, closed = self._opened, {state.gate for state in plan.orphaned_gates}
        # That guests are to pass may be new, as the label may be.
        wanted = {state.gate: (bit, state.paths.wanted) for state in observed.gates if state.gate not in refused}
        opened = (state for state in plan.shut if state.gate not in refused)
        self._opened = {gate: held for gate, held in before.items() if held[0] == bit and gate not in closed} | wanted
        return tuple(GateChange(item.gate, before.get(item.gate) == wanted[item.gate], item.fault) for item in opened)

    def _tables(self, table_cache: TableCache, desired: Desired) -> dict[Family, Table]:
        return {} if self._gates_only else table_cache.tables(desired)

    def _missing_libvirt(self, observed: Observed) -> list[Fault]:
        """Say when libvirt's rules were wiped, which libvirt does not notice. Without exposures, they are not read."""
        self._seen_libvirt = self._seen_libvirt or observed.libvirt
        missing = self._committed and self._seen_libvirt and not observed.libvirt
        return [Fault(FaultKind.LIBVIRT_RULES_GONE)] if missing else []

    def _commit(self, plan: Plan, bit: int) -> dict[Gate, Fault]:
        """Commit, and return which gates could not be moved: one that cannot is no reason to leave the rest undone."""
        # A gate that opens early lets nothing through that is not labelled; one that opens late refuses what is.
        faults = {state.gate: self._commits.move(state, bit) for state in plan.shut}
        if plan.script:
            self._commits.commit("nft", "-f", "-", stdin=plan.script)
        faults |= {state.gate: self._commits.move(state, None) for state in plan.orphaned_gates}
        return {gate: fault for gate, fault in faults.items() if fault}

    def _remember(self, plan: Plan, observed: Observed, refused: Collection[Gate]) -> None:
        """Know what is there after a commit of tables alone; gates want a fresh pass."""
        self._committed = plan.tables
        if plan.shut or plan.orphaned_gates:
            self._observed = None
            if any(state.gate in refused for state in plan.orphaned_gates):
                # The next pass is to find it again.
                self._wanted = None
        elif plan.script:
            self._advance(replace(observed, tables=plan.tables), listed=False)

    def _advance(self, observed: Observed, *, listed: bool) -> None:
        """Go on to the generation that our own commit made, if no other program committed at the same time."""
        generation = following_generation(observed.generation)
        alone = current_generation() == generation
        self._observed = replace(observed, generation=generation, listed=listed) if alone else None
