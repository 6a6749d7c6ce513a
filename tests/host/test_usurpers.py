"""Guests that take over the address of another on their common bridge, by forged ARP and neighbour discovery.

For addresses that the configuration gives; what a DHCP server gave is in test_claims.py. A client outside goes on to
get the right guest's answer, and the journal names who took the address. What a guest hands over is not taken back.
"""

import socket
import time
from contextlib import closing
from ipaddress import IPv4Address, ip_address

import pytest

from fwdaemon.announce import gratuitous_arps, unsolicited_advertisement
from fwdaemon.model import Address
from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD, NEIGHBOUR4, NEIGHBOUR6, WEB4, WEB6, entry
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
STRANGER = "52:54:00:5a:5a:5a"
# In which the daemon looks several times, each time after the address was taken again.
A_WHILE_S = 0.5
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
    guest.run("ip", "address", "replace", f"{address}/{24 if '.' in address else 64}", "dev", "eth0")
    announce(guest, address, guest.mac())


def leads_to(host: Host, name: str, address: str) -> None:
    """Wait until a client outside gets this guest's answer."""
    expected = f"{name} {CLIENTS[address]}"
    wait_until(lambda: host.outside.fetch(URLS[address]).text == expected, f"{name} answers for {address}")


def goes_on_answering(host: Host, text: str) -> bool:
    """Whether a client outside gets this answer each time, for longer than a guest would be asked."""
    began = time.monotonic()
    while time.monotonic() < began + LONGER_THAN_IT_ASKS_S:
        if host.outside.fetch(URLS[WEB4]).text != text:
            return False
    return True


def begun(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon, other: str
) -> tuple[LxcGuest, LxcGuest, Daemon]:
    """Start `web`, another guest and the daemon, which has seen at its first look where the addresses are."""
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
    _, thief, running = begun(host, network, lxc_guest, daemon, "thief")
    for address in (WEB4, WEB6):
        leads_to(host, "web", address)
        take(thief, address)
        running.wait_log(f"^warning: domain thief answered for {address}, which is the address of domain web: ")
        leads_to(host, "web", address)
        announce(thief, address, thief.mac(), A_WHILE_S)
        leads_to(host, "web", address)
        announce(thief, address, STRANGER, A_WHILE_S)
        running.wait_log(rf"^warning: somebody on bridge \w+ answered for {address}, which is the address of domain ")
        leads_to(host, "web", address)
    assert not [line.text for line in running.log_lines() if line.text.startswith("removed")]


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_a_configured_address_that_its_guest_hands_over_is_not_taken_back(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """As high availability does: whoever had it does not answer for it any more."""
    web, spare, running = begun(host, network, lxc_guest, daemon, "spare")
    leads_to(host, "web", WEB4)
    web.run("ip", "address", "delete", f"{WEB4}/24", "dev", "eth0")
    take(spare, WEB4)
    # Now it is put back, so that `web` is asked.
    running.wait_log(f"^warning: domain spare answered for {WEB4}")
    wait_until(lambda: goes_on_answering(host, f"spare {CLIENT4}"), "spare answers and goes on", timeout=40)
    take(web, WEB4)
    web.run("ip", "route", "replace", "default", "via", "192.168.122.1")
    leads_to(host, "web", WEB4)
    # From now on it is to be kept again.
    announce(spare, WEB4, spare.mac(), A_WHILE_S)
    leads_to(host, "web", WEB4)
