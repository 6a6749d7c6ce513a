"""`kvm-portfwd run`: be the daemon, in the foreground."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from fwdaemon import config as configuration
from fwdaemon.config.model import Config
from fwdaemon.daemon import Daemon


def run(options: argparse.Namespace) -> int:
    """Run until told to stop."""
    _log_to_standard_error()
    asyncio.run(_work(options.config, configuration.load(options.config)))
    return 0


async def _work(path: Path, config: Config) -> None:
    await Daemon(path, config).run()


def _log_to_standard_error() -> None:
    """Write audit lines as they are; what is wrong says so first."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
