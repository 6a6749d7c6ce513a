"""Gates in the legacy FORWARD chains, for rules of ours that live elsewhere.

A connection that our rules in nftables lead to a guest still meets the legacy FORWARD chain, where there is one, and
one refusal is enough. Its mark can be seen there, so one constant rule at the head lets it through. Chains and tables
are never brought into being here.
"""

from collections.abc import Collection
from functools import reduce

from fwdaemon.config.model import Gate
from fwdaemon.legacy.client import HelperClient, Session, UnusableError
from fwdaemon.legacy.difference import Change, difference
from fwdaemon.legacy.info import TableInfo, existing_tables, table_info
from fwdaemon.legacy.model import Head, ObservedTable, Table, TableName, family_name
from fwdaemon.legacy.ruleset import gate
from fwdaemon.legacy.text import change_text
from fwdaemon.model import Family
from fwdaemon.outcome import GateChange, Outcome, joined

_CHAIN = "FORWARD"


class LegacyGates:
    """Keeps a gate in the legacy FORWARD chain of each family that needs one. For one thread at a time."""

    def __init__(self) -> None:
        self._helpers = {family: HelperClient(family) for family in Family}
        self._opened: set[Family] = set()
        self._settled: dict[Family, tuple[int | None, TableInfo]] = {}

    def keep(self, families: Collection[Family], mark: int, *, thorough: bool) -> Outcome:
        """Open gates for connections of these families where they could be refused, and close all others.

        Of the outcome, `gates`, `faults` and `changed` are told.

        Raises:
            KernelError: the kernel refused; its chain is as it was.

        """
        if thorough:
            self._settled = {}
        changes, faults, changed = [], [], False
        for family in Family:
            if TableName.FILTER not in existing_tables(family):
                continue
            try:
                head = self._keep(family, mark if family in families else None)
            except UnusableError as error:
                faults.append(f"no gate in the legacy FORWARD chain: {error}")
                continue
            changed |= head is not None
            if head is not None and family in families:
                where = Gate(family_name(family), TableName.FILTER, _CHAIN)
                changes.append(GateChange(where, family in self._opened, head.fault))
                self._opened.add(family)
        return Outcome(gates=tuple(changes), faults=tuple(faults), changed=changed)

    def preview(self, families: Collection[Family], mark: int) -> Outcome:
        """Tell what `keep` would do now."""
        outcomes = []
        for family in Family:
            if TableName.FILTER in existing_tables(family):
                with self._helpers[family].locked() as session:
                    head, _, change = _compare(session, mark if family in families else None)
                if not change.empty:
                    where = Gate(family_name(family), TableName.FILTER, _CHAIN)
                    gate_change = GateChange(where, restored=False, fault=head.fault)
                    text = change_text(family, TableName.FILTER, change)
                    outcomes.append(Outcome(gates=(gate_change,), script=text, changed=True))
        return reduce(joined, outcomes, Outcome())

    def remove(self) -> Outcome:
        """Close every gate, whoever opened it, and end the helpers."""
        outcome = self.keep((), 1, thorough=True)
        self.close()
        return outcome

    def close(self) -> None:
        """End the helpers; the gates stay."""
        for helper in self._helpers.values():
            helper.close()

    def _keep(self, family: Family, mark: int | None) -> Head | None:
        """Bring one gate to what it shall be; what it was before, if that was something else."""
        if self._settled.get(family) == (mark, table_info(family, TableName.FILTER)):
            return None
        helper = self._helpers[family]
        with helper.locked() as session:
            head, needed = _mend(session, mark)
            self._settled[family] = (mark, table_info(family, TableName.FILTER))
        if not needed:
            helper.close()
        return head


def _mend(session: Session, mark: int | None) -> tuple[Head | None, bool]:
    """Open or close one gate: what it was if it had to be changed, and whether one is needed."""
    head, needed, change = _compare(session, mark)
    if change.empty:
        return None, needed
    session.commit(TableName.FILTER, change)
    return head, needed


def _compare(session: Session, mark: int | None) -> tuple[Head, bool, Change]:
    """Look at one gate: how it is, whether one is needed, and what has to change."""
    rule = gate(mark or 1)
    head = session.observe({TableName.FILTER: {_CHAIN: rule}})[TableName.FILTER].heads[_CHAIN]
    needed = mark is not None and (head.foreign > 0 or head.policy != "ACCEPT")
    # Chains of ours that are there are somebody else's business.
    return head, needed, difference(Table(heads={_CHAIN: rule} if needed else {}), ObservedTable(heads={_CHAIN: head}))
