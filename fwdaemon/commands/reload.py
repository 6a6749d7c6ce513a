"""What asks the daemon alone: `reload`, `confirm`, `open` and `close`, which have it change something, and `port`."""

import argparse
import json
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import ip_address
from typing import Any, Final

from fwdaemon.control import protocol
from fwdaemon.control.protocol import CONFIGURATION_REFUSED, REFUSED, CallError
from fwdaemon.core.text import printable, shown
from fwdaemon.core.types import Address, PortRange, show_endpoint
from fwdaemon.errors import PortfwdError
from fwdaemon.status.model import SCHEMA_VERSION, State

_SCHEMA_VERSION: Final = 1
# A reconcile may wait for a lock of iptables' for a while.
_PATIENCE_S: Final = 120.0
# Counting the connections of ten thousand forwards takes a second.
_PATIENCE_OF_STATUS_S: Final = 15.0
_FAILED: Final = 1
_CONFIG_REFUSED: Final = 78


def run(options: argparse.Namespace) -> int:
    """Ask the daemon to do so."""
    if options.command == "port":
        return _port(options)
    acts = {"reload": _reload, "confirm": _confirm, "open": _open, "close": _close}
    return _changed(options, acts[options.command])


def _reload(options: argparse.Namespace) -> int:
    result = protocol.call("Reload", _PATIENCE_S, parameters={"confirm_seconds": options.confirm})
    if options.json:
        print(json.dumps({"schema_version": _SCHEMA_VERSION, **result}, indent=2))
    else:
        counted = ", ".join(f"{number} {state}" for state, number in result["counts"].items())
        print(printable(f"{result['file']} loaded: {counted}"))
        if until := result["confirm_by"]:
            print(f"unless you run kvm-portfwd confirm, the configuration before comes back at {_clock(until)}")
    return _outcome(result)


def _confirm(options: argparse.Namespace) -> int:
    result = protocol.call("Confirm", _PATIENCE_S)
    reply = {"schema_version": _SCHEMA_VERSION, **result}
    print(json.dumps(reply, indent=2) if options.json else printable(f"{result['file']} stays in force"))
    return 0


def _open(options: argparse.Namespace) -> int:
    wish = {"domain": options.domain, "ports": options.ports, "sources": options.sources, "seconds": options.seconds}
    result = protocol.call("Open", _PATIENCE_S, parameters=wish)
    for warning in result["warnings"]:
        print(printable(f"warning: {warning}"), file=sys.stderr)
    if options.json:
        print(json.dumps({"schema_version": _SCHEMA_VERSION, "openings": result["openings"]}, indent=2))
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
    result = protocol.call("Close", _PATIENCE_S, parameters={"domain": options.domain, "ports": options.ports})
    if options.json:
        print(json.dumps({"schema_version": _SCHEMA_VERSION, "closed": result["closed"]}, indent=2))
    else:
        print(printable(f"closed {', '.join(result['closed'])} to {shown(options.domain)}"))
    return 0


def _changed(options: argparse.Namespace, act: Callable[[argparse.Namespace], int]) -> int:
    """Have the daemon change something, wait and print; say why where it refuses."""
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


def _outcome(result: Mapping[str, Any]) -> int:
    """Say that what was changed is not in the kernel yet, if so, and give the exit code."""
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


def ask() -> Mapping[str, Any]:
    """Give the status of the daemon, in the form of this version."""
    status = protocol.call("Status", _PATIENCE_OF_STATUS_S)
    if status.get("schema_version") != SCHEMA_VERSION:
        raise PortfwdError(
            f"the daemon, version {status.get('version')}, gives its status in another form;"
            " restart it: systemctl restart kvm-portfwd"
        )
    return status


# Which ports of the host lead to a domain.
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
    exposures = [exposure for exposure in ask()["openings"] if _is_of(exposure, options.domain)]
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
