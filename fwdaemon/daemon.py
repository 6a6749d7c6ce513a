"""The daemon: waits for triggers, makes a pass, and waits again.

Three things cause a pass: libvirt or the network (a fresh inventory is taken first), the kernel's rules (the inventory
we have will do, so that a wipe is repaired even while libvirt is away), and time. All of them only wake one task, which
reconciles once for all triggers so far.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from fwdaemon import config as configuration
from fwdaemon.audit import causes, lines
from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.config.model import Config, OnStop
from fwdaemon.connections import Conntrack
from fwdaemon.control.listener import SOCKET
from fwdaemon.control.manager import Changes, Inquiries, Manager
from fwdaemon.control.server import ControlSocket
from fwdaemon.core.inventory import Inventory
from fwdaemon.core.report import Cause, Reason, ReasonKind, RulesChanged, Trigger
from fwdaemon.core.types import Job
from fwdaemon.errors import ConfigError, HangingError, PortfwdError, shortage
from fwdaemon.events import ConnectionState, Inventories, Sources
from fwdaemon.fleet import Fleet
from fwdaemon.hostnet.owned_state import DIRECTORY
from fwdaemon.kernel import memory
from fwdaemon.kernel.listeners import ports_in_use
from fwdaemon.kernel.memory import ShortageHandler, begun
from fwdaemon.kernel.process import HASTE, Worker, new_budgets, processor_time_here
from fwdaemon.metrics.exposition import Reporter, satisfied, without_what_is_missing
from fwdaemon.netfilter import Monitor, Netfilter
from fwdaemon.reconcile import Conflicts, HostNetwork, Reconciler, Request, Seams
from fwdaemon.resolve.claims import Sockets
from fwdaemon.resolve.expansion import Before
from fwdaemon.resolve.placement import Placer
from fwdaemon.resolve.wishes import Unavailable
from fwdaemon.status.confirming import ConfigReader, Standing
from fwdaemon.status.connection_log import ConnectionLog
from fwdaemon.status.notify import Pulse
from fwdaemon.status.records import Feed, Records, UsageReader
from fwdaemon.status.reloads import STATE, Reloads, Start, Written
from fwdaemon.status.rows import summary
from fwdaemon.status.sets import News, SetKeeper
from fwdaemon.status.temporary import Clocks, Openings, now
from fwdaemon.triggers import Backoff, Budgets, Origin, Pauses, TriggerQueue, Triggers

_log = logging.getLogger(__name__)
_UPGRADE = "upgrade"  # A package makes this file while it restarts us: our successor wants the rules.

RequestPass: TypeAlias = Callable[[Origin], None]
"""Asks for a pass that follows from what this one did; from any thread."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the daemon works on; `conflicts`, `routes` and `sources` are given what to call when something changed."""

    rules: Netfilter
    host: HostNetwork
    conntrack: Conntrack
    conflicts: Callable[[RequestPass], Conflicts]
    routes: Callable[[RulesChanged], Monitor]
    sources: Callable[[Config, Trigger], Sources]
    read: Callable[[Path, Config], configuration.Loaded] = configuration.load_guarded
    socket: Path = SOCKET
    state: Path = STATE
    directory: Path = DIRECTORY
    budgets: Budgets = field(default_factory=new_budgets)  # of all of these
    pauses: Pauses = field(default_factory=Pauses)
    occupied: Callable[[], Sockets | None] = ports_in_use
    clocks: Clocks = now
    fleet: Fleet = field(default_factory=Fleet)


class Daemon:
    """Runs until SIGTERM or SIGINT. Make it inside the asyncio loop it runs in."""

    def __init__(self, path: Path, start: Start, parts: Parts) -> None:
        self._path, self._parts, self._pauses, self._netfilter = path, parts, parts.pauses, parts.rules
        self._written = Written(path, parts.state, parts.directory, self._pauses.retry_at_most)
        self._trigger_queue = queue = TriggerQueue(parts.pauses)
        self._loop, self._fleet, self._connection_log = asyncio.get_running_loop(), parts.fleet, ConnectionLog()
        self._fleet.begin(start.config, partial(self._look_soon, Origin.OTHERS))
        self._standing = Standing(path, start, self._written, Openings(parts.state, parts.clocks), self._fleet)
        self._reloads, feed = Reloads(queue.reload), Feed()
        self._records = Records(path, self._standing.all, feed.publish, self._standing.openings.remaining, self._fleet)
        self._records.late_s, self._records.unlogged = self._pauses.reading, lambda: self._connection_log.lost
        count = UsageReader(self._netfilter.counters, self._netfilter.dropped).read
        changes = Changes(self._standing, self._records, self._reloads, queue.wake, self._unavailable)
        manager = Manager(self._records, feed, Inquiries(self._connections, self._reloads.ask, count, changes=changes))
        self._control = ControlSocket(manager, parts.socket, self._write_anew)
        self._pulse = Pulse(self._summary, self._control.check, self._records.check)
        conflicts = parts.conflicts(self._look_soon)
        seams = Seams(self._netfilter, parts.host, parts.conntrack, conflicts, time, parts.budgets, self._look_soon)
        self._reconciler = Reconciler(seams)
        self._monitors = *self._netfilter.monitors(queue.rules_changed), parts.routes(queue.rules_changed)
        sources = parts.sources(self._standing.all, queue.inventory_changed)
        self._inventories = Inventories(sources, queue, parts.budgets, self._pulse.watchdog.bounded, self._backoff())
        self._reading = ConfigReader(self._read, queue.wake, self._records.late, self._pauses.reading)
        news = News(queue.set_changed, self._standing.keep_list, self._records.sets_refused)
        self._sets = SetKeeper(news, self._netfilter.externals, parts.state)
        self._sets.begin(start.config, start.lists)
        self._standing.log_start(start, self._records)
        self._reporter = Reporter(manager.status, feed)
        manager.metrics = self._reporter.text
        self._beginning: asyncio.Future[None] | None = None
        self._first_pass, self._worker = asyncio.Event(), Worker("reconcile", Job.RECONCILE)
        self._placer = Placer(self._written.choice, Before(self._written.ports, self._written.turns, parts.occupied))
        self._reloaded, self._failure, self._pause, self._unread = False, "", self._pauses.passes, WarnOnce()
        self._retry, self._rereading, self._short = self._backoff(), self._backoff(), self._backoff()

    def _backoff(self) -> Backoff:
        return Backoff(self._pauses.retry, self._pauses.retry_at_most)

    async def run(self) -> None:
        """Work until asked to stop, then leave the rules as the configuration says.

        Raises:
            AlreadyRunningError: another daemon runs on this host.

        """
        self._loop.set_exception_handler(ShortageHandler())
        await self._control.open(self._standing.config.control.group)
        await self._reporter.set_up(self._standing.config)
        ends = dict.fromkeys((signal.SIGTERM, signal.SIGINT), self._end)
        for number, action in {signal.SIGHUP: self._trigger_queue.reload, **ends}.items():
            self._loop.add_signal_handler(number, action)
        announcing = asyncio.create_task(
            self._pulse.ready_after(self._first_pass, self._pauses.ready, self._inventories.missing)
        )
        self._pulse.begin()
        try:
            await self._begun(self._listen_to_all())
            self._resync()
            while not self._trigger_queue.stopping:
                await self._round()
        finally:
            announcing.cancel()
            await self._stop()

    async def _listen_to_all(self) -> None:
        for monitor in self._monitors:
            await begun(monitor.start)
        await self._inventories.sources.start()

    async def _begun(self, beginning: Coroutine[None, None, None]) -> None:
        """Wait for what may have to be tried again, but no longer than until we are to end."""
        self._beginning = asyncio.ensure_future(beginning)
        await asyncio.wait({self._beginning})
        if not self._beginning.cancelled():
            self._beginning.result()

    def _end(self) -> None:
        if self._beginning is not None:
            self._beginning.cancel()
        HASTE.hurry()
        self._trigger_queue.stop()

    async def _round(self) -> None:
        await self._trigger_queue.wait()
        if self._standing.confirmation.is_due:
            await self._roll_back()
        if (read := self._reading.take()) is not None:
            await self._take_in(read)
        if not self._reading.is_under_way and self._trigger_queue.take_reload():
            self._begin_reading()
        self._standing.follow(self._records, self._reloads, self._trigger_queue, self._inventories)
        self._inventories.begin()
        if self._trigger_queue.wants_pass and self._inventories.latest is not None:
            await self._pass(self._inventories.latest)
            await asyncio.sleep(self._pause)

    def _summary(self) -> str:
        report = self._reconciler.report
        silent = [state.uri for state in self._connections() if not state.connected]
        parts = summary(report.desired if report else None, self._records.header(()), silent), self._control.trouble
        return "; ".join(filter(None, parts))

    def _write_anew(self) -> None:
        """Have everything written again that lies beside the control socket: it may have gone with that."""
        self._written.renew()
        self._trigger_queue.ask_for_all()

    def _resync(self) -> None:
        """Ask for a full pass at each `resync`, whatever the triggers: an event may be lost."""
        self._inventories.sources.invalidate()
        self._trigger_queue.ask_for_all()
        self._loop.call_later(self._standing.config.daemon.resync.total_seconds(), self._resync)

    # --- a pass: on the worker, and what comes of it --------------------------------------------------------------

    async def _pass(self, inventory: Inventory) -> None:
        triggers, began = self._trigger_queue.take(), time.monotonic()
        try:
            with self._pulse.watchdog.bounded("a comparison with the kernel"):
                answered_at = began if all(link.connected for link in self._connections()) else None
                changed = await self._worker.submit(lambda: self._reconciled(inventory, triggers, answered_at))
        except (PortfwdError, OSError) as error:  # no descriptor is available, either
            if isinstance(error, HangingError):  # it has taken long enough
                self._retry.settle()
            # A program that hangs may be held up in one step now and in another then.
            failure = error.argv[0] if isinstance(error, HangingError) else shortage(error) or str(error)
            if failure != self._failure:
                _log.error("%s; trying again in %.0f s, and less and less often", error, self._retry.pause)
            self._failure = failure
            self._try_again(str(error), began, triggers)
        except Exception:  # noqa: BLE001 - the daemon outlives a mistake of its own, and shows where it is
            _log.exception("this is a bug in kvm-portfwd; trying again in %.0f s", self._retry.pause)
            self._try_again("a bug in kvm-portfwd, see the journal", began, triggers)
        else:
            self._settle(began, triggers, changed=changed)

    def _reconciled(self, inventory: Inventory, triggers: Triggers, answered_at: float | None) -> bool:
        with self._parts.budgets.charged(triggers.origin, processor_time_here), memory.collecting_later():
            return self._reconcile(inventory, triggers, answered_at)

    def _reconcile(self, inventory: Inventory, triggers: Triggers, answered_at: float | None) -> bool:
        request = Request(
            triggers.reasons,
            triggers.actors,
            time.monotonic(),
            local=frozenset(host.address for host in inventory.host_addresses),
            taken=inventory.guest_addresses,
            uplinks=self._standing.config.daemon.uplinks,
            ip_forward=self._standing.config.daemon.ip_forward,
            reloaded=self._reloaded,
            full=triggers.full,
            origin=triggers.origin,
            latest_triggers=lambda: self._trigger_queue.latest(self._loop, self._pauses.patience),
        )
        desired = self._placer.place(self._sets.applied(self._standing.all), inventory, answered_at, request.now)
        lines.assigned(self._placer.assigned)
        return self._reconciler.reconcile(self._fleet.claims.gate(desired), request)

    def _settle(self, began: float, triggers: Triggers, *, changed: bool) -> None:
        self._pulse.soon()
        if (placement := self._placer.placement) is not None:
            self._inventories.sources.search(placement.desired.silent, placement.inventory)
        self._written.keep_choice(self._placer.chosen)
        self._written.keep_ports(self._placer.ports, self._placer.turns)
        if (report := self._reconciler.report) is not None:
            seconds = time.monotonic() - began
            self._records.pass_ended(report, seconds)
            self._reporter.pass_ended(report, seconds)
            self._fleet.applied(report.desired)
            self._connection_log.follow(report.desired)
        self._reloads.pass_ended()
        self._first_pass.set()
        self._reloaded, self._failure = False, ""
        self._retry.settle()
        if triggers.full:
            # Listing many forwards takes several times the memory that is kept. Those who wait for the pass come first.
            self._worker.submit(memory.give_back)
        self._pause = self._pauses.after(self._pause, triggers.origin, changed=changed)
        if changed:
            self._trigger_queue.verify(triggers.origin)
        for due in (self._reconciler.next_pass_at, self._placer.ends, self._fleet.claims.due):
            if due is not None:
                self._pass_in(due - time.monotonic(), triggers)
        if report is not None and report.result.short:
            self._pass_in(self._short.next(), triggers, full=True)
        else:
            self._short.settle()

    def _try_again(self, failure: str, began: float, triggers: Triggers) -> None:
        self._pulse.soon()
        self._trigger_queue.take_back(triggers)
        seconds, placement = time.monotonic() - began, self._placer.placement
        self._records.failed(placement.desired if placement else None, failure, seconds)
        self._reporter.failed(seconds)
        self._reloads.pass_ended(failure)
        self._pass_in(self._retry.next(), triggers)

    def _look_soon(self, after: Origin) -> None:
        """Ask for a pass that reports conflicts or tries again; called from the thread that found them or failed."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(partial(self._trigger_queue.time_passed, full=False, after=after))

    def _pass_in(self, seconds: float, after: Triggers, *, full: bool = False) -> None:
        """Ask for another pass, which is charged like the one that it follows."""
        check = partial(self._trigger_queue.time_passed, full=full, after=after.origin)
        self._loop.call_later(max(seconds, 0), check)

    # --- the configuration ----------------------------------------------------------------------------------------

    def _begin_reading(self) -> None:
        """Read the configuration beside the passes: where a mount hangs, the old one is healed meanwhile."""
        self._control.check(at_once=True)
        self._pulse.notifier.reloading()
        self._reloads.begin()
        self._reading.begin()

    async def _take_in(self, reading: asyncio.Future[configuration.Loaded]) -> None:
        """Put what was read in force, between two passes; a wrong one changes nothing."""
        self._reloads.read()
        try:
            loaded = reading.result()
        except ConfigError as error:
            lines.configuration_refused(error.problems)
            self._records.configuration_refused(error.problems)
            self._reloads.refused(error.problems)
        except (PortfwdError, OSError) as error:  # no thread or descriptor is available
            self._unread.warn(f"the configuration is not read yet: {error}; trying again")
            self._reloads.pass_ended(str(error))
            self._loop.call_later(self._rereading.next(), self._trigger_queue.reload)
        else:
            self._unread.settle()
            self._rereading.settle()
            if (refusal := await self._standing.refusal(loaded, self._reloads.confirm)) is not None:
                self._reloads.kept_out(refusal)
            else:
                lines.configuration_loaded(self._path)
                await self._put_in_force(loaded)
        self._pulse.ready()

    async def _put_in_force(self, loaded: configuration.Loaded, why: ReasonKind = ReasonKind.CONFIGURATION) -> None:
        config, libvirt = loaded.config, self._standing.config.daemon.libvirt
        self._standing.put(loaded)
        self._sets.configure(config, loaded.lists)
        if config.daemon.libvirt != libvirt:
            await self._change_connections(self._standing.all)
        self._inventories.sources.configure(self._standing.all)
        self._netfilter.choice = config.daemon.backend
        self._reloaded = True
        self._standing.put_on_record(self._records)
        self._control.admit(config.control.group)
        await self._reporter.set_up(config)
        if self._inventories.latest is None:
            self._reloads.pass_ended(causes.UNANSWERED)
        self._trigger_queue.configuration_changed(Reason(why, str(self._path)))

    async def _roll_back(self) -> None:
        """Put the configuration before in force, as the one that is was not confirmed."""
        if (before := self._standing.confirmation.roll_back()) is not None:
            self._reading.disown(self._path)
            lines.rolled_back(self._path)
            before = configuration.Loaded(without_what_is_missing(before.config), before.sources, before.lists)
            await self._put_in_force(before, ReasonKind.UNCONFIRMED)

    def _unavailable(self) -> Unavailable:
        known = self._reconciler.report, self._inventories.latest
        return self._standing.unavailable(*known, self._placer.ports, self._parts.occupied)

    def _read(self) -> configuration.Loaded:
        """Read the configuration, in a thread of its own."""
        loaded = self._parts.read(self._path, self._sets.applied(self._standing.config))
        satisfied(loaded.config)
        return loaded

    def _connections(self) -> tuple[ConnectionState, ...]:
        return self._inventories.sources.connections()

    async def _change_connections(self, config: Config) -> None:
        await self._inventories.sources.close()
        self._inventories.sources = self._parts.sources(config, self._trigger_queue.inventory_changed)
        await self._begun(self._inventories.sources.start())

    # --- the end --------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        self._pulse.notifier.stopping()
        await self._reading.close(self._pauses.patience)
        await self._reporter.close()
        await self._control.close()
        self._inventories.cancel()
        for monitor in self._monitors:
            monitor.close()
        await self._inventories.sources.close()
        if self._is_to_remove():
            cause = Cause((Reason(ReasonKind.STOP, detail="on_stop = remove"),))
            await self._ended(partial(self._reconciler.remove, cause))
            self._written.keep_choice({})
        await self._fleet.close(self._pauses.patience, remove=self._is_to_remove())
        await self._ended(self._reconciler.close)
        await self._ended(self._netfilter.close)
        ending = self._worker, self._written, self._standing.openings, self._sets, self._connection_log
        await asyncio.gather(*(each.close(self._pauses.patience) for each in ending))
        self._pulse.end()

    async def _ended(self, end: Callable[[], None]) -> None:
        """Do one thing at the end; that it failed is logged, and no reason to leave the others undone."""
        try:
            await self._worker.submit(end)
        except (PortfwdError, OSError) as error:
            _log.error("%s", error)

    def _is_to_remove(self) -> bool:
        return self._standing.config.daemon.on_stop is OnStop.REMOVE and not (self._parts.directory / _UPGRADE).exists()
