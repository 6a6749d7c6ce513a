"""`kvm-portfwd run`: run the daemon in the foreground."""

import argparse
import asyncio
import faulthandler
import sys
from functools import partial
from pathlib import Path
from typing import Final

from fwdaemon import config as configuration
from fwdaemon.audit import journal
from fwdaemon.commands.check import kept_here
from fwdaemon.config import Loaded
from fwdaemon.config.model import Config
from fwdaemon.conflicts.watch import BackgroundConflictWatch, ConflictWatch
from fwdaemon.daemon import Daemon, Parts
from fwdaemon.errors import ConfigError
from fwdaemon.events import InventoryKeeper
from fwdaemon.fleet import Fleet
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.kernel import conntrack, memory
from fwdaemon.kernel.host_watch import RouteWatch
from fwdaemon.kernel.process import SystemRunner, new_budgets
from fwdaemon.metrics.exposition import satisfied, without_what_is_missing
from fwdaemon.netfilter import Netfilter
from fwdaemon.status.confirming import Confirmation
from fwdaemon.status.reloads import LastGood, Start

# How long a thread that computes keeps others waiting that have something to do. To repair a wipe, several threads take
# ten or twenty turns, each behind one that goes through connections or rules of others: with Python's 5 ms, that is
# longer than all else. Each turn costs some microseconds.
_TURN_S: Final = 0.0005


def run(options: argparse.Namespace) -> int:
    """Run until told to stop."""
    faulthandler.enable()  # systemd's watchdog ends us by SIGABRT: the journal then tells where each thread was
    sys.setswitchinterval(_TURN_S)
    with journal.lines_written():
        memory.be_frugal()
        with memory.collecting_later():
            start = first_configuration(LastGood(options.config), options.config, Confirmation(options.config))
        asyncio.run(_work(options.config, start))
    return 0


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


async def _work(path: Path, start: Start) -> None:
    await Daemon(path, start, _parts(path, start.config)).run()


def _parts(path: Path, config: Config) -> Parts:
    """Give what a daemon works on: this host."""
    rules, budgets, fleet = Netfilter(SystemRunner(), config.daemon.backend), new_budgets(), Fleet(path)
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
