"""Leases that lie: what libvirt reports of its DHCP servers is believed no further than what a guest says of itself."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD
from tests.host.hostile import (
    GATEWAY4,
    GATEWAY6,
    LISTEN,
    NAMES,
    RESERVED4,
    THIEF,
    THIEF_URL,
    WEB,
    WORD,
    added,
    as_web_or_nothing,
    everything_told,
    is_sound,
)
from tests.lab.daemon import Daemon
from tests.lab.domain import Link, mac_of
from tests.lab.host import CLIENT4, CLIENT6, PUBLIC4, PUBLIC4_SECOND, PUBLIC6, Host
from tests.lab.libvirt_client import Reservation
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

LATER = '[[forward]]\ndomain = "later"\nports = ["8002:80"]\n'
OWN4 = "192.168.122.66"
HOST, OUTSIDE, SPECIAL, ITSELF = (
    "belongs to the host",
    r"\(DHCP lease\) is outside .*, the guest's own network",
    r"\(DHCP lease\) is no address a guest can be reached at",
    "is not a guest's address but that of .* itself",
)
REFUSED = {
    GATEWAY4: HOST,
    PUBLIC4: HOST,
    PUBLIC4_SECOND: HOST,
    RESERVED4: r"belongs to domain web \(DHCP reservation\)",
    CLIENT4: OUTSIDE,
    "255.255.255.255": OUTSIDE,
    "192.168.122.0": ITSELF,
    "192.168.122.255": ITSELF,
    "224.0.0.5": SPECIAL,
    "0.0.0.0": SPECIAL,  # noqa: S104  nothing is bound to it
    "127.0.0.1": HOST,
    "127.0.0.9": SPECIAL,
    GATEWAY6: HOST,
    PUBLIC6: HOST,
    CLIENT6: OUTSIDE,
    "2001:db8:122::": ITSELF,
    "ff02::1": SPECIAL,
    "::": SPECIAL,
    "::1": HOST,
}
# Link-local ones, and what is none at all.
NO_ADDRESSES = ("169.254.3.4", "fe80::1", "fe80::1%eth0", "192.168.122.999", "", "\x1b[2J\n", "x" * 200)
# libvirt's client reads no more leases of one network than this (REMOTE_NETWORK_DHCP_LEASES_MAX, less one).
MANY = 65_535
# How much more the daemon may have when they are gone. 5 to 11 MiB were seen, in pieces that are used again.
# To keep what was read of one flood takes about 30.
MOST_KEPT_KIB = 24_000


def lease(mac: str, address: str, name: str = "guest") -> dict[str, object]:
    """A lease as libvirt's helper of dnsmasq writes it."""
    more = {"hostname": name, "client-id": name, "expiry-time": 4_000_000_000}
    return {"ip-address": address, "mac-address": mac, **more}


def lease_file(host: Host) -> str:
    return f"/var/lib/libvirt/dnsmasq/{host.libvirt.bridge('default')}.status"


def write(host: Host, *leases: dict[str, object]) -> None:
    """Replace the leases, as that helper does."""
    path = lease_file(host)
    host.write(f"{path}.new", json.dumps(leases))
    host.run("mv", f"{path}.new", path)


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_leases_of_addresses_that_no_guest_can_have(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    reserved = [Reservation(mac_of("web"), RESERVED4)]
    network("default", "192.168.122.0/24", "2001:db8:122::/64", dhcp=True, reservations=reserved)
    lxc_guest("web", Link("default", (f"{RESERVED4}/24",)))
    thief, later = lxc_guest("thief", Link("default")), lxc_guest("later", Link("default"))
    # None has an address of its own, which would be as good as any once it is asked for, nor makes one of the prefix.
    for guest in (thief, later):
        guest.run("sysctl", "-w", "net.ipv6.conf.eth0.disable_ipv6=1")
    running = daemon(HEAD + WEB + THIEF + LATER)
    wait_until(lambda: as_web_or_nothing(host), "the guest answers")
    for number, (address, reason) in enumerate(REFUSED.items()):
        write(host, lease(thief.mac(), address, NAMES[number % len(NAMES)]))
        running.wait_log(f"^waiting thief: {re.escape(address)} {reason}")
    for address in NO_ADDRESSES:
        for written, reason in ((GATEWAY4, GATEWAY4), (address, "no address yet")):
            before = len(running.log_lines())
            write(host, lease(thief.mac(), written))
            running.wait_log(f"^waiting thief: {reason}", start=before)
    write(host, lease(thief.mac(), "192.168.122.88"), lease(later.mac(), "192.168.122.88"))
    for name in ("thief", "later"):
        running.wait_log(rf"^waiting {name}: 192\.168\.122\.88 is claimed by both later and thief \(DHCP lease\)")
    assert not added(running, "thief")
    assert not host.outside.fetch(THIEF_URL).answered
    thief.run("ip", "address", "add", f"{OWN4}/24", "dev", "eth0")
    thief.run("ip", "route", "add", "default", "via", GATEWAY4)
    write(host, lease(thief.mac(), OWN4))
    running.wait_log(f"^added thief: .* -> {OWN4}:80 ")
    wait_until(lambda: host.outside.fetch(THIEF_URL).text == f"thief {CLIENT4}", "a lease that may be is believed")
    assert as_web_or_nothing(host)
    assert not [line.text for line in running.log_lines() if line.text.startswith("removed")]
    is_sound(host, running)


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_names_in_leases_are_told_nowhere(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """Here they are in what libvirt reads, past dnsmasq, which drops most of them."""
    network("default", "192.168.122.0/24", dhcp=True)
    lxc_guest("web", Link("default", (f"{OWN4}/24",)))
    running = daemon(HEAD + LISTEN + WEB)
    others = [
        lease(f"52:54:00:ff:ff:{number:02x}", f"192.168.122.{number}", name) for number, name in enumerate(NAMES, 90)
    ]
    write(host, lease(mac_of("web"), OWN4, NAMES[0]), *others)
    wait_until(lambda: as_web_or_nothing(host), "the guest answers")
    with host.libvirt.connection() as connection:
        # libvirt.py says that a lease is a string; it is a dictionary.
        leases: list[Any] = list(connection.networkLookupByName("default").DHCPLeases())
    assert {told["hostname"] for told in leases} == set(NAMES)
    assert WORD not in everything_told(host, running)


def flood(host: Host, running: Daemon, number: int, real: list[dict[str, object]]) -> None:
    """Write as many leases as can be, with the real ones behind them, and wait until the daemon has read them.

    The last of the others leads the guest `later` to another address each time.
    """
    made = [
        lease(f"52:54:{number:02x}:ff:{index // 256:02x}:{index % 256:02x}", f"192.168.{index // 256}.{index % 256}")
        for index in range(MANY - len(real) - 1)
    ]
    write(host, *made, lease(mac_of("later"), f"192.168.200.{number}"), *real)
    running.wait_log(rf"^added later: tcp \*:8002 -> 192\.168\.200\.{number}:80 ", timeout=90)


def memory(running: Daemon) -> int:
    """How much memory the daemon has, in KiB."""
    status = Path(f"/proc/{running.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_as_many_leases_as_libvirt_can_tell(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """Each guest is found among them, and what they took is given back when they are gone."""
    network("default", "192.168.0.0/16", dhcp=True)
    lxc_guest("web", Link("default", dhcp=True)).lease()
    lxc_guest("later", Link("default"))
    running = daemon(HEAD + WEB + LATER)
    wait_until(lambda: as_web_or_nothing(host), "the guest answers")
    before = memory(running)
    real = json.loads(host.read(lease_file(host)))
    for number in (1, 2, 3):
        flood(host, running, number, real)
    assert len(host.libvirt.leases("default")) == MANY
    write(host, *real)
    running.wait_log(r"^removed later: tcp \*:8002 -> 192\.168\.200\.3:80 ", timeout=90)
    wait_until(lambda: memory(running) < before + MOST_KEPT_KIB, "what they took is given back")
    assert as_web_or_nothing(host)
    is_sound(host, running)
