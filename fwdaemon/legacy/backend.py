"""The backend itself: hold the lock, look, compare, commit; one family after the other."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from itertools import chain, product, starmap
from typing import Final

from fwdaemon.audit.lines import format_fault
from fwdaemon.core.admission import Need
from fwdaemon.core.exposures import Exposure
from fwdaemon.core.report import (
    LIBVIRT_CHAIN,
    ApplyResult,
    Fault,
    FaultKind,
    GateChange,
    RulesChanged,
    fault_of,
    joined,
    tried,
)
from fwdaemon.core.state import REFUSED_FOR_S, Counted, Desired, Dropped
from fwdaemon.core.text import is_interface_name
from fwdaemon.core.types import Family, Gate, Presence, Stamp
from fwdaemon.errors import KernelError, PortfwdError
from fwdaemon.kernel.external_sets import Externals
from fwdaemon.kernel.process import Runner, SystemRunner
from fwdaemon.kernel.rtnetlink import interface_names
from fwdaemon.legacy.admission import Drops
from fwdaemon.legacy.client import HelperClient, Lacking, LateError, UnusableError, at_limits, left_out, sample
from fwdaemon.legacy.gates import LegacyGates, LegacyMonitor
from fwdaemon.legacy.info import (
    Counter,
    TableInfo,
    chain_names,
    existing_tables,
    packets,
    source_translations,
    table_entries,
    table_info,
)
from fwdaemon.legacy.ipsets import IpSets, refilled, written
from fwdaemon.legacy.model import (
    CONFINED,
    FWD,
    OWN_CHAINS,
    POST,
    Head,
    ObservedTable,
    Table,
    TableName,
    change_text,
    confined_from,
    restore_text,
)
from fwdaemon.legacy.ruleset import Plan, Wanted, links, tables, uplinks_named
from fwdaemon.legacy.translation import counting_rules
from fwdaemon.resolve.flows import Ended, Flow

_log = logging.getLogger(__name__)

# Each of what is refused is a rule, and each commit writes the whole table. So where many connections end at one port
# of a guest, a rule for the port is enough.
_REFUSED_ALONE = 32
_MOST_REFUSED = 512

# A program that does not take the lock may commit between our look and our commit.
_TRIES = 5

_Infos = Mapping[TableName, TableInfo]
_NOTHING: Final = Wanted({}, {})


class LegacyBackend:
    """Holds our rules in iptables-legacy; see `fwdaemon.netfilter.Backend`. `clock` is a monotonic one."""

    name: Final = "iptables"
    title: Final = "iptables-legacy"
    variant: Final = "legacy"
    forgets: Final = True

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        runner: Runner | None = None,
        externals: Externals | None = None,
    ) -> None:
        self._clock = clock
        self._helpers = {family: HelperClient(family) for family in Family}
        self._sets = IpSets(runner or SystemRunner(), externals or Externals())
        self._lacking = Lacking(self._tried)
        self._gates = LegacyGates(self._helpers)
        self._counted = Counted(counting_rules)
        self._desired: Desired | None = None
        self._ended = Ended(_REFUSED_ALONE, _MOST_REFUSED)
        self._made: tuple[Desired, tuple[Flow, ...], dict[Family, Wanted]] | None = None
        self._committed: dict[Family, Mapping[TableName, Table]] = {}
        self._settled: dict[Family, _Infos] = {}
        self._clean: dict[Family, _Infos] = {}
        self._linked: set[Gate] = set()
        self._left_out: tuple[Desired, Desired, ApplyResult] | None = None
        self._unusable: dict[Family, Fault] = {}
        self._left: dict[Family, tuple[Fault, ...]] = {}
        self._drops: tuple[Desired, Drops] | None = None

    @property
    def unusable(self) -> Mapping[Family, Fault]:
        """Give the families that cannot be served, and why."""
        return dict(self._unusable)

    def apply(self, desired: Desired, *, full: bool) -> ApplyResult:
        """See `Backend.apply`."""
        return joined(self._apply_rules(desired, full=full), self._apply_paths(desired, full=full))

    def _apply_paths(self, desired: Desired, *, full: bool) -> ApplyResult:
        return tried(lambda: self._gates.apply_paths(desired.guest_paths, desired.behind, full=full))

    def _apply_rules(self, desired: Desired, *, full: bool) -> ApplyResult:
        desired, refused = self._admissible(desired, full=full)
        forgotten = self._ended.forget(self._clock())
        if desired is not self._desired or full or forgotten:
            self._settled = {}
        if full:
            self._unusable = {}
        self._desired = desired
        bent = self._sets.keep(desired, full=full)
        result = joined(joined(self._apply(desired), refilled(desired, bent)), refused)
        self._sets.drop(desired, full=full)
        return result

    def _admissible(self, desired: Desired, *, full: bool) -> tuple[Desired, ApplyResult]:
        """Leave out what this host cannot keep clients from; what was left out is tried again at a full look."""
        if self._left_out is None or self._left_out[0] is not desired or (full and self._left_out[2].faults):
            kept, result = left_out(desired, self._lacking)
            self._left_out = desired, kept, result
        return self._left_out[1:]

    def _known(self, desired: Desired) -> Desired:
        """Give what of a state is in the rules, or will be."""
        return self._left_out[1] if self._left_out is not None and self._left_out[0] is desired else desired

    def _tried(self, family: Family, needs: Sequence[Need]) -> list[str | None]:
        """Give for each match that some rules need why it cannot be used, touching nothing."""
        matches = [need for need in needs if need is not Need.SETS]
        found: dict[Need, str | None] = {}
        with suppress(PortfwdError):  # that no helper is available is reported where it looks at tables
            reasons = self._helpers[family].tried([sample(need, family) for need in matches]) if matches else ()
            found = dict(zip(matches, reasons, strict=True))
        return [self._sets.hindrance() if need is Need.SETS else found.get(need) for need in needs]

    def render(self, desired: Desired) -> str:
        """See `Backend.render`."""
        desired = self._known(desired)
        text = "\n".join(restore_text(family, wanted) for family, wanted in tables(desired).items())
        return written(desired) + text

    def preview(self, desired: Desired) -> ApplyResult:
        """See `Backend.preview`."""
        return joined(self._preview_rules(desired), self._gates.preview_paths(desired.guest_paths, desired.behind))

    def _preview_rules(self, desired: Desired) -> ApplyResult:
        desired, refused = left_out(desired, self._lacking)
        every = {family: Wanted.of(family, desired) for family in sorted(desired.families)}
        results = (self._preview(family, every.get(family, _NOTHING), desired) for family in Family)
        return reduce(joined, results, joined(self._sets.preview(desired), refused))

    def refuse(self, flows: Collection[Flow]) -> None:
        """See `Backend.refuse`."""
        if self._desired is not None and self._ended.add(flows, self._clock() + REFUSED_FOR_S):
            self._settled = {}
            self._apply(self._desired)

    def remove(self) -> ApplyResult:
        """See `Backend.remove`."""
        result = reduce(joined, map(tried, (self._gates.remove, self._remove)))
        self.close()
        return result

    def close(self) -> None:
        """See `Backend.close`: the helpers end."""
        for helper in self._helpers.values():
            helper.close()

    def apply_gates(self, desired: Desired, *, full: bool) -> ApplyResult:
        """See `Backend.apply_gates`."""
        try:
            gates = self._gates.apply(desired.families, desired.label, desired.behind, full=full)
            return joined(gates, self._apply_paths(desired, full=full))
        except PortfwdError as error:
            return ApplyResult(faults=(Fault(FaultKind.LEGACY_GATES, detail=str(error)),))
        finally:
            self._gates.rest()

    def leave(self) -> ApplyResult:
        """See `Backend.leave`."""
        removed = self._remove()
        result = ApplyResult(faults=removed.faults, labels=removed.labels, renamings=removed.renamings)
        self._gates.rest()
        return result

    def preview_gates(self, desired: Desired) -> ApplyResult:
        """See `Backend.preview_gates`."""
        left = self._preview_rules(Desired()) if self.held() else ApplyResult()
        paths = self._gates.preview_paths(desired.guest_paths, desired.behind)
        return reduce(joined, (left, self._gates.preview(desired.families, desired.label, desired.behind), paths))

    def monitor(self, changed: RulesChanged) -> LegacyMonitor:
        """See `Backend.monitor`."""
        return LegacyMonitor(changed, self._sets.sizes)

    def stamp(self) -> Stamp:
        """See `Backend.stamp`: a change that leaves a table as large as it was leaves the same information."""
        infos = {(family, table): table_info(family, table) for family in Family for table in existing_tables(family)}
        return Stamp(infos, certain=not infos)

    def libvirt(self, family: Family = Family.IPV4) -> Presence:
        """See `Backend.libvirt`."""
        found = LIBVIRT_CHAIN in chain_names(family, TableName.FILTER)
        return Presence.CHAINS if found else Presence.NOTHING

    def held(self) -> frozenset[Family]:
        """See `Backend.held`."""
        return frozenset(family for family in Family if _holds(family))

    def confined(self) -> frozenset[Family]:
        """See `Backend.confined`."""
        return frozenset(family for family in Family if CONFINED.comment.encode() in _filtering(family))

    def switched(self) -> frozenset[tuple[Family, str]]:
        """See `Backend.switched`."""
        found = {family: held for family in Family if (held := _filtering(family))}
        names = filter(is_interface_name, interface_names() if found else ())
        ways = {name: confined_from(name).comment.encode() for name in names}
        return frozenset(
            (family, name) for family, held in found.items() for name, comment in ways.items() if comment in held
        )

    def counters(self, desired: Desired) -> Mapping[Exposure, int]:
        """See `Backend.counters`."""
        desired = self._known(desired)
        return self._counted.of(
            desired, chain.from_iterable(_packets(family, TableName.NAT) for family in desired.families)
        )

    def dropped(self, desired: Desired) -> Dropped:
        """See `Backend.dropped`."""
        desired = self._known(desired)
        if desired.gatekeeper() is None:
            return Dropped()
        if self._drops is None or self._drops[0] is not desired:
            self._drops = desired, Drops(desired)
        counted = product(sorted(desired.families), (TableName.MANGLE, TableName.FILTER))
        dropped = self._drops[1].of(chain.from_iterable(starmap(_packets, counted)))
        return dropped._replace(by_source=at_limits(desired.limited, desired.label))

    def lacks(self, needs: Collection[Need]) -> Mapping[Need, Fault]:
        """See `Backend.lacks`."""
        found = {family: self._lacking.of(family, needs) for family in Family}
        return found[Family.IPV6] | found[Family.IPV4]

    def _remove(self) -> ApplyResult:
        """Take our own rules away; gates stay."""
        self._ended, self._clean = Ended(_REFUSED_ALONE, _MOST_REFUSED), {}
        return self._apply_rules(Desired(), full=True)

    def _preview(self, family: Family, wanted: Wanted, desired: Desired) -> ApplyResult:
        there = existing_tables(family)
        observed = {table: ObservedTable(heads=dict.fromkeys(links(table), Head())) for table in wanted.tables}
        if there:
            # To look at a table that is not there would make it.
            with self._helpers[family].locked() as session:
                observed |= session.observe({table: links(table) for table in sorted(there)}, desired.behind)
        plan = Plan.of(family, wanted, observed, desired, {})
        gates = tuple(GateChange(gate, restored=False, fault=head.fault) for gate, head in plan.moved)
        script = "".join(change_text(family, table, change) for table, change in plan.changes)
        return ApplyResult(
            plan.mended, stale=plan.stale, gates=gates, faults=plan.left, script=script, changed=bool(plan.changes)
        )

    def _apply(self, desired: Desired) -> ApplyResult:
        every = self._tables(desired)
        results, refused = [], []
        for family in Family:
            wanted = every.get(family, _NOTHING)
            if family in self._unusable or self._is_settled(family, wanted.tables):
                continue
            try:
                results.append(self._reconcile(family, wanted, desired))
            except UnusableError as error:
                self._unusable[family] = fault_of(error)
            except KernelError as error:
                refused.append(fault_of(error))
        faults = (*self._unusable.values(), *chain.from_iterable(self._left.values()))
        if refused or (every and every.keys() <= self._unusable.keys()):
            raise KernelError("; ".join(map(format_fault, [*refused, *faults])))
        return reduce(joined, results, ApplyResult(faults=faults))

    def _tables(self, desired: Desired) -> dict[Family, Wanted]:
        """Make the tables, unless nothing is asked for but what was the last time."""
        ended = self._ended.flows
        if self._made is None or self._made[0] is not desired or self._made[1] != ended:
            every = {family: Wanted.of(family, desired, ended) for family in sorted(desired.families)}
            self._made = (desired, ended, every)
        return self._made[2]

    def _is_settled(self, family: Family, wanted: Mapping[TableName, Table]) -> bool:
        """Whether nothing has changed; where nothing is wanted and nothing was found, no helper is worth starting."""
        known = self._settled if wanted else self._clean
        return family in known and known[family] == _infos(family)

    def _reconcile(self, family: Family, wanted: Wanted, desired: Desired) -> ApplyResult:
        for attempt in range(1, _TRIES + 1):
            try:
                plan = self._commit(family, wanted, desired)
            except KernelError as error:
                if attempt == _TRIES or isinstance(error, LateError):
                    raise
                _log.debug("looking again after: %s", error)
            else:
                break
        self._committed[family], self._left[family] = wanted.tables, plan.left
        gates = tuple(
            GateChange(gate, gate in self._linked, head.fault)
            for gate, head in plan.moved
            if gate in self._linked or head.positions
        )
        self._linked.update(gate for gate, _ in plan.moved)
        return ApplyResult(
            plan.mended,
            plan.damaged,
            plan.stale,
            gates,
            changed=bool(plan.changes),
            altered=plan.altered,
            labels=plan.labels,
            renamings=plan.renamings,
            uplinks=uplinks_named(plan, family, desired, interface_names()),
        )

    def _commit(self, family: Family, wanted: Wanted, desired: Desired) -> Plan:
        """Make one family's tables hold what is wanted, all of it under the lock."""
        # A table that is there and wanted no more may still hold something of ours.
        looked_at = sorted(wanted.tables.keys() | existing_tables(family))
        self._clean.pop(family, None)
        if not looked_at:
            self._clean[family] = {}
            return Plan.of(family, _NOTHING, {}, desired, {})
        helper = self._helpers[family]
        with helper.locked() as session:
            observed = session.observe({table: links(table) for table in looked_at}, desired.behind)
            plan = Plan.of(family, wanted, observed, desired, self._committed.get(family, {}))
            if not self._committed.get(family):
                entries = table_entries(family, TableName.NAT)
                plan = replace(plan, renamings=frozenset(source_translations(family, entries, POST)))
            for table, change in plan.changes:
                session.commit(table, change)
            (self._settled if wanted.tables else self._clean)[family] = _infos(family)
        if not wanted.tables:
            helper.close()
        return plan


def _filtering(family: Family) -> bytes:
    """Give the filter table as the kernel holds it, where anything of ours is in it."""
    ours = FWD in chain_names(family, TableName.FILTER)
    return table_entries(family, TableName.FILTER) if ours else b""


def _holds(family: Family) -> bool:
    """Whether the iptables-legacy tables of a family hold any of our chains."""
    return any(OWN_CHAINS.intersection(chain_names(family, table)) for table in existing_tables(family))


def _packets(family: Family, table: TableName) -> Iterator[tuple[Counter, int]]:
    try:
        return iter(list(packets(family, table)))
    except KernelError:
        return iter(())


def _infos(family: Family) -> _Infos:
    return {table: table_info(family, table) for table in existing_tables(family)}
