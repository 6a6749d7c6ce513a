"""Gates in the legacy FORWARD chains, for rules of ours that live elsewhere.

A connection that our rules in nftables lead to a guest still meets the legacy FORWARD chain, where there is one, and
one refusal is enough. Its label can be seen there, so one constant rule at the head lets it through; only bans stay
ahead of it. Chains and tables are never brought into being here.
"""

import asyncio
import ctypes
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import reduce

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.core.report import Actor, ActorKind, ApplyResult, Fault, FaultKind, GateChange, RulesChanged, joined
from fwdaemon.core.types import Family, Gate, GateFault, GuestPath
from fwdaemon.errors import KernelError
from fwdaemon.legacy.client import HelperClient, Session, UnusableError
from fwdaemon.legacy.info import (
    LAYOUT,
    TableInfo,
    decode,
    existing_tables,
    is_path,
    lock_path,
    table_entries,
    table_info,
)
from fwdaemon.legacy.model import (
    Change,
    Head,
    ObservedTable,
    Rule,
    Table,
    TableName,
    change_text,
    difference,
    path_rule,
)
from fwdaemon.legacy.ruleset import gate

_CHAIN = "FORWARD"
# Our rules are elsewhere, and their repair waits for the end of a pass: so none waits long for iptables' lock, which is
# held for milliseconds. A program that holds it for longer has us look again on letting go.
_PATIENCE = 0.05


class LegacyGates:
    """Keeps a gate in the legacy FORWARD chain of each family that needs one. For one thread at a time."""

    def __init__(self, helpers: Mapping[Family, HelperClient]) -> None:
        self._helpers = helpers
        self._opened: set[Family] = set()
        self._needless: set[Family] = set()
        self._settled: dict[Family, tuple[int | None, tuple[str, ...], TableInfo]] = {}
        self._led: dict[Family, tuple[tuple[Rule, ...], tuple[str, ...], TableInfo]] = {}
        self._leading: dict[Family, tuple[Rule, ...]] = {}

    def apply(self, families: Collection[Family], bit: int, behind: tuple[str, ...], *, full: bool) -> ApplyResult:
        """Open gates for connections of these families where they could be refused, and close all others.

        Jumps to the chains that the patterns `behind` name stay ahead of a gate.

        Of the outcome, `gates`, `faults` and `changed` are reported.

        Raises:
            KernelError: the kernel refused; its chain is as it was.

        """
        if full:
            self._settled = {}
        changes, faults, changed = [], [], False
        for family in Family:
            if TableName.FILTER not in existing_tables(family):
                continue
            try:
                head = self._apply(family, bit if family in families else None, behind)
            except UnusableError as error:
                faults.append(Fault(FaultKind.LEGACY_GATE, detail=str(error)))
                continue
            changed |= head is not None
            if head is not None and family in families:
                where = Gate(family.word, TableName.FILTER, _CHAIN)
                changes.append(GateChange(where, family in self._opened, head.fault))
                self._opened.add(family)
        return ApplyResult(gates=tuple(changes), faults=tuple(faults), changed=changed)

    def preview(self, families: Collection[Family], bit: int, behind: tuple[str, ...]) -> ApplyResult:
        """Say what `apply` would do now."""
        results = []
        for family in Family:
            if TableName.FILTER in existing_tables(family):
                with self._helpers[family].locked(_PATIENCE) as session:
                    head, _, change = _compare(session, bit if family in families else None, behind)
                if not change.empty:
                    where = Gate(family.word, TableName.FILTER, _CHAIN)
                    gate_change = GateChange(where, restored=False, fault=head.fault)
                    text = change_text(family, TableName.FILTER, change)
                    results.append(ApplyResult(gates=(gate_change,), script=text, changed=True))
        return reduce(joined, results, ApplyResult())

    def remove(self) -> ApplyResult:
        """Close every gate, including those of an earlier run."""
        return joined(self.apply((), 1, (), full=True), self.apply_paths((), (), full=True))

    def apply_paths(self, paths: Collection[GuestPath], behind: tuple[str, ...], *, full: bool) -> ApplyResult:
        """Have guests take these paths where FORWARD would refuse whatever is left; see `apply`."""
        if full:
            self._led = {}
        results = [self._lead(family, _of_family(paths, family), behind) for family in Family]
        return reduce(joined, results, ApplyResult())

    def preview_paths(self, paths: Collection[GuestPath], behind: tuple[str, ...]) -> ApplyResult:
        """Say what `apply_paths` would do now."""
        results = []
        for family in Family:
            rules = _of_family(paths, family)
            if TableName.FILTER in existing_tables(family) and (rules or _has_paths(family)):
                with self._helpers[family].locked(_PATIENCE) as session:
                    change = session.paths(rules, behind)
                if not change.empty:
                    text = change_text(family, TableName.FILTER, change)
                    results.append(replace(_led(family, rules, restored=False), script=text))
        return reduce(joined, results, ApplyResult())

    def _lead(self, family: Family, rules: tuple[Rule, ...], behind: tuple[str, ...]) -> ApplyResult:
        if TableName.FILTER not in existing_tables(family):
            return ApplyResult()
        if self._led.get(family) == (rules, behind, table_info(family, TableName.FILTER)):
            return ApplyResult()
        result = ApplyResult()
        if rules or _has_paths(family):
            try:
                with self._helpers[family].locked(_PATIENCE) as session:
                    change = session.paths(rules, behind)
                    if not change.empty:
                        session.commit(TableName.FILTER, change)
                        result = _led(family, rules, restored=self._leading.get(family) == rules)
            except UnusableError as error:
                return ApplyResult(faults=(Fault(FaultKind.LEGACY_GATE, detail=str(error)),))
        self._leading[family] = rules
        self._led[family] = (rules, behind, table_info(family, TableName.FILTER))
        return result

    def rest(self) -> None:
        """End the helpers of families that need no gate."""
        for family in self._needless:
            self._helpers[family].close()

    def _apply(self, family: Family, bit: int | None, behind: tuple[str, ...]) -> Head | None:
        """Make one gate as desired; give what it was before, if that was something else."""
        if self._settled.get(family) == (bit, behind, table_info(family, TableName.FILTER)):
            return None
        with self._helpers[family].locked(_PATIENCE) as session:
            head, needed = _mend(session, bit, behind)
            self._settled[family] = (bit, behind, table_info(family, TableName.FILTER))
        (self._needless.discard if needed else self._needless.add)(family)
        return head


def _of_family(paths: Iterable[GuestPath], family: Family) -> tuple[Rule, ...]:
    return tuple(path_rule(path) for path in sorted(paths) if path.family is family)


def _led(family: Family, rules: Collection[Rule], *, restored: bool) -> ApplyResult:
    """Report a FORWARD that guests pass now; that they do no more is nothing to report."""
    change = GateChange(Gate(family.word, TableName.FILTER, _CHAIN), restored, GateFault.GUESTS)
    return ApplyResult(gates=(change,) if rules else (), changed=True)


def _mend(session: Session, bit: int | None, behind: Collection[str]) -> tuple[Head | None, bool]:
    """Open or close one gate: what it was if it had to be changed, and whether one is needed."""
    head, needed, change = _compare(session, bit, behind)
    if change.empty:
        return None, needed
    session.commit(TableName.FILTER, change)
    return head, needed


def _compare(session: Session, bit: int | None, behind: Collection[str]) -> tuple[Head, bool, Change]:
    """Look at one gate: how it is, whether one is needed, and what has to change."""
    rule = gate(0 if bit is None else bit)
    observed = session.observe({TableName.FILTER: {_CHAIN: rule}}, behind)
    head = observed[TableName.FILTER].heads[_CHAIN]
    needed = bit is not None and (head.foreign > 0 or head.policy != "ACCEPT")
    # Chains of ours that are there are not the gates' business.
    return head, needed, difference(Table(heads={_CHAIN: rule} if needed else {}), ObservedTable(heads={_CHAIN: head}))


# Notices changes of the iptables-legacy tables, which the kernel does not report.
#
# Once a second the kernel is asked how large the tables are, and where there are none, less often: that costs
# microseconds, but to wake up costs more. And iptables' programs lock a file, so when one of them lets go of it, that
# is a reason to look. Who it was is not known.
_log = logging.getLogger(__name__)

# The kernel does not say who.
_SOMEBODY = Actor(ActorKind.LEGACY_TABLES)
POLL = 1.0
# How many times longer the pause is while no legacy tables are there.
_LONGER = 3
# Programs that change tables come in bursts.
_PAUSE = 0.05
_CLOSED = 0x18  # IN_CLOSE_WRITE and IN_CLOSE_NOWRITE, inotify(7)
_BUFFER = 1 << 16


class LegacyMonitor:
    """Calls `changed` on the asyncio loop's thread when the iptables-legacy tables may have changed."""

    def __init__(
        self, changed: RulesChanged, sets: Callable[[], Mapping[str, object]] = dict, poll: float = POLL
    ) -> None:
        """Take what gives something else once any set of ours is another."""
        self._changed, self._sets = changed, sets
        self._poll_every = poll
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = -1
        self._warning = WarnOnce()
        self._seen: dict[tuple[Family, TableName], TableInfo] = {}
        self._seen_sets: Mapping[str, object] = {}
        self._polling: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch. While the kernel has no inotify left, changes are noticed by their size alone."""
        self._seen, self._seen_sets = _sizes(), self._set_sizes()
        self._poll()

    def close(self) -> None:
        """Stop watching."""
        for timer in (self._polling, self._telling):
            if timer is not None:
                timer.cancel()
        if self._inotify >= 0:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1

    def _open(self) -> None:
        self._inotify = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._inotify >= 0:
            self._warning.settle()
            asyncio.get_running_loop().add_reader(self._inotify, self._read)
        else:
            reason = os.strerror(ctypes.get_errno())
            self._warning.warn(f"cannot watch {lock_path()}, trying again: {reason}")

    def _poll(self) -> None:
        if self._inotify < 0:
            self._open()
        if self._inotify >= 0:
            # Does nothing while the file is the same; it may not be there yet, or it may have been replaced.
            self._libc.inotify_add_watch(self._inotify, lock_path().encode(), _CLOSED)
        sizes = _sizes()
        pause = self._poll_every if sizes else self._poll_every * _LONGER
        self._polling = asyncio.get_running_loop().call_later(pause, self._poll)
        if sizes != self._seen:
            self._seen = sizes
            self._changed(_SOMEBODY, full=True)
        if (sets := self._set_sizes()) != self._seen_sets:
            self._seen_sets = sets
            self._changed(_SOMEBODY, full=False)

    def _set_sizes(self) -> Mapping[str, object]:
        try:
            return self._sets()
        except KernelError as error:
            _log.debug("the sizes of sets are not known: %s", error)
            return self._seen_sets

    def _read(self) -> None:
        try:
            os.read(self._inotify, _BUFFER)
        except BlockingIOError:
            return
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_PAUSE, self._tell)

    def _tell(self) -> None:
        self._telling = None
        self._seen = _sizes()
        self._changed(_SOMEBODY, full=True)


def _sizes() -> dict[tuple[Family, TableName], TableInfo]:
    try:
        return {(family, table): table_info(family, table) for family in Family for table in existing_tables(family)}
    except KernelError as error:
        _log.debug("the sizes of the iptables-legacy tables are not known: %s", error)
        return {}


def _has_paths(family: Family) -> bool:
    """Whether any rule in the filter table is one of those.

    Raises:
        KernelError: the kernel does not answer.

    """
    entries, start = table_entries(family, TableName.FILTER), 0
    while start < len(entries):
        following = LAYOUT[family].unpack_from(entries, start)[1]
        if is_path(family, decode(family, entries[start : start + following])):
            return True
        start += following
    return False
