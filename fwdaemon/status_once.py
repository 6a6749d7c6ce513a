"""A status without a daemon to ask: what the configuration and libvirt want, and what of it the kernel holds."""

import asyncio
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fwdaemon import __version__
from fwdaemon import config as configuration
from fwdaemon.config.model import Config
from fwdaemon.desired import Desired, Opening
from fwdaemon.events import take_inventory
from fwdaemon.hostside import HostSide
from fwdaemon.netfilter import Netfilter, Side
from fwdaemon.outcome import Outcome, joined
from fwdaemon.placing import desired_state
from fwdaemon.process import SystemRunner
from fwdaemon.records import rules_in
from fwdaemon.status import Configuration, Header, LibvirtState, State, Status
from fwdaemon.status_rows import Facts, rows
from fwdaemon.usage import UsageReader

_NOT_THERE: Final = "not in the kernel; the daemon would put it there"


def status_without_daemon(path: Path) -> Status:
    """Look once.

    Raises:
        ConfigError: the configuration is wrong.
        PortfwdError: libvirt or the kernel does not answer, or not to this user.

    """
    config = configuration.load(path)
    desired = desired_state(config, asyncio.run(take_inventory(config.daemon.libvirt)))
    side, reason, found = _look(config, desired)
    facts = Facts(config, desired, _without(desired, found.mended), _NOT_THERE, State.WAITING)
    libvirt = tuple(LibvirtState(uri, connected=True, since=datetime.now(UTC)) for uri in config.daemon.libvirt)
    problems = (*found.faults, *(f"{name} is left in the kernel, and not wanted any more" for name in found.stale))
    header = Header(
        __version__,
        Configuration(path),
        rules=rules_in(side, reason),
        libvirt=libvirt,
        problems=tuple(sorted(problems)),
    )
    return Status(header, rows(facts, UsageReader(SystemRunner()).read(desired, side)))


def _look(config: Config, desired: Desired) -> tuple[Side, str, Outcome]:
    """Tell where rules belong and why, and what the kernel lacks."""
    netfilter = Netfilter(SystemRunner(), config.daemon.backend)
    try:
        return *netfilter.locate(), joined(netfilter.preview(desired), HostSide().preview(desired))
    finally:
        netfilter.close()


def _without(desired: Desired, missing: Collection[Opening]) -> Desired:
    return replace(
        desired,
        forwards=desired.forwards.difference(missing),
        nats=desired.nats.difference(missing),
        routes=desired.routes.difference(missing),
    )
