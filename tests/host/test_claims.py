"""A guest that claims an address which is not its own gets nothing, and the journal says so."""

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD, each_libvirt
from tests.lab.daemon import Daemon
from tests.lab.domain import Link, mac_of
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.libvirt_client import Reservation
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until

URL, THIEF_URL = f"http://{PUBLIC4}:8000/", f"http://{PUBLIC4}:8001/"
GATEWAY4, RESERVED4, STATIC4 = "192.168.122.1", "192.168.122.77", "192.168.122.10"
WEB = '[[forward]]\ndomain = "web"\nports = ["8000:80"]\n'
THIEF = '[[forward]]\ndomain = "thief"\nports = ["8001:80"]\n'


def claim(thief: LxcGuest, address: str) -> None:
    """Take an address and tell everybody: to nobody in particular, and with every question."""
    thief.run("ip", "address", "replace", f"{address}/24", "dev", "eth0")
    for asked in (address, GATEWAY4):
        thief.speak(asked, as_address=address)


def gets_nothing(running: Daemon, host: Host) -> None:
    assert not host.outside.fetch(THIEF_URL).answered
    assert not [line.text for line in running.log_lines() if line.text.startswith("added thief")]


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


@each_libvirt
def test_an_address_that_another_guest_showed_first(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """Nothing tells which of the two is right, so neither is believed; a written address settles it."""
    network("default", "192.168.122.0/24")
    lxc_guest("web", Link("default", (f"{STATIC4}/24",))).speak(GATEWAY4)
    host.place.fetch(f"http://{STATIC4}/")
    thief = lxc_guest("thief", Link("default"))
    running = daemon(HEAD + WEB + THIEF)
    wait_until(lambda: host.outside.fetch(URL).text == f"web {CLIENT4}", "the guest answers")
    claim(thief, STATIC4)
    contested = r"192\.168\.122\.10 is claimed by both thief and web \(neighbour table\)"
    running.wait_log(f"^removed web: tcp .*{contested}|^removed web: tcp .*neighbour 192.168.122.10 answered from")
    running.wait_log(f"^waiting web: {contested}")
    running.wait_log(f"^waiting thief: {contested}")
    wait_until(lambda: not host.outside.fetch(URL).answered, "the port is closed")
    gets_nothing(running, host)
    running.reload_with(HEAD + WEB + f'address = "{STATIC4}"\n' + THIEF)
    running.wait_log(r"^added web: tcp \*:8000 -> 192\.168\.122\.10:80 ")
    running.wait_log(r"^waiting thief: 192\.168\.122\.10 belongs to domain web \(configuration\)")
    gets_nothing(running, host)


def beside_a_reservation(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> tuple[LxcGuest, Daemon]:
    """Give a thief on the network where `web` has a reserved address and answers."""
    network("default", "192.168.122.0/24", dhcp=True, reservations=[Reservation(mac_of("web"), RESERVED4)])
    lxc_guest("web", Link("default", dhcp=True)).lease()
    thief = lxc_guest("thief", Link("default"))
    running = daemon(HEAD + WEB + THIEF)
    wait_until(lambda: host.outside.fetch(URL).text == f"web {CLIENT4}", "the guest answers")
    return thief, running


@each_libvirt
def test_an_address_that_is_reserved_for_another_guest(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    thief, running = beside_a_reservation(host, network, lxc_guest, daemon)
    claim(thief, RESERVED4)
    running.wait_log(r"^waiting thief: 192\.168\.122\.77 belongs to domain web \(DHCP reservation\)")
    running.wait_log(r"^warning: domain thief answered for 192\.168\.122\.77, which is the address of domain web: ")
    gets_nothing(running, host)
    wait_until(lambda: host.outside.fetch(URL).text == f"web {CLIENT4}", "the guest answers all the same")
    thief.speak(RESERVED4, as_address=RESERVED4)
    wait_until(lambda: host.outside.fetch(URL).text == f"web {CLIENT4}", "the guest answers the next time too")
    assert not [line.text for line in running.log_lines() if line.text.startswith("removed")]


@each_libvirt
def test_a_dhcp_client_that_asks_for_the_address_of_another(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    thief, running = beside_a_reservation(host, network, lxc_guest, daemon)
    for wanted in (RESERVED4, GATEWAY4):
        thief.take_lease("-r", wanted)
    own = thief.lease()
    assert own not in (RESERVED4, GATEWAY4)
    running.wait_log(rf"^added thief: tcp \*:8001 -> {own}:80 ")
    wait_until(lambda: host.outside.fetch(THIEF_URL).text == f"thief {CLIENT4}", "it has what it was given")
    assert host.outside.fetch(URL).text == f"web {CLIENT4}"
