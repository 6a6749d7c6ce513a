"""What the daemon remembers for its status. On the loop's thread only.

It keeps references to what never changes, so that remembering costs next to nothing; a status is made of them only on
request.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from fwdaemon import __version__
from fwdaemon.audit.causes import format_cause
from fwdaemon.audit.journal import ARREARS, LATE_S
from fwdaemon.audit.lines import format_fault, format_setting
from fwdaemon.audit.rules import format_gate_fault, format_location_reason, name_gate
from fwdaemon.config.model import Config
from fwdaemon.core.exposures import Exposure, Forward
from fwdaemon.core.report import AnyFault, Cause, Change, Fault, FaultKind, Location, Reason, ReconcileReport
from fwdaemon.core.state import Desired, Dropped
from fwdaemon.core.types import Family, FleetState, Job, Origin
from fwdaemon.errors import KernelError, Problem
from fwdaemon.hostnet import routing
from fwdaemon.kernel import conntrack
from fwdaemon.kernel.observe import Elsewhere
from fwdaemon.resolve.flows import Carriers, renamings
from fwdaemon.status.model import (
    Configuration,
    Header,
    LibvirtState,
    OpenFor,
    Pass,
    Process,
    RefusedReload,
    Restored,
    Rules,
)
from fwdaemon.status.rows import Facts, Readings

_MOST_RESTORED: Final = 5

Publish = Callable[[datetime, Sequence[Change]], None]


class Shared(Protocol):
    """What this host has of a fleet; see `fwdaemon.fleet.Fleet`."""

    @property
    def state(self) -> FleetState | None:
        """How it is with etcd."""
        ...

    @property
    def problems(self) -> tuple[Fault, ...]:
        """What is wrong with it, or with the table."""
        ...

    def configure(self, config: Config) -> None:
        """Follow another configuration."""
        ...

    def merged(self, config: Config) -> Config:
        """Add what the table says to what the files do."""
        ...

    def take_reasons(self) -> list[Reason]:
        """Put a newer table in force; report that, and addresses that were taken and lost."""
        ...


class Records:
    """All of it; `publish` is called whenever the status changes.

    Work is late after `late_s` seconds, `unlogged` gives how many begins and ends of connections were not logged, and
    `left` for how many seconds the configuration waits to be confirmed.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        publish: Publish,
        remaining: Callable[[], Mapping[Origin, OpenFor]] = dict,
        shared: Shared | None = None,
    ) -> None:
        """Begin; `remaining` gives for how long what was opened for a while is open."""
        self.late_s = LATE_S
        self.unlogged: Callable[[], int] = int
        self.left: Callable[[], int | None] = lambda: None
        self._shared = shared
        self._behind: tuple[frozenset[tuple[Job, str]], int, int] = frozenset(), 0, 0
        self._publish, self._remaining = publish, remaining
        self._began = _now()
        self._configuration = Configuration(path, self._began)
        self._facts = Facts(config)
        self._since: dict[Exposure, datetime] = {}
        self._location: Location | None = None
        self._last_pass: Pass | None = None
        self._problems: tuple[AnyFault, ...] = ()
        self._late: Fault | None = None
        self._of_sets: tuple[Fault, ...] = ()
        self._restored: deque[Restored] = deque(maxlen=_MOST_RESTORED)

    def configuration_loaded(self, config: Config) -> None:
        """Remember that another configuration is in force."""
        self._facts = replace(self._facts, config=config)
        self._configuration = Configuration(self._configuration.file, _now())
        self._publish_now()

    def entries_changed(self, config: Config) -> None:
        """Remember what is asked for now that something was opened or closed."""
        self._facts = replace(self._facts, config=config)
        self._publish_now()

    def to_confirm(self, until: datetime | None, *, is_back: bool = False) -> None:
        """Remember until when the configuration in force is to be confirmed, or that the one before is back."""
        self._configuration = replace(self._configuration, unless_by=until, is_back=is_back)
        self._publish_now()

    def configuration_refused(self, problems: Iterable[Problem]) -> None:
        """Remember that one was refused, until one is taken."""
        self._configuration = replace(self._configuration, refused=RefusedReload(_now(), tuple(problems)))
        self._publish_now()

    def late(self, fault: Fault | None) -> None:
        """Remember that a configuration is not read yet, or that it is."""
        if fault != self._late:
            self._late = fault
            self._publish_now()

    def sets_refused(self, problems: tuple[Fault, ...]) -> None:
        """Remember what is wrong with the files of sets; nothing, once all are right."""
        if problems != self._of_sets:
            self._of_sets = problems
            self._publish_now()

    def last_good_in_force(self, problems: Iterable[Problem], kept_at: datetime) -> None:
        """Remember that the configuration was wrong at the start; the last good one is in force until one is taken."""
        self._configuration = replace(self._configuration, loaded_at=kept_at, is_last_good=True)
        self.configuration_refused(problems)

    def pass_ended(self, report: ReconcileReport, seconds: float) -> None:
        """Remember a pass that has just ended well and took so long."""
        before, problems, result = self._facts, self._problems, report.result
        self._last_pass = Pass(_now(), seconds, result.changed)
        refused: dict[Family | Exposure, Fault] = dict(result.refused)
        refused.update(report.unusable.items())
        self._location = report.location
        self._facts = replace(before, wanted=report.desired, held=report.desired, failure="", refused=refused)
        self._problems = result.faults
        self._remember(report)
        is_news = bool(report.changes or result.gates or result.moved) or problems != result.faults
        if is_news or _differ(before, self._facts):
            self._publish_now(report.changes)

    def failed(self, wanted: Desired | None, failure: str, seconds: float) -> None:
        """Remember a pass that has just failed."""
        before = self._facts.failure
        self._last_pass = Pass(_now(), seconds, changed=False, error=failure)
        self._facts = replace(self._facts, wanted=wanted or self._facts.wanted, failure=failure)
        if failure != before:
            self._publish_now()

    def check(self) -> None:
        """Look what is late; to be called now and then."""
        late = frozenset((late.job, late.about) for late in ARREARS.late(self.late_s))
        if (behind := (late, ARREARS.lost_lines, self.unlogged())) != self._behind:
            self._behind = behind
            self._publish_now()

    def facts(self) -> Facts:
        """Give what the rows follow from."""
        return replace(self._facts, since=dict(self._since), open_for=self._remaining())

    def header(self, libvirt: Iterable[LibvirtState]) -> Header:
        """Give everything else."""
        return Header(
            __version__,
            replace(self._configuration, seconds_left=self.left()),
            Process(os.getpid(), self._began),
            rules_at(self._location),
            tuple(libvirt),
            self._last_pass,
            tuple(self._restored),
            tuple(map(format_fault, self._all_problems())),
            uplinks_of(self._facts.wanted),
            confined_in(self._facts.held),
            confined_interfaces_in(self._facts.held),
            None if self._shared is None else self._shared.state,
            ARREARS.late(self.late_s),
            ARREARS.lost_lines,
            self.unlogged(),
        )

    def faults_of(self, kind: FaultKind) -> tuple[Fault, ...]:
        """Give what the last pass found wrong of one kind."""
        return tuple(item for item in self._problems if isinstance(item, Fault) and item.kind is kind)

    def _all_problems(self) -> Iterator[AnyFault]:
        if self._late is not None:
            yield self._late
        yield from self._of_sets
        if self._shared is not None:
            yield from self._shared.problems
        yield from self._problems

    def _remember(self, report: ReconcileReport) -> None:
        at = _now()
        for change in report.changes:
            if change.action == "removed":
                self._since.pop(change.exposure, None)
        self._since |= dict.fromkeys(report.result.mended, at)
        self._restored.extendleft(reversed(list(_restored(report, at))))

    def _publish_now(self, changes: Sequence[Change] = ()) -> None:
        self._publish(_now(), changes)


def rules_at(location: Location | None) -> Rules | None:
    """Say where the rules are, and why there, as the status has it."""
    if location is None:
        return None
    return Rules(location.backend, location.title, format_location_reason(location.reason))


def uplinks_of(desired: Desired | None) -> tuple[str, ...]:
    """Name the interfaces that lead away from the host, as far as they are known."""
    return () if desired is None else tuple(sorted(desired.uplinks))


def confined_in(held: Desired | None) -> tuple[Family, ...]:
    """Name the families in which the rules refuse what the host did not forward before us."""
    return () if held is None else tuple(sorted(held.confined))


def confined_interfaces_in(held: Desired | None) -> tuple[str, ...]:
    """Name the interfaces by which they refuse to let that in, as the host did there alone."""
    return () if held is None else tuple(sorted({name for _, name in held.switched}))


def _restored(report: ReconcileReport, at: datetime) -> Iterator[Restored]:
    """Say what was put back: of exposures with one cause, and of gates, the first and how many more."""
    changes = [change for change in report.changes if change.action == "restored"]
    for cause, alike in groupby(changes, key=lambda change: change.cause):
        first, *others = alike
        exposure = first.exposure
        what = f"{exposure.owner.name}: {exposure.listens_at()} -> {exposure.leads_to()}"
        yield Restored(at, what, len(others), format_cause(cause))
    for setting in report.result.settings:
        if setting.restored:
            yield Restored(at, format_setting(setting), 0, format_cause(Cause()))
    if gates := [gate for gate in report.result.gates if gate.restored]:
        yield Restored(
            at,
            name_gate(gates[0].gate),
            len(gates) - 1,
            f"{format_gate_fault(gates[0].fault)}; {format_cause(Cause(report.actors))}",
        )


def _differ(before: Facts, after: Facts) -> bool:
    """Whether a pass changes the status in more than its exposures."""
    waiting = [facts.wanted.waiting if facts.wanted is not None else None for facts in (before, after)]
    uplinks = [uplinks_of(facts.wanted) for facts in (before, after)]
    confined = [(confined_in(facts.held), confined_interfaces_in(facts.held)) for facts in (before, after)]
    return (
        waiting[0] != waiting[1]
        or confined[0] != confined[1]
        or uplinks[0] != uplinks[1]
        or (before.failure, before.refused) != (after.failure, after.refused)
    )


def _now() -> datetime:
    return datetime.now(UTC)


# How exposures are used: the connections that our rules counted, and those that are open now.
#
# With many of them, reading takes a while, so it is done only on request, and never on the loop's thread. What cannot
# be read is left unknown, and is no error.


class UsageReader:
    """Reads how exposures are used. Its methods block; call them from one thread at a time."""

    def __init__(
        self,
        counters: Callable[[Desired], Mapping[Exposure, int]],
        dropped: Callable[[Desired], Dropped] = lambda _: Dropped(),
    ) -> None:
        """Take what gives the connections that rules have counted, and what they have dropped."""
        self._counters, self._dropped = counters, dropped
        self._elsewhere = Elsewhere()

    def read(self, desired: Desired) -> Readings:
        """Read all there is about what the kernel holds."""
        not_forwarding = frozenset(family for family in desired.families if not routing.is_on(family))
        elsewhere = self._elsewhere.holders(desired.elsewhere | desired.handed_over)
        return Readings(self._counters(desired), _open(desired), not_forwarding, elsewhere, self._dropped(desired))


def _open(desired: Desired) -> Mapping[Exposure, tuple[int, int | None]] | None:
    carriers, found = Carriers(desired.exposures), dict[Exposure, tuple[int, int | None]]()
    renamed = renamings(desired.nats)
    try:
        for item in conntrack.open_flows(desired.label, _octets(desired.forwards), renamed):
            if (exposure := carriers.carrier(item.flow)) is not None:
                number, size = found.get(exposure, (0, None))
                found[exposure] = number + item.number, size if item.size is None else item.size + (size or 0)
    except KernelError:
        return None
    return found


def _octets(forwards: Iterable[Forward]) -> bytearray:
    """Give for each port how many octets of a client's address decide which forward carries it."""
    found = bytearray(1 << 16)
    for forward in forwards:
        longest = max((subnet.prefixlen for subnet in forward.sources), default=0)
        for port in range(forward.ports.first, forward.ports.last + 1) if longest else ():
            found[port] = max(found[port], -(-longest // 8))
    return found


# The feed for clients that watch: that something changed, and the last changes of exposures. On the loop's thread only.
_MOST: Final = 256

Dated: TypeAlias = tuple[datetime, Change]


class Subscription:
    """One client that watches. If it does not keep up, it loses the oldest changes; nothing waits for it."""

    def __init__(self) -> None:
        self._changes: deque[Dated] = deque(maxlen=_MOST)
        self._missed = 0
        self._something = asyncio.Event()

    def add(self, at: datetime, changes: Sequence[Change]) -> None:
        """Add what changed, which may be no exposure."""
        kept = len(self._changes)
        self._changes.extend((at, change) for change in changes[-_MOST:])
        self._missed += kept + len(changes) - len(self._changes)
        self._something.set()

    async def wait(self) -> None:
        """Wait until there is something new."""
        await self._something.wait()

    def take(self) -> tuple[list[Dated], int]:
        """Give what there is, and how many changes were lost."""
        taken, missed = list(self._changes), self._missed
        self._changes.clear()
        self._missed = 0
        self._something.clear()
        return taken, missed


class Feed:
    """All clients that watch; `revision` counts what was sent to them."""

    def __init__(self) -> None:
        self.revision = 0
        self._subscriptions: set[Subscription] = set()

    def publish(self, at: datetime, changes: Sequence[Change]) -> None:
        """Notify all clients."""
        self.revision += 1
        for subscription in self._subscriptions:
            subscription.add(at, changes)

    def subscribe(self) -> Subscription:
        """Begin to watch; `leave` ends it."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """Watch no more."""
        self._subscriptions.discard(subscription)
