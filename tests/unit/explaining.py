"""Short ways to write packets, rulesets and a host for tests of `explain`."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from fwdaemon.core.admission import Place, Ranges
from fwdaemon.core.inventory import HostAddress
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family, Listener, Protocol
from fwdaemon.explain.report import FarAnswer, GuestAnswer, RouteAnswer, Sighting
from fwdaemon.rulesets import nft_listing, xt_listing
from fwdaemon.rulesets.evaluation import Passage, pass_through
from fwdaemon.rulesets.packet import BaseChain, Packet, Surroundings, System

AROUND = Surroundings(
    {ip_address("198.51.100.1"): frozenset({"eth0"})}, (ip_network("192.168.122.0/24"),), way_back="eth0"
)


def packet(**changes: Any) -> Packet:
    """The first packet of a connection from a known client to port 80 of the host."""
    values: dict[str, Any] = {
        "family": Family.IPV4,
        "protocol": Protocol.TCP,
        "source": ip_address("203.0.113.9"),
        "destination": ip_address("198.51.100.1"),
        "port": 80,
        "wanted": (ip_address("198.51.100.1"), 80),
        "came_in": "eth0",
    }
    return Packet(**(values | changes))


def native(
    *rules: Sequence[Any],
    chains: Mapping[str, Sequence[Sequence[Any]]] | None = None,
    sets: Mapping[str, Sequence[Any]] | None = None,
    **base: Any,
) -> BaseChain:
    """A base chain of nftables in table `inet t`, of these rules; `base` changes its hook, priority and so on."""
    shape = {"type": "filter", "hook": "prerouting", "prio": 0, "policy": "accept", "family": "inet"} | base
    family = shape["family"]
    here = {"family": family, "table": "t"}
    found: list[Any] = [{"chain": {**here, "name": "c", "handle": 1, **shape}}]
    found += [{"set": {**here, "name": name, "elem": list(elements)}} for name, elements in (sets or {}).items()]
    handle = 10
    for chain, listed in {"c": rules, **(chains or {})}.items():
        for expressions in listed:
            found.append({"rule": {**here, "chain": chain, "handle": handle, "expr": list(expressions)}})
            handle += 1
    return nft_listing.base_chains(json.dumps({"nftables": found}), {})[0]


def saved(text: str, chain: str = "FORWARD", family: Family = Family.IPV4) -> BaseChain:
    """One base chain of iptables, of what `iptables-save` printed; the lines of one table are enough."""
    whole = text if text.lstrip().startswith("*") else f"*filter\n:{chain} ACCEPT [0:0]\n{text}\nCOMMIT\n"
    found = xt_listing.base_chains(whole, System.LEGACY, family)
    return next(item for item in found if item.name == chain)


def meets(chain: BaseChain, *packets: Packet, around: Surroundings = AROUND) -> Passage:
    return pass_through(chain, packets or (packet(),), around)


@dataclass
class PlainHost:
    """A `World` in which all is well, until a test says otherwise."""

    held: Sequence[HostAddress] = ()
    routes: Mapping[str, RouteAnswer] = field(default_factory=dict)
    # Rules of policy routing that lead nowhere what comes in somewhere for an address.
    dead_ends: Mapping[tuple[str, str | None], str] = field(default_factory=dict)
    rules: Sequence[BaseChain] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    sockets: Sequence[Listener] = ()
    masters: Mapping[str, str] = field(default_factory=dict)
    hairpin: frozenset[str] = frozenset()
    down: frozenset[str] = frozenset()
    inner: frozenset[str] = frozenset()
    daemon_pid: int | None = 812
    guest: GuestAnswer = GuestAnswer.ANSWERS
    asked: list[tuple[Address, int]] = field(default_factory=list)
    far: FarAnswer | None = None
    asked_as: list[Address] = field(default_factory=list)
    others: frozenset[str] = frozenset()
    gateways: Mapping[str, str] = field(default_factory=dict)
    elements: Mapping[Place, Ranges] = field(default_factory=dict)
    over: Mapping[str, int | None] = field(default_factory=dict)
    lists: Mapping[Path, bytes] = field(default_factory=dict)

    def addresses(self) -> Sequence[HostAddress]:
        return self.held

    def route(self, to: Address, source: Address | None = None, came_in: str | None = None) -> RouteAnswer:
        del source
        if (str(to), came_in) in self.dead_ends:
            return RouteAnswer(None, rule=self.dead_ends[str(to), came_in])
        if str(to) in self.routes:
            return self.routes[str(to)]
        for own in self.held:
            if own.address == to:
                return RouteAnswer("lo", local=True)
            if to in own.subnet:
                return RouteAnswer(own.device, subnet=own.subnet)
        return RouteAnswer("eth0", ip_address("198.51.100.2" if to.version == 4 else "2001:db8::2"), subnet=None)

    def listeners(self) -> Sequence[Listener]:
        return self.sockets

    def chains(self) -> Sequence[BaseChain]:
        return self.rules

    def holder(self, listener: Listener) -> str | None:
        return f"holder of {listener.port}"

    def sysctl(self, name: str) -> str:
        return self.settings.get(name, "")

    def bridge_of(self, device: str) -> str | None:
        return self.masters.get(device)

    def in_hairpin_mode(self, device: str) -> bool:
        return device in self.hairpin

    def is_up(self, device: str) -> bool | None:
        return device not in self.down

    def is_inner(self, device: str) -> bool:
        return device in self.inner

    def daemon(self) -> int | None:
        return self.daemon_pid

    def ask_guest(self, address: Address, port: int) -> GuestAnswer:
        self.asked.append((address, port))
        return self.guest

    def ask_from_afar(self, address: Address, port: int, device: str, source: Address) -> FarAnswer:
        del address, port
        self.asked_as.append(source)
        return self.far or FarAnswer(sent=True, seen=frozenset({Sighting(device, to_host=True, by_port=True)}))

    def ranges(self, names: Collection[str]) -> Mapping[Place, Ranges]:
        return {place: found for place, found in self.elements.items() if place[1] in names}

    def over_limit(self, desired: Desired, counted_as: str, source: Address) -> int | None:
        del desired, counted_as
        return self.over.get(str(source), 0)

    def text_of(self, file: Path) -> bytes:
        return self.lists.get(file, b"")

    def is_on_link(self, address: Address) -> bool:
        return str(address) in self.others

    def gateway_on(self, device: str, family: Family) -> Address | None:
        del family
        return ip_address(self.gateways[device]) if device in self.gateways else None


def own(text: str, device: str) -> HostAddress:
    """An address of the host, `198.51.100.1/24`."""
    interface = ip_interface(text)
    return HostAddress(interface.ip, interface.network, device)
