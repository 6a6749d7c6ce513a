"""Looks for conflicts: reads what others have, regularly for the daemon, and once for `check`."""

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from fwdaemon.audit.journal import ARREARS
from fwdaemon.config.model import Config
from fwdaemon.config.names import NFT_NAME
from fwdaemon.conflicts.comparing import (
    ChainLocation,
    Taking,
    listener_conflicts,
    ports_of,
    rule_conflicts,
    shadowed_listeners,
    takings,
    takings_if_running,
)
from fwdaemon.core.conflicts import Conflict
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family, Job, Listener, PortRange, PortSet, Subnet
from fwdaemon.errors import KernelError, PortfwdError, ProcessError, shortage
from fwdaemon.kernel.listeners import Holders, listeners
from fwdaemon.kernel.memory import Beside
from fwdaemon.kernel.observe import observe_host
from fwdaemon.kernel.process import Runner, new_budgets, processor_time_here
from fwdaemon.legacy.info import existing_tables, table_info
from fwdaemon.legacy.model import TableName
from fwdaemon.nftables.existing import HookedChain, hooked_chains, is_iptables, is_larger
from fwdaemon.nftables.generation import current_generation
from fwdaemon.nftables.model import TABLE_NAME
from fwdaemon.rulesets import nat_chains
from fwdaemon.rulesets.nat_chains import Translation, translations
from fwdaemon.rulesets.packet import System
from fwdaemon.triggers import Budgets, Origin

_log = logging.getLogger(__name__)

# Of this thread's network namespace; ip-sysctl.rst.
_CLIENT_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
# A journal is no place for a list.
_MOST: Final = 20


# Reads the translations that other tools put at prerouting, from every rule system that has any.
#
# Sets of others may have hundreds of thousands of elements (firewalld's block lists). `nft` lists everything without
# them first, and then those sets that a rule asks which translates or leads on, up to a certain size.
_DSTNAT: Final = -100  # NF_IP_PRI_NAT_DST, netfilter_ipv4.h
_PREROUTING: Final = 0  # NF_INET_PRE_ROUTING, netfilter.h
# So many bytes of elements, as the kernel lists them, are some thousand.
_LARGEST_SET: Final = 1 << 18
# Where our own rules are to be, as long as there are none; see `fwdaemon.nftables.ruleset`.
_EXPECTED: Final = ChainLocation(System.NFTABLES, -105)


@dataclass(frozen=True, slots=True)
class Foreign:
    """What other tools translate, and where our own rules stand beside it."""

    translations: tuple[Translation, ...] = ()
    ours: ChainLocation = _EXPECTED


class ForeignRules:
    """Reads them, and finds cheaply whether there is something new to read. Its methods block."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def state(self) -> object:
        """Give what is another whenever rules changed; in iptables-legacy, unless by something of the same size.

        Raises:
            KernelError: it cannot be read.

        """
        legacy = [(family, table_info(family, TableName.NAT)) for family in _legacy_families()]
        return current_generation(), legacy

    def read(self) -> Foreign:
        """Read everything.

        Raises:
            PortfwdError: the rules could not be listed, as for users but root, or not be understood at all.

        """
        try:
            return self._read()
        except (KeyError, TypeError, ValueError) as error:
            raise KernelError(f"rules of other tools are listed in a form that cannot be read: {error!r}") from error

    def _read(self) -> Foreign:
        found: list[Translation] = []
        ours, listed = _EXPECTED, cache(self._listed)
        for hooked in hooked_chains():
            if (hooked.kind, hooked.hook) != ("nat", _PREROUTING):
                continue
            if hooked.table == TABLE_NAME:
                ours = ChainLocation(System.NFTABLES, hooked.priority)
            elif is_iptables(hooked):
                found += self._iptables(Family.called(hooked.family), System.IPTABLES_NFT)[0]
            else:
                found += self._native(hooked, listed)
        for family in _legacy_families():
            legacy, has_ours = self._iptables(family, System.LEGACY)
            found += legacy
            ours = ChainLocation(System.LEGACY, _DSTNAT) if has_ours else ours
        return Foreign(tuple(found), ours)

    def _listed(self, family: str, table: str) -> str:
        """List a table without the elements of its sets.

        nft 1.0.6 reads them all the same when it is asked for a table, but not for everything. That in turn ends where
        anything has a name that is no text.
        """
        for what in (("ruleset", family), ("table", family, table)):
            with suppress(ProcessError):  # the table has gone
                return self._runner.run("nft", "-j", "-t", "list", *what).stdout
        return ""

    def _native(self, chain: HookedChain, listed: Callable[[str, str], str]) -> list[Translation]:
        if not NFT_NAME.fullmatch(chain.table):  # what nft could not be asked for, and might take for more than a name
            return []
        table = chain.family, chain.table
        if not (listing := listed(*table)):
            return []
        asked = nat_chains.read_sets(listing, table)
        read = {name: self._elements(table, kind, name) for kind, name in asked}
        sets = {name: elements for name, elements in read.items() if elements is not None}
        return list(translations(nat_chains.read_nft(listing, table, sets), chain.name, chain.priority))

    def _elements(self, table: nat_chains.Table, kind: str, name: str) -> Sequence[Any] | None:
        """Give a set's elements; `None` where there are too many, or it has gone."""
        if not NFT_NAME.fullmatch(name):
            return None
        try:
            if is_larger(*table, name, _LARGEST_SET):
                return None
            return nat_chains.read_elements(self._runner.run("nft", "-j", "list", kind, *table, name).stdout)
        except (KernelError, ProcessError):
            return None

    def _iptables(self, family: Family, system: System) -> tuple[list[Translation], bool]:
        """Read the table nat that one variant of iptables wrote, and whether chains of ours are in it."""
        variant = "nft" if system is System.IPTABLES_NFT else "legacy"
        try:
            save = self._runner.run(f"{family.iptables}-{variant}-save", "-t", "nat").stdout
        except ProcessError:  # it is not installed, or what is there is beyond it
            return [], False
        chains = nat_chains.read_iptables(save, system, family)
        return list(translations(chains, nat_chains.PREROUTING, _DSTNAT)), nat_chains.has_own_chains(save)


def _legacy_families() -> list[Family]:
    return [family for family in Family if TableName.NAT in existing_tables(family)]


# Everything together, and when it is looked for.


class _Others(NamedTuple):
    """What there is besides exposures: the host's own addresses, its sockets, and the rules of others."""

    local: Collection[Address]
    sockets: Collection[Listener]
    foreign: Foreign


class ConflictWatch:
    """For the daemon: what conflicts with what is open. Its methods block, for long where others have many rules.

    `short` is why the last search is not whole, where no process or descriptor was available.
    """

    def __init__(self, runner: Runner) -> None:
        self._rules = ForeignRules(runner)
        self._holders = Holders()
        self._foreign = Foreign()
        self._state: object = None
        self._desired: Desired | None = None
        self._compared: tuple[Desired, _Others] | None = None
        self.short: Exception | None = None
        self._found: tuple[Conflict | Fault, ...] = ()

    def find(
        self, desired: Desired, local: Collection[Address], *, full: bool, reloaded: bool = False
    ) -> tuple[Conflict | Fault, ...]:
        """Give the conflicts, twenty at most.

        Sockets are listed when `desired` has changed and in `full` passes, as the kernel has no event for a new one.
        Foreign rules are read in `full` passes if they changed, and always when the configuration was `reloaded`.
        """
        rules = self._desired is None or full or reloaded
        if rules or desired is not self._desired:
            self._desired, self.short = desired, None
            try:
                if rules:
                    self._read_rules(anew=reloaded)
                self._compare(desired, local)
            except OSError as error:  # no descriptor is available
                self.short = error
            except Exception:  # noqa: BLE001  what is only worth knowing must not keep exposures from being made
                _log.exception("this is a bug in kvm-portfwd; conflicts with other programs are not known")
        return self._found

    def _read_rules(self, *, anew: bool) -> None:
        try:
            state = self._rules.state()
            if anew or state != self._state:
                self._state, self._foreign = state, self._rules.read()
        except PortfwdError as error:
            _log.debug("the rules of other programs are not checked: %s", error)
            self._missed(error)

    def _missed(self, error: PortfwdError) -> None:
        self.short = error if shortage(error) is not None else self.short

    def _compare(self, desired: Desired, local: Collection[Address]) -> None:
        try:
            sockets = frozenset(listeners())
        except PortfwdError as error:
            _log.debug("the host's sockets are not checked: %s", error)
            self._missed(error)
            return
        others = _Others(local, sockets, self._foreign)
        if (desired, others) != self._compared:
            take = partial(takings, desired, local)
            self._found = _cut_short(_conflicts(take, desired.guest_subnets, others, self._holders))
            self._compared = desired, others


def conflicts_if_running(config: Config, runner: Runner) -> tuple[list[Conflict], Fault | None]:
    """Give what would conflict if all domains ran, and why something was left out, if it was."""
    if not config.guest_entries:
        return [], None
    try:
        host, sockets = observe_host(), listeners()
        foreign, missing = _rules_if_allowed(runner)
        inner = [item.subnet for item in host.addresses if item.device not in host.uplinks]
        local = frozenset(item.address for item in host.addresses)
        take = partial(takings_if_running, config, local)
        return list(_conflicts(take, inner, _Others(local, sockets, foreign), Holders())), missing
    except PortfwdError as error:
        return [], Fault(FaultKind.HOST_UNCHECKED, detail=str(error))


def _rules_if_allowed(runner: Runner) -> tuple[Foreign, Fault | None]:
    try:
        return ForeignRules(runner).read(), None
    except PortfwdError as error:
        return Foreign(), Fault(FaultKind.RULES_UNCHECKED, detail=str(error))


def _conflicts(
    take: Callable[[PortSet], Iterable[Taking]], inner: Collection[Subnet], others: _Others, holders: Holders
) -> Iterator[Conflict]:
    """Give who else has what `take` gives of the ports that are watched; `inner` are the subnets of guests."""
    local, sockets, foreign = others
    # Most forwards are on ports with which nothing else has to do.
    watched = PortSet(
        chain(
            (PortRange(socket.port, socket.port) for socket in sockets),
            (ports for other in foreign.translations for ports in ports_of(other.scope)),
        )
    )
    taken = list(take(watched))
    found = shadowed_listeners(taken, sockets, _client_ports(), inner)
    names = holders.name({socket for item in found for socket in item.sockets})
    yield from listener_conflicts(found, names)
    yield from rule_conflicts(taken, foreign.translations, foreign.ours, local)


def _client_ports() -> PortRange:
    """Read which ports the kernel gives to sockets that ask for none."""
    try:
        first, last = map(int, _CLIENT_PORTS.read_text(encoding="ascii").split())
    except (OSError, ValueError) as error:
        raise KernelError(f"the kernel does not say which ports clients get: {error}") from error
    return PortRange(first, last)


def _cut_short(conflicts: Iterable[Conflict]) -> tuple[Conflict | Fault, ...]:
    found = tuple(conflicts)
    if len(found) <= _MOST:
        return found
    return *found[:_MOST], Fault(FaultKind.MORE_CONFLICTS, (str(len(found) - _MOST),))


# Looks for conflicts in a thread of its own: rules and sockets of others may take long to list, and a wipe cannot wait.
#
# The reconcile says what there is to compare, is given what was found last, and goes on.


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What to look for; see `ConflictWatch.find`."""

    desired: Desired
    local: Collection[Address]
    full: bool
    reloaded: bool
    origin: Origin


class BackgroundConflictWatch:
    """One thread, begun when there is something to look for; what is asked during a pass follows it, taken together.

    `changed` is called in that thread when something else was found than the last time. What guests and users cause
    takes from `budgets`.
    """

    def __init__(self, watch: ConflictWatch, changed: Callable[[Origin], None], budgets: Budgets | None = None) -> None:
        self._watch, self._budgets = watch, budgets or new_budgets()
        self._changed = changed
        self._thread = Beside("conflicts", self._run, "conflicts with other programs are not known")
        self._turn = threading.Condition()
        self._next: _Wanted | None = None
        self._running = False
        self._desired: Desired | None = None
        self._found: tuple[Conflict | Fault, ...] = ()

    def find(
        self,
        desired: Desired,
        local: Collection[Address],
        *,
        full: bool,
        reloaded: bool = False,
        origin: Origin = Origin.OTHERS,
    ) -> tuple[Conflict | Fault, ...]:
        """Give what was found last, and look again where `ConflictWatch.find` would; at once, and from any thread."""
        with self._turn:
            before, self._desired = self._desired, desired
            if full or reloaded or desired is not before:
                waiting = self._next
                self._next = _Wanted(
                    desired,
                    local,
                    full or (waiting is not None and waiting.full),
                    reloaded or (waiting is not None and waiting.reloaded),
                    origin if waiting is None else max(origin, waiting.origin),
                )
            self._begin()
            return self._found

    @property
    def due(self) -> float | None:
        """When to look again for what could not be found, by the clock of `time.monotonic`; `None` for never."""
        return self._thread.due

    def wait(self, patience: float | None = None) -> bool:
        """Wait until nothing is left to look for; whether that was so within `patience` seconds."""
        with self._turn:
            return self._turn.wait_for(lambda: not self._running, patience)

    def _begin(self) -> None:
        if self._next is not None and not self._running:
            self._running = self._thread.begin()

    def _run(self) -> None:
        while (wanted := self._taken()) is not None:
            found = self._found_now(wanted)
            with self._turn:
                news, self._found = found != self._found, found
            if (error := self._watch.short) is not None:
                self._put_back(wanted, error)
                return self._changed(wanted.origin)
            self._thread.done()
            if news:
                self._changed(wanted.origin)
        return None

    def _put_back(self, wanted: _Wanted, error: Exception) -> None:
        """Leave what could not be listed to a later search."""
        self._thread.failed(error)
        with self._turn:
            self._next = replace(self._next or wanted, full=True)
            self._running = False
            self._turn.notify_all()

    def _found_now(self, wanted: _Wanted) -> tuple[Conflict | Fault, ...]:
        with ARREARS.during(Job.CONFLICTS), self._budgets.charged(wanted.origin, processor_time_here):
            return self._watch.find(wanted.desired, wanted.local, full=wanted.full, reloaded=wanted.reloaded)

    def _taken(self) -> _Wanted | None:
        with self._turn:
            wanted, self._next = self._next, None
            self._running = wanted is not None
            self._turn.notify_all()
        return wanted
