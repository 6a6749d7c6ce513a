"""Patterns and processes of the host that want one port: who came first keeps it."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from fwdaemon.core.inventory import Element, Metadata, Occupied
from fwdaemon.core.types import Family, Protocol
from fwdaemon.resolve.expansion import Before
from fwdaemon.resolve.placement import Placer, desired_state
from tests.unit.test_expansion import config, domain, entry, host, lines, reasons
from tests.unit.test_placing import DEFAULT


def waits(port: int, address: str | None = None, *families: Family, **more: Any) -> Occupied:
    """A socket of a process of the host, for TCP."""
    at = None if address is None else ip_address(address)
    return Occupied(Protocol.TCP, at, port, frozenset(families or Family), **more)


BRIDGE = replace(DEFAULT, gateways=(ip_address("192.168.122.1"),))


@pytest.mark.parametrize(
    ("waiting", "ports", "more", "given"),
    [
        (waits(8080), "8080:80", "", False),
        (waits(8081), "8080-8082:80-82", "", False),
        (waits(8080)._replace(protocol=Protocol.UDP), "8080:80", "", True),
        (waits(8079), "8080:80", "", True),
        # The addresses of both.
        (waits(8080, "198.51.100.1"), "8080:80", "", False),
        (waits(8080, "198.51.100.1"), "8080:80", "listen = '198.51.100.1'", False),
        (waits(8080, "198.51.100.1"), "198.51.100.1:8080:80", "", False),
        (waits(8080, "198.51.100.1"), "8080:80", "listen = '198.51.100.7'", True),
        (waits(8080), "8080:80", "listen = '198.51.100.7'", False),
        (waits(8080, None, Family.IPV6), "8080:80", "listen = '198.51.100.7'", True),
        (waits(8080, None, Family.IPV6), "8080:80", "sources = '192.0.2.0/24'", True),
        (waits(8080, None, Family.IPV6), "8080:80", "", False),
        # On loopback addresses, and a client's.
        (waits(8080, "127.0.0.1", passing=True), "8080:80", "", True),
        # The interfaces of both; what guests ask at their gateway, no client outside can.
        (waits(8080, device="eth1"), "8080:80", "interface = 'eth0'", True),
        (waits(8080, device="eth0"), "8080:80", "interface = 'eth0'", False),
        (waits(8080, device="eth1"), "8080:80", "", False),
        (waits(8080, "192.168.122.1"), "8080:80", "interface = 'eth0'", True),
        (waits(8080, "192.168.122.1"), "8080:80", "", False),
    ],
)
def test_a_pattern_takes_no_port_on_which_a_process_waits(
    waiting: Occupied, ports: str, more: str, *, given: bool
) -> None:
    inventory = replace(host(domain(1)), networks=(BRIDGE,))
    desired = desired_state(
        config(entry("ci-*", ports, more=more)), inventory, before=Before(occupied=lambda: [waiting])
    )
    assert bool(desired.forwards) is given
    assert reasons(desired) == ([] if given else [f"ci-1: a process of the host has port {waiting.port}"])
    by_name = desired_state(
        config(entry("ci-1", ports, more=more)), inventory, before=Before(occupied=lambda: [waiting])
    )
    assert by_name.forwards


def test_who_came_first_of_a_domain_and_a_process_keeps_the_port_and_the_other_gets_it_once_it_is_free() -> None:
    in_use = [waits(80)]
    placer, read = Placer({}, Before(occupied=lambda: in_use)), config(entry("ci-*", "80", "81", "auto:22"))
    first = placer.place(read, host(domain(1)))
    assert {item.ports.first for item in first.forwards if item.ports.first < 100} == {81}
    automatic = placer.assigned[0].port
    in_use[:] = [waits(81), waits(automatic)]
    later = placer.place(read, host(domain(1)))
    assert {item.ports.first for item in later.forwards} == {80, 81, automatic}
    again = Placer({}, Before(placer.ports, placer.turns, lambda: in_use))
    assert lines(again.place(read, host(domain(1)))) == lines(later)
    again.place(read, host(domain(1, running=False)))
    after = again.place(read, host(domain(1)))
    assert {item.ports.first for item in after.forwards if item.ports.first < 100} == {80}


def test_what_domains_have_by_their_metadata_is_no_process_to_a_pattern() -> None:
    allow = '[[allow]]\ndomains = "own"\nports = ["8000"]\n'
    asks = replace(domain(2, "own"), metadata=Metadata((Element("forward", (("ports", "198.51.100.1:8000"),)),)))
    text = entry("ci-*", "8000", more="listen = '198.51.100.7'") + allow
    desired = desired_state(config(text), host(domain(1), asks))
    assert lines(desired) == [
        "ci-1: tcp 198.51.100.7:8000 -> 192.168.122.101:8000",
        "own: tcp 198.51.100.1:8000 -> 192.168.122.102:8000",
    ]
