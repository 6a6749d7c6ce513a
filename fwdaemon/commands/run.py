"""`kvm-portfwd run` and `flush`: run the daemon in the foreground, and remove all that it left on this host."""

import argparse
import asyncio
import faulthandler
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Final

from fwdaemon import config as configuration
from fwdaemon.audit import journal
from fwdaemon.audit.lines import format_fault, format_note
from fwdaemon.commands.check import kept_here
from fwdaemon.config import Loaded
from fwdaemon.config.model import Config, DaemonSettings
from fwdaemon.conflicts.watch import BackgroundConflictWatch, ConflictWatch
from fwdaemon.connections import close_everything
from fwdaemon.core.report import ApplyResult, joined, tried
from fwdaemon.core.types import Family
from fwdaemon.daemon import Daemon, Parts
from fwdaemon.errors import ConfigError, PortfwdError
from fwdaemon.events import InventoryKeeper, take_inventory
from fwdaemon.fleet import Fleet
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.kernel import conntrack, memory
from fwdaemon.kernel.host_watch import RouteWatch
from fwdaemon.kernel.process import Finished, Runner, SystemRunner, new_budgets
from fwdaemon.metrics.exposition import satisfied, without_what_is_missing
from fwdaemon.netfilter import Netfilter
from fwdaemon.nftables.existing import existing_tables
from fwdaemon.nftables.generation import LISTINGS, current_generation
from fwdaemon.nftables.model import TABLE_NAME
from fwdaemon.resolve.neighbours import forwarded
from fwdaemon.status.confirming import Confirmation
from fwdaemon.status.reloads import STATE, LastGood, Start

# How long a thread that computes keeps others waiting that have something to do. To repair a wipe, several threads take
# ten or twenty turns, each behind one that goes through connections or rules of others: with Python's 5 ms, that is
# longer than all else. Each turn costs some microseconds.
_TURN_S: Final = 0.0005


def run(options: argparse.Namespace) -> int:
    """Run the daemon until it is asked to stop, or remove what it left."""
    return flush(options.config, SystemRunner()) if options.command == "flush" else _run(options.config)


def _run(path: Path) -> int:
    faulthandler.enable()  # systemd's watchdog ends us by SIGABRT: the journal then shows where each thread was
    sys.setswitchinterval(_TURN_S)
    with journal.lines_written():
        memory.be_frugal()
        runner = AheadRunner()
        with memory.collecting_later():
            start = first_configuration(LastGood(path), path, Confirmation(path))
        asyncio.run(_work(path, start, runner))
    return 0


class AheadRunner(SystemRunner):
    """Lists what an earlier run left in our tables, in a thread, while the configuration is read and libvirt asked.

    What is listed ahead is given once, and only if nothing was committed since before it was; to list ten thousand
    forwards takes a third of a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._listed: dict[tuple[str, ...], tuple[int, Finished]] = {}
        self._thread = Thread(target=self._look, name="listing", daemon=True)
        with suppress(RuntimeError):  # no thread is available: it is listed later
            self._thread.start()

    def run(self, *argv: str, stdin: str = "") -> Finished:
        """See `Runner.run`."""
        if argv in LISTINGS.values() and self._thread.is_alive():
            self._thread.join()
        generation, finished = self._listed.pop(argv, (0, None))
        is_new = finished is not None and generation == current_generation()
        return finished if finished is not None and is_new else super().run(*argv, stdin=stdin)

    def _look(self) -> None:
        with suppress(PortfwdError):  # who asks finds out
            generation, there = current_generation(), existing_tables()
            for family in (family for family in Family if (family.word, TABLE_NAME) in there):
                self._listed[LISTINGS[family]] = generation, super().run(*LISTINGS[family])


def first_configuration(last_good: LastGood, path: Path, confirmation: Confirmation | None = None) -> Start:
    """Read the configuration to begin with; where it is wrong, the last good one stays in force.

    The one before is in force again where it was to be confirmed, and was not in time.

    Raises:
        ConfigError: it is wrong, and there is no other.

    """
    try:
        loaded = configuration.load_guarded(path)
        if loaded.has_blank_file and (kept := last_good.kept()) is not None:
            loaded = configuration.load_guarded(path, kept.config)
        if confirmation is not None and (before := confirmation.at_start(loaded)) is not None:
            config = without_what_is_missing(before.config)
            return Start(config, before.sources, is_rolled_back=True, lists=before.lists)
        return Start(satisfied(loaded.config), loaded.sources, lists=loaded.lists)
    except ConfigError as error:
        if (kept := last_good.kept()) is None:
            raise
        return Start(without_what_is_missing(kept.config), kept.sources, error.problems, kept.at, lists=kept.lists)


async def _work(path: Path, start: Start, runner: Runner) -> None:
    await Daemon(path, start, _parts(path, start.config, runner)).run()


def _parts(path: Path, config: Config, runner: Runner) -> Parts:
    """Give what a daemon works on: this host."""
    rules, budgets, fleet = Netfilter(runner, config.daemon.backend), new_budgets(), Fleet(path)
    return Parts(
        rules,
        SystemHostNetwork(rules.confined, guests=budgets.guests, seconds=fleet.claims.seconds),
        conntrack,
        lambda changed: BackgroundConflictWatch(ConflictWatch(SystemRunner()), changed, budgets),
        RouteWatch,
        partial(InventoryKeeper, budgets=budgets),
        budgets=budgets,
        fleet=fleet,
        read=_read,
    )


def _read(path: Path, before: Config) -> Loaded:
    """Read the configuration again; what this host cannot keep is refused as `check` does, though not at a start."""
    loaded = configuration.load_guarded(path, before)
    kept_here(loaded.config)
    return loaded


# Removes every rule, route and address that is ours, and puts back what we switched.
def flush(config: Path, runner: Runner) -> int:
    """Remove whatever carries our name, and end the connections that carry our label. 1 if anything may be left."""
    settings = _settings(config)
    # The host's side goes first: without the rules, an address or setting of ours could lead to the host itself.
    rules = Netfilter(runner)
    host = tried(lambda: _remove_from_host(settings, rules))
    result = joined(host, close_everything(rules, settings.label, left=host.renamings))
    for note in result.notes:
        print(format_note(note))
    for fault in result.faults:
        print(f"kvm-portfwd: {format_fault(fault)}", file=sys.stderr)
    return int(bool(result.faults))


def _settings(config: Path, state: Path = STATE) -> DaemonSettings:
    """Give what is configured; a configuration that is wrong, or not there any more, is no reason to leave rules.

    In that case the last good configuration says which label our connections carry.
    """
    try:
        return configuration.load(config).daemon
    except PortfwdError:
        kept = LastGood(config, state).kept()
        return kept.config.daemon if kept is not None else DaemonSettings()


def _remove_from_host(settings: DaemonSettings, rules: Netfilter) -> ApplyResult:
    host = SystemHostNetwork(rules.confined)
    host.adopt(rules.confined(), rules.switched())
    return host.remove(_forwarded(settings) if host.has_turned_on() else frozenset())


def _forwarded(settings: DaemonSettings) -> frozenset[tuple[Family, str]]:
    """Ask for which networks libvirt needs forwarding; a libvirt that does not answer needs none."""
    try:
        return frozenset(forwarded(asyncio.run(take_inventory(settings.libvirt)).every_network))
    except PortfwdError:
        return frozenset()
