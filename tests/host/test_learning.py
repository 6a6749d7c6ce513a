"""How a guest's address is learned when the configuration does not say it."""

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import each_libvirt
from tests.lab.daemon import Daemon
from tests.lab.domain import Link, mac_of
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.libvirt_client import Reservation
from tests.lab.place import wait_until

pytestmark = [pytest.mark.in_turn, each_libvirt]

URL = f"http://{PUBLIC4}:8000/"
HEAD = '[daemon]\nlibvirt = ["qemu:///system", "lxc:///system"]\n'


def entry(domain: str) -> str:
    return f'[[forward]]\ndomain = "{domain}"\nports = ["8000:80"]\n'


def test_a_guest_that_takes_its_address_by_dhcp(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24", dhcp=True)
    guest = lxc_guest("web", Link("default", dhcp=True), start=False)
    running = daemon(HEAD + entry("web"))
    running.wait_log("^waiting web: the domain is not running")
    guest.start()
    added = running.wait_log(r"^added web: tcp \*:8000 -> 192\.168\.122\.\d+:80")
    assert guest.lease() in added.text
    wait_until(lambda: host.outside.fetch(URL).text == f"web {CLIENT4}", "the guest answers")
    guest.stop()
    running.wait_log("^removed web: tcp")
    assert not host.outside.fetch(URL).answered


def test_a_reservation_is_known_before_the_guest_speaks(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24", dhcp=True, reservations=[Reservation(mac_of("web"), "192.168.122.77")])
    lxc_guest("web", Link("default", ("192.168.122.77/24",)))
    daemon(HEAD + entry("web"))
    wait_until(lambda: host.outside.fetch(URL).text == f"web {CLIENT4}", "the guest answers")


def test_a_static_address_is_learned_from_the_neighbour_table(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24")
    guest = lxc_guest("web", Link("default", ("192.168.122.10/24",)))
    running = daemon(HEAD + entry("web"))
    host.place.fetch("http://192.168.122.10/")
    wait_until(lambda: host.outside.fetch(URL).text == f"web {CLIENT4}", "the guest answers")
    assert guest.running
    _stays_across_a_restart(host, running, daemon)


def _stays_across_a_restart(host: Host, running: Daemon, daemon: StartDaemon) -> None:
    """The kernel has forgotten the neighbour meanwhile, as it does those it has not talked to for long."""
    running.terminate()
    host.run("ip", "neighbour", "flush", "dev", host.libvirt.bridge("default"))
    again = daemon(HEAD + entry("web"))
    again.wait_log("^adopted 1 forward")
    assert host.outside.fetch(URL).text == f"web {CLIENT4}"
    assert not [line for line in again.log_lines() if line.text.startswith(("added", "removed", "waiting"))]


def test_a_guest_that_claims_another_guests_address_gets_nothing(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24", dhcp=True, reservations=[Reservation(mac_of("web"), "192.168.122.77")])
    lxc_guest("web", Link("default", ("192.168.122.70/24",)))
    lxc_guest("thief", Link("default", ("192.168.122.77/24",)))
    assert host.place.fetch("http://192.168.122.77/").text.startswith("thief ")
    running = daemon(HEAD + entry("thief"))
    running.wait_log(r"^waiting thief: 192\.168\.122\.77 belongs to domain web \(DHCP reservation\)")
    assert not host.outside.fetch(URL).answered
