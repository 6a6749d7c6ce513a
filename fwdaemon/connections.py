"""Ends connections: what a change invalidated, beside the reconcile, and what is ours, where all of that ends."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol as Interface

from fwdaemon.audit import lines
from fwdaemon.audit.journal import ARREARS
from fwdaemon.core.admission import Gatekeeper
from fwdaemon.core.exposures import Exposure, Nat, Renaming
from fwdaemon.core.inventory import Move
from fwdaemon.core.report import ApplyResult, Fault, FaultKind, joined, tried
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family, Job, Protocol
from fwdaemon.errors import PortfwdError
from fwdaemon.kernel import conntrack
from fwdaemon.kernel.conntrack_listing import Entry
from fwdaemon.kernel.memory import Beside
from fwdaemon.kernel.process import new_budgets
from fwdaemon.netfilter import Rules
from fwdaemon.resolve.flows import Carriers, Flow, Judge, Strangers, renamings, turned
from fwdaemon.triggers import Budgets, Origin


class Conntrack(Interface):
    """The kernel's connections, and their ends; see `fwdaemon.kernel.conntrack`, which explains each function."""

    def outdated(
        self, judge: Judge, label: int, guests: Collection[Address] | None = None, clients: Collection[Address] = ()
    ) -> Iterator[list[Entry]]:
        """Give the connections of ours that nothing carries, in batches."""
        ...

    def end(self, entries: Sequence[Entry]) -> int:
        """End these, and give their number."""
        ...

    def end_claimed(self, added: Collection[Exposure], local: Collection[Address]) -> Sequence[Flow]:
        """End those to the host itself that exposures take over, and give them."""
        ...

    def end_flows(self, flows: Collection[Flow]) -> int:
        """End just these of UDP, and give their number."""
        ...

    def end_strayed(self, arrived: Collection[Nat]) -> int:
        """End those of guests that came from another host, where they were not let in by us."""
        ...

    def end_strangers(self, strangers: Strangers, label: int) -> int:
        """End those without this label that slipped in while nothing refused them."""
        ...

    def end_resumed(self, taken_over: Collection[Address]) -> int:
        """End those of guests that were on another host meanwhile."""
        ...


class Clock(Interface):
    """What waits, as the module `time` does."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""
        ...

    def monotonic(self) -> float:
        """Give a time in seconds."""
        ...


# The end of everything that is ours: what goes through it ends first, then the rules go.

# How long rules stay that refuse what guests still send on ended connections. A guest that has something to send, which
# without its connection would be let out as a new one, does so sooner: TCP tries again after 0.2 s (tcp.h).
_LINGER_S = 1.0


def close_everything(
    rules: Rules,
    label: int,
    connections: Conntrack = conntrack,
    clock: Clock = time,
    left: Collection[Renaming] = (),
) -> ApplyResult:
    """End all connections that are ours, and take away every rule that is ours; what fails is a fault.

    Of connections without our label, those are ours that 1:1 guests opened by the pairs of addresses that are `left`,
    and by those that the rules of another run were for.
    """
    faults = tuple(_ending(rules, label, connections, clock, frozenset(left)))
    return joined(ApplyResult(faults=faults), tried(rules.remove))


def _ending(
    rules: Rules, label: int, connections: Conntrack, clock: Clock, left: frozenset[Renaming]
) -> Iterator[Fault]:
    families, labels, ended = frozenset[Family](), {label}, 0
    try:
        # First every exposure closes, and nothing comes that a listing would miss; tables stay that can refuse.
        if families := rules.held():
            # They may go by another label than what is configured.
            found = rules.apply(Desired(label=label, kept=families), full=True)
            labels, left = labels | found.labels, left | found.renamings
        judge = Judge((), (), left=left)
        for batch in chain.from_iterable(connections.outdated(judge, each) for each in sorted(labels)):
            if not families.issuperset(met := {entry.flow.family for entry in batch}):
                families |= met
                rules.apply(Desired(label=label, kept=families), full=True)
            if ported := [entry.flow for entry in batch if entry.flow.protocol is not None]:
                rules.refuse(ported)
            ended += connections.end(batch)
    except (PortfwdError, OSError) as error:
        yield Fault(FaultKind.CONNECTIONS_OPEN, detail=str(error))
    if ended:
        clock.sleep(_LINGER_S)


# Ends connections that no exposure carries any more, in a thread of its own: there may be hundreds of thousands.
#
# The reconcile says what changed and goes on; a wipe is repaired meanwhile. Whatever is about to be live by then is
# spared.
_log = logging.getLogger(__name__)

# When to look for answers that a process of the host was still sending while its flow ended, in seconds.
_ON_THEIR_WAY_S = (0.05, 0.2, 0.75)
_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to look for: connections with this label that none of `live` carries, and those that `added` took over.

    `removed` and `added` are what changed; without `removed`, anything may have. `invalidated` are exposures that may
    have been there instead of some of `live`. Nothing carries what has one of `old_labels`. By `renamings`, an earlier
    run had guests open connections. With `fewer_uplinks`, what guests opened to the outside may have left where it may
    not any more. `local` are the host's own addresses. `arrived` are those of `added` whose guests came from another
    host, and `moved` the addresses of guests that went to one: what these send is not refused, as they send it there.
    `taken_over` are addresses of routes that guests here have now, and may have had on another host. `strangers` may
    have slipped in. `origin` says for whose sake it is done.
    """

    live: frozenset[Exposure]
    label: int
    local: Collection[Address]
    removed: frozenset[Exposure] | None
    added: frozenset[Exposure]
    arrived: frozenset[Nat] = frozenset()
    moved: frozenset[Address] = frozenset()
    taken_over: frozenset[Address] = frozenset()
    invalidated: frozenset[Exposure] = frozenset()
    old_labels: frozenset[int] = frozenset()
    renamings: frozenset[Renaming] = frozenset()
    fewer_uplinks: bool = False
    strangers: Strangers | None = None
    origin: Origin = Origin.OTHERS
    gatekeeper: Gatekeeper | None = None
    barred: frozenset[Address] = frozenset()

    def after(self, earlier: "Sweep | None") -> "Sweep":
        """Give one that does the work of an earlier one too."""
        if earlier is None:
            return self
        known = self.removed is not None and earlier.removed is not None
        removed = (self.removed or frozenset()) | (earlier.removed or frozenset()) if known else None
        return replace(
            self,
            removed=removed,
            added=(self.added | earlier.added) & self.live,
            arrived=(self.arrived | earlier.arrived) & self.live,
            moved=self.moved | earlier.moved,
            taken_over=self.taken_over | earlier.taken_over,
            invalidated=self.gone | earlier.gone,
            old_labels=(self.old_labels | earlier.old_labels) - {self.label},
            renamings=self.renamings | earlier.renamings,
            fewer_uplinks=self.fewer_uplinks or earlier.fewer_uplinks,
            strangers=self.strangers or earlier.strangers,
            origin=max(self.origin, earlier.origin),
            barred=self.barred | earlier.barred,
        )

    @property
    def guests(self) -> frozenset[Address] | None:
        """Say who answers the connections that are to be looked at; `None` stands for all."""
        if self.removed is None or self.fewer_uplinks:
            return None
        guests = frozenset(exposure.guest for exposure in self.removed)
        return frozenset(guest for guest in guests if guest is not None) if None not in guests else None

    @property
    def clients(self) -> frozenset[Address]:
        """Say who began others that are to be looked at: who is denied now, and 1:1 guests."""
        return self.barred.union(guest for guest, _ in renamings(self.removed or ()))

    def outdated(self) -> Judge:
        """Give what decides which connections to end."""
        return Judge(
            self.live,
            self.local,
            self.gone,
            fewer_uplinks=self.fewer_uplinks,
            left=self.renamings,
            gatekeeper=self.gatekeeper,
        )

    @property
    def gone(self) -> frozenset[Exposure]:
        """Give the exposures that have gone and may still have open connections."""
        return self.invalidated | (self.removed or frozenset())


class Sweeper:
    """One thread, begun when there is something to do; a sweep that comes during another follows it.

    `refuse` is given connections just before they end: what a guest sends on a forgotten one would begin it anew.
    What guests and users cause takes from `budgets`. `failed` is called in that thread where a sweep could not be done,
    which is tried again by what is called from `due` on.
    """

    def __init__(
        self,
        refuse: Callable[[Collection[Flow]], None],
        connections: Conntrack = conntrack,
        clock: Clock = time,
        budgets: Budgets | None = None,
        failed: Callable[[Origin], None] = lambda _: None,
    ) -> None:
        self._refuse = refuse
        self._connections = connections
        self._clock = clock
        self._budgets = budgets or new_budgets()
        self._turn = threading.Condition()
        self._next: Sweep | None = None
        self._running = False
        self._failed = failed
        self._thread = Beside("conntrack", self._run, "open connections of removed forwards may go on", clock.monotonic)
        self._live = frozenset[Exposure]()
        self._ended = 0

    @property
    def due(self) -> float | None:
        """When to try again what failed, by the clock; `None` where nothing did."""
        return self._thread.due

    def expect(self, live: frozenset[Exposure]) -> None:
        """Spare what these carry from now on: they are about to be live."""
        with self._turn:
            self._live = live
            self._begin()

    def sweep(self, sweep: Sweep) -> None:
        """Begin, or have it follow what is running."""
        with self._turn:
            self._live = sweep.live
            self._next = sweep.after(self._next)
            self._begin(at_once=True)

    def wait(self, patience: float | None = None) -> bool:
        """Wait until nothing is left to do; whether that was so within `patience` seconds."""
        with self._turn:
            return self._turn.wait_for(lambda: not self._running, patience)

    def take_ended(self) -> int:
        """Give the number of connections ended since the last time."""
        with self._turn:
            ended, self._ended = self._ended, 0
        return ended

    def _begin(self, *, at_once: bool = False) -> None:
        if self._next is not None and not self._running:
            self._running = self._thread.begin(at_once=at_once)

    def _run(self) -> None:
        while (sweep := self._taken()) is not None:
            try:
                with ARREARS.during(Job.CONNECTIONS), self._budgets.charged(sweep.origin, time.thread_time):
                    self._do(sweep)
                self._thread.done()
            except (PortfwdError, OSError) as error:  # no descriptor is available, either
                self._put_back(sweep, error)
                return self._failed(sweep.origin)
            except Exception:  # noqa: BLE001  a mistake in one sweep is no reason to leave out the next
                _log.exception("cannot end connections")
        return None

    def _taken(self) -> Sweep | None:
        with self._turn:
            sweep, self._next = self._next, None
            self._running = sweep is not None
            self._turn.notify_all()
        return sweep

    def _put_back(self, sweep: Sweep, error: Exception) -> None:
        """Leave what failed to a later reconcile."""
        self._thread.failed(error)
        with self._turn:
            self._next = sweep if self._next is None else self._next.after(sweep)
            self._running = False
            self._turn.notify_all()

    def _do(self, sweep: Sweep) -> None:
        self._connections.end_resumed(sweep.taken_over)
        ended = self._connections.end_strayed(sweep.arrived)
        self._end_strangers(sweep)
        if sweep.removed is None or sweep.removed or sweep.fewer_uplinks or sweep.barred:
            found = self._connections.outdated(sweep.outdated(), sweep.label, sweep.guests, sweep.clients)
            for batch in found:
                ended += self._end(self._not_carried_since(batch, sweep), sweep.moved)
        for label in sorted(sweep.old_labels):
            for batch in self._connections.outdated(Judge((), sweep.local), label):
                ended += self._end(batch, sweep.moved)
        claimed = self._connections.end_claimed(sweep.added, sweep.local)
        if ended := ended + len(claimed):
            with self._turn:
                self._ended += ended
            lines.connections_ended(ended)
        self._end_turned({turned(flow) for flow in claimed if flow.protocol is Protocol.UDP})

    def _not_carried_since(self, batch: list[Entry], sweep: Sweep) -> list[Entry]:
        """Leave out what may be carried by exposures that came after this sweep was asked for."""
        if self._live is sweep.live:
            return batch
        coming = Carriers(self._live - sweep.live)
        return [entry for entry in batch if coming.carrier(entry.flow) is None]

    def _end_strangers(self, sweep: Sweep) -> None:
        if sweep.strangers is None:
            return
        if ended := self._connections.end_strangers(sweep.strangers, sweep.label):
            with self._turn:
                self._ended += ended
            lines.strangers_ended(ended)

    def _end_turned(self, flows: Collection[Flow]) -> None:
        """End flows that the host's own late answers re-created: they would keep the client's datagrams at the host.

        The next sweep does not wait for this one to finish looking.
        """
        for pause in _ON_THEIR_WAY_S if flows else ():
            with self._turn:
                is_over = self._turn.wait_for(lambda: self._next is not None, pause)
            self._connections.end_flows(flows)
            if is_over:
                return

    def _end(self, entries: list[Entry], moved: frozenset[Address]) -> int:
        ported = (entry.flow for entry in entries if entry.flow.protocol is not None)
        if refused := [flow for flow in ported if moved.isdisjoint((flow.server, flow.source))]:
            self._refuse_at_last(refused)
        return self._connections.end(entries) if entries else 0

    def _refuse_at_last(self, flows: Collection[Flow]) -> None:
        """Have them refused, again where another program has just wiped what refuses; the reconcile puts that back."""
        for pause in _PAUSES_S:
            try:
                return self._refuse(flows)
            except PortfwdError as error:
                _log.debug("refusing again after: %s", error)
                self._clock.sleep(pause)
        return self._refuse(flows)


# Exposures that went because their guest was handed over to another host, and what becomes of their connections.
#
# Until libvirt has ended the guest here, it may come back: the migration fails late, or is cancelled. Its connections
# are left as they are for so long, and are then ended like all others, but for one thing: what the guest sends on them
# is not refused. It sends that on the other host, where they go on, and here again if it returns soon. Pure.


class Departures:
    """Remembers what went with guests that were handed over; `moved` are the addresses of those that went for good."""

    def __init__(self) -> None:
        self._returning: frozenset[Exposure] = frozenset()
        self.moved: frozenset[Address] = frozenset()

    def follow(self, removed: frozenset[Exposure], desired: Desired) -> frozenset[Exposure]:
        """Learn what was just removed, and the state now; give the exposures whose connections are to end."""
        left = (self._returning | removed) - desired.exposures
        returning = frozenset(exposure for exposure in left if desired.moved.get(exposure.owner) is Move.AWAY)
        ended = left - returning
        moved = (exposure.guest for exposure in ended if exposure.owner in desired.moved)
        self._returning, self.moved = returning, frozenset(guest for guest in moved if guest is not None)
        return ended

    def with_returning(self, live: frozenset[Exposure]) -> frozenset[Exposure]:
        """Add those exposures to the live ones that may come back; the very set where there are none."""
        return live | self._returning if self._returning else live
