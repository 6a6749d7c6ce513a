"""`kvm-portfwd status`: show what is reachable, what is not and why, and the state of the daemon.

`kvm-portfwd port` prints a part of it: the ports of the host that lead to a domain.
`reload`, `confirm`, `open` and `close` have the daemon change something, and report the outcome.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from fwdaemon import __version__
from fwdaemon.audit.lines import format_fault
from fwdaemon.config.model import Config
from fwdaemon.control import protocol
from fwdaemon.control.protocol import CONFIGURATION_REFUSED, REFUSED, CallError
from fwdaemon.core.report import ApplyResult, Fault, FaultKind, joined
from fwdaemon.core.state import Desired
from fwdaemon.core.text import printable, shown
from fwdaemon.core.types import Address, PortRange, show_endpoint
from fwdaemon.errors import PortfwdError
from fwdaemon.events import take_inventory
from fwdaemon.fleet.claims import recorded
from fwdaemon.fleet.table import as_in_force
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.hostnet.owned_state import LedTo
from fwdaemon.kernel.listeners import ports_in_use
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.netfilter import Netfilter
from fwdaemon.resolve.placement import desired_state
from fwdaemon.status import table
from fwdaemon.status.model import SCHEMA_VERSION, Configuration, Header, LibvirtState, State, Status
from fwdaemon.status.records import UsageReader, rules_at
from fwdaemon.status.reloads import PortRecords
from fwdaemon.status.rows import Facts, rows
from fwdaemon.status.temporary import known, now, remaining

# A status without a daemon to ask: what the configuration and libvirt want, and what of it the kernel holds.
_NOT_THERE: Final = "not in the kernel; the daemon would put it there"


def status_without_daemon(path: Path) -> Status:
    """Look once.

    Raises:
        ConfigError: the configuration is wrong.
        PortfwdError: libvirt or the kernel does not answer, or not to this user.

    """
    temporary = known()
    config = as_in_force(path)
    wanted = desired_state(
        config, asyncio.run(take_inventory(config.daemon.libvirt)), LedTo().chosen, PortRecords().before(ports_in_use)
    )
    desired = recorded().gate(wanted)
    netfilter = Netfilter(SystemRunner(), config.daemon.backend)
    found = _observe(config, desired, netfilter)
    facts = Facts(
        config,
        desired,
        desired.lacking(found.mended),
        _NOT_THERE,
        State.WAITING,
        open_for=remaining(temporary, now()),
    )
    libvirt = tuple(LibvirtState(uri, connected=True, since=datetime.now(UTC)) for uri in config.daemon.libvirt)
    problems = (*found.faults, *(Fault(FaultKind.UNWANTED, detail=name) for name in found.stale))
    header = Header(
        __version__,
        Configuration(path),
        rules=rules_at(netfilter.locate()),
        libvirt=libvirt,
        problems=tuple(sorted(map(format_fault, problems))),
        uplinks=tuple(sorted(desired.uplinks)),
        confined=tuple(sorted(netfilter.confined())),
        confined_interfaces=tuple(sorted({name for _, name in netfilter.switched()})),
    )
    readings = UsageReader(netfilter.counters, netfilter.dropped).read(desired)
    return Status(header, rows(facts, readings), readings.dropped.by_set)


def _observe(config: Config, desired: Desired, netfilter: Netfilter) -> ApplyResult:
    """Tell what the kernel lacks."""
    host = SystemHostNetwork(netfilter.confined, seconds=recorded().seconds)
    try:
        confined = host.confine(desired, ip_forward=config.daemon.ip_forward)
        return joined(netfilter.preview(confined), host.preview(desired))
    finally:
        netfilter.close()


# Counting the connections of ten thousand forwards takes a second.
_PATIENCE_S: Final = 15.0


def run(options: argparse.Namespace) -> int:
    """Ask the daemon; without one, look at the kernel and at libvirt, and say so."""
    if options.command == "port":
        return _port(options)
    if options.command in _CHANGING:
        return _change(options)
    if options.watch:
        return _watch(options)
    try:
        status = _ask()
        _show(status, options)
    except protocol.NotRunningError as error:
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
        for _ in protocol.watch():
            status = _ask()
            print(before, end="")
            _show(status, options)
            print(end="" if before or options.json else "\n", flush=True)
    except KeyboardInterrupt:
        pass  # the usual way to end it
    return 0


def _ask() -> Mapping[str, Any]:
    status = protocol.call("Status", _PATIENCE_S)
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


# The ports of the host that lead to a domain.
_EVERY: Final = {4: "0.0.0.0", 6: "::"}  # noqa: S104  what stands for every address, nothing listens there
_ALL_PORTS: Final = "1-65535"


@dataclass(frozen=True, slots=True)
class _Way:
    """Where a port of the host, or a range, leads to a domain, and to which of its ports."""

    address: Address
    ports: PortRange
    protocol: str | None
    guest: PortRange
    automatic: bool

    @property
    def rank(self) -> tuple[object, ...]:
        """Those on every address come first, of these the assigned ones, which stay, and then the lowest port."""
        place = not self.address.is_unspecified, not self.automatic, self.ports, self.address.version
        return *place, int(self.address), self.protocol or ""

    def to(self, port: int) -> "_Way":
        """Give the part of it that leads to one port of the guest."""
        host = self.ports.first + port - self.guest.first
        return replace(self, ports=PortRange(host, host), guest=PortRange(port, port))

    def as_json(self) -> dict[str, object]:
        """Give the JSON form."""
        return {
            "address": str(self.address),
            "ports": str(self.ports),
            "protocol": self.protocol,
            "guest_ports": str(self.guest),
            "automatic": self.automatic,
        }

    def __str__(self) -> str:
        return show_endpoint(self.address, self.ports)


def _port(options: argparse.Namespace) -> int:
    """Print what leads to the domain, or to one port of it, each once; 1 where nothing does."""
    exposures = [exposure for exposure in _ask()["openings"] if _is_of(exposure, options.domain)]
    ways = [_way(exposure) for exposure in exposures if exposure["state"] == State.ACTIVE]
    if options.guest is not None:
        port, protocol = options.guest
        ways = [way.to(port) for way in ways if port in way.guest and protocol in (None, way.protocol or protocol)]
    ways.sort(key=lambda way: way.rank)
    if options.json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, "ports": [way.as_json() for way in ways]}, indent=2))
    elif options.port_only:
        print(*(way.ports.first for way in ways[:1]), sep="\n", end="\n" if ways else "")
    else:
        print(*dict.fromkeys(map(str, ways)), sep="\n", end="\n" if ways else "")
    if not ways:
        print(f"kvm-portfwd: {_nothing(options, exposures)}", file=sys.stderr)
    return int(not ways)


def _is_of(exposure: Mapping[str, Any], domain: str) -> bool:
    return bool(exposure["owner"] == domain and exposure["owner_kind"] == "domain")


def _way(exposure: Mapping[str, Any]) -> _Way:
    address = ip_address(exposure["address"] or _EVERY[exposure["family"]])
    ports, guest = (_range(exposure[key] or _ALL_PORTS) for key in ("ports", "target_ports"))
    return _Way(address, ports, exposure["protocol"], guest, exposure["automatic"])


def _range(text: str) -> PortRange:
    first, _, last = text.partition("-")
    return PortRange(int(first), int(last or first))


def _nothing(options: argparse.Namespace, exposures: Collection[Mapping[str, Any]]) -> str:
    """Say that nothing leads there, and why not as far as that is known."""
    there = f"port {options.guest[0]} of {shown(options.domain)}" if options.guest else shown(options.domain)
    reasons = dict.fromkeys(exposure["reason"] for exposure in exposures if exposure["reason"])
    return printable("; ".join([f"no port of this host leads to {there} now", *reasons]))


# What has the daemon change something: `reload`, `confirm`, `open` and `close`.

_CHANGES_VERSION: Final = 1
# A reconcile may wait for a lock of iptables' for a while.
_CHANGED_S: Final = 120.0
_FAILED: Final = 1
_CONFIG_REFUSED: Final = 78


def _change(options: argparse.Namespace) -> int:
    """Ask, wait and print."""
    act = _CHANGING[options.command]
    try:
        return act(options)
    except CallError as error:
        if error.name == CONFIGURATION_REFUSED:
            _print_problems(error.parameters["problems"])
            return _CONFIG_REFUSED
        if error.name != REFUSED:
            raise
        for reason in error.parameters["reasons"]:
            print(printable(f"kvm-portfwd: {reason}"), file=sys.stderr)
        return _FAILED


def _reload(options: argparse.Namespace) -> int:
    result = protocol.call("Reload", _CHANGED_S, parameters={"confirm_seconds": options.confirm})
    if options.json:
        print(json.dumps({"schema_version": _CHANGES_VERSION, **result}, indent=2))
    else:
        counted = ", ".join(f"{number} {state}" for state, number in result["counts"].items())
        print(printable(f"{result['file']} loaded: {counted}"))
        if until := result["confirm_by"]:
            print(f"unless you run kvm-portfwd confirm, the configuration before comes back at {_clock(until)}")
    return _outcome(result)


def _confirm(options: argparse.Namespace) -> int:
    result = protocol.call("Confirm", _CHANGED_S)
    told = {"schema_version": _CHANGES_VERSION, **result}
    print(json.dumps(told, indent=2) if options.json else printable(f"{result['file']} stays in force"))
    return 0


def _open(options: argparse.Namespace) -> int:
    wish = {"domain": options.domain, "ports": options.ports, "sources": options.sources, "seconds": options.seconds}
    result = protocol.call("Open", _CHANGED_S, parameters=wish)
    if options.json:
        print(json.dumps({"schema_version": _CHANGES_VERSION, "openings": result["openings"]}, indent=2))
    else:
        for opening in result["openings"]:
            print(printable(_opened(opening)))
    return _outcome(result)


def _opened(opening: Mapping[str, Any]) -> str:
    """Say what was opened, or why it waits."""
    what = f"{shown(opening['owner'])}: {opening['listens']}"
    leads = f" -> {opening['leads_to']}" if opening["leads_to"] else ""
    reason = f" {opening['state']}: {opening['reason']}" if opening["reason"] else ""
    return f"{what}{leads}{reason}, until {_clock(opening['until'])}"


def _close(options: argparse.Namespace) -> int:
    result = protocol.call("Close", _CHANGED_S, parameters={"domain": options.domain, "ports": options.ports})
    if options.json:
        print(json.dumps({"schema_version": _CHANGES_VERSION, "closed": result["closed"]}, indent=2))
    else:
        print(printable(f"closed {', '.join(result['closed'])} to {shown(options.domain)}"))
    return 0


def _outcome(result: Mapping[str, Any]) -> int:
    if result["failure"]:
        print(printable(f"kvm-portfwd: not in the kernel yet: {result['failure']}; trying again"), file=sys.stderr)
        return _FAILED
    return 0


def _clock(time: str) -> str:
    """Write a time as a clock on this host shows it."""
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _print_problems(problems: list[dict[str, Any]]) -> None:
    for problem in problems:
        print(printable(f"{problem['file']}:{problem['line']}: {problem['text']}"), file=sys.stderr)
    print("kvm-portfwd: configuration refused; the old one stays in force", file=sys.stderr)


_CHANGING: Final = {"reload": _reload, "confirm": _confirm, "open": _open, "close": _close}
