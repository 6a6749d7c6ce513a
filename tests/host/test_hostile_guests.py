"""Guests that lie to the DHCP server and by neighbour discovery.

Whatever one says, no port of another leads to it, none of its own leads to what it has no right to, and the daemon goes
on. What a guest may gain by being first is in test_claims.py, by taking over an address in test_usurpers.py; lies of
agents and in leases have modules of their own.
"""

import re

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD, WEB6, each_libvirt
from tests.host.hostile import (
    GATEWAY6,
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
from tests.lab.host import CLIENT4, CLIENT6, PUBLIC6, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until

URL6, THIEF_URL6 = f"http://[{PUBLIC6}]:8000/", f"http://[{PUBLIC6}]:8001/"


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
    # An address from elsewhere brings no route to the host, and its router may not have told the guest of one yet.
    thief.run("ip", "route", "replace", asked, "dev", "eth0")
    thief.run("ip", "neighbour", "flush", "dev", "eth0")
    thief.place.udp(asked, 9, source=address, timeout=0.5)


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
