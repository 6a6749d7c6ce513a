"""The backend itself: hold the lock, look, compare, commit; one family after the other."""

import logging
import time
from collections.abc import Collection, Mapping
from functools import reduce

from fwdaemon.config.model import Gate
from fwdaemon.desired import Desired
from fwdaemon.errors import KernelError
from fwdaemon.flows import Flow
from fwdaemon.legacy.client import HelperClient, UnusableError
from fwdaemon.legacy.info import TableInfo, existing_tables, table_info
from fwdaemon.legacy.model import Head, ObservedTable, Table, TableName
from fwdaemon.legacy.plan import Plan
from fwdaemon.legacy.ruleset import Tables, links, tables
from fwdaemon.legacy.text import change_text, restore_text
from fwdaemon.model import Family
from fwdaemon.outcome import GateChange, Outcome, joined

_log = logging.getLogger(__name__)

# Somebody who does not take the lock may commit between our look and our commit.
_TRIES = 5
# How long an ended connection is remembered: longer than a guest that has something to send waits to try again.
_REFUSED_FOR_S = 120.0

_Infos = Mapping[TableName, TableInfo]


class LegacyBackend:
    """Holds our rules in the legacy tables; see `fwdaemon.netfilter.Backend`."""

    def __init__(self) -> None:
        self._helpers = {family: HelperClient(family) for family in Family}
        self._desired: Desired | None = None
        self._ended: dict[Flow, float] = {}
        self._made: tuple[Desired, list[Flow], dict[Family, Tables]] | None = None
        self._committed: dict[Family, Mapping[TableName, Table]] = {}
        self._settled: dict[Family, _Infos] = {}
        self._clean: dict[Family, _Infos] = {}
        self._linked: set[Gate] = set()
        self._unusable: dict[Family, str] = {}

    @property
    def unusable(self) -> Mapping[Family, str]:
        """Tell which families cannot be served, and why."""
        return dict(self._unusable)

    def apply(self, desired: Desired, *, thorough: bool) -> Outcome:
        """See `Backend.apply`."""
        now = time.monotonic()
        remembered = {flow: until for flow, until in self._ended.items() if until > now}
        if desired is not self._desired or thorough or len(remembered) < len(self._ended):
            self._settled = {}
        if thorough:
            self._unusable = {}
        self._desired, self._ended = desired, remembered
        return self._apply(desired)

    def render(self, desired: Desired) -> str:
        """See `Backend.render`."""
        return "\n".join(restore_text(family, wanted) for family, wanted in tables(desired).items())

    def preview(self, desired: Desired) -> Outcome:
        """See `Backend.preview`."""
        every = tables(desired)
        return reduce(joined, (self._preview(family, every.get(family, {}), desired) for family in Family), Outcome())

    def refuse(self, flows: Collection[Flow]) -> None:
        """See `Backend.refuse`."""
        if flows and self._desired is not None:
            self._ended |= dict.fromkeys(flows, time.monotonic() + _REFUSED_FOR_S)
            self._settled = {}
            self._apply(self._desired)

    def remove(self) -> Outcome:
        """See `Backend.remove`."""
        self._ended, self._clean = {}, {}
        outcome = self.apply(Desired(), thorough=True)
        self.close()
        return outcome

    def close(self) -> None:
        """End the helpers; the rules stay."""
        for helper in self._helpers.values():
            helper.close()

    def _preview(self, family: Family, wanted: Mapping[TableName, Table], desired: Desired) -> Outcome:
        there = existing_tables(family)
        observed = {table: ObservedTable(heads=dict.fromkeys(links(table), Head())) for table in wanted}
        if there:
            # To look at a table that is not there would make it.
            with self._helpers[family].locked() as session:
                observed |= session.observe({table: links(table) for table in sorted(there)})
        plan = Plan.of(family, wanted, observed, desired, {})
        gates = tuple(GateChange(gate, restored=False, fault=head.fault) for gate, head in plan.moved)
        script = "".join(change_text(family, table, change) for table, change in plan.changes)
        return Outcome(plan.mended, stale=plan.stale, gates=gates, script=script, changed=bool(plan.changes))

    def _apply(self, desired: Desired) -> Outcome:
        every = self._tables(desired)
        outcomes, refused = [], []
        for family in Family:
            wanted = every.get(family, {})
            if family in self._unusable or self._is_settled(family, wanted):
                continue
            try:
                outcomes.append(self._reconcile(family, wanted, desired))
            except UnusableError as error:
                self._unusable[family] = str(error)
            except KernelError as error:
                refused.append(str(error))
        faults = tuple(self._unusable.values())
        if refused or (every and every.keys() <= self._unusable.keys()):
            raise KernelError("; ".join([*refused, *faults]))
        return reduce(joined, outcomes, Outcome(faults=faults))

    def _tables(self, desired: Desired) -> dict[Family, Tables]:
        """Make the tables, unless nothing is asked for but what was the last time."""
        ended = list(self._ended)
        if self._made is None or self._made[0] is not desired or self._made[1] != ended:
            self._made = (desired, ended, tables(desired, ended))
        return self._made[2]

    def _is_settled(self, family: Family, wanted: Mapping[TableName, Table]) -> bool:
        """Whether nothing has changed; where nothing is wanted and nothing was found, no helper is worth starting."""
        known = self._settled if wanted else self._clean
        return family in known and known[family] == _infos(family)

    def _reconcile(self, family: Family, wanted: Mapping[TableName, Table], desired: Desired) -> Outcome:
        for attempt in range(1, _TRIES + 1):
            try:
                plan = self._commit(family, wanted, desired)
            except KernelError as error:
                if attempt == _TRIES:
                    raise
                _log.debug("looking again after: %s", error)
            else:
                break
        self._committed[family] = wanted
        gates = tuple(
            GateChange(gate, gate in self._linked, head.fault)
            for gate, head in plan.moved
            if gate in self._linked or head.positions
        )
        self._linked.update(gate for gate, _ in plan.moved)
        return Outcome(plan.mended, plan.damaged, plan.stale, gates, changed=bool(plan.changes))

    def _commit(self, family: Family, wanted: Mapping[TableName, Table], desired: Desired) -> Plan:
        """Make one family's tables hold what is wanted, all of it under the lock."""
        # A table that is there and wanted no more may still hold something of ours.
        looked_at = sorted(wanted.keys() | existing_tables(family))
        self._clean.pop(family, None)
        if not looked_at:
            self._clean[family] = {}
            return Plan.of(family, {}, {}, desired, {})
        helper = self._helpers[family]
        with helper.locked() as session:
            observed = session.observe({table: links(table) for table in looked_at})
            plan = Plan.of(family, wanted, observed, desired, self._committed.get(family, {}))
            for table, change in plan.changes:
                session.commit(table, change)
            (self._settled if wanted else self._clean)[family] = _infos(family)
        if not wanted:
            helper.close()
        return plan


def _infos(family: Family) -> _Infos:
    return {table: table_info(family, table) for table in existing_tables(family)}
