"""The commands that read or remove the kernel's rules without the daemon.

`kvm-portfwd plan` shows what would change in the kernel now, `rules` prints what would be written, and neither changes
anything. `flush` removes every rule, route and address that is ours, and puts back what we switched.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from fwdaemon import config as configuration
from fwdaemon.audit.lines import format_fault, format_gate, format_gate_fault, format_location_reason, format_note
from fwdaemon.config.model import DaemonSettings
from fwdaemon.connections import close_everything
from fwdaemon.core.exposures import Exposure
from fwdaemon.core.report import ApplyResult, Location, joined, tried
from fwdaemon.core.state import Desired
from fwdaemon.core.text import shown
from fwdaemon.core.types import Family
from fwdaemon.errors import PortfwdError
from fwdaemon.events import take_inventory
from fwdaemon.fleet.claims import recorded
from fwdaemon.fleet.table import as_in_force
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.hostnet.owned_state import LedTo
from fwdaemon.kernel.listeners import ports_in_use
from fwdaemon.kernel.process import Runner, SystemRunner
from fwdaemon.netfilter import Netfilter
from fwdaemon.resolve.neighbours import forwarded
from fwdaemon.resolve.placement import desired_state
from fwdaemon.status.reloads import STATE, LastGood, PortRecords

SCHEMA_VERSION = 1
_CHANGES = 3


def run(options: argparse.Namespace) -> int:
    """Do what the command says."""
    return flush(options.config, SystemRunner()) if options.command == "flush" else _show(options)


def _show(options: argparse.Namespace) -> int:
    """Print the rules, or the changes by forward and as native text; 3 with `--exit-code` if there are any."""
    config = as_in_force(options.config)
    wanted = desired_state(
        config, asyncio.run(take_inventory(config.daemon.libvirt)), LedTo().chosen, PortRecords().before(ports_in_use)
    )
    claims = recorded()
    desired = claims.gate(wanted)
    rules = Netfilter(SystemRunner(), config.daemon.backend)
    if options.command == "rules":
        return _print_rules(rules, desired)
    host = SystemHostNetwork(rules.confined, seconds=claims.seconds)
    try:
        confined = host.confine(desired, ip_forward=config.daemon.ip_forward)
        result = joined(rules.preview(confined), host.preview(desired))
    finally:
        rules.close()
    print(json.dumps(as_json(result), indent=2) if options.json else as_text(result, desired))
    return _CHANGES if options.exit_code and result.changed else 0


def _print_rules(rules: Netfilter, desired: Desired) -> int:
    """Print the native text; nothing where no forward would be live."""
    text = rules.render(desired)
    print(text, end="\n" if text else "")
    return 0


def as_text(result: ApplyResult, desired: Desired) -> str:
    """Write an outcome for people."""
    right = len(desired.exposures - result.mended)
    summary = f"{right} of {len(desired.exposures)} are as they should be"
    if not result.changed:
        return "\n".join([*_faults(result), f"nothing to change: {summary}"])
    lines = [*sorted(map(_added, result.mended)), *sorted(map(_removed, result.stale))]
    lines += [f"~ {format_gate(change)}" for change in result.gates]
    script = ["", result.script.rstrip()] if result.script else []
    return "\n".join([_location(result.moved), *_faults(result), *lines, f"  {summary}", *script])


def as_json(result: ApplyResult) -> dict[str, object]:
    """Give an outcome with stable keys; names are as libvirt has them."""
    return {
        "schema_version": SCHEMA_VERSION,
        "changes": result.changed,
        "backend": _location(result.moved),
        "add": [_described(exposure) for exposure in sorted(result.mended, key=_added)],
        "remove": sorted(result.stale),
        "gates": [{"chain": str(change.gate), "reason": format_gate_fault(change.fault)} for change in result.gates],
        "problems": list(map(format_fault, result.faults)),
        "script": result.script,
    }


def _faults(result: ApplyResult) -> Iterator[str]:
    return (f"! {format_fault(fault)}" for fault in result.faults)


def _location(location: Location | None) -> str:
    if location is None:
        return ""
    return f"rules belong in {location.title}: {format_location_reason(location.reason)}"


def _added(exposure: Exposure) -> str:
    return f"+ {shown(exposure.owner.name)}: {exposure.listens_at()} -> {exposure.leads_to()}"


def _removed(name: str) -> str:
    return f"- {name}"


def _described(exposure: Exposure) -> dict[str, str]:
    owner = exposure.owner
    return {owner.kind: owner.name, "listen": exposure.listens_at(), "target": exposure.leads_to()}


def flush(config: Path, runner: Runner) -> int:
    """Remove whatever carries our name, and end the connections that carry our label. 1 if anything may be left."""
    settings = _settings(config)
    # The host's side goes first: without the rules, an address or setting of ours could lead to the host itself.
    rules = Netfilter(runner)
    result = joined(tried(lambda: _remove_from_host(settings, rules)), close_everything(rules, settings.label))
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
