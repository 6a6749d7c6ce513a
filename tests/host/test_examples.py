"""The examples of etc/examples do what they say, with guests whose addresses are reserved."""

from collections.abc import Callable

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD, each_backend
from tests.host.test_reach import url
from tests.lab.domain import Link, mac_of
from tests.lab.host import CLIENT4, PUBLIC4, SOURCE, Host
from tests.lab.libvirt_client import Reservation
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until

pytestmark = each_backend

SHOP4, MAIL4 = "198.51.100.8", "198.51.100.9"


def example(name: str) -> str:
    return HEAD + (SOURCE / "etc/examples" / f"{name}.toml").read_text()


def says(host: Host, page: str, text: str) -> None:
    wait_until(lambda: host.outside.fetch(page).text == text, f"{page} says {text}")


@pytest.fixture
def guests(network: MakeNetwork, lxc_guest: MakeLxcGuest) -> Callable[..., list[LxcGuest]]:
    """Start guests for which the network has DHCP reservations."""

    def start(*names: str) -> list[LxcGuest]:
        addresses = {name: f"192.168.122.{number}" for number, name in enumerate(names, start=21)}
        reservations = [Reservation(mac_of(name), address) for name, address in addresses.items()]
        network("default", "192.168.122.0/24", dhcp=True, reservations=reservations)
        return [lxc_guest(name, Link("default", (f"{address}/24",))) for name, address in addresses.items()]

    return start


@pytest.mark.in_turn
def test_one_public_address(host: Host, guests: Callable[..., list[LxcGuest]], daemon: StartDaemon) -> None:
    _, mail = guests("web", "mail")
    for port in (25, 110, 143):
        mail.serve_tcp(port)
    ssh = host.place.serve("host", "tcp", 22)
    try:
        daemon(example("one-public-address"))
        for port, guest in {80: "web", 443: "web", 8080: "mail", 8443: "mail"}.items():
            says(host, url(PUBLIC4, port), f"{guest} {CLIENT4}")
        for port in (25, 110, 143):
            assert host.outside.tcp(PUBLIC4, port).text == f"mail {CLIENT4}"
        assert host.outside.tcp(PUBLIC4, 22).text == f"host {CLIENT4}"
        assert not host.outside.tcp(PUBLIC4, 993).answered
    finally:
        ssh.stop()


@pytest.mark.in_turn
def test_an_address_per_guest(host: Host, guests: Callable[..., list[LxcGuest]], daemon: StartDaemon) -> None:
    shop, mail = guests("shop", "mail")
    ssh, server = host.place.serve("host", "tcp", 22), host.outside.serve("outside", "tcp", 99)
    try:
        daemon(example("an-address-per-guest"))
        for guest, public in ((shop, SHOP4), (mail, MAIL4)):
            says(host, url(public, 8080), f"{guest.name} {CLIENT4}")
            assert guest.place.tcp(CLIENT4, 99).text == f"outside {public}"
        assert host.outside.tcp(PUBLIC4, 22).text == f"host {CLIENT4}"
        assert not host.outside.fetch(url(PUBLIC4, 8080)).answered
    finally:
        ssh.stop()
        server.stop()
