"""One reconcile: bring the kernel to the desired state, and account for every change.

`Reconciler` is called repeatedly with the desired state; it keeps only its last report, and by that distinguishes
`added` from `restored`. Everything in here blocks, and is called in one thread; the loop that calls it is
`fwdaemon.daemon`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Protocol

from fwdaemon.audit import causes, lines
from fwdaemon.audit.causes import Known
from fwdaemon.audit.throttle import FlapDamping, NewProblems, Rations
from fwdaemon.connections import Clock, Conntrack, Departures, Sweep, Sweeper, close_everything
from fwdaemon.core.admission import Gatekeeper
from fwdaemon.core.conflicts import Conflict
from fwdaemon.core.exposures import Exposure, Forward
from fwdaemon.core.inventory import Move
from fwdaemon.core.report import (
    Actor,
    ApplyResult,
    Cause,
    Fault,
    FaultKind,
    GateChange,
    Location,
    Reason,
    ReconcileReport,
    joined,
)
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family
from fwdaemon.kernel.external_sets import Added, Externals
from fwdaemon.kernel.process import new_budgets
from fwdaemon.netfilter import Rules
from fwdaemon.resolve.flows import Flow, Strangers, renamings
from fwdaemon.resolve.snapshot import Grace, Stop
from fwdaemon.triggers import Budgets, Origin

# How long a stop waits for connections that are being ended.
_PATIENCE = 5.0


class LocatedRules(Rules, Protocol):
    """Our rules, and what is known of where they are."""

    @property
    def location(self) -> Location | None:
        """Say where they are, and why there; `None` before the first of them."""
        ...

    @property
    def unusable(self) -> Mapping[Family, Fault]:
        """Give the families that cannot be served there, and why."""
        ...

    @property
    def externals(self) -> Externals:
        """What others have in external sets."""
        ...


class HostNetwork(Protocol):
    """What exposures need of the host besides rules; `fwdaemon.hostnet.host_network` explains each method."""

    def adopt(self, confined: Collection[Family], switched: Collection[tuple[Family, str]]) -> None:
        """Know that forwarding was turned on for these families, and on these interfaces alone."""
        ...

    def confine(self, desired: Desired, *, ip_forward: bool) -> Desired:
        """Say for which families the rules are to keep the host from being a router."""
        ...

    def release(self, desired: Desired) -> None:
        """Take back what has to go before the rules change."""
        ...

    def apply(self, desired: Desired, *, ip_forward: bool, full: bool = True, replugged: bool = False) -> ApplyResult:
        """Make the host hold what `desired` needs; what cannot be done is a fault."""
        ...

    def remove(self, forwarded: frozenset[tuple[Family, str]]) -> ApplyResult:
        """Take back everything that we made."""
        ...

    def close(self) -> None:
        """End what runs beside us."""
        ...


class Conflicts(Protocol):
    """Other processes and rules on the ports we take; see `fwdaemon.conflicts.watch`."""

    @property
    def due(self) -> float | None:
        """When to look again for what could not be found."""
        ...

    def find(
        self,
        desired: Desired,
        local: Collection[Address],
        *,
        full: bool,
        reloaded: bool = False,
        origin: Origin = Origin.OTHERS,
    ) -> tuple[Conflict | Fault, ...]:
        """Give what was found last, and look again where there is reason to."""
        ...


@dataclass(frozen=True, slots=True)
class Seams:
    """What a reconcile reads and writes: rules, the host's network, connections; who else wants our ports; a clock.

    What guests and users cause to be done beside it is charged to `budgets`; where it fails, it calls `look_soon`.
    """

    rules: LocatedRules
    host: HostNetwork
    conntrack: Conntrack
    conflicts: Conflicts
    clock: Clock
    budgets: Budgets = field(default_factory=new_budgets)
    look_soon: Callable[[Origin], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Request:
    """Why we look again, and what is known besides the desired state.

    `reasons` are for exposures that come and go, `actors` are for those found missing; `latest_triggers` asks once more
    for both, where the pass began before they were heard. `now` is a monotonic time in seconds. `local` are the host's
    own addresses, `taken` those of running guests, `uplinks` those that are configured, if any. `ip_forward` allows to
    turn on forwarding, `reloaded` says that the configuration is new, `full` asks for a comparison even of what seems
    unchanged, and `origin` says for whose sake we look.
    """

    reasons: tuple[Reason, ...]
    actors: tuple[Actor, ...]
    now: float
    local: frozenset[Address] = frozenset()
    taken: frozenset[Address] = frozenset()
    uplinks: frozenset[str] = frozenset()
    ip_forward: bool = True
    reloaded: bool = False
    full: bool = False
    origin: Origin = Origin.OTHERS
    latest_triggers: Callable[[], tuple[tuple[Actor, ...], tuple[Reason, ...]]] = field(default=lambda: ((), ()))


class Reconciler:
    """Keeps the kernel at the desired state; `report` is of the last time that went well, and says what is applied."""

    def __init__(self, seams: Seams) -> None:
        self._rules, self._host, self._conflicts = seams.rules, seams.host, seams.conflicts
        self._conntrack, self._clock = seams.conntrack, seams.clock
        self._grace = Grace()
        self._kept: frozenset[Family] = frozenset()
        self._uplinks: frozenset[str] = frozenset()
        self._known = (Desired(), Desired(), Desired())
        self._turn = Lock()
        self._sweeper = Sweeper(self._refuse, seams.conntrack, seams.clock, seams.budgets, seams.look_soon)
        self._departures = Departures()
        self._audit = _Audit()
        self.report: ReconcileReport | None = None

    @property
    def next_pass_at(self) -> float | None:
        """When something is due that was held back, a removal or a line, or failed; by the clock of `Request.now`."""
        ends = self._grace.ends, self._audit.ends, self._sweeper.due, self._conflicts.due
        return min((due for due in ends if due is not None), default=None)

    def reconcile(self, desired: Desired, request: Request) -> bool:
        """Make the kernel hold `desired`, and return whether anything had to be changed.

        Raises:
            PortfwdError: the kernel refused; what was live before still is.

        """
        before = self.report
        if before is None:
            self._host.adopt(self._rules.confined(), self._rules.switched())
        extended = self._extended(desired, request)
        self._sweeper.expect(extended.carrying)
        self._host.release(extended)
        with self._turn:
            result = self._rules.apply(extended, full=request.full)
        result = joined(result, self._apply_host_network(extended, request))
        result = joined(result, ApplyResult(faults=(*desired.remarks, *self._conflicts_of(extended, request))))
        if not request.actors and (result.damaged or any(g.restored for g in result.gates)):
            request = replace(request, actors=request.latest_triggers()[0])
        report = self._reported(desired, extended, result, request)
        self._end_connections(before, report, request)
        self._uplinks = request.uplinks
        self._audit.write(before, report, request)
        self.report = replace(report, ended=self._sweeper.take_ended())
        return result.changed

    def remove(self, cause: Cause) -> None:
        """Remove everything that is ours; where something may be left, write that instead of what went."""
        self._sweeper.wait(_PATIENCE)
        applied = self.report.desired if self.report is not None else Desired()
        with self._turn:
            host = self._host.remove(applied.forwarded)
            left = host.renamings | renamings(applied.outgoing)
            ended = close_everything(self._rules, applied.label, self._conntrack, self._clock, left)
            removed = joined(host, ended)
            lines.notes(removed.notes)
        if removed.faults:
            lines.problems((*removed.faults, Fault(FaultKind.LEFT_BEHIND)))
            return
        for exposure in causes.in_order(applied.exposures):
            lines.exposure("removed", exposure, cause)
        self.report = None

    def close(self) -> None:
        """End what runs beside us; what the kernel holds stays."""
        self._sweeper.wait(_PATIENCE)
        self._host.close()

    def _refuse(self, flows: Collection[Flow]) -> None:
        """Refuse what guests still send on connections that are about to end; a backend takes one call at a time."""
        with self._turn:
            self._rules.refuse(flows)

    def _extended(self, desired: Desired, request: Request) -> Desired:
        live = frozenset() if request.reloaded or self.report is None else self.report.desired.exposures
        extended = self._grace.extend(desired, live, request.taken, Stop(request.now, request.reasons))
        return self._confined(self._with_kept(extended), request)

    def _apply_host_network(self, desired: Desired, request: Request) -> ApplyResult:
        """Keep the host's side; an event about a guest may mean that it has another port of the same name."""
        how = {"full": request.full, "replugged": bool(request.reasons)}
        return self._host.apply(desired, ip_forward=request.ip_forward, **how)

    def _conflicts_of(self, desired: Desired, request: Request) -> tuple[Conflict | Fault, ...]:
        how = {"full": request.full, "reloaded": request.reloaded}
        return self._conflicts.find(desired, request.local, **how, origin=request.origin)

    def _with_kept(self, desired: Desired) -> Desired:
        """Add the families that had forwards before; an unchanged state stays the same object, which backends know."""
        self._kept |= desired.families
        if self._known[0] is not desired or self._known[1].families != self._kept:
            same = desired.families == self._kept
            kept = desired if same else desired.keeping(self._kept)
            self._known = (desired, kept, kept)
        return self._known[1]

    def _confined(self, desired: Desired, request: Request) -> Desired:
        """Say where we turn forwarding on, before we do so: what else the host would then forward is refused first."""
        before, kept, known = self._known
        confined = self._host.confine(desired, ip_forward=request.ip_forward)
        found = confined.confined, confined.bridging, confined.switched
        if found != (known.confined, known.bridging, known.switched):
            self._kept |= confined.confined
            self._known = (before, kept, confined)
        return self._known[2]

    def _reported(self, placed: Desired, applied: Desired, result: ApplyResult, request: Request) -> ReconcileReport:
        reasons = request.reasons
        if self.report is not None and self.report.desired.exposures != applied.exposures:
            # That an emulator died is seen before libvirt has said why, and a lease before its file is reported.
            reasons = tuple(dict.fromkeys(reasons + request.latest_triggers()[1]))
        known = Known(reasons, request.actors, self._grace.reasons)
        return ReconcileReport(
            applied,
            result,
            causes.changes(self.report, applied, result, known),
            request.actors,
            placed=placed,
            location=self._rules.location,
            unusable=self._rules.unusable,
        )

    def _end_connections(self, before: ReconcileReport | None, report: ReconcileReport, request: Request) -> None:
        """Have connections ended that no exposure carries any more, and those that a new one takes over."""
        desired = report.desired
        banned = self._rules.externals.take_added()
        if before is None:
            self._sweeper.sweep(replace(_first_sweep(report, request), gatekeeper=self._gatekeeper(desired)))
            return
        if desired is before.desired and not report.result.changed and not any(banned):
            return
        added, removed = desired.exposures - before.desired.exposures, before.desired.exposures - desired.exposures
        ended = self._departures.follow(removed, desired)
        taken_over = frozenset(item.address for item in desired.proxied - before.desired.proxied)
        old_labels = frozenset({before.desired.label} - {desired.label})
        # An uplink that goes down is no reason to end connections: those over the others go on.
        fewer = self._uplinks != request.uplinks and bool(before.desired.uplinks - desired.uplinks)
        changed_by_others = report.result.changed and (bool(request.actors) or not (added or removed))
        strangers = _strangers(report, request) if changed_by_others or report.result.damaged else None
        # While rules were bent, some may have got in who are denied.
        barring = (desired.sets, desired.barred) != (before.desired.sets, before.desired.barred)
        barring |= banned.many or bool(report.result.damaged)
        if desired.gatekeeper() is None:
            barring, banned = False, Added()
        if added or ended or taken_over or old_labels or fewer or strangers or barring or banned.addresses:
            sweep = self._sweep(before, desired, request, None if barring else ended, added)
            sweep = replace(sweep, gatekeeper=self._gatekeeper(desired), barred=banned.addresses)
            sweep = replace(sweep, taken_over=taken_over, old_labels=old_labels, fewer_uplinks=fewer)
            sweep = replace(sweep, strangers=strangers)
            self._sweeper.sweep(replace(sweep, origin=request.origin))

    def _gatekeeper(self, desired: Desired) -> Gatekeeper | None:
        is_asked = desired.barred is not None or desired.limited
        return desired.gatekeeper(self._rules.externals.ranges()) if is_asked else None

    def _sweep(
        self,
        before: ReconcileReport,
        desired: Desired,
        request: Request,
        ended: frozenset[Exposure] | None,
        added: frozenset[Exposure],
    ) -> Sweep:
        """Say which connections to look for; those of guests that may come back from another host are spared."""
        coming = (Move.HERE, Move.ARRIVED)
        arrived = frozenset(nat for nat in desired.nats & added if before.placed.moved.get(nat.owner) in coming)
        live = self._departures.with_returning(desired.carrying)
        return Sweep(live, desired.label, request.local, ended, added, arrived, self._departures.moved)


def _first_sweep(report: ReconcileReport, request: Request) -> Sweep:
    """Say what to look for after a start: what was bound to an interface meanwhile may have led there by any."""
    desired, result = report.desired, report.result
    bound = (item for item in result.altered if isinstance(item, Forward) and item.interface is not None)
    invalidated = frozenset(replace(forward, interface=None) for forward in bound)
    old = result.labels - {desired.label}
    sweep = Sweep(desired.carrying, desired.label, request.local, None, result.mended, renamings=result.renamings)
    # Uplinks that were found from the routes may have changed by themselves.
    fewer = bool(request.uplinks and result.uplinks - desired.uplinks)
    return replace(
        sweep, invalidated=invalidated, old_labels=old, fewer_uplinks=fewer, strangers=_strangers(report, request)
    )


def _strangers(report: ReconcileReport, request: Request) -> Strangers | None:
    """Say what may have slipped in if rules were not there that keep the host from being a router."""
    desired = report.desired
    return Strangers.of(desired, request.local) if desired.confined or desired.switched else None


class _Audit:
    """Writes what is new in a report to the audit."""

    def __init__(self) -> None:
        self._flap_damping = FlapDamping()
        self._new_problems = NewProblems()
        self._rations = Rations()

    @property
    def ends(self) -> float | None:
        """When a line that was held back is due."""
        return min((due for due in (self._flap_damping.ends, self._new_problems.ends) if due is not None), default=None)

    def write(self, before: ReconcileReport | None, report: ReconcileReport, request: Request) -> None:
        """Write what changed; nothing if the state is the same and all was well."""
        desired, result = report.desired, report.result
        if result.moved:
            lines.moved(result.moved)
        lines.flapped(self._flap_damping.due(request.now))
        for setting in result.settings:
            if self._flap_damping.admit(setting, setting.action, Cause(), request.now):
                lines.setting(setting, Cause())
        lines.notes(result.notes)
        if before is None:
            self._write_first(report, request)
        else:
            self._write_changes(report, request)
        everything, last = request.reloaded or before is None, before.desired if before is not None else Desired()
        if everything or desired.waiting != last.waiting:
            news = self._new_problems.of_waiting(desired.waiting, last.owners, everything=everything)
            lines.waiting(self._rations.admitted(news, request.now))
        lines.problems(self._new_problems.of_faults(result.faults, request.now, everything=everything))

    def _write_first(self, report: ReconcileReport, request: Request) -> None:
        """Write what was found of an earlier run, and what was not."""
        if found := len(report.desired.exposures - report.result.mended):
            lines.adopted(found)
        lines.leftovers(report.result.stale)
        for change in report.changes:
            lines.exposure(change.action, change.exposure, change.cause)
        for gate in report.result.gates:
            lines.gate(gate, Cause(request.reasons))

    def _write_changes(self, report: ReconcileReport, request: Request) -> None:
        for change in report.changes:
            if self._flap_damping.admit(change.exposure, change.action, change.cause, request.now):
                lines.exposure(change.action, change.exposure, change.cause)
        for gate in sorted(report.result.gates, key=lambda change: change.restored):
            self._write_gate(gate, request)

    def _write_gate(self, change: GateChange, request: Request) -> None:
        cause = Cause(request.actors if change.restored else request.reasons)
        if self._flap_damping.admit(change, change.action, cause, request.now):
            lines.gate(change, cause)
