"""What the rest of the program sees of the kernel's rules: the backend interface, and the choice of backend.

A backend makes the kernel hold the desired state, and tells what it had to mend. Our rules have to be where libvirt's
are, since an accept in one rule system does not stop a refusal in the other. Where those are is looked up in the
kernel, not told from versions: it can change with a restart of libvirtd.
"""

from collections.abc import Collection, Mapping
from enum import StrEnum
from functools import reduce
from typing import NamedTuple, Protocol

from fwdaemon.config.model import BackendChoice
from fwdaemon.desired import Desired
from fwdaemon.errors import PortfwdError
from fwdaemon.flows import Flow
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.legacy.gates import LegacyGates
from fwdaemon.legacy.info import chain_names, existing_tables, table_info
from fwdaemon.legacy.model import PRE, TableName
from fwdaemon.model import Family
from fwdaemon.nftables.backend import NftablesBackend
from fwdaemon.nftables.existing import existing_tables as nftables_tables
from fwdaemon.nftables.existing import has_rules
from fwdaemon.nftables.gates import LIBVIRT_CHAIN, LIBVIRT_TABLE
from fwdaemon.nftables.generation import current_generation
from fwdaemon.outcome import Outcome, joined, tried
from fwdaemon.process import Runner


class Backend(Protocol):
    """One of the kernel's rule systems, holding our rules. Its methods block; call them from one thread at a time."""

    def apply(self, desired: Desired, *, thorough: bool) -> Outcome:
        """Make the kernel hold `desired`; `thorough` compares even what seems unchanged.

        Raises:
            PortfwdError: the kernel refused; what it held before is still there, whole.

        """
        ...

    def preview(self, desired: Desired) -> Outcome:
        """Tell what `apply` would find and do now, touching nothing; `script` holds all of it as native text.

        Raises:
            PortfwdError: the kernel does not tell what it holds.

        """
        ...

    def render(self, desired: Desired) -> str:
        """Write the rules for `desired` as native text, touching nothing."""
        ...

    def refuse(self, flows: Collection[Flow]) -> None:
        """Refuse what the guests of these flows still send on them, for a while; they are about to be ended."""
        ...

    def remove(self) -> Outcome:
        """Take away everything that is ours, of every family, whoever put it there."""
        ...


class Side(StrEnum):
    """A rule system of the kernel; the value is how it is called in text."""

    NFTABLES = "nftables"
    LEGACY = "the legacy iptables tables"


class Netfilter:
    """Both rule systems, as one backend: rules on one side, and gates wherever a forward chain could refuse.

    When libvirt moves to the other side, the new rules are there before the old ones go.
    """

    def __init__(self, runner: Runner, choice: BackendChoice = BackendChoice.AUTO) -> None:
        self.choice = choice
        self._runner = runner
        self._locator = Locator(runner)
        self._nftables = NftablesBackend(runner)
        self._nftables_gates = NftablesBackend(runner, gates_only=True)
        self._legacy = LegacyBackend()
        self._legacy_gates = LegacyGates()
        self._side: Side | None = None
        self._reason = ""

    def apply(self, desired: Desired, *, thorough: bool) -> Outcome:
        """See `Backend.apply`."""
        side, reason = self._chosen(thorough=thorough)
        moved = side is not self._side
        if moved:
            # What they remember of an earlier stay would be told as damage.
            self._nftables = NftablesBackend(self._runner)
            self._nftables_gates = NftablesBackend(self._runner, gates_only=True)
        if side is Side.NFTABLES:
            outcome = self._apply_to_nftables(desired, thorough=thorough or moved, moved=moved)
        else:
            outcome = self._apply_to_legacy(desired, thorough=thorough or moved)
        self._side, self._reason = side, reason
        self._locator.settle()
        return joined(outcome, Outcome(moved=f"rules are in {side}: {reason}")) if moved else outcome

    def preview(self, desired: Desired) -> Outcome:
        """See `Backend.preview`."""
        side, reason = self._chosen(thorough=True)
        if side is Side.NFTABLES:
            parts = [
                self._nftables.preview(desired),
                *([self._legacy.preview(Desired())] if _left_in_legacy() else []),
                self._legacy_gates.preview(desired.families, desired.mark),
            ]
        else:
            parts = [self._legacy.preview(desired), self._nftables_gates.preview(desired)]
        return reduce(joined, parts, Outcome(moved=f"rules belong in {side}: {reason}"))

    def locate(self) -> tuple[Side, str]:
        """Tell where rules belong now, and why."""
        return self._chosen(thorough=True)

    @property
    def standing(self) -> tuple[Side | None, str]:
        """Where the rules are, `None` before the first of them, and why there."""
        return self._side, self._reason

    @property
    def unusable(self) -> Mapping[Family, str]:
        """Tell why families cannot be served where the rules are."""
        return self._legacy.unusable if self._side is Side.LEGACY else {}

    def render(self, desired: Desired) -> str:
        """See `Backend.render`."""
        return self._backend(self._chosen(thorough=True)[0]).render(desired)

    def refuse(self, flows: Collection[Flow]) -> None:
        """See `Backend.refuse`."""
        if self._side is not None:
            self._backend(self._side).refuse(flows)

    def remove(self) -> Outcome:
        """See `Backend.remove`; what one rule system refuses is a fault."""
        parts = self._legacy_gates.remove, self._nftables.remove, self._legacy.remove
        return reduce(joined, map(tried, parts))

    def close(self) -> None:
        """End what runs beside us; the rules stay."""
        self._legacy.close()
        self._legacy_gates.close()

    def _backend(self, side: Side) -> Backend:
        return self._nftables if side is Side.NFTABLES else self._legacy

    def _chosen(self, *, thorough: bool) -> tuple[Side, str]:
        match self.choice:
            case BackendChoice.NFTABLES:
                return Side.NFTABLES, "the configuration says so"
            case BackendChoice.IPTABLES:
                return Side.LEGACY, "the configuration says so"
            case BackendChoice.AUTO:
                return self._locator.locate(self._side, thorough=thorough)

    def _apply_to_nftables(self, desired: Desired, *, thorough: bool, moved: bool) -> Outcome:
        outcome = self._nftables.apply(desired, thorough=thorough)
        try:
            gates = self._legacy_gates.keep(desired.families, desired.mark, thorough=thorough)
        except PortfwdError as error:
            gates = Outcome(faults=(f"no gate in the legacy FORWARD chains: {error}",))
        if moved:
            self._legacy.remove()
        return joined(outcome, gates)

    def _apply_to_legacy(self, desired: Desired, *, thorough: bool) -> Outcome:
        outcome = self._legacy.apply(desired, thorough=thorough)
        # This also takes our tables away where they are left.
        gates = self._nftables_gates.apply(desired, thorough=thorough)
        return joined(outcome, Outcome(gates=gates.gates, faults=gates.faults, changed=gates.changed))


def _left_in_legacy() -> bool:
    """Whether chains of ours are in the legacy tables."""
    return any(PRE in chain_names(family, table) for family in Family for table in existing_tables(family))


class Locator:
    """Finds on which side libvirt's own chains are; asks again only when the rules of either side changed."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._known: tuple[Side, str] | None = None
        self._seen: _State | None = None

    def locate(self, before: Side | None, *, thorough: bool) -> tuple[Side, str]:
        """Give the side and the reason for it; `before` is where our rules are now."""
        state = _state()
        # Legacy tables may be changed without it; nftables cannot.
        if self._known is None or self._seen != state or (thorough and state.legacy):
            self._known = self._locate(before)
        return self._known

    def settle(self) -> None:
        """Say that all changes up to now were ours."""
        self._seen = _state()

    def _locate(self, before: Side | None) -> tuple[Side, str]:
        there = nftables_tables()
        # libvirt leaves its table behind when it moves, but empty.
        if ("ip", LIBVIRT_TABLE) in there and has_rules("ip", LIBVIRT_TABLE, "guest_input"):
            return Side.NFTABLES, f"libvirt's rules are in its table {LIBVIRT_TABLE}"
        nftables = ("ip", "filter") in there and has_rules("ip", "filter", LIBVIRT_CHAIN)
        legacy = LIBVIRT_CHAIN in chain_names(Family.IPV4, TableName.FILTER)
        if nftables and legacy:
            side = Side.LEGACY if self._iptables_is_legacy() else Side.NFTABLES
            return side, "libvirt's chains are in both rule systems, and this is the one that iptables writes to"
        if nftables or legacy:
            return (Side.LEGACY if legacy else Side.NFTABLES), "libvirt's chains are there"
        return before or Side.NFTABLES, "libvirt has no rules of its own"

    def _iptables_is_legacy(self) -> bool:
        """Ask the program that libvirt itself would run; it names its kind in parentheses (iptables(8))."""
        return "(legacy)" in self._runner.run("iptables", "--version").stdout


class _State(NamedTuple):
    """What changes when somebody writes rules, on either side."""

    generation: int
    legacy: tuple[object, ...]


def _state() -> _State:
    infos = [(family, name, table_info(family, name)) for family in Family for name in sorted(existing_tables(family))]
    return _State(current_generation(), tuple(infos))
