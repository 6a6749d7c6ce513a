"""A guest that claims an address which is not its own gets nothing, and the journal says so."""

import re

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD, WEB4, each_libvirt
from tests.host.hostile import GATEWAY4, RESERVED4, THIEF, THIEF_URL, URL, WEB, added
from tests.lab.daemon import Daemon
from tests.lab.domain import Link, mac_of
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.libvirt_client import Reservation
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until


def claim(thief: LxcGuest, address: str) -> None:
    """Take an address and announce it: to no one in particular, and with every question."""
    thief.run("ip", "address", "replace", f"{address}/24", "dev", "eth0")
    for asked in (address, GATEWAY4):
        thief.speak(asked, as_address=address)


def gets_nothing(running: Daemon, host: Host) -> None:
    assert not host.outside.fetch(THIEF_URL).answered
    assert not added(running, "thief")


@pytest.mark.in_turn
@each_libvirt
def test_an_address_of_the_host_or_from_elsewhere(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """The kernel listens to no claim on an address of its own, so there is nothing that could be believed."""
    network("default", "192.168.122.0/24")
    thief = lxc_guest("thief", Link("default"))
    running = daemon(HEAD + THIEF)
    running.wait_log("^waiting thief: no address yet: no lease, agent or neighbour names one")
    for address in (GATEWAY4, PUBLIC4, CLIENT4):
        claim(thief, address)
        gets_nothing(running, host)
    running.wait_log(
        rf"^waiting thief: {CLIENT4} \(neighbour table\) is outside 192\.168\.122\.0/24, the guest's own network"
    )
    gets_nothing(running, host)


@pytest.mark.in_turn
@each_libvirt
def test_an_address_that_another_guest_showed_first(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """Nothing shows which of the two is right, so neither is believed; a written address settles it."""
    network("default", "192.168.122.0/24")
    lxc_guest("web", Link("default", (f"{WEB4}/24",))).speak(GATEWAY4)
    host.place.fetch(f"http://{WEB4}/")
    thief = lxc_guest("thief", Link("default"))
    running = daemon(HEAD + WEB + THIEF)
    wait_until(lambda: host.outside.fetch(URL).text == f"web {CLIENT4}", "the guest answers")
    claim(thief, WEB4)
    contested = r"192\.168\.122\.10 is claimed by both thief and web \(neighbour table\)"
    running.wait_log(f"^removed web: tcp .*{contested}|^removed web: tcp .*neighbour 192.168.122.10 answered from")
    running.wait_log(f"^waiting web: {contested}")
    running.wait_log(f"^waiting thief: {contested}")
    wait_until(lambda: not host.outside.fetch(URL).answered, "the port is closed")
    gets_nothing(running, host)
    running.reload_with(HEAD + WEB + f'address = "{WEB4}"\n' + THIEF)
    running.wait_log(r"^added web: tcp \*:8000 -> 192\.168\.122\.10:80 ")
    running.wait_log(r"^waiting thief: 192\.168\.122\.10 belongs to domain web \(configuration\)")
    gets_nothing(running, host)


def beside_a_lease(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon, *reserved: Reservation
) -> tuple[str, LxcGuest, Daemon]:
    """Give a thief on the network where `web` has an address by DHCP and answers, and that address."""
    network("default", "192.168.122.0/24", dhcp=True, reservations=reserved)
    address = lxc_guest("web", Link("default", dhcp=True)).lease()
    thief = lxc_guest("thief", Link("default"))
    running = daemon(HEAD + WEB + THIEF)
    wait_until(lambda: host.outside.fetch(URL).text == f"web {CLIENT4}", "the guest answers")
    return address, thief, running


@pytest.mark.in_turn
@each_libvirt
@pytest.mark.parametrize("reserved", [(Reservation(mac_of("web"), RESERVED4),), ()], ids=["reserved", "leased"])
def test_an_address_that_is_reserved_for_another_guest_or_leased_to_it(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon, reserved: tuple[Reservation, ...]
) -> None:
    address, thief, running = beside_a_lease(host, network, lxc_guest, daemon, *reserved)
    given = "DHCP reservation" if reserved else "DHCP lease"
    claim(thief, address)
    running.wait_log(rf"^waiting thief: {re.escape(address)} belongs to domain web \({given}\)")
    running.wait_log(rf"^warning: domain thief answered for {address}, which is the address of domain web: ")
    gets_nothing(running, host)
    wait_until(lambda: host.outside.fetch(URL).text == f"web {CLIENT4}", "the guest answers all the same")
    thief.speak(address, as_address=address)
    wait_until(lambda: host.outside.fetch(URL).text == f"web {CLIENT4}", "the guest answers the next time too")
    assert not [line.text for line in running.log_lines() if line.text.startswith("removed")]


@pytest.mark.in_turn
@each_libvirt
def test_a_dhcp_client_that_asks_for_the_address_of_another(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    reserved, thief, running = beside_a_lease(host, network, lxc_guest, daemon, Reservation(mac_of("web"), RESERVED4))
    assert reserved == RESERVED4
    for wanted in (RESERVED4, GATEWAY4):
        thief.take_lease("-r", wanted)
    own = thief.lease()
    assert own not in (RESERVED4, GATEWAY4)
    running.wait_log(rf"^added thief: tcp \*:8001 -> {own}:80 ")
    wait_until(lambda: host.outside.fetch(THIEF_URL).text == f"thief {CLIENT4}", "it has what it was given")
    assert host.outside.fetch(URL).text == f"web {CLIENT4}"
