"""Guests that lie: to the DHCP server, by ARP and neighbour discovery, through their agent, and in great numbers.

Whatever one says, no port of another leads to it, none of its own leads to what it has no right to, and the daemon goes
on. What a guest may gain by being first is in test_claims.py.
"""

import json
from pathlib import Path

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, MakeQemuGuest, StartDaemon
from tests.host.conftest import HEAD, each_libvirt
from tests.lab.daemon import Daemon
from tests.lab.domain import Link, mac_of
from tests.lab.host import CLIENT4, CLIENT6, PUBLIC4, PUBLIC6, Host
from tests.lab.libvirt_client import Reservation
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

URL, THIEF_URL = f"http://{PUBLIC4}:8000/", f"http://{PUBLIC4}:8001/"
URL6 = f"http://[{PUBLIC6}]:8000/"
WEB = '[[forward]]\ndomain = "web"\nports = ["8000:80"]\n'
THIEF = '[[forward]]\ndomain = "thief"\nports = ["8001:80"]\n'
LATER = '[[forward]]\ndomain = "later"\nports = ["8002:80"]\n'
GATEWAY4, GATEWAY6, RESERVED4 = "192.168.122.1", "2001:db8:122::1", "192.168.122.77"
WEB6 = "2001:db8:122::10"
# libvirt's client reads no more leases of one network than this (REMOTE_NETWORK_DHCP_LEASES_MAX, less one).
MANY = 65_535
# About what they take once: what each look kept would soon be more.
MOST_GROWTH_KIB = 100_000


def added(running: Daemon, domain: str) -> list[str]:
    return [line.text for line in running.log_lines() if line.text.startswith(f"added {domain}")]


def is_sound(host: Host, running: Daemon) -> None:
    """See that the daemon runs on, says nothing but lines of text, and tells its status."""
    assert running.process.running
    assert not [line.text for line in running.log_lines() if not line.text.isprintable() or "Traceback" in line.text]
    done = host.run(host.python, "-m", "fwdaemon", "status", "--json", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    json.loads(done.stdout)


def as_web_or_nothing(host: Host) -> bool:
    """Whether the port of `web` leads to it; never does it lead to anybody else."""
    answer = host.outside.fetch(URL)
    assert not answer.answered or answer.text == f"web {CLIENT4}"
    return answer.answered


@each_libvirt
def test_a_dhcp_client_that_calls_itself_by_the_name_and_number_of_another(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """A DHCP server knows clients by what they call themselves, so it may give the address of one to another."""
    network("default", "192.168.122.0/24", dhcp=True)
    web = lxc_guest("web", Link("default", dhcp=True))
    web.lease()
    thief = lxc_guest("thief", Link("default"))
    running = daemon(HEAD + WEB + THIEF)
    wait_until(lambda: as_web_or_nothing(host), "the guest answers")
    number = f"0x3d:01{mac_of('web').replace(':', '')}"
    thief.take_lease("-C", "-x", number, "-x", "hostname:web")
    running.wait_log("^added thief: tcp")
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
    for called in ("a\nadded web: tcp", "\x1b[2J\x07", '"; } flush ruleset', "\\n\\", "x" * 200):
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
    thief.run("ip", "neighbour", "flush", "dev", "eth0")
    thief.place.udp(asked, 9, source=address, timeout=0.5)


@each_libvirt
def test_addresses_of_ipv6_that_belong_to_the_host_or_elsewhere(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", None, "2001:db8:122::/64")
    thief = lxc_guest("thief", Link("default"))
    running = daemon(HEAD + THIEF)
    for address, asked in ((CLIENT6, GATEWAY6), (PUBLIC6, GATEWAY6), (GATEWAY6, f"{GATEWAY6}0")):
        claim6(thief, address, asked)
        assert not host.outside.fetch(f"http://[{PUBLIC6}]:8001/").answered
    running.wait_log(rf"^waiting thief: {CLIENT6} \(neighbour table\) is outside 2001:db8:122::/64")
    assert not added(running, "thief")
    is_sound(host, running)


@each_libvirt
def test_an_address_of_ipv6_that_another_guest_showed_first(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", None, "2001:db8:122::/64")
    web = lxc_guest("web", Link("default", (f"{WEB6}/64",)))
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
    assert web.running
    is_sound(host, running)


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_an_agent_that_lies(
    host: Host, network: MakeNetwork, qemu_guest: MakeQemuGuest, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """An agent tells what its guest's interfaces have, and that is whatever the guest's root likes."""
    network("default", "192.168.122.0/24", reservations=[Reservation(mac_of("web"), RESERVED4)], dhcp=True)
    lxc_guest("web", Link("default", (f"{RESERVED4}/24",)))
    thief = qemu_guest("thief", Link("default"))
    thief.wait_up()
    for address in (f"{GATEWAY4}/24", f"{PUBLIC4}/24", f"{RESERVED4}/24", "127.0.0.9/8", "192.168.122.255/24"):
        thief.run("ip", "address", "add", address, "dev", "eth0")
    head = '[daemon]\nlibvirt = ["qemu:///system", "lxc:///system"]\n'
    running = daemon(head + WEB + THIEF)
    running.wait_log(r"^waiting thief: .*(belongs to|outside|no address|not a guest's)", timeout=30)
    wait_until(lambda: as_web_or_nothing(host), "the guest answers")
    # The MAC address of another interface makes no claim for that one.
    thief.run("ip", "link", "set", "dev", "eth0", "address", mac_of("web"))
    thief.renumber("192.168.122.66/24", GATEWAY4)
    thief.wait_up()
    running.reload()
    assert not added(running, "thief")
    is_sound(host, running)


_FLOOD = """
import json, pathlib, sys
number, many, bridge, mac = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
path = pathlib.Path("/var/lib/libvirt/dnsmasq", bridge + ".status")
real = json.loads(path.read_text())[-1:]
made = [
    {
        "ip-address": f"192.168.{index // 256}.{index % 256}",
        "mac-address": f"52:54:{number:02x}:ff:{index // 256:02x}:{index % 256:02x}",
        "hostname": f"a{index}",
        "client-id": f"ff:{index:08x}",
        "expiry-time": 4000000000 + index,
    }
    for index in range(many - 2)
]
made.append({"ip-address": f"192.168.200.{number}", "mac-address": mac, "expiry-time": 4000000000})
new = path.with_suffix(".new")
new.write_text(json.dumps([*made, *real]))
new.replace(path)
"""


def flood(host: Host, running: Daemon, number: int) -> int:
    """Write as many leases as can be, as dnsmasq's helper does; how much memory the daemon has then, in KiB.

    The last one is that of the web guest, the one before leads the guest `later` to another address each time.
    """
    host.run("python3", "-c", _FLOOD, str(number), str(MANY), host.libvirt.bridge("default"), mac_of("later"))
    running.wait_log(rf"^added later: tcp \*:8002 -> 192\.168\.200\.{number}:80 ", timeout=90)
    status = Path(f"/proc/{running.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_as_many_leases_as_libvirt_can_tell(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """Each guest is found among them, and what one look took is given back before the next."""
    network("default", "192.168.0.0/16", dhcp=True)
    lxc_guest("web", Link("default", dhcp=True)).lease()
    lxc_guest("later", Link("default"))
    running = daemon(HEAD + WEB + LATER)
    wait_until(lambda: as_web_or_nothing(host), "the guest answers")
    first = flood(host, running, 1)
    assert len(host.libvirt.leases("default")) == MANY
    last = [flood(host, running, number) for number in (2, 3)][-1]
    assert last - first < MOST_GROWTH_KIB
    assert as_web_or_nothing(host)
    is_sound(host, running)
