"""`kvm-portfwd flush`: remove every rule, route and address that is ours, and put back what we switched."""

import argparse
import asyncio
import sys
from pathlib import Path

from fwdaemon import config as configuration
from fwdaemon.audit.lines import format_fault, format_note
from fwdaemon.config.model import DaemonSettings
from fwdaemon.connections import close_everything
from fwdaemon.core.report import ApplyResult, joined, tried
from fwdaemon.core.types import Family
from fwdaemon.errors import PortfwdError
from fwdaemon.events import take_inventory
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.kernel.process import Runner, SystemRunner
from fwdaemon.netfilter import Netfilter
from fwdaemon.resolve.neighbours import forwarded
from fwdaemon.status.reloads import STATE, LastGood


def run(options: argparse.Namespace) -> int:
    """Do so, on this host."""
    return flush(options.config, SystemRunner())


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
