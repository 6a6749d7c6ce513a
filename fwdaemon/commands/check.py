"""What a configuration comes to on this host, without a daemon, changing nothing: `check`, `plan` and `rules`.

`check` reports every error of it, and what is odd about it here; `plan` shows what would change in the kernel now, and
`rules` prints the rules.
"""

import argparse
import asyncio
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

from fwdaemon import config as configuration
from fwdaemon.audit.lines import format_fault
from fwdaemon.audit.rules import format_conflict, format_gate, format_gate_fault, format_location_reason
from fwdaemon.config.files import ROOT, about_ignored, read_files, unguarded
from fwdaemon.config.model import Config, ForwardEntry
from fwdaemon.conflicts.watch import conflicts_if_running
from fwdaemon.core.admission import Need, needs_of
from fwdaemon.core.exposures import Exposure, Kind
from fwdaemon.core.report import ApplyResult, Fault, Location, joined
from fwdaemon.core.state import Desired
from fwdaemon.core.text import printable, quote, shown
from fwdaemon.core.types import Origin, Protocol
from fwdaemon.errors import ConfigError, PortfwdError, Problem
from fwdaemon.events import take_inventory
from fwdaemon.fleet.claims import recorded
from fwdaemon.fleet.table import as_in_force
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.hostnet.owned_state import LedTo
from fwdaemon.kernel.listeners import ports_in_use
from fwdaemon.kernel.memory import collecting_later
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.metrics.exposition import satisfied
from fwdaemon.netfilter import Backend, Netfilter
from fwdaemon.resolve.placement import desired_state
from fwdaemon.status.reloads import PortRecords

# Without an answer by then, the number of domains that match a pattern is left out.
_PATIENCE_S: Final = 3.0
_SCHEMA_VERSION: Final = 1
_CHANGES: Final = 3
_LOOPBACK: Final = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


def run(options: argparse.Namespace) -> int:
    """Run one of these commands."""
    return _check(options) if options.command == "check" else _plan(options)


def _check(options: argparse.Namespace) -> int:
    """Read the configuration as the daemon would; whatever is wrong leaves as a `ConfigError`."""
    path = options.file or options.config
    is_draft = path.absolute() != options.config.absolute()
    with collecting_later():
        config = kept_here(configuration.load(path) if is_draft else configuration.load_guarded(path).config)
    print(f"{path}: fine; {_count(config)}")
    for line in _matches(config):
        print(line)
    if config.daemon.localhost:
        print(_explain_localhost(config))
    if is_draft:
        _warn_of_others(path)
    for file in config.ignored:
        print(printable(f"warning: {about_ignored(file)}"), file=sys.stderr)
    _warn(config)
    return 0


def kept_here(config: Config, among: Sequence[Backend] = ()) -> Config:
    """Give the configuration back, if this host has what it asks for, as far as that can be asked.

    Rules belong in one of the rule systems `among` these; of all there are, by default.

    Raises:
        ConfigError: a library is missing, or what the kernel needs to keep out whom it denies or limits.

    """
    places = _needing(satisfied(config))
    lacking = _lacking(Netfilter(SystemRunner(), config.daemon.backend, among), places) if places else {}
    found = ((origin, format_fault(fault)) for need, fault in lacking.items() for origin in places[need])
    problems = {Problem(origin.file, origin.line, text) for origin, text in found}
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: (problem.file, problem.line, problem.text)))
    return config


def _lacking(netfilter: Netfilter, needs: Collection[Need]) -> Mapping[Need, Fault]:
    try:
        return netfilter.lacks(needs)
    except PortfwdError:  # the kernel does not tell, as for who is not root
        return {}
    finally:
        netfilter.close()


def _needing(config: Config) -> Mapping[Need, Sequence[Origin]]:
    """Tell where something is asked for that a kernel may lack; what all deny to is asked for where its set is."""
    found: defaultdict[Need, list[Origin]] = defaultdict(list)
    for entry in config.entries:
        for need in needs_of(entry.admission) if entry.admission is not None else ():
            found[need].append(entry.origin)
    barred = config.daemon.barred.names if config.daemon.barred is not None else ()
    if places := [item.origin for item in config.sets if item.name in barred]:
        found[Need.SETS] += places
    return found


def _matches(config: Config) -> Iterator[str]:
    """Say how many domains match each pattern now; nothing where libvirt does not answer, which is no error here."""
    patterns = dict.fromkeys(entry.domain for entry in config.forwards if entry.is_pattern)
    if not patterns:
        return
    try:
        domains = asyncio.run(take_inventory(config.daemon.libvirt, _PATIENCE_S)).domains
    except PortfwdError:
        return
    for pattern in patterns:
        found = [domain for domain in domains if fnmatchcase(domain.name, pattern)]
        running = sum(domain.running for domain in found)
        yield f"{quote(pattern)} fits {len(found)} domain{'' if len(found) == 1 else 's'} now, {running} running"


def _warn_of_others(path: Path) -> None:
    """Say what others than root, and than the user whose draft it is, could change: in its place that is refused."""
    for problem in unguarded(read_files(path), ROOT | {os.geteuid()}):
        print(printable(f"warning: {problem}"), file=sys.stderr)


def _warn(config: Config) -> None:
    """Say what on this host conflicts with it; people do that on purpose, so it is no reason to refuse."""
    conflicts, missing = conflicting(config)
    for conflict in conflicts:
        print(f"warning: {conflict}", file=sys.stderr)
    if missing:
        print(f"hint: {missing}", file=sys.stderr)


def conflicting(config: Config) -> tuple[list[str], str]:
    """Say what on this host conflicts with it, and what could not be looked at."""
    conflicts, missing = conflicts_if_running(config, SystemRunner())
    found = [*map(format_conflict, conflicts), *_forgetting(config)]
    return found, format_fault(missing) if missing else ""


def _forgetting(config: Config) -> Iterator[str]:
    """Say where `max_open` is less than its name promises, as far as the kernel tells where rules belong."""
    if not any(entry.admission is not None and entry.admission.max_open for entry in config.entries):
        return
    netfilter = Netfilter(SystemRunner(), config.daemon.backend, ())
    with suppress(PortfwdError), closing(netfilter):
        if (location := netfilter.locate()).forgets:
            yield (
                f"max_open counts anew in {location.title} after each change of the kernel's table mangle, by whichever"
                " program: a client may open as many again"
            )


def _count(config: Config) -> str:
    """Say what there is."""
    found = Counter[Kind]()
    for entry in config.entries:
        found[entry.kind] += entry.number
    counted = (f"{found[kind]} {_noun(kind, found[kind])}" for kind in Kind if found[kind])
    said = ", ".join(counted) or "nothing is forwarded yet"
    policies = len(config.allows)
    noun = "policy" if policies == 1 else "policies"
    return f"{said}, {policies} {noun} for what domains ask for" if policies else said


def _noun(kind: Kind, number: int) -> str:
    if kind is Kind.NAT:
        return "address 1:1" if number == 1 else "addresses 1:1"
    return kind.value if number == 1 else f"{kind.value}s"


def _explain_localhost(config: Config) -> str:
    """Say what `localhost = true` comes to, since it is less than its name promises."""
    answering = [entry for entry in config.forwards if _answers_on_localhost(entry)]
    if answering:
        asked = (entry.admission for entry in answering)
        limited = any(found is not None and (found.rate or found.max_open) for found in asked)
        return (
            "localhost = true: forwards of TCP and UDP that listen on every address answer on 127.0.0.1 and ::1 of this"
            f" host too{', where rate and max_open limit no one' if limited else ''}"
        )
    return (
        "localhost = true, but nothing answers on 127.0.0.1 or ::1: no forward of TCP or UDP is there for every"
        " address, every interface and one of these two as a source"
    )


def _answers_on_localhost(entry: ForwardEntry) -> bool:
    """Whether an entry has a forward that takes what the host sends to a loopback address, from there."""
    carried = (mapping for mapping in entry.mappings if mapping.protocol is not Protocol.SCTP)
    listens_everywhere = any(None in entry.listens_on(mapping) for mapping in carried)
    admits = not entry.sources or any(own in source for source in entry.sources for own in _LOOPBACK)
    return entry.interface is None and listens_everywhere and admits


# What would change in the kernel now.


def _plan(options: argparse.Namespace) -> int:
    """Print the rules, or the changes by forward and as native text; 3 with `--exit-code` if there are any."""
    config = as_in_force(options.config)
    desired = recorded().gate(desired_now(config))
    rules = Netfilter(SystemRunner(), config.daemon.backend)
    if options.command == "rules":
        text = rules.render(desired)  # empty where no forward would be live
        print(text, end="\n" if text else "")
        return 0
    result = previewed(config, desired, rules)
    print(json.dumps(plan_as_json(result), indent=2) if options.json else plan_as_text(result, desired))
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


def plan_as_text(result: ApplyResult, desired: Desired) -> str:
    """Write an outcome for people."""
    right = len(desired.exposures - result.mended)
    summary = f"{right} of {len(desired.exposures)} are as they should be"
    if not result.changed:
        return "\n".join([*_faults(result), f"nothing to change: {summary}"])
    lines = [*sorted(map(_added, result.mended)), *sorted(map(_removed, result.stale))]
    lines += [f"~ {format_gate(change)}" for change in result.gates]
    script = ["", result.script.rstrip()] if result.script else []
    return "\n".join([_location(result.moved), *_faults(result), *lines, f"  {summary}", *script])


def plan_as_json(result: ApplyResult) -> dict[str, Any]:
    """Give an outcome with stable keys; names are as libvirt has them."""
    return {
        "schema_version": _SCHEMA_VERSION,
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
