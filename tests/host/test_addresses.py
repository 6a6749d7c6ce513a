"""Guests whose address changes, or is where libvirt knows of none: the new one is found, and the old one goes."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, MakeQemuGuest, StartDaemon
from tests.host.conftest import Conversation, each_backend, rules_have_no_part
from tests.lab.domain import Link, mac_of
from tests.lab.host import CLIENT4, CLIENT4_OTHER_LINK, CLIENT6, OTHER_LINK4, PUBLIC4, PUBLIC6, Host
from tests.lab.libvirt_client import Reservation
from tests.lab.place import wait_until
from tests.lab.qemu import ECHO_PORT
from tests.lab.release import LibvirtFirewall

pytestmark = pytest.mark.turns_on(LibvirtFirewall.NFTABLES)

URL, SECOND_URL = f"http://{PUBLIC4}:8000/", f"http://{PUBLIC4}:8001/"
HEAD = '[daemon]\nlibvirt = ["qemu:///system", "lxc:///system"]\n'
BRIDGE, BRIDGE4 = "br7", "192.168.140.1"


def entry(domain: str, *ports: str, more: str = "") -> str:
    listed = ", ".join(f'"{port}"' for port in ports)
    return f'[[forward]]\ndomain = "{domain}"\nports = [{listed}]\n{more}\n'


def answers(host: Host, text: str, url: str = URL) -> None:
    wait_until(lambda: host.outside.fetch(url).text == text, f"{url} answers {text!r}")


@contextmanager
def plain_bridge(host: Host, *addresses: str) -> Iterator[None]:
    """A bridge of the administrator's own, which libvirt knows nothing of."""
    host.run("ip", "link", "add", BRIDGE, "type", "bridge")
    try:
        for address in addresses:
            host.run("ip", "address", "add", address, "dev", BRIDGE)
        host.run("ip", "link", "set", BRIDGE, "up")
        yield
    finally:
        host.run("ip", "link", "delete", BRIDGE)


@pytest.fixture
def bridge(host: Host) -> Iterator[None]:
    """A plain bridge on which the host has an address."""
    with plain_bridge(host, f"{BRIDGE4}/24"):
        yield


@pytest.fixture
def lan(host: Host) -> Iterator[None]:
    """A bridge with one of the host's own links in it, so that guests are in the same network as others outside."""
    with plain_bridge(host, f"{OTHER_LINK4}/24"):
        host.run("ip", "address", "delete", f"{OTHER_LINK4}/24", "dev", "eth1")
        host.run("ip", "link", "set", "eth1", "master", BRIDGE)
        yield
        host.run("ip", "link", "set", "eth1", "nomaster")
        host.run("ip", "address", "add", f"{OTHER_LINK4}/24", "dev", "eth1")


@pytest.mark.in_turn
def test_a_dhcp_guest_gets_another_address(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24", dhcp=True, reservations=[Reservation(mac_of("web"), "192.168.122.77")])
    guest = lxc_guest("web", Link("default", dhcp=True))
    assert guest.lease() == "192.168.122.77"
    running = daemon(HEAD + entry("web", "8000:80", "9000"))
    answers(host, f"web {CLIENT4}")
    guest.serve_tcp(9000)
    conversation = Conversation(host.outside, PUBLIC4, 9000)
    host.libvirt.reserve("default", Reservation(guest.mac(), "192.168.122.78"))
    answers(host, f"web {CLIENT4}")
    guest.take_lease()
    # What the guest will be given when it asks again was not yet where it is; whichever of two sees it first. An
    # inventory taken because of the old address may hold the new one before either reports it.
    seen = r"\(.*(DHCP leases on virbr\d+ changed|neighbour 192\.168\.122\.7[78] answered from|guest has .*\.78 now)"
    running.wait_log(rf"^removed web: tcp \*:8000 -> 192\.168\.122\.77:80 {seen}")
    running.wait_log(rf"^added web: tcp \*:8000 -> 192\.168\.122\.78:80 {seen}")
    running.wait_log(r"^ended [1-9]\d* connections")
    # It could go on: the guest has the old address too, and the server still waits.
    guest.run("ip", "address", "add", "192.168.122.77/24", "dev", "eth0")
    assert not conversation.goes_on()
    conversation.close()
    answers(host, f"web {CLIENT4}")


@pytest.mark.in_turn
@rules_have_no_part
def test_a_fixed_address_changes(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """Two entries of the neighbour table name the guest; the old one counts until no machine answers there."""
    network("default", "192.168.122.0/24")
    guest = lxc_guest("web", Link("default", ("192.168.122.10/24",)))
    guest.speak("192.168.122.1")
    host.place.fetch("http://192.168.122.10/")
    running = daemon(HEAD + entry("web", "8000:80"))
    answers(host, f"web {CLIENT4}")
    guest.run("ip", "address", "add", "192.168.122.12/24", "dev", "eth0")
    host.place.fetch("http://192.168.122.12/")
    answers(host, f"web {CLIENT4}")
    guest.run("ip", "address", "flush", "dev", "eth0", "scope", "global")
    guest.run("ip", "address", "add", "192.168.122.13/24", "dev", "eth0")
    guest.run("ip", "route", "add", "default", "via", "192.168.122.1")
    host.place.fetch("http://192.168.122.13/")
    removed = running.wait_log(r"^removed web: tcp \*:8000 -> 192\.168\.122\.10:80 ")
    assert "neighbour 192.168.122.10 does not answer" in removed.text
    running.wait_log(r"^added web: tcp \*:8000 -> 192\.168\.122\.13:80 ")
    answers(host, f"web {CLIENT4}")


@rules_have_no_part
def test_two_interfaces_on_two_networks(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24")
    network("other", "192.168.123.0/24")
    guest = lxc_guest("web", Link("default", ("192.168.122.10/24",)), Link("other", ("192.168.123.10/24",)))
    running = daemon(HEAD + entry("web", "8000:80"))
    places = rf"{guest.mac(0)} on network default, {guest.mac(1)} on network other"
    running.wait_log(rf"^waiting web: has 2 interfaces \({places}\): write network = … or mac = … \(.*portfwd.toml:3\)")
    assert not host.outside.fetch(URL).answered
    for address in ("192.168.122.10", "192.168.123.10"):
        host.place.fetch(f"http://{address}/")
    by_mac = entry("web", "8000:80", more=f'mac = "{guest.mac(0)}"')
    running.reload_with(HEAD + by_mac + entry("web", "8001:80", more='network = "other"'))
    running.wait_log(r"^added web: tcp \*:8000 -> 192\.168\.122\.10:80 ")
    running.wait_log(r"^added web: tcp \*:8001 -> 192\.168\.123\.10:80 ")
    for url in (URL, SECOND_URL):
        answers(host, f"web {CLIENT4}", url)


@pytest.mark.in_turn
@rules_have_no_part
def test_a_second_interface_that_is_plugged_in_closes_nothing(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24")
    network("other", "192.168.123.0/24")
    guest = lxc_guest("web", Link("default", ("192.168.122.10/24",)))
    running = daemon(HEAD + entry("web", "8000:80"))
    host.place.fetch("http://192.168.122.10/")
    answers(host, f"web {CLIENT4}")
    host.libvirt.virsh("attach-interface", "web", "network", "other", "--live")
    advice = r"has 2 interfaces \(.*\): write network = … or mac = …; until then it leads to " + guest.mac(0)
    running.wait_log(f"^warning: domain web {advice}")
    assert host.outside.fetch(URL).text == f"web {CLIENT4}"
    assert not [line for line in running.log_lines() if line.text.startswith("removed")]
    running.terminate()
    again = daemon(HEAD + entry("web", "8000:80"))
    again.wait_log(f"^warning: domain web {advice}")
    assert host.outside.fetch(URL).text == f"web {CLIENT4}"
    assert not [line for line in again.log_lines() if line.text.startswith(("removed", "added", "waiting"))]


@pytest.mark.in_turn
@rules_have_no_part
@pytest.mark.usefixtures("bridge")
def test_a_plain_bridge_and_the_neighbour_table(host: Host, lxc_guest: MakeLxcGuest, daemon: StartDaemon) -> None:
    running = daemon(HEAD + entry("web", "8000:80"))
    guest = lxc_guest("web", Link("", ("192.168.140.10/24",), bridge=BRIDGE))
    running.wait_log("^waiting web: no address yet: no lease, agent or neighbour names one")
    assert not host.outside.fetch(URL).answered
    guest.speak(BRIDGE4)
    seen = r"(neighbour 192\.168\.140\.10 answered from |domain web started)"
    running.wait_log(rf"^added web: tcp \*:8000 -> 192\.168\.140\.10:80 \({seen}")
    answers(host, f"web {CLIENT4}")
    guest.stop()
    running.wait_log("^removed web: tcp .*domain web stopped")
    assert not host.outside.fetch(URL).answered


@pytest.mark.in_turn
@rules_have_no_part
def test_a_guest_that_never_speaks_is_asked_for(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """Its addresses are fixed, and it has not sent a packet; each family has an entry that waits for it."""
    network("default", "192.168.122.0/24", "2001:db8:122::/64")
    guest = lxc_guest("web", Link("default", ("192.168.122.77/24", "2001:db8:122::77/64")))
    # An address made of its MAC address would be asked for by itself.
    guest.run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/eth0/autoconf && ip address flush dev eth0 dynamic")
    known = host.run("ip", "neighbour").stdout
    assert "192.168.122.77 " not in known
    assert "2001:db8:122::77 " not in known
    by_family = [entry("web", "8000:80", more=f'listen = "{address}"') for address in (PUBLIC4, PUBLIC6)]
    running = daemon(HEAD + "".join(by_family))
    running.wait_log("^waiting web: no address yet")
    for address in (r"192\.168\.122\.77", "2001:db8:122::77"):
        running.wait_log(rf"^added web: .* -> \[?{address}\]?:80 \(")
    answers(host, f"web {CLIENT4}")
    answers(host, f"web {CLIENT6}", f"http://[{PUBLIC6}]:8000/")


@pytest.mark.in_turn
@rules_have_no_part
def test_only_the_guest_itself_answers_for_itself(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """Another guest on the bridge is asked too, and answers; the one that is wanted has no address until later."""
    network("default", "192.168.122.0/24")
    web = lxc_guest("web", Link("default"))
    other = lxc_guest("other", Link("default", ("192.168.122.78/24",)))
    running = daemon(HEAD + entry("web", "8000:80"))
    wait_until(lambda: "192.168.122.1 " in other.run("ip", "neighbour").stdout, "the other was asked")
    web.run("ip", "address", "add", "192.168.122.77/24", "dev", "eth0")
    web.run("ip", "route", "add", "default", "via", "192.168.122.1")
    running.wait_log(r"^added web: tcp \*:8000 -> 192\.168\.122\.77:80 \(.*neighbour")
    answers(host, f"web {CLIENT4}")
    assert [line.text for line in running.log_lines() if "192.168.122.78" in line.text] == []


@pytest.mark.in_turn
@each_backend
@pytest.mark.usefixtures("lan")
def test_a_bridge_with_others_in_it(host: Host, lxc_guest: MakeLxcGuest, daemon: StartDaemon) -> None:
    """The guest would answer a client of its own network past the host; so to the guest it is the host that asks."""
    guest = lxc_guest("web", Link("", ("198.51.101.50/24",), bridge=BRIDGE))
    guest.speak(OTHER_LINK4)
    daemon(HEAD + entry("web", "8000:80"))
    answers(host, f"web {CLIENT4}")
    url = f"http://{OTHER_LINK4}:8000/"
    answers(host, f"web {OTHER_LINK4}", url)
    assert host.outside.fetch("http://198.51.101.50/").text == f"web {CLIENT4_OTHER_LINK}"
    # No guest of ours has it any more when another machine in that network answers.
    guest.stop()
    wait_until(lambda: not host.outside.fetch(url).answered, "the port is closed")


@pytest.mark.in_turn
@rules_have_no_part
def test_a_bridge_without_an_address_of_the_host(host: Host, lxc_guest: MakeLxcGuest, daemon: StartDaemon) -> None:
    with plain_bridge(host):
        guest = lxc_guest("web", Link("", ("192.168.140.10/24",), bridge=BRIDGE))
        running = daemon(HEAD + entry("web", "8000:80"))
        running.wait_log(f"^waiting web: it is not known which addresses belong to bridge {BRIDGE}: write address = … ")
        host.run("ip", "address", "add", f"{BRIDGE4}/24", "dev", BRIDGE)
        guest.speak(BRIDGE4)
        running.wait_log(r"^added web: tcp \*:8000 -> 192\.168\.140\.10:80 ")
        answers(host, f"web {CLIENT4}")
        guest.remove()


@pytest.mark.in_turn
@rules_have_no_part
@pytest.mark.usefixtures("bridge")
def test_a_plain_bridge_and_the_guest_agent(host: Host, qemu_guest: MakeQemuGuest, daemon: StartDaemon) -> None:
    """The agent may say anything; it is asked again as soon as it comes back, as after its update."""
    guest = qemu_guest("vm", Link("", (f"{BRIDGE4}/24",), bridge=BRIDGE))
    running = daemon(HEAD + entry("vm", "8000:80", f"9000:{ECHO_PORT}"))
    guest.wait_up()
    running.wait_log(rf"^waiting vm: {BRIDGE4} belongs to the host ")
    assert not host.outside.fetch(URL).answered
    guest.renumber("192.168.140.50/24", gateway=BRIDGE4)
    told = r"\(.*guest agent of domain vm reported its addresses"
    running.wait_log(rf"^added vm: tcp \*:8000 -> 192\.168\.140\.50:80 {told}")
    answers(host, f"vm {CLIENT4}")
    conversation = Conversation(host.outside, PUBLIC4, 9000)
    assert conversation.greeting == "vm"
    guest.renumber("192.168.140.51/24", gateway=BRIDGE4)
    running.wait_log(rf"^removed vm: tcp \*:9000 -> 192\.168\.140\.50:{ECHO_PORT} {told}")
    running.wait_log(r"^added vm: tcp \*:8000 -> 192\.168\.140\.51:80 ")
    running.wait_log(r"^ended [1-9]\d* connections")
    conversation.close()
    answers(host, f"vm {CLIENT4}")
