"""What takes a look at the whole host: `kvm-portfwd explain`, and `… -m fwdaemon.commands.answer FILE`.

The latter answers one question of the control socket in a process of its own.

What `explain`, `check` and `plan` do lists all rules and domains of the host. That may take seconds and many megabytes,
which the daemon has no use for afterwards; here no pass waits for it, and the memory goes back with the process.

A question is a line of JSON on standard input, a method of `kvm.portfwd.Manager` and its parameters, which have been
checked; the answer is a line that holds a reply of Varlink's.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from fwdaemon import config as configuration
from fwdaemon.commands.check import conflicting, desired_now, kept_here, plan_as_json, previewed
from fwdaemon.config.files import Draft, about_ignored
from fwdaemon.control.protocol import CONFIGURATION_REFUSED, REFUSED
from fwdaemon.core.inventory import Domain, Network
from fwdaemon.errors import ConfigError, LibvirtUnavailableError, PortfwdError, Problem
from fwdaemon.events import take_inventory
from fwdaemon.explain.arrival import Request, UsageError, parse_request
from fwdaemon.explain.gather import Kernel
from fwdaemon.explain.guest import Libvirt
from fwdaemon.explain.report import Report, as_json, as_object, as_text
from fwdaemon.explain.trace import explain, refused
from fwdaemon.fleet.claims import recorded
from fwdaemon.fleet.table import as_in_force, with_kept_table
from fwdaemon.kernel.listeners import ports_in_use
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.netfilter import Netfilter
from fwdaemon.status.model import problem_as_json
from fwdaemon.status.reloads import PortRecords
from fwdaemon.status.temporary import with_temporary

Parameters = Mapping[str, Any]
Answer = dict[str, Any]

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


def main() -> None:
    """Answer until there are no more questions."""
    serve(Path(sys.argv[1]), sys.stdin, sys.stdout)


def serve(path: Path, questions: Iterable[str], answers: TextIO) -> None:
    """Answer with the configuration at `path`."""
    for question in questions:
        name, parameters = json.loads(question)
        print(json.dumps(answer(path, name, parameters)), file=answers, flush=True)


def answer(path: Path, name: str, parameters: Parameters) -> Answer:
    """Give a reply of Varlink's."""
    try:
        return {"parameters": _ANSWERS[name](path, parameters)}
    except ConfigError as error:
        return {"error": CONFIGURATION_REFUSED, "parameters": {"problems": _listed(error.problems)}}
    except PortfwdError as error:
        return {"error": REFUSED, "parameters": {"reasons": [str(error)]}}


def _explain(path: Path, parameters: Parameters) -> Answer:
    return reply_on(parse_request(parameters["connection"], parameters.get("source")), path)


def _check(path: Path, parameters: Parameters) -> Answer:
    """Give what is wrong, and what conflicts with it on this host where nothing is."""
    try:
        config = kept_here(configuration.load_guarded(path, draft=_draft(parameters)).config)
    except ConfigError as error:
        return {"problems": _listed(error.problems), "warnings": [], "unchecked": None}
    warnings, unchecked = conflicting(config)
    warnings += map(about_ignored, config.ignored)
    return {"problems": [], "warnings": warnings, "unchecked": unchecked or None}


def _plan(path: Path, parameters: Parameters) -> Answer:
    config = with_temporary(with_kept_table(configuration.load(path, _draft(parameters)), path))
    desired = recorded().gate(desired_now(config))
    plan = plan_as_json(previewed(config, desired, Netfilter(SystemRunner(), config.daemon.backend)))
    del plan["schema_version"]
    return plan


def _inventory(path: Path, _parameters: Parameters) -> Answer:
    """Give what an entry can name."""
    config = configuration.load(path)
    inventory = asyncio.run(take_inventory(config.daemon.libvirt))
    held = inventory.guest_addresses
    return {
        "domains": [_domain(domain) for domain in inventory.domains],
        "networks": [_network(network) for network in inventory.networks],
        "addresses": [
            {"address": str(host.address), "interface": host.device, "outside": host.device in inventory.uplinks}
            for host in inventory.host_addresses
            if host.address not in held
        ],
    }


def _domain(domain: Domain) -> dict[str, Any]:
    claimed = {claim.address for interface in domain.interfaces for claim in interface.learned}
    addresses = sorted(claimed, key=lambda address: (address.version, int(address)))
    networks = sorted({interface.network for interface in domain.interfaces if interface.network})
    found = {"name": domain.name, "running": domain.running, "networks": networks}
    return {**found, "addresses": [str(address) for address in addresses]}


def _network(network: Network) -> dict[str, Any]:
    subnets = [str(subnet) for subnet in network.subnets]
    return {"name": network.name, "active": network.active, "bridge": network.bridge, "subnets": subnets}


def _draft(parameters: Parameters) -> Draft | None:
    """Give the drop-in that is not written yet; a text that is no text is left to the reader to refuse."""
    if (name := parameters.get("drop_in")) is None:
        return None
    text = parameters.get("text")
    return Draft(name, None if text is None else text.encode("utf-8", "surrogatepass"))


def _listed(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    return [problem_as_json(problem) for problem in problems]


_ANSWERS: Final[Mapping[str, Callable[[Path, Parameters], Answer]]] = {
    "Explain": _explain,
    "Check": _check,
    "Plan": _plan,
    "Inventory": _inventory,
}

if __name__ == "__main__":
    main()
