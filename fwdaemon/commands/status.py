"""`kvm-portfwd status`: show what is reachable, what is not and why, and the state of the daemon."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fwdaemon import __version__
from fwdaemon import config as configuration
from fwdaemon.config.model import Config
from fwdaemon.control import client
from fwdaemon.core.report import ApplyResult, joined
from fwdaemon.core.state import Desired
from fwdaemon.core.text import shown
from fwdaemon.errors import PortfwdError
from fwdaemon.events import take_inventory
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.hostnet.owned_state import LedTo
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.netfilter import Netfilter
from fwdaemon.resolve.placement import desired_state
from fwdaemon.status import table
from fwdaemon.status.model import SCHEMA_VERSION, Configuration, Header, LibvirtState, Rules, State, Status
from fwdaemon.status.records import UsageReader
from fwdaemon.status.rows import Facts, rows

# A status without a daemon to ask: what the configuration and libvirt want, and what of it the kernel holds.
_NOT_THERE: Final = "not in the kernel; the daemon would put it there"


def status_without_daemon(path: Path) -> Status:
    """Look once.

    Raises:
        ConfigError: the configuration is wrong.
        PortfwdError: libvirt or the kernel does not answer, or not to this user.

    """
    config = configuration.load(path)
    desired = desired_state(config, asyncio.run(take_inventory(config.daemon.libvirt)), LedTo().chosen)
    netfilter = Netfilter(SystemRunner(), config.daemon.backend)
    found = _look(config, desired, netfilter)
    facts = Facts(config, desired, desired.lacking(found.mended), _NOT_THERE, State.WAITING)
    libvirt = tuple(LibvirtState(uri, connected=True, since=datetime.now(UTC)) for uri in config.daemon.libvirt)
    problems = (*found.faults, *(f"{name} is left in the kernel, and not wanted any more" for name in found.stale))
    header = Header(
        __version__,
        Configuration(path),
        rules=Rules(*netfilter.locate()),
        libvirt=libvirt,
        problems=tuple(sorted(problems)),
        uplinks=tuple(sorted(desired.uplinks)),
        confined=tuple(sorted(netfilter.confined())),
        confined_interfaces=tuple(sorted({name for _, name in netfilter.switched()})),
    )
    return Status(header, rows(facts, UsageReader(netfilter.counters).read(desired)))


def _look(config: Config, desired: Desired, netfilter: Netfilter) -> ApplyResult:
    """Tell what the kernel lacks."""
    host = SystemHostNetwork(netfilter.confined)
    try:
        confined = host.confine(desired, ip_forward=config.daemon.ip_forward)
        return joined(netfilter.preview(confined), host.preview(desired))
    finally:
        netfilter.close()


# Counting the connections of ten thousand forwards takes a second.
_PATIENCE_S: Final = 15.0


def run(options: argparse.Namespace) -> int:
    """Ask the daemon; without one, look at the kernel and at libvirt, and say so."""
    if options.watch:
        return _watch(options)
    try:
        status = _ask()
        _show(status, options)
    except client.NotRunningError as error:
        if os.geteuid() != 0:
            raise  # the kernel and libvirt answer root only
        print(f"kvm-portfwd: {error}", file=sys.stderr)

        _show(json.loads(status_without_daemon(options.config).encode()), options)
        return 1
    return _missed(status, options.names)


def _missed(status: Mapping[str, Any], names: Collection[str]) -> int:
    """Say which names have no exposure; 1 if there are any."""
    missed = sorted(set(names) - {exposure["owner"] for exposure in status["openings"]})
    for name in missed:
        print(f"kvm-portfwd: nothing in the configuration is for {shown(name)}", file=sys.stderr)
    return int(bool(missed))


def _watch(options: argparse.Namespace) -> int:
    """Show it again whenever it changes, until interrupted."""
    # ECMA-48: go home and erase the page; xterm: and what was above it.
    before = "\033[H\033[2J\033[3J" if sys.stdout.isatty() and not options.json else ""
    try:
        for _ in client.watch():
            status = _ask()
            print(before, end="")
            _show(status, options)
            print(end="" if before or options.json else "\n", flush=True)
    except KeyboardInterrupt:
        pass  # the usual way to end it
    return 0


def _ask() -> Mapping[str, Any]:
    status = client.call("Status", _PATIENCE_S)
    if status.get("schema_version") != SCHEMA_VERSION:
        raise PortfwdError(
            f"the daemon, version {status.get('version')}, tells its status in another form;"
            " restart it: systemctl restart kvm-portfwd"
        )
    return status


def _show(status: Mapping[str, Any], options: argparse.Namespace) -> None:
    status = _of(status, options.names)
    if options.json:
        print(json.dumps(status, indent=None if options.watch else 2))
    elif sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415  takes 60 ms to import

        table.draw(status, Console())
    else:
        print(table.as_text(status))


def _of(status: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """Leave only the exposures of these domains and networks, all of them without a name; the counts stay of all."""
    if not names:
        return status
    return {**status, "openings": [exposure for exposure in status["openings"] if exposure["owner"] in names]}
