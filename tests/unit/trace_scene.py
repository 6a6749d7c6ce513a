"""Plain data that make up a host, and the walk through it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from fwdaemon.config import parse
from fwdaemon.config.model import Config
from fwdaemon.core.inventory import AddressSource, Domain, GuestInterface, Inventory, LearnedAddress, Network
from fwdaemon.explain.arrival import parse_request
from fwdaemon.explain.guest import Libvirt
from fwdaemon.explain.report import Cause, Report, RouteAnswer
from fwdaemon.explain.trace import explain
from fwdaemon.rulesets.nft_listing import base_chains
from fwdaemon.rulesets.packet import BaseChain
from tests.unit.explaining import PlainHost, native, own
from tests.unit.forwards import address, subnets

MAIN = "/etc/portfwd.toml"
MAC = "52:54:00:00:00:01"
GUEST = LearnedAddress(address("192.168.122.10"), AddressSource.LEASE)
INTERFACE = GuestInterface(MAC, "default", "virbr0", "vnet0", (GUEST,))
WEB = Domain("web", UUID(int=1), running=True, interfaces=(INTERFACE,))
NETWORK = Network(
    "default",
    active=True,
    bridge="virbr0",
    subnets=tuple(subnets("192.168.122.0/24")),
    gateways=(address("192.168.122.1"),),
)
HELD = (own("127.0.0.1/8", "lo"), own("198.51.100.1/24", "eth0"), own("192.168.122.1/24", "virbr0"))
HELD6 = (own("::1/128", "lo"), own("2001:db8::1/64", "eth0"))
SETTINGS = {"net.ipv4.ip_forward": "1", "net.ipv4.conf.eth0.forwarding": "1", "net.ipv6.conf.all.forwarding": "1"}
HOST_ROUTE = next(iter(subnets("192.168.122.10/32")))
DEFAULT = RouteAnswer("eth0", address("198.51.100.2"), subnet=next(iter(subnets("0.0.0.0/0"))))
FORWARD = '[[forward]]\ndomain = "web"\nports = ["8000:80"]\n'

DADDR = {"payload": {"protocol": "ip", "field": "daddr"}}
DPORT = {"payload": {"protocol": "tcp", "field": "dport"}}
LABEL = {"ct": {"key": "label"}}
GATE = [{"match": {"op": "in", "left": LABEL, "right": 25}}, {"accept": None}]


def ours(to: str = "192.168.122.10", *, public: str | None = None) -> Sequence[BaseChain]:
    """Our own rule for port 8000, or for a public address, as nft lists it."""
    table = {"family": "ip", "table": "kvm_portfwd"}
    match: Mapping[str, object] = {"op": "==", "left": DPORT, "right": 8000}
    if public is not None:
        match = {"op": "==", "left": DADDR, "right": public}
    expressions = [
        {"match": match},
        {"mangle": {"key": LABEL, "value": 25}},
        {"dnat": {"addr": to} if public else {"addr": to, "port": 80}},
    ]
    chain = {"name": "prerouting", "type": "nat", "hook": "prerouting", "prio": -105, "policy": "accept", "handle": 1}
    rule = {"chain": "prerouting", "handle": 2, "expr": expressions}
    return base_chains(json.dumps({"nftables": [{"chain": table | chain}, {"rule": table | rule}]}), {})


def config(text: str = FORWARD) -> Config:
    return parse({Path(MAIN): text})


def libvirt(*domains: Domain, networks: Sequence[Network] = (NETWORK,)) -> Libvirt:
    return Libvirt(Inventory(domains or (WEB,), tuple(networks), HELD))


def host(**changes: object) -> PlainHost:
    world = PlainHost(
        held=(*HELD, *HELD6),
        rules=ours(),
        settings=dict(SETTINGS),
        masters={"vnet0": "virbr0"},
    )
    return replace(world, **changes)  # type: ignore[arg-type]  # a test's own words


def told(
    asked: str = "198.51.100.1:8000",
    source: str | None = None,
    *,
    text: str = FORWARD,
    said: Libvirt | None = None,
    world: PlainHost | None = None,
) -> Report:
    return explain(parse_request(asked, source), config(text), said or libvirt(), world or host(), MAIN)


def cause(report: Report) -> Cause | None:
    return report.failure.cause if report.failure is not None else None


def forward_chain(*rules: Sequence[object], **base: Any) -> BaseChain:
    return native(*rules, **{"hook": "forward", **base})
