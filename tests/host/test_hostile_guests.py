"""Guests that lie to the DHCP server and by neighbour discovery.

Whatever one says, no port of another leads to it, none of its own leads to what it has no right to, and the daemon goes
on. What a guest may gain by being first is in test_claims.py, by taking over an address in test_hijacked_addresses.py;
lies of agents and in leases have modules of their own.
"""

import re
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from ipaddress import ip_address

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD, WEB6, each_libvirt
from tests.host.hostile import (
    GATEWAY6,
    LISTEN,
    METRICS,
    NAMES,
    THIEF,
    THIEF_URL,
    WEB,
    added,
    as_web_or_nothing,
    is_sound,
    leave_it_to_the_daemon,
)
from tests.lab.domain import Link, mac_of
from tests.lab.host import CLIENT4, CLIENT6, PUBLIC4, PUBLIC6, Host
from tests.lab.lxc import LxcGuest
from tests.lab.netns import open_socket
from tests.lab.place import wait_until

URL6, THIEF_URL6 = f"http://[{PUBLIC6}]:8000/", f"http://[{PUBLIC6}]:8001/"


@pytest.mark.in_turn
@each_libvirt
def test_a_dhcp_client_that_calls_itself_by_the_name_and_number_of_another(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """A DHCP server knows clients by what they call themselves, so it may give the address of one to another."""
    network("default", "192.168.122.0/24", dhcp=True)
    web = lxc_guest("web", Link("default", dhcp=True))
    address = web.lease()
    thief = lxc_guest("thief", Link("default"))
    running = daemon(HEAD + WEB + THIEF)
    wait_until(lambda: as_web_or_nothing(host), "the guest answers")
    number = f"0x3d:01{mac_of('web').replace(':', '')}"
    thief.take_lease("-C", "-x", number, "-x", "hostname:web")
    running.wait_log(rf"^added thief: tcp .* -> {re.escape(address)}:80 ")
    as_web_or_nothing(host)
    web.take_lease()
    wait_until(lambda: as_web_or_nothing(host), "the guest answers once it has an address again")
    is_sound(host, running)


@pytest.mark.in_turn
@each_libvirt
def test_a_dhcp_client_with_hostile_names(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24", dhcp=True)
    thief = lxc_guest("thief", Link("default"))
    running = daemon(HEAD + WEB + THIEF)
    for called in NAMES:
        text = "".join(f"{byte:02x}" for byte in called.encode())
        # Its host name, its full name, and what it is, as RFC 2132 and RFC 4702 number them.
        thief.take_lease("-x", f"0x0c:{text}", "-x", f"0x51:000000{text}", "-x", f"0x3c:{text}", "-V", "")
    running.wait_log("^added thief: tcp")
    wait_until(lambda: host.outside.fetch(THIEF_URL).text == f"thief {CLIENT4}", "it has what it was given")
    assert not added(running, "web")
    is_sound(host, running)


def claim6(thief: LxcGuest, address: str, asked: str = GATEWAY6) -> None:
    """Take an address of IPv6, and tell the host so by asking from there who has `asked` (RFC 4861, section 7.2.3)."""
    thief.run("ip", "address", "replace", f"{address}/64", "dev", "eth0", "nodad")
    # An address from elsewhere brings no route to the host, and its router may not have announced one to the guest yet.
    thief.run("ip", "route", "replace", asked, "dev", "eth0")
    thief.run("ip", "neighbour", "flush", "dev", "eth0")
    thief.place.udp(asked, 9, source=address, timeout=0.5)


@pytest.mark.in_turn
@each_libvirt
def test_addresses_of_ipv6_that_belong_to_the_host_or_elsewhere(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """The kernel listens to no claim on an address of its own, so only the one from elsewhere could be believed."""
    network("default", None, "2001:db8:122::/64")
    thief = lxc_guest("thief", Link("default"))
    running = daemon(HEAD + THIEF)
    for address, asked in ((CLIENT6, GATEWAY6), (PUBLIC6, GATEWAY6), (GATEWAY6, f"{GATEWAY6}0")):
        claim6(thief, address, asked)
        assert not host.outside.fetch(THIEF_URL6).answered
    running.wait_log(rf"^waiting thief: {CLIENT6} \(neighbour table\) is outside 2001:db8:122::/64")
    assert not host.outside.fetch(THIEF_URL6).answered
    assert not added(running, "thief")
    is_sound(host, running)


@pytest.mark.in_turn
@each_libvirt
def test_an_address_of_ipv6_that_another_guest_showed_first(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", None, "2001:db8:122::/64")
    web = lxc_guest("web", Link("default", (f"{WEB6}/64",)))
    leave_it_to_the_daemon(host, web)
    host.place.fetch(f"http://[{WEB6}]/")
    thief = lxc_guest("thief", Link("default"))
    running = daemon(HEAD + WEB + THIEF)
    wait_until(lambda: host.outside.fetch(URL6).text == f"web {CLIENT6}", "the guest answers")
    claim6(thief, WEB6)
    running.wait_log(rf"^waiting thief: .*{WEB6} is claimed by both thief and web \(neighbour table\)")
    wait_until(lambda: not host.outside.fetch(URL6).answered, "the port is closed")
    assert not added(running, "thief")
    running.reload_with(HEAD + WEB + f'address = "{WEB6}"\n' + THIEF)
    running.wait_log(rf"^waiting thief: {WEB6} belongs to domain web \(configuration\)")
    wait_until(lambda: host.outside.fetch(URL6).text == f"web {CLIENT6}", "the address leads to it again")
    is_sound(host, running)


def flood(guest: LxcGuest, gateway: str, addresses: Sequence[str]) -> None:
    """Ask for the gateway from each of these addresses, which has the host take each for the guest's (RFC 826)."""
    mac = bytes.fromhex(guest.mac().replace(":", ""))
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)  # who has, by Ethernet and IPv4
    asked = bytes(6) + ip_address(gateway).packed
    with closing(open_socket(guest.place.namespace, socket.AF_PACKET, socket.SOCK_DGRAM)) as link:
        for address in addresses:
            link.sendto(head + mac + ip_address(address).packed + asked, ("eth0", 0x0806, 0, 0, b"\xff" * 6))
            time.sleep(0.01)


def reconciles(host: Host) -> int:
    """How often the daemon looked since its start."""
    lines = host.place.fetch(METRICS).text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("kvm_portfwd_reconciles_total"))


@pytest.mark.in_turn
@each_libvirt
def test_a_flood_of_addresses_makes_few_looks_and_holds_up_no_other_guest(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """Each packet is news, as the host has not seen that address yet; a domain that starts meanwhile is served.

    There are fewer than the kernel has places for in its one table for all hosts of the lab (gc_thresh3).
    """
    network("default", "10.122.0.0/16")
    thief = lxc_guest("thief", Link("default", ("10.122.0.2/16",)))
    web = lxc_guest("web", Link("default", ("10.122.0.3/16",)), start=False)
    running = daemon(HEAD + LISTEN + WEB + 'address = "10.122.0.3"\n')
    before = reconciles(host)
    addresses = [f"10.122.{part}.{last}" for part in range(1, 4) for last in range(1, 251)]
    flooding = threading.Thread(target=flood, args=(thief, "10.122.0.1", addresses))
    flooding.start()
    web.start()
    running.wait_log("^added web: tcp")
    flooding.join()
    assert reconciles(host) - before < len(addresses) // 4
    wait_until(lambda: host.outside.fetch(f"http://{PUBLIC4}:8000/").text == f"web {CLIENT4}", "the guest answers")
    is_sound(host, running)
