"""`kvm-portfwd explain`: follow one connection through the host, and say where it stops and why."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fwdaemon.errors import ConfigError, LibvirtUnavailableError
from fwdaemon.events import take_inventory
from fwdaemon.explain.arrival import Request, UsageError, parse_request
from fwdaemon.explain.gather import Kernel
from fwdaemon.explain.guest import Libvirt
from fwdaemon.explain.report import Report, as_json, as_object, as_text
from fwdaemon.explain.trace import explain, refused
from fwdaemon.fleet.table import as_in_force
from fwdaemon.kernel.listeners import ports_in_use
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.status.reloads import PortRecords

_FAILED: Final = 1
_WRONG_USAGE: Final = 2


def run(options: argparse.Namespace) -> int:
    """Look at everything the connection meets, and tell; nothing is changed."""
    try:
        request = parse_request(options.connection, options.source)
    except UsageError as error:
        print(f"kvm-portfwd: {error}", file=sys.stderr)
        return _WRONG_USAGE
    report = _report(request, options.config)
    terminal, unicode = sys.stdout.isatty(), (sys.stdout.encoding or "").lower().startswith("utf")
    print(as_json(report) if options.json else as_text(report, terminal=terminal, unicode=unicode))
    return 0 if report.works else _FAILED


def reply_on(request: Request, path: Path) -> dict[str, Any]:
    """Look at the same, and give the reply of the method `Explain`."""
    found = as_object(_report(request, path))
    del found["schema_version"]
    return found | {"steps": [{"chain": None} | step for step in found["steps"]]}


def _report(request: Request, path: Path) -> Report:
    kernel = Kernel(SystemRunner())
    try:
        config = as_in_force(path)
    except ConfigError as error:
        return refused(request, error, kernel)
    libvirt = asyncio.run(_ask_libvirt(config.daemon.libvirt))
    return explain(request, config, libvirt, kernel, str(path), before=PortRecords().before(ports_in_use))


async def _ask_libvirt(uris: Sequence[str]) -> Libvirt:
    """Take an inventory of all URIs."""
    try:
        inventory = await take_inventory(uris)
    except LibvirtUnavailableError as error:
        return Libvirt(None, str(error))
    return Libvirt(inventory, homes={domain.uuid: uris[domain.rank] for domain in inventory.domains})
