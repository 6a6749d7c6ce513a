"""`kvm-portfwd run`: be the daemon, in the foreground."""

import argparse
import asyncio
import faulthandler
from pathlib import Path

from fwdaemon import config as configuration
from fwdaemon import journal, memory
from fwdaemon.config.model import Config
from fwdaemon.daemon import Daemon
from fwdaemon.metrics.requirement import satisfied


def run(options: argparse.Namespace) -> int:
    """Run until told to stop."""
    journal.set_up()
    faulthandler.enable()  # systemd's watchdog ends us by SIGABRT: the journal then tells where each thread was
    memory.be_frugal()
    with memory.collecting_later():
        config = satisfied(configuration.load(options.config))
    asyncio.run(_work(options.config, config))
    return 0


async def _work(path: Path, config: Config) -> None:
    await Daemon(path, config).run()
