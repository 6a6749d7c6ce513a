"""A guest that was elsewhere before learns at once where its gateway is now, on the real kernel."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from fwdaemon.core.exposures import Nat
from fwdaemon.core.state import Desired
from fwdaemon.hostnet.public_addresses import Announcer, Gateways
from tests.kernel.links import BRIDGE_MAC, Links
from tests.lab.place import wait_until
from tests.unit.forwards import nat

ELSEWHERE = "02:00:00:00:00:99"
GATEWAY4, GATEWAY6 = "192.168.123.1", "2001:db8:123::1"
WEB4 = replace(nat("198.51.100.8", "192.168.123.60"), bridge="virbr1", bridge_port="vnet0")
WEB6 = replace(nat("2001:db8::8", "2001:db8:123::60"), bridge="virbr1", bridge_port="vnet0")


@pytest.fixture
def links(links: Links) -> Links:
    links.host.ip(f"address add {GATEWAY6}/64 dev virbr1")
    return links


def mislead(links: Links, gateway: str) -> None:
    """Have the guest believe, as one that was just confirmed, that its gateway is where it was on another host."""
    links.guest.ip(f"neighbour replace {gateway} lladdr {ELSEWHERE} dev eth0 nud reachable")


def known(links: Links, gateway: str) -> str:
    return links.guest.run("ip", "neighbour", "show", "to", gateway)


@pytest.mark.parametrize(("wanted", "gateway"), [(WEB4, GATEWAY4), (WEB6, GATEWAY6)])
def test_a_guest_hears_where_its_gateway_is_now(links: Links, wanted: Nat, gateway: str) -> None:
    mislead(links, gateway)
    Gateways().apply(Desired(nats=frozenset({wanted})))
    wait_until(lambda: BRIDGE_MAC in known(links, gateway), "the guest knows its gateway's new MAC address")


def test_it_hears_once_and_again_when_it_comes_back(links: Links) -> None:
    gateways, here = Gateways(), Desired(nats=frozenset({WEB4}))
    gateways.apply(here)
    assert links.host.pings("192.168.123.60")
    mislead(links, GATEWAY4)
    gateways.apply(here)
    assert not links.host.pings("192.168.123.60"), "its answer goes where it believes its gateway to be"
    assert ELSEWHERE in known(links, GATEWAY4)
    gateways.apply(Desired())
    gateways.apply(here)
    wait_until(lambda: BRIDGE_MAC in known(links, GATEWAY4), "the guest heard again")


def test_it_also_hears_after_another_interface_with_announcements_has_gone(links: Links) -> None:
    announcer = Announcer()
    links.host.ip("link add gone0 type bridge")
    links.host.ip("link set gone0 up")
    announcer.announce("gone0", ip_address("198.51.100.99"))
    links.host.ip("link delete gone0")
    mislead(links, GATEWAY4)
    announcer.announce("gone0", ip_address("198.51.100.99"))
    Gateways(announcer).apply(Desired(nats=frozenset({WEB4})))
    wait_until(lambda: BRIDGE_MAC in known(links, GATEWAY4), "the guest knows its gateway's new MAC address")
    announcer.close()
