"""`kvm-portfwd run`: run the daemon in the foreground."""

import argparse
import asyncio
import faulthandler
from functools import partial
from pathlib import Path

from fwdaemon import config as configuration
from fwdaemon.audit import journal
from fwdaemon.config.model import Config
from fwdaemon.conflicts.watch import BackgroundConflictWatch, ConflictWatch
from fwdaemon.daemon import Daemon, Parts
from fwdaemon.errors import ConfigError
from fwdaemon.events import InventoryKeeper
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.kernel import conntrack, memory
from fwdaemon.kernel.process import SystemRunner, new_budgets
from fwdaemon.kernel.route_watch import RouteWatch
from fwdaemon.metrics.exposition import satisfied, without_what_is_missing
from fwdaemon.netfilter import Netfilter
from fwdaemon.status.reloads import LastGood, Start


def run(options: argparse.Namespace) -> int:
    """Run until told to stop."""
    faulthandler.enable()  # systemd's watchdog ends us by SIGABRT: the journal then tells where each thread was
    with journal.lines_written():
        memory.be_frugal()
        with memory.collecting_later():
            start = first_configuration(LastGood(options.config), options.config)
        asyncio.run(_work(options.config, start))
    return 0


def first_configuration(last_good: LastGood, path: Path) -> Start:
    """Read the configuration to begin with; where it is wrong, the last good one stays in force.

    Raises:
        ConfigError: it is wrong, and there is no other.

    """
    try:
        loaded = configuration.load_guarded(path)
        if loaded.has_blank_file and (kept := last_good.kept()) is not None:
            loaded = configuration.load_guarded(path, kept.config)
        return Start(satisfied(loaded.config), loaded.sources, lists=loaded.lists)
    except ConfigError as error:
        if (kept := last_good.kept()) is None:
            raise
        return Start(without_what_is_missing(kept.config), {}, error.problems, kept.at)


async def _work(path: Path, start: Start) -> None:
    await Daemon(path, start, _parts(start.config)).run()


def _parts(config: Config) -> Parts:
    """Give what a daemon works on: this host."""
    rules, budgets = Netfilter(SystemRunner(), config.daemon.backend), new_budgets()
    return Parts(
        rules,
        SystemHostNetwork(rules.confined, guests=budgets.guests),
        conntrack,
        lambda changed: BackgroundConflictWatch(ConflictWatch(SystemRunner()), changed, budgets),
        RouteWatch,
        partial(InventoryKeeper, budgets=budgets),
        budgets=budgets,
    )
