"""The daemon: hears, looks, reconciles, and hears again.

Three things make it look: libvirt or the network (a fresh inventory is taken first), the kernel's rules (the inventory
we have will do, so that a wipe is mended even while libvirt is away), and time. All of them only wake one task, which
reconciles once for everything heard so far.
"""

import asyncio
import logging
import signal
import time
from pathlib import Path

from fwdaemon import audit, causes, memory
from fwdaemon import config as configuration
from fwdaemon.clashes.watch import ClashWatch
from fwdaemon.config.model import Config, OnStop
from fwdaemon.control.control_socket import ControlSocket
from fwdaemon.control.feed import Feed
from fwdaemon.control.manager import Manager
from fwdaemon.desired import Desired
from fwdaemon.errors import ConfigError, PortfwdError
from fwdaemon.events import ConnectionState, InventoryKeeper
from fwdaemon.hearing import Heard, Hearing
from fwdaemon.inventory import Inventory
from fwdaemon.legacy.monitor import LegacyMonitor
from fwdaemon.metrics.reporter import Reporter
from fwdaemon.metrics.requirement import satisfied
from fwdaemon.netfilter import Netfilter
from fwdaemon.nftables.monitor import RulesMonitor
from fwdaemon.notify import Pulse
from fwdaemon.placing import Placement
from fwdaemon.process import SystemRunner
from fwdaemon.reconcile import Occasion, Reconciler
from fwdaemon.records import Records
from fwdaemon.reloads import Reloads
from fwdaemon.route_watch import RouteWatch
from fwdaemon.summary import summary
from fwdaemon.usage import UsageReader
from fwdaemon.worker import Worker

_log = logging.getLogger(__name__)

# Events come in bursts: libvirt changes about ten things when a network starts. The first is answered at once. While
# look after look finds something to mend, as when another tool insists on being first too, the pause grows.
_PAUSE = 0.01
_PAUSE_AT_MOST = 0.25
# How soon after a commit of ours the kernel is asked whether it holds what we think it does.
_VERIFY_AFTER = 1.0
# How long after a failure we try again, doubled each time up to the second figure.
_RETRY = 1.0
_RETRY_AT_MOST = 30.0
# systemd waits this long for the first reconcile; libvirt may be down when we start.
_READY_WITHIN = 5.0
# A call that hangs in the kernel must not keep us from ending.
_PATIENCE = 5.0
# A package makes this file while an upgrade restarts us: whoever comes after us wants the rules.
_UPGRADE = Path("/run/kvm-portfwd/upgrade")


class Daemon:
    """Runs until SIGTERM or SIGINT. Make it inside the asyncio loop it runs in."""

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._hearing = Hearing()
        self._pulse = Pulse(self._summary)
        runner = SystemRunner()
        self._netfilter = Netfilter(runner, config.daemon.backend)
        self._reconciler = Reconciler(self._netfilter, ClashWatch(runner))
        changed = self._hearing.rules_changed
        self._monitors = RulesMonitor(runner, changed), LegacyMonitor(changed), RouteWatch(changed)
        self._keeper = InventoryKeeper(config, self._hearing.inventory_changed)
        self._worker = Worker("reconcile")
        self._reloads, feed = Reloads(self._hearing.reload), Feed()
        self._records = Records(path, config, feed.publish)
        count = UsageReader(SystemRunner()).read
        manager = Manager(self._records, feed, self._connections, self._reloads.ask, count)
        self._control = ControlSocket(manager)
        self._reporter = Reporter(manager.status, feed)
        manager.metrics = self._reporter.text
        self._first_look = asyncio.Event()
        self._inventory: Inventory | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._placement: Placement | None = None
        self._reloaded = False
        self._retry = _RETRY
        self._pause = _PAUSE

    async def run(self) -> None:
        """Work until told to stop, then leave the rules as the configuration says.

        Raises:
            AlreadyRunningError: another daemon runs on this host.

        """
        await self._control.open(self._config.control.group)
        await self._reporter.set_up(self._config)
        for number, action in {
            signal.SIGHUP: self._hearing.reload,
            signal.SIGTERM: self._hearing.stop,
            signal.SIGINT: self._hearing.stop,
        }.items():
            self._loop.add_signal_handler(number, action)
        for monitor in self._monitors:
            monitor.start()
        await self._keeper.start()
        announcing = asyncio.create_task(self._announce())
        self._pulse.begin()
        self._resync()
        try:
            while not self._hearing.stopping:
                await self._round()
        finally:
            announcing.cancel()
            await self._stop()

    async def _round(self) -> None:
        await self._hearing.wait()
        if self._hearing.take_reload():
            await self._reload()
        if self._hearing.wants_inventory and self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
        if self._hearing.wants_look and self._inventory is not None:
            await self._look(self._inventory)
            await asyncio.sleep(self._pause)

    async def _announce(self) -> None:
        """Tell systemd that we are ready: after the first reconcile, or when libvirt keeps us waiting."""
        try:
            await asyncio.wait_for(self._first_look.wait(), _READY_WITHIN)
        except TimeoutError:
            if self._inventory is None:
                _log.warning("libvirt has not answered yet: what the kernel holds stays as it is until it does")
        self._pulse.ready()

    def _summary(self) -> str:
        account = self._reconciler.account
        silent = [state.uri for state in self._connections() if not state.connected]
        return summary(account.desired if account else None, self._records.header(()), silent)

    def _resync(self) -> None:
        """Look at everything now and then, whatever is heard: an event may be lost."""
        self._keeper.doubt()
        self._hearing.wants_inventory = True
        self._hearing.time_passed(thorough=True)
        self._loop.call_later(self._config.daemon.resync.total_seconds(), self._resync)

    async def _refresh(self) -> None:
        """Take an inventory; what is heard meanwhile asks for another."""
        covered = self._hearing.begin_inventory()
        try:
            with self._pulse.watchdog.bounded("an inventory"):
                self._inventory = await self._keeper.refresh() or self._inventory
        except PortfwdError as error:
            _log.error("no new inventory: %s", error)
        finally:
            self._refreshing = None
            self._hearing.end_inventory(covered)

    async def _look(self, inventory: Inventory) -> None:
        heard, began = self._hearing.take(), time.monotonic()
        try:
            with self._pulse.watchdog.bounded("a comparison with the kernel"):
                changed = await self._worker.submit(lambda: self._reconciled(inventory, heard))
        except PortfwdError as error:
            _log.error("%s; trying again in %.0f s", error, self._retry)
            self._try_again(str(error), began)
        except Exception:  # noqa: BLE001 - the daemon outlives a mistake of its own, and shows where it is
            _log.exception("this is a mistake in kvm-portfwd; trying again in %.0f s", self._retry)
            self._try_again("a mistake in kvm-portfwd, see the journal", began)
        else:
            self._settle(began, changed=changed)

    def _reconciled(self, inventory: Inventory, heard: Heard) -> bool:
        with memory.collecting_later():
            changed = self._reconcile(inventory, heard)
        if heard.thorough:
            # A listing of many forwards takes several times what is kept of it.
            memory.give_back()
        return changed

    def _reconcile(self, inventory: Inventory, heard: Heard) -> bool:
        desired = self._desired(inventory)
        occasion = Occasion(
            heard.reasons,
            heard.meddler,
            time.monotonic(),
            local=frozenset(host.address for host in inventory.host_addresses),
            taken=inventory.guest_addresses,
            ip_forward=self._config.daemon.ip_forward,
            reloaded=self._reloaded,
            thorough=heard.thorough,
            overheard=self._overheard,
        )
        return self._reconciler.reconcile(desired, occasion)

    def _overheard(self) -> str:
        """Ask the loop, from the worker, who changed rules since the look began: the kernel may have told by now."""
        try:
            return asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_PATIENCE)
        except TimeoutError:
            return causes.AT_A_COMPARISON

    async def _listen(self) -> str:
        # What is there to be read is read in one turn of the loop; the next comes after that.
        for _ in range(2):
            await asyncio.sleep(0)
        return self._hearing.meddler

    def _desired(self, inventory: Inventory) -> Desired:
        """Place the configuration on an inventory; a mistake on the way leaves nothing for the next time."""
        placement, self._placement = self._placement, None
        if placement is None or placement.config is not self._config:
            placement = Placement(self._config, inventory)
        desired = placement.move(inventory)
        self._placement = placement
        return desired

    def _settle(self, began: float, *, changed: bool) -> None:
        self._pulse.soon()
        self._records.placed(*self._netfilter.standing, self._netfilter.unusable)
        if (account := self._reconciler.account) is not None:
            seconds = time.monotonic() - began
            self._records.looked(account, seconds)
            self._reporter.looked(account, seconds)
        self._reloads.looked()
        self._first_look.set()
        self._reloaded = False
        self._retry = _RETRY
        self._pause = min(2 * self._pause, _PAUSE_AT_MOST) if changed else _PAUSE
        if changed:
            self._loop.call_later(_VERIFY_AFTER, lambda: self._hearing.time_passed(thorough=True))
        if (due := self._reconciler.look_again_at) is not None:
            self._look_in(due - time.monotonic())

    def _try_again(self, failure: str, began: float) -> None:
        self._pulse.soon()
        seconds = time.monotonic() - began
        self._records.failed(self._placement.desired if self._placement else None, failure, seconds)
        self._reporter.failed(seconds)
        self._reloads.looked(failure)
        self._look_in(self._retry)
        self._retry = min(2 * self._retry, _RETRY_AT_MOST)

    def _look_in(self, seconds: float) -> None:
        self._loop.call_later(max(seconds, 0), lambda: self._hearing.time_passed(thorough=False))

    async def _reload(self) -> None:
        """Read the configuration; a wrong one changes nothing."""
        self._pulse.notifier.reloading()
        self._reloads.begin()
        try:
            with self._pulse.watchdog.bounded("reading the configuration"):
                config = await self._worker.submit(lambda: satisfied(configuration.load(self._path)))
        except ConfigError as error:
            audit.configuration_refused(error.problems)
            self._records.configuration_refused(error.problems)
            self._reloads.refused(error.problems)
            self._pulse.ready()
            return
        if config.daemon.libvirt != self._config.daemon.libvirt:
            await self._change_connections(config)
        self._keeper.configure(config)
        self._config = config
        self._netfilter.choice = config.daemon.backend
        self._reloaded = True
        audit.configuration_loaded(self._path)
        self._records.configuration_loaded(config)
        self._control.admit(config.control.group)
        await self._reporter.set_up(config)
        if self._inventory is None:
            self._reloads.looked("libvirt has not answered yet")
        self._hearing.configuration_changed(causes.loaded_again(self._path))
        self._pulse.ready()

    def _connections(self) -> tuple[ConnectionState, ...]:
        return self._keeper.connections()

    async def _change_connections(self, config: Config) -> None:
        await self._keeper.close()
        self._keeper = InventoryKeeper(config, self._hearing.inventory_changed)
        await self._keeper.start()

    async def _stop(self) -> None:
        self._pulse.notifier.stopping()
        await self._reporter.close()
        await self._control.close()
        if self._refreshing is not None:
            self._refreshing.cancel()
        for monitor in self._monitors:
            monitor.close()
        await self._keeper.close()
        if self._config.daemon.on_stop is OnStop.REMOVE:
            await self._worker.submit(self._remove)
        await self._worker.submit(self._reconciler.close)
        await self._worker.submit(self._netfilter.close)
        await self._worker.close(_PATIENCE)
        self._pulse.end()

    def _remove(self) -> None:
        if not _UPGRADE.exists():
            self._reconciler.remove("the daemon stops, on_stop = remove")
