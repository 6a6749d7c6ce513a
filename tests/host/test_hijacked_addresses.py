"""Guests that take over the address of another on their common bridge, by forged ARP and neighbour discovery.

For addresses that the configuration gives; what a DHCP server gave is in test_claims.py. A client outside goes on to
get the right guest's answer, and the journal names who took the address. What a guest hands over is not taken back.
"""

import socket
import time
from contextlib import closing
from ipaddress import IPv4Address, ip_address

import pytest

from fwdaemon.core.types import Address
from fwdaemon.hostnet.public_addresses import gratuitous_arps, unsolicited_advertisement
from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD, NEIGHBOUR4, NEIGHBOUR6, WEB4, WEB6, entry
from tests.host.hostile import GATEWAY4, GATEWAY6, leave_it_to_the_daemon
from tests.lab.daemon import Daemon
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, CLIENT6, PUBLIC4, PUBLIC6, Host
from tests.lab.lxc import LxcGuest
from tests.lab.netns import open_socket
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

ENTRIES = entry("web", "8000:80", WEB4) + entry("web", "8000:80", WEB6)
URLS = {WEB4: f"http://{PUBLIC4}:8000/", WEB6: f"http://[{PUBLIC6}]:8000/"}
CLIENTS = {WEB4: CLIENT4, WEB6: CLIENT6}
GATEWAYS = {WEB4: GATEWAY4, WEB6: GATEWAY6}
STRANGER = "52:54:00:5a:5a:5a"
# In which the daemon looks several times, each time after the address was taken again.
A_WHILE_S = 0.5
IN_A_ROW = 20
# The kernel gives up a neighbour that does not answer after three questions, a second apart.
LONGER_THAN_IT_ASKS_S = 4


def announce(guest: LxcGuest, address: str, mac: str, seconds: float = 0) -> None:
    """Tell the host, and all on the bridge, that an address is at this MAC address now: once, or for a while."""
    packets = _packets(ip_address(address), bytes.fromhex(mac.replace(":", "")))
    with closing(open_socket(guest.place.namespace, socket.AF_PACKET, socket.SOCK_DGRAM)) as link:
        began = time.monotonic()
        while True:
            for protocol, packet in packets:
                link.sendto(packet, ("eth0", protocol, 0, 0, b"\xff" * 6))
            if time.monotonic() >= began + seconds:
                return
            time.sleep(0.001)


def _packets(address: Address, mac: bytes) -> list[tuple[int, bytes]]:
    """Give what makes others change their entry, each with its protocol."""
    if isinstance(address, IPv4Address):
        return [(0x0806, packet) for packet in gratuitous_arps(address, mac)]
    return [(0x86DD, unsolicited_advertisement(address, mac, is_router=False))]


def take(guest: LxcGuest, address: str) -> None:
    """Answer for an address from now on, and announce it."""
    guest.run("ip", "address", "replace", with_prefix(address), "dev", "eth0")
    announce(guest, address, guest.mac())


def with_prefix(address: str) -> str:
    """An address as it is set on an interface."""
    return f"{address}/{24 if '.' in address else 64}"


def answers(host: Host, name: str, address: str) -> bool:
    """Whether a client outside gets this guest's answer."""
    return host.outside.fetch(URLS[address]).text == f"{name} {CLIENTS[address]}"


def leads_to(host: Host, name: str, address: str) -> None:
    """Wait until a client outside gets this guest's answer, and see that it gets no other from then on."""
    wait_until(lambda: answers(host, name, address), f"{name} answers for {address}")
    assert [answers(host, name, address) for _ in range(IN_A_ROW)] == [True] * IN_A_ROW


def goes_on_answering(host: Host, name: str) -> bool:
    """Whether a client outside gets this guest's answers each time, for longer than a guest would be asked."""
    began = time.monotonic()
    while time.monotonic() < began + LONGER_THAN_IT_ASKS_S:
        if not all(answers(host, name, address) for address in URLS):
            return False
    return True


def begun(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon, other: str
) -> tuple[LxcGuest, LxcGuest, Daemon]:
    """Start `web`, another guest and the daemon, which has seen at its first pass where the addresses are."""
    network("default", "192.168.122.0/24", "2001:db8:122::/64")
    web = lxc_guest("web", Link("default", (f"{WEB4}/24", f"{WEB6}/64")))
    beside = lxc_guest(other, Link("default", (f"{NEIGHBOUR4}/24", f"{NEIGHBOUR6}/64")))
    for address in (WEB4, f"[{WEB6}]"):
        assert host.place.fetch(f"http://{address}/").answered
    return web, beside, daemon(HEAD + ENTRIES)


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_a_configured_address_leads_to_its_guest_again(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    web, thief, running = begun(host, network, lxc_guest, daemon, "thief")
    leave_it_to_the_daemon(host, web)
    for address in (WEB4, WEB6):
        leads_to(host, "web", address)
        take(thief, address)
        running.wait_log(f"^warning: domain thief answered for {address}, which is the address of domain web: ")
        leads_to(host, "web", address)
        announce(thief, address, thief.mac(), A_WHILE_S)
        leads_to(host, "web", address)
        announce(thief, address, STRANGER, A_WHILE_S)
        running.wait_log(rf"^warning: a machine on bridge \w+ answered for {address}, which is the address of domain ")
        leads_to(host, "web", address)
    assert not [line.text for line in running.log_lines() if line.text.startswith("removed")]


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_a_configured_address_that_its_guest_hands_over_is_not_taken_back(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """As high availability does: the machine that had it does not answer for it any more."""
    web, spare, running = begun(host, network, lxc_guest, daemon, "spare")
    for address in URLS:
        leads_to(host, "web", address)
        web.run("ip", "address", "delete", with_prefix(address), "dev", "eth0")
        take(spare, address)
        # Now it is put back, so that `web` is asked.
        running.wait_log(f"^warning: domain spare answered for {address}")
    wait_until(lambda: goes_on_answering(host, "spare"), "spare answers and goes on")
    for address, gateway in GATEWAYS.items():
        take(web, address)
        web.run("ip", "route", "replace", "default", "via", gateway)
        leads_to(host, "web", address)
        # From now on it is to be kept again.
        announce(spare, address, spare.mac(), A_WHILE_S)
        leads_to(host, "web", address)
