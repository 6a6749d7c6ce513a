"""What the rest of the program sees of the kernel's rules: the backend interface, and the choice of backend.

A backend makes the kernel hold the desired state, and reports what it had to mend. Our rules have to be where libvirt's
are, since an accept in one rule system does not stop a refusal in the other. Where those are is looked up in the
kernel, not guessed from versions: it can change with a restart of libvirtd.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain
from typing import NamedTuple, Protocol

from fwdaemon.config.model import BackendChoice
from fwdaemon.core.admission import Need
from fwdaemon.core.exposures import Exposure
from fwdaemon.core.report import (
    ApplyResult,
    Fault,
    FaultKind,
    Location,
    LocationReason,
    RulesChanged,
    joined,
    tried,
)
from fwdaemon.core.state import Desired, Dropped
from fwdaemon.core.types import Family, Presence, Stamp
from fwdaemon.errors import PortfwdError, ProcessError
from fwdaemon.kernel.external_sets import Externals
from fwdaemon.kernel.process import Runner
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.nftables.backend import NftablesBackend
from fwdaemon.resolve.flows import Flow


class Monitor(Protocol):
    """Reports changes, on the asyncio loop's thread."""

    def start(self) -> None:
        """Begin to listen.

        Raises:
            KernelError: the kernel does not let us.

        """
        ...

    def close(self) -> None:
        """Stop listening, also after a `start` that failed."""
        ...


class Rules(Protocol):
    """Our rules, wherever they are. Its methods block; call them from one thread at a time."""

    def apply(self, desired: Desired, *, full: bool) -> ApplyResult:
        """Make the kernel hold `desired`; `full` compares even what seems unchanged.

        Raises:
            PortfwdError: the kernel refused; what it held before is still there, whole.

        """
        ...

    def refuse(self, flows: Collection[Flow]) -> None:
        """Refuse what the guests of these flows still send on them, for a while; they are about to be ended."""
        ...

    def remove(self) -> ApplyResult:
        """Remove all our rules, for both families, including those of an earlier run."""
        ...

    def preview(self, desired: Desired) -> ApplyResult:
        """Say what `apply` would find and do now, touching nothing; `script` holds all of it as native text.

        Raises:
            PortfwdError: what the kernel holds cannot be read.

        """
        ...

    def render(self, desired: Desired) -> str:
        """Write the rules for `desired` as native text, touching nothing."""
        ...

    def held(self) -> frozenset[Family]:
        """Name the families for which the kernel holds our rules, including those of an earlier run.

        Raises:
            PortfwdError: it cannot be read.

        """
        ...

    def confined(self) -> frozenset[Family]:
        """Name the families whose rules refuse what the host did not forward before the daemon turned forwarding on."""
        ...

    def switched(self) -> frozenset[tuple[Family, str]]:
        """Name the interfaces of which they refuse that, where it was turned on there alone."""
        ...

    def close(self) -> None:
        """End what runs beside us; the rules stay."""
        ...


class Backend(Rules, Protocol):
    """One of the kernel's rule systems, holding our rules, or gates alone while another one holds the rules."""

    @property
    def name(self) -> str:
        """The word for it in the configuration and in the status."""
        ...

    @property
    def title(self) -> str:
        """What it is called in sentences."""
        ...

    @property
    def variant(self) -> str:
        """What `iptables --version` gives in parentheses where it writes to this rule system."""
        ...

    @property
    def forgets(self) -> bool:
        """Whether open connections are counted anew after any change of its rules, so that clients may open more."""
        ...

    @property
    def unusable(self) -> Mapping[Family, Fault]:
        """Give the families that cannot be served here, and why."""
        ...

    def apply_gates(self, desired: Desired, *, full: bool) -> ApplyResult:
        """Let connections of `desired` through foreign chains that could refuse them; the rules are elsewhere.

        The outcome holds `gates`, `faults` and `changed`.
        """
        ...

    def leave(self) -> ApplyResult:
        """Take away the rules themselves, which are elsewhere now; `faults` name what is left."""
        ...

    def preview_gates(self, desired: Desired) -> ApplyResult:
        """Say what `apply_gates` and `leave` would do now; see `preview`."""
        ...

    def monitor(self, changed: RulesChanged) -> Monitor:
        """Give a monitor of changes by others in this rule system."""
        ...

    def counters(self, desired: Desired) -> Mapping[Exposure, int]:
        """Read how many connections were counted; on a thread of its own, beside all other methods."""
        ...

    def dropped(self, desired: Desired) -> Dropped:
        """Read how many first packets were dropped, for who sent them or how often; beside all other methods."""
        ...

    def lacks(self, needs: Collection[Need]) -> Mapping[Need, Fault]:
        """Tell what this host lacks of what rules may need, as far as that is known; nothing is touched."""
        ...

    def stamp(self) -> Stamp:
        """Give a value that differs after any change in this rule system."""
        ...

    def libvirt(self, family: Family = Family.IPV4) -> Presence:
        """Whether libvirt has its rules of a family here."""
        ...


def backends(runner: Runner, externals: Externals | None = None) -> tuple[Backend, ...]:
    """Give all of them; where there is no reason for another, rules go to the first."""
    return NftablesBackend(runner, externals=externals), LegacyBackend(runner=runner, externals=externals)


class Chosen(NamedTuple):
    """A backend that holds the rules, or is to, and why that one."""

    backend: Backend
    reason: LocationReason

    @property
    def location(self) -> Location:
        """The same for the rest of the program."""
        return Location(self.backend.name, self.backend.title, self.reason, self.backend.forgets)


class Netfilter:
    """All rule systems as one: rules in one of them, and gates wherever a forward chain could refuse.

    When libvirt moves to another one, the new rules are there before the old ones go.
    """

    def __init__(
        self, runner: Runner, choice: BackendChoice = BackendChoice.AUTO, among: Sequence[Backend] = ()
    ) -> None:
        """Choose `among` these backends; all there are, by default."""
        self.choice = choice
        self.externals = Externals()
        self._backends = among or backends(runner, self.externals)
        self._locator = Locator(self._backends, runner)
        self._location: Chosen | None = None
        self._decided: tuple[Desired, Desired] | None = None

    def apply(self, desired: Desired, *, full: bool) -> ApplyResult:
        """See `Rules.apply`; where the rules are, they are put back before it is looked up where they belong."""
        desired = self._deciding(desired)
        before, stamps = self._location, self._locator.stamps()
        healed = _attempt(before.backend, desired, full=full) if before is not None else ApplyResult()
        location = self._chosen(full=full, stamps=stamps)
        here, moved = location.backend, before is None or location.backend is not before.backend
        gates = ApplyResult()
        try:
            result = here.apply(desired, full=True) if moved else _done(healed)
        finally:  # whatever holds up one rule system is no reason to leave a wipe of the others
            for other in self._besides(here):
                gates = joined(gates, other.apply_gates(desired, full=full or moved))
        result = joined(result, gates)
        if moved:
            result = reduce(joined, (other.leave() for other in self._besides(here)), result)
            result = joined(result, ApplyResult(moved=location.location))
        self._location = location
        self._locator.settle()
        return joined(result, ApplyResult(faults=self._locator.faults))

    def preview(self, desired: Desired) -> ApplyResult:
        """See `Rules.preview`."""
        desired = self._deciding(desired)
        chosen = self._chosen(full=True)
        here = chosen.backend
        parts = [here.preview(desired), *(other.preview_gates(desired) for other in self._besides(here))]
        return reduce(joined, parts, ApplyResult(moved=chosen.location))

    def locate(self) -> Location:
        """Say where rules belong now, and why."""
        return self._chosen(full=True).location

    @property
    def location(self) -> Location | None:
        """Say where the rules are, and why there; `None` before the first of them."""
        return self._location and self._location.location

    @property
    def unusable(self) -> Mapping[Family, Fault]:
        """Say why families cannot be served where the rules are."""
        return self._location.backend.unusable if self._location else {}

    def render(self, desired: Desired) -> str:
        """See `Rules.render`."""
        return self._chosen(full=True).backend.render(desired)

    def counters(self, desired: Desired) -> Mapping[Exposure, int]:
        """See `Backend.counters`; where the rules are, or belong."""
        return (self._location or self._chosen(full=True)).backend.counters(desired)

    def dropped(self, desired: Desired) -> Dropped:
        """See `Backend.dropped`; where the rules are, or belong."""
        return (self._location or self._chosen(full=True)).backend.dropped(desired)

    def lacks(self, needs: Collection[Need]) -> Mapping[Need, Fault]:
        """See `Backend.lacks`; where the rules are, or belong."""
        return (self._location or self._chosen(full=True)).backend.lacks(needs)

    def held(self) -> frozenset[Family]:
        """See `Rules.held`; in any rule system."""
        return frozenset(chain.from_iterable(backend.held() for backend in self._backends))

    def confined(self) -> frozenset[Family]:
        """See `Rules.confined`; in any rule system."""
        return frozenset(chain.from_iterable(backend.confined() for backend in self._backends))

    def switched(self) -> frozenset[tuple[Family, str]]:
        """See `Rules.switched`; in any rule system."""
        return frozenset(chain.from_iterable(backend.switched() for backend in self._backends))

    def monitors(self, changed: RulesChanged) -> tuple[Monitor, ...]:
        """Give the monitors of changes in all rule systems."""
        return tuple(backend.monitor(changed) for backend in self._backends)

    def refuse(self, flows: Collection[Flow]) -> None:
        """See `Rules.refuse`."""
        if self._location is not None:
            self._location.backend.refuse(flows)

    def remove(self) -> ApplyResult:
        """See `Rules.remove`; what one rule system refuses is a fault. Gates are closed before the rules go."""
        here = self._location.backend if self._location else self._backends[0]
        return reduce(joined, (tried(backend.remove) for backend in (*self._besides(here), here)))

    def close(self) -> None:
        """See `Rules.close`."""
        for backend in self._backends:
            backend.close()

    def _deciding(self, desired: Desired) -> Desired:
        """Keep the paths of guests on which libvirt decides; without rules of its own, nothing else refuses them.

        The same object is given as long as that is so, as backends know by it that nothing is new.
        """
        if not desired.guest_paths:
            return desired
        try:
            families = {path.family for path in desired.guest_paths if self._is_decided(path.family)}
        except PortfwdError:  # as where rules keep changing; nothing else waits for this
            families = {path.family for path in self._decided[1].guest_paths} if self._decided else set()
        found = desired.on_paths(frozenset(path for path in desired.guest_paths if path.family in families))
        known = self._decided
        if known is not None and known[0] is desired and known[1].guest_paths == found.guest_paths:
            return known[1]
        self._decided = desired, found
        return found

    def _is_decided(self, family: Family) -> bool:
        return any(backend.libvirt(family) is not Presence.NOTHING for backend in self._backends)

    def _besides(self, here: Backend) -> Iterator[Backend]:
        return (backend for backend in self._backends if backend is not here)

    def _chosen(self, *, full: bool, stamps: list[Stamp] | None = None) -> Chosen:
        """Say where rules belong; `stamps` were taken before anything was changed."""
        if self.choice is BackendChoice.AUTO:
            return self._locator.locate(self._location, stamps or self._locator.stamps(), full=full)
        named = {backend.name: backend for backend in self._backends}
        return Chosen(named[self.choice], LocationReason.CONFIGURED)


def _attempt(backend: Backend, desired: Desired, *, full: bool) -> ApplyResult | PortfwdError:
    """Apply, and give what went wrong instead of raising it: the rules may not belong there any more."""
    try:
        return backend.apply(desired, full=full)
    except PortfwdError as error:
        return error


def _done(attempt: ApplyResult | PortfwdError) -> ApplyResult:
    if isinstance(attempt, PortfwdError):
        raise attempt
    return attempt


class Locator:
    """Finds in which rule system libvirt's own rules are; asks again only when those of any changed."""

    def __init__(self, among: Sequence[Backend], runner: Runner) -> None:
        self._backends = among
        self._runner = runner
        self._known: Chosen | None = None
        self._seen: list[Stamp] = []
        self.faults: tuple[Fault, ...] = ()

    def locate(self, before: Chosen | None, stamps: list[Stamp], *, full: bool) -> Chosen:
        """Give the backend and the reason for it; `before` is where our rules are now."""
        uncertain = full and not all(stamp.certain for stamp in stamps)
        if self._known is None or self._seen != stamps or uncertain:
            self.faults = ()
            self._known = self._locate(before)
        return self._known

    def settle(self) -> None:
        """Say that all changes up to now were ours."""
        self._seen = self.stamps()

    def stamps(self) -> list[Stamp]:
        """Give what differs after any change in any rule system."""
        return [backend.stamp() for backend in self._backends]

    def _locate(self, before: Chosen | None) -> Chosen:
        found_by = [(backend, backend.libvirt()) for backend in self._backends]
        for backend, presence in found_by:
            if presence is Presence.TABLE:
                return Chosen(backend, LocationReason.LIBVIRT_TABLE)
        found = [backend for backend, presence in found_by if presence is not Presence.NOTHING]
        match found:
            case []:
                here = before.backend if before is not None else self._backends[0]
                return Chosen(here, LocationReason.NO_LIBVIRT_RULES)
            case [backend]:
                return Chosen(backend, LocationReason.LIBVIRT_CHAINS)
        try:
            backend = self._written_to(found)
        except ProcessError as error:
            if before is None or before.backend not in found:
                raise
            self.faults = (Fault(FaultKind.WRITER_UNKNOWN, (before.backend.title,), str(error)),)
            return before
        return Chosen(backend, LocationReason.WRITTEN_TO)

    def _written_to(self, found: Sequence[Backend]) -> Backend:
        """Ask the program that libvirt itself would run; it names its kind in parentheses (iptables(8))."""
        version = self._runner.run("iptables", "--version").stdout
        return next((backend for backend in found if f"({backend.variant})" in version), found[0])
