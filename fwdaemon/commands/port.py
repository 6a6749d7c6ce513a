"""`kvm-portfwd port`: print the ports of the host that lead to a domain."""

import argparse
import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final

from fwdaemon.commands.status import ask
from fwdaemon.core.text import printable, shown
from fwdaemon.core.types import Address, PortRange, show_endpoint
from fwdaemon.status.model import SCHEMA_VERSION, State

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


def run(options: argparse.Namespace) -> int:
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
