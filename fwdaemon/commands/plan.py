"""`kvm-portfwd plan` and `rules`: show what would change in the kernel now, or print the rules, changing nothing."""

import argparse
import asyncio
import json
from collections.abc import Iterator
from typing import Any

from fwdaemon.audit.causes import format_gate, format_gate_fault, format_location_reason
from fwdaemon.audit.lines import format_fault
from fwdaemon.config.model import Config
from fwdaemon.core.exposures import Exposure
from fwdaemon.core.report import ApplyResult, Location, joined
from fwdaemon.core.state import Desired
from fwdaemon.core.text import shown
from fwdaemon.events import take_inventory
from fwdaemon.fleet.claims import recorded
from fwdaemon.fleet.table import as_in_force
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.hostnet.owned_state import LedTo
from fwdaemon.kernel.listeners import ports_in_use
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.netfilter import Netfilter
from fwdaemon.resolve.placement import desired_state
from fwdaemon.status.reloads import PortRecords

SCHEMA_VERSION = 1
_CHANGES = 3


def run(options: argparse.Namespace) -> int:
    """Print the rules, or the changes by forward and as native text; 3 with `--exit-code` if there are any."""
    config = as_in_force(options.config)
    desired = recorded().gate(desired_now(config))
    rules = Netfilter(SystemRunner(), config.daemon.backend)
    if options.command == "rules":
        text = rules.render(desired)  # empty where no forward would be live
        print(text, end="\n" if text else "")
        return 0
    result = previewed(config, desired, rules)
    print(json.dumps(as_json(result), indent=2) if options.json else as_text(result, desired))
    return _CHANGES if options.exit_code and result.changed else 0


def previewed(config: Config, desired: Desired, rules: Netfilter) -> ApplyResult:
    """Say what would change in the kernel now, and close `rules`."""
    host = SystemHostNetwork(rules.confined, seconds=recorded().seconds)
    try:
        confined = host.confine(desired, ip_forward=config.daemon.ip_forward)
        return joined(rules.preview(confined), host.preview(desired))
    finally:
        rules.close()


def desired_now(config: Config) -> Desired:
    """Say what would be reachable now, without a daemon to ask.

    Raises:
        PortfwdError: libvirt does not answer, or not to this user.

    """
    inventory = asyncio.run(take_inventory(config.daemon.libvirt))
    return desired_state(config, inventory, LedTo().chosen, PortRecords().before(ports_in_use))


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


def as_json(result: ApplyResult) -> dict[str, Any]:
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
