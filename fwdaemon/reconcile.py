"""One reconcile: bring the kernel to the desired state, and account for every change.

`Reconciler` is called again and again with what shall be; it remembers only what it made live, which is how it tells
`added` from `restored`. Everything in here blocks, and is called in one thread; the loop that calls it is
`fwdaemon.daemon`.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from fwdaemon import audit, causes, conntrack
from fwdaemon.account import Account, Change
from fwdaemon.clashes.watch import ClashWatch
from fwdaemon.complaints import Complaints
from fwdaemon.desired import Desired, Opening, Owner
from fwdaemon.errors import PortfwdError
from fwdaemon.flapping import Flapping
from fwdaemon.grace import Grace, Stop
from fwdaemon.hostside import HostSide
from fwdaemon.model import Address, Family
from fwdaemon.netfilter import Backend
from fwdaemon.outcome import Outcome, joined


@dataclass(frozen=True, slots=True)
class Occasion:
    """Why we look again, and what is known besides the desired state.

    `reasons` are for openings that come and go, `meddler` is for those found missing; `overheard` asks once more who
    that was, where the look began before it was heard. `now` is a monotonic time in seconds. `local` are the host's own
    addresses, `taken` those of running guests. `ip_forward` allows to turn on forwarding, `reloaded` says that the
    configuration is new, `thorough` asks for a comparison even of what seems unchanged.
    """

    reasons: tuple[str, ...]
    meddler: str
    now: float
    local: frozenset[Address] = frozenset()
    taken: frozenset[Address] = frozenset()
    ip_forward: bool = True
    reloaded: bool = False
    thorough: bool = False
    overheard: Callable[[], str] = field(default=lambda: causes.AT_A_COMPARISON)


class Reconciler:
    """Keeps the kernel at the desired state; `account` tells of the last time that went well."""

    def __init__(self, backend: Backend, clashes: ClashWatch) -> None:
        self._backend = backend
        self._clashes = clashes
        self._grace = Grace()
        self._flapping = Flapping()
        self._host = HostSide()
        self._live: frozenset[Opening] | None = None
        self._applied = Desired()
        self._kept: frozenset[Family] = frozenset()
        self._known = (Desired(), Desired())
        self._before = Desired()
        self._complaints = Complaints()
        self._changes: list[Change] = []
        self._ended = 0
        self.account: Account | None = None

    @property
    def look_again_at(self) -> float | None:
        """When something held back is due, a removal or a line, by the same clock as `Occasion.now`."""
        every = (self._grace.ends, self._flapping.ends, self._complaints.ends)
        return min((due for due in every if due is not None), default=None)

    def reconcile(self, desired: Desired, occasion: Occasion) -> bool:
        """Make the kernel hold `desired`, and tell whether anything had to be changed.

        Raises:
            PortfwdError: the kernel refused; what was live before still is.

        """
        self._changes, self._ended = [], 0
        extended = self._extended(desired, occasion)
        self._host.release(extended)
        outcome = self._backend.apply(extended, thorough=occasion.thorough)
        outcome = joined(outcome, self._host.keep(extended, ip_forward=occasion.ip_forward))
        outcome = joined(outcome, Outcome(faults=self._clashing(extended, occasion)))
        if outcome.moved:
            audit.moved(outcome.moved)
        if occasion.meddler == causes.AT_A_COMPARISON and (outcome.damaged or any(g.restored for g in outcome.gates)):
            occasion = replace(occasion, meddler=occasion.overheard())
        self._account_for(extended, outcome, occasion)
        self._before = desired
        self.account = Account(extended, outcome, tuple(self._changes), occasion.meddler, self._ended)
        return outcome.changed

    def remove(self, cause: str) -> None:
        """Take away everything that is ours."""
        audit.problems(joined(self._host.remove(), self._backend.remove()).faults)
        for opening in sorted(self._live or (), key=_order):
            audit.opening("removed", opening, cause)
        self._live = frozenset()

    def close(self) -> None:
        """End what runs beside us; what the kernel holds stays."""
        self._host.close()

    def _extended(self, desired: Desired, occasion: Occasion) -> Desired:
        live = frozenset() if occasion.reloaded or self._live is None else self._live
        extended = self._grace.extend(desired, live, occasion.taken, Stop(occasion.now, occasion.reasons))
        return self._with_kept(extended)

    def _clashing(self, desired: Desired, occasion: Occasion) -> tuple[str, ...]:
        return self._clashes.look(desired, occasion.local, thorough=occasion.thorough, reloaded=occasion.reloaded)

    def _with_kept(self, desired: Desired) -> Desired:
        """Add the families that had forwards before; an unchanged state stays the same object, which backends know."""
        self._kept |= desired.families
        if self._known[0] is not desired or self._known[1].families != self._kept:
            same = desired.families == self._kept
            self._known = (desired, desired if same else desired.keeping(self._kept))
        return self._known[1]

    def _account_for(self, desired: Desired, outcome: Outcome, occasion: Occasion) -> None:
        """Tell what changed; nothing where the state is the very one of the last time and all was well."""
        live, before = self._live, self._applied
        audit.flapped(self._flapping.due(occasion.now))
        if live is None:
            self._live = desired.openings
            self._account_for_first(desired, outcome, occasion)
        elif outcome.changed or desired is not self._applied:
            self._live = desired.openings
            self._account(live, desired, outcome, occasion)
        self._applied = desired
        everything = occasion.reloaded or live is None
        if everything or desired.waiting != before.waiting:
            audit.waiting(self._complaints.of_waiting(desired.waiting, before.owners, everything=everything))
        audit.problems(self._complaints.of_faults(outcome.faults, occasion.now, everything=everything))

    def _account(self, live: frozenset[Opening], desired: Desired, outcome: Outcome, occasion: Occasion) -> None:
        now = desired.openings
        added, removed = now - live, live - now
        with self._ending(desired, added, occasion, outdated=bool(removed)):
            for opening in sorted(removed, key=_order):
                reasons = self._grace.reasons(opening, occasion.reasons)
                self._tell("removed", opening, causes.of_end(opening, desired, reasons), occasion)
            for opening in sorted(added, key=_order):
                cause = causes.of_start(opening, self._before, occasion.reasons)
                self._tell("added", opening, cause, occasion)
            for opening in sorted(outcome.damaged & live & now, key=_order):
                cause = causes.of_loss(opening, occasion.reasons, occasion.meddler)
                self._tell("restored", opening, cause, occasion)
            audit.gates((change for change in outcome.gates if not change.restored), causes.told(occasion.reasons))
            audit.gates((change for change in outcome.gates if change.restored), occasion.meddler)

    def _account_for_first(self, desired: Desired, outcome: Outcome, occasion: Occasion) -> None:
        """Tell what was found of an earlier run, and what was not."""
        cause = causes.told(occasion.reasons)
        with self._ending(desired, outcome.mended, occasion, outdated=True):
            if found := len(desired.openings - outcome.mended):
                audit.adopted(found)
            audit.leftovers(outcome.stale)
            for opening in sorted(outcome.mended, key=_order):
                self._changes.append(Change("added", opening, cause))
                audit.opening("added", opening, cause)
            audit.gates(outcome.gates, cause)

    @contextmanager
    def _ending(
        self, desired: Desired, added: frozenset[Opening], occasion: Occasion, *, outdated: bool
    ) -> Iterator[None]:
        """End what no opening carries any more, beside the telling of changes, thousands it may be; tell it last.

        Meanwhile nothing else may use the backend.
        """
        live, local = desired.openings, occasion.local

        def end() -> int:
            ended = conntrack.end_outdated(live, desired.mark, local, self._backend.refuse) if outdated else 0
            return ended + conntrack.end_claimed(added, local)

        with ThreadPoolExecutor(1, "conntrack") as beside:
            ended: Callable[[], int] = end
            with suppress(RuntimeError):  # as many threads run as may: it is done afterwards
                ended = beside.submit(end).result
            yield
            try:
                self._ended = ended()
            except PortfwdError as error:
                audit.problems([f"open connections of forwards that went may go on: {error}"])
        if self._ended:
            audit.connections_ended(self._ended)

    def _tell(self, action: str, opening: Opening, cause: str, occasion: Occasion) -> None:
        self._changes.append(Change(action, opening, cause))
        if self._flapping.admit(opening, action, cause, occasion.now):
            audit.opening(action, opening, cause)


def _order(opening: Opening) -> tuple[Owner, str]:
    return opening.owner, opening.listens_at()
