"""One reconcile: bring the kernel to the desired state, and account for every change.

`Reconciler` is called again and again with what shall be; it remembers only what it made live, which is how it tells
`added` from `restored`. Everything in here blocks, and runs in one thread; the loop that calls it is
`fwdaemon.daemon`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fwdaemon import audit, causes, conntrack, forwarding
from fwdaemon.desired import Desired, Forward, Waiting
from fwdaemon.errors import KernelError, PortfwdError
from fwdaemon.grace import Grace, Stop
from fwdaemon.hairpin import HairpinPorts
from fwdaemon.model import Address, Family
from fwdaemon.netfilter import Backend
from fwdaemon.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Occasion:
    """Why we look again, and what is known besides the desired state.

    `reasons` are for forwards that come and go, `meddler` is for those found missing. `now` is a monotonic time in
    seconds. `local` are the host's own addresses, `taken` those of running guests. `ip_forward` allows to turn on
    forwarding, `reloaded` says that the configuration is new, `thorough` asks for a comparison even of what seems
    unchanged.
    """

    reasons: tuple[str, ...]
    meddler: str
    now: float
    local: frozenset[Address] = frozenset()
    taken: frozenset[Address] = frozenset()
    ip_forward: bool = True
    reloaded: bool = False
    thorough: bool = False


class Reconciler:
    """Keeps the kernel at the desired state."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._grace = Grace()
        self._hairpin = HairpinPorts()
        self._live: frozenset[Forward] | None = None
        self._kept: frozenset[Family] = frozenset()
        self._known = (Desired(), Desired())
        self._before = Desired()
        self._said: frozenset[str | Waiting] = frozenset()

    @property
    def look_again_at(self) -> float | None:
        """When a held removal is due, by the same clock as `Occasion.now`."""
        return self._grace.ends

    def reconcile(self, desired: Desired, occasion: Occasion) -> bool:
        """Make the kernel hold `desired`, and tell whether anything had to be changed.

        Raises:
            PortfwdError: the kernel refused; what was live before still is.

        """
        extended = self._extended(desired, occasion)
        outcome = self._backend.apply(extended, thorough=occasion.thorough)
        faults = [*outcome.faults, *self._forwarding_faults(extended, occasion)]
        self._hairpin.keep(extended.forwards)
        if outcome.moved:
            audit.moved(outcome.moved)
        live, self._live = self._live, extended.forwards
        if live is None:
            self._account_for_first(extended, outcome, occasion)
        elif outcome.changed or live is not extended.forwards:
            self._account(live, extended, outcome, occasion)
        self._say_once(extended, faults, everything=occasion.reloaded or live is None)
        self._before = desired
        return outcome.changed

    def remove(self, cause: str) -> None:
        """Take away everything that is ours."""
        self._backend.remove()
        self._hairpin.keep(())
        for forward in sorted(self._live or (), key=_order):
            audit.forward("removed", forward, cause)
        self._live = frozenset()

    def _extended(self, desired: Desired, occasion: Occasion) -> Desired:
        live = frozenset() if occasion.reloaded or self._live is None else self._live
        extended = self._grace.extend(desired, live, occasion.taken, Stop(occasion.now, occasion.reasons))
        return self._with_kept(extended)

    def _with_kept(self, desired: Desired) -> Desired:
        """Add the families that had forwards before; an unchanged state stays the same object, which backends know."""
        self._kept |= desired.families
        if self._known[0] is not desired or self._known[1].kept != self._kept:
            self._known = (desired, replace(desired, kept=self._kept))
        return self._known[1]

    def _account(self, live: frozenset[Forward], desired: Desired, outcome: Outcome, occasion: Occasion) -> None:
        added, removed = desired.forwards - live, live - desired.forwards
        for forward in sorted(removed, key=_order):
            reasons = self._grace.reasons(forward, occasion.reasons)
            audit.forward("removed", forward, causes.of_end(forward, desired, reasons))
        for forward in sorted(added, key=_order):
            audit.forward("added", forward, causes.of_start(forward, self._before, occasion.reasons))
        for forward in sorted(outcome.damaged & live, key=_order):
            audit.forward("restored", forward, occasion.meddler)
        audit.gates((change for change in outcome.gates if not change.restored), causes.told(occasion.reasons))
        audit.gates((change for change in outcome.gates if change.restored), occasion.meddler)
        self._end_connections(desired, added, occasion, outdated=bool(removed))

    def _account_for_first(self, desired: Desired, outcome: Outcome, occasion: Occasion) -> None:
        """Tell what was found of an earlier run, and what was not."""
        cause = causes.told(occasion.reasons)
        if found := len(desired.forwards - outcome.mended):
            audit.adopted(found)
        audit.leftovers(outcome.stale)
        for forward in sorted(outcome.mended, key=_order):
            audit.forward("added", forward, cause)
        audit.gates(outcome.gates, cause)
        self._end_connections(desired, outcome.mended, occasion, outdated=True)

    def _end_connections(
        self, desired: Desired, added: frozenset[Forward], occasion: Occasion, *, outdated: bool
    ) -> None:
        try:
            ended = conntrack.end_outdated(desired.forwards, desired.mark, self._backend.refuse) if outdated else 0
            ended += conntrack.end_claimed(added, occasion.local)
        except PortfwdError as error:
            audit.problems([f"open connections of forwards that went may go on: {error}"])
            return
        if ended:
            audit.connections_ended(ended)

    def _forwarding_faults(self, desired: Desired, occasion: Occasion) -> list[str]:
        faults = []
        for family in sorted(desired.families):
            if forwarding.is_on(family):
                continue
            if not occasion.ip_forward:
                faults.append(f"IPv{family} forwarding is off, and [daemon] ip_forward = false leaves it to you")
                continue
            try:
                audit.forwarding_turned_on(forwarding.turn_on(family))
            except KernelError as error:
                faults.append(str(error))
        return faults

    def _say_once(self, desired: Desired, faults: Iterable[str], *, everything: bool) -> None:
        """Say what is new of what is wrong; that a domain stopped was said when its forwards went."""
        new = [entry for entry in desired.waiting if entry not in self._said and (everything or not entry.stopped)]
        audit.waiting(new)
        audit.problems(fault for fault in faults if fault not in self._said)
        self._said = frozenset([*desired.waiting, *faults])


def _order(forward: Forward) -> tuple[str, str]:
    return forward.domain, forward.listens_at()
