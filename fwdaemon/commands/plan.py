"""`kvm-portfwd plan`: show what would change in the kernel now, without changing it."""

import argparse
import asyncio
import json
from collections.abc import Iterator

from fwdaemon import config as configuration
from fwdaemon.core.openings import Opening
from fwdaemon.core.report import Outcome, joined
from fwdaemon.core.state import Desired
from fwdaemon.core.text import shown
from fwdaemon.events import take_inventory
from fwdaemon.hostnet.keeper import HostSide
from fwdaemon.hostnet.owned_state import LedTo
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.netfilter import Netfilter
from fwdaemon.resolve.placement import desired_state

SCHEMA_VERSION = 1
_CHANGES = 3


def run(options: argparse.Namespace) -> int:
    """Print the changes forward by forward, then as native text; 3 with `--exit-code` if there are any."""
    config = configuration.load(options.config)
    desired = desired_state(config, asyncio.run(take_inventory(config.daemon.libvirt)), LedTo().chosen)
    rules = Netfilter(SystemRunner(), config.daemon.backend)
    host = HostSide(rules.confined)
    try:
        confined = host.confine(desired, ip_forward=config.daemon.ip_forward)
        outcome = joined(rules.preview(confined), host.preview(desired))
    finally:
        rules.close()
    print(json.dumps(as_json(outcome), indent=2) if options.json else as_text(outcome, desired))
    return _CHANGES if options.exit_code and outcome.changed else 0


def as_text(outcome: Outcome, desired: Desired) -> str:
    """Write an outcome for people."""
    right = len(desired.openings - outcome.mended)
    summary = f"{right} of {len(desired.openings)} are as they should be"
    if not outcome.changed:
        return "\n".join([*_faults(outcome), f"nothing to change: {summary}"])
    lines = [*sorted(map(_added, outcome.mended)), *sorted(map(_removed, outcome.stale))]
    lines += [f"~ gate in {change.gate}: {change.fault}" for change in outcome.gates]
    script = ["", outcome.script.rstrip()] if outcome.script else []
    return "\n".join([outcome.moved, *_faults(outcome), *lines, f"  {summary}", *script])


def as_json(outcome: Outcome) -> dict[str, object]:
    """Give an outcome with stable keys; names are as libvirt has them."""
    return {
        "schema_version": SCHEMA_VERSION,
        "changes": outcome.changed,
        "backend": outcome.moved,
        "add": [_described(opening) for opening in sorted(outcome.mended, key=_added)],
        "remove": sorted(outcome.stale),
        "gates": [{"chain": str(change.gate), "reason": change.fault} for change in outcome.gates],
        "problems": list(outcome.faults),
        "script": outcome.script,
    }


def _faults(outcome: Outcome) -> Iterator[str]:
    return (f"! {fault}" for fault in outcome.faults)


def _added(opening: Opening) -> str:
    return f"+ {shown(opening.owner.name)}: {opening.listens_at()} -> {opening.leads_to()}"


def _removed(name: str) -> str:
    return f"- {name}"


def _described(opening: Opening) -> dict[str, str]:
    owner = opening.owner
    return {owner.kind: owner.name, "listen": opening.listens_at(), "target": opening.leads_to()}
