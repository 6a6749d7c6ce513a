"""Whatever others change of what we set on the host is put back and reported, also if changed while we were away."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pytest

from tests.host.conftest import Scene, each_backend, entry
from tests.lab.daemon import Daemon
from tests.lab.host import Host
from tests.lab.place import wait_until

pytestmark = each_backend

PUBLIC4, PUBLIC6 = "198.51.100.8", "2001:db8::88"
PREFIX4, PREFIX6, BARE6 = "203.0.113.64/29", "2001:db8:64::40/125", "2001:db8:65::/64"
ROUTED4, ROUTED6 = "203.0.113.66", "2001:db8:64::42"
HEAD = '[daemon]\nlibvirt = ["lxc:///system"]\nresync = "1s"\n'
ENTRIES = (
    entry("web", "8000:80", "WEB4")
    + entry("web", "8000:80", "WEB6")
    + f'[[nat]]\ndomain = "far"\naddress = "FAR4"\npublic = "{PUBLIC4}"\nassign = "eth0"\n'
    + f'[[nat]]\ndomain = "far"\naddress = "FAR6"\npublic = "{PUBLIC6}"\nassign = "eth0"\n'
    + f'[[route]]\nnetwork = "other"\naddresses = ["{PREFIX4}", "{PREFIX6}"]\nproxy = "eth0"\n'
    + f'[[route]]\nnetwork = "bare"\naddresses = ["{BARE6}"]\n'
)
# libvirt gives guests their ports by number.
FIRST_PORT = "$(ls /sys/class/net/BRIDGE/brif | head -n 1)"


@dataclass(frozen=True, slots=True)
class Bend:
    """What bends one thing we set; `look` shows it, and `told` is the line about its repair."""

    what: str
    bend: str
    look: str
    told: str

    @property
    def about(self) -> str:
        """What it bends: the host's forwarding is that of all its interfaces."""
        return self.what[:8] if self.what.endswith(("forward", "forwarding")) else self.told


def sysctl(name: str, value: str = "0", ours: str = "1") -> Bend:
    """Bend a sysctl."""
    return Bend(name, f"sysctl -w {name}={value}", f"sysctl -n {name}", rf"{name} = {ours}")


_ADDRESSES = "ip -details address show dev eth0 | sed 's/[0-9]*sec/some/g'"
_ROUTES4, _ROUTES6 = "ip -details route show proto 107", "ip -6 -details route show proto 107"
_PROXIES4, _PROXIES6 = "ip neighbour show proxy | sort", "ip -6 neighbour show proxy | sort"
_HAIRPIN = f"cat /sys/class/net/{FIRST_PORT}/brport/hairpin_mode"
_ROUTE4, _ROUTE6 = f"network other: route {PREFIX4}", f"network other: route {PREFIX6}"
_NAT4, _NAT6 = f"far: all of {PUBLIC4}", f"far: all of {PUBLIC6}"

BENDS = (
    sysctl("net.ipv4.ip_forward"),
    sysctl("net.ipv6.conf.all.forwarding"),
    sysctl("net.ipv4.conf.BRIDGE.forwarding"),
    sysctl("net.ipv4.conf.eth0.forwarding"),
    sysctl("net.ipv6.conf.BRIDGE.forwarding"),
    sysctl("net.ipv6.conf.eth0.forwarding"),
    sysctl("net.ipv6.conf.eth0.proxy_ndp"),
    sysctl("net.ipv6.conf.BARE.disable_ipv6", "1", "0"),
    sysctl("net.ipv6.conf.BARE.accept_ra", "2", "0"),
    sysctl("net.ipv6.conf.BARE.addr_gen_mode", "1", "0"),
    Bend("hairpin", f"bridge link set dev {FIRST_PORT} hairpin off", _HAIRPIN, "hairpin mode of bridge port "),
    Bend("route", f"ip route del {PREFIX4} proto 107", _ROUTES4, _ROUTE4),
    Bend("route of IPv6", f"ip route del {PREFIX6} proto 107", _ROUTES6, _ROUTE6),
    Bend("metric", f"ip route change {PREFIX4} dev OTHER proto 107 scope link mtu 600", _ROUTES4, _ROUTE4),
    Bend("metric of IPv6", f"ip route change {PREFIX6} dev OTHER proto 107 mtu 1400", _ROUTES6, _ROUTE6),
    Bend("gateway", f"ip route change {PREFIX4} via 192.168.123.10 proto 107", _ROUTES4, _ROUTE4),
    Bend("blackhole", f"ip route replace blackhole {PREFIX4} proto 107", _ROUTES4, _ROUTE4),
    Bend("address", f"ip address del {PUBLIC4}/32 dev eth0", _ADDRESSES, _NAT4),
    Bend("address of IPv6", f"ip address del {PUBLIC6}/128 dev eth0", _ADDRESSES, _NAT6),
    Bend("lifetime", f"ip address change {PUBLIC4}/32 dev eth0 valid_lft 600 preferred_lft 60", _ADDRESSES, _NAT4),
    Bend("deprecated", f"ip address change {PUBLIC6}/128 dev eth0 preferred_lft forever", _ADDRESSES, _NAT6),
    Bend("proxy", "ip neighbour del proxy 203.0.113.66 dev eth0", _PROXIES4, _ROUTE4),
    Bend("proxy of IPv6", "ip neighbour del proxy 2001:db8:64::42 dev eth0", _PROXIES6, _ROUTE6),
    Bend("flag", "ip neighbour replace proxy 2001:db8:64::42 dev eth0 router", _PROXIES6, _ROUTE6),
)


def rounds(bends: Iterable[Bend]) -> list[tuple[Bend, ...]]:
    """Part them so that no two of a round are about the same thing."""
    found: list[dict[str, Bend]] = []
    for bend in bends:
        free = next((one for one in found if bend.about not in one), None)
        if free is None:
            found.append(free := {})
        free[bend.about] = bend
    return [tuple(one.values()) for one in found]


ROUNDS = rounds(BENDS)


@dataclass(frozen=True, slots=True)
class Bendable:
    """A host with everything on it that we set."""

    host: Host
    start: Callable[[], Daemon]

    def shell(self, text: str) -> str:
        """Run a line on the host, with the names of the bridges filled in."""
        return self.host.run("sh", "-c", filled(self.host, text)).stdout

    def settled(self, bend: Bend) -> str:
        """What is to be seen once all is set."""
        wait_until(lambda: self.shell(_HAIRPIN) == "1\n", "hairpin mode, which comes last, is on")
        wait_until(lambda: "" not in map(self.shell, (_PROXIES4, _PROXIES6)), "the guest is found and answered for")
        return self.shell(bend.look)

    def awaits(self, bend: Bend, before: str) -> None:
        """Wait until it looks as it did before."""
        wait_until(lambda: self.shell(bend.look) == before, f"{bend.what} is as before")


@pytest.fixture(scope="module")
def bare(module_host: Host) -> Iterator[str]:
    """The bridge of a network without IPv6."""
    libvirt = module_host.libvirt
    libvirt.define_network("bare", "192.168.124.0/24")
    yield libvirt.bridge("bare")
    libvirt.remove_network("bare")


@pytest.fixture
def bendable(shared_scene: Scene, bare: str) -> Iterator[Bendable]:
    host = shared_scene.host
    host.run("sysctl", "-w", *(f"net.ipv6.conf.{bare}.{name}=1" for name in ("disable_ipv6", "addr_gen_mode")))
    switches = "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"
    for name in switches:
        host.run("sysctl", "-w", f"{name}=1")
    for address in (ROUTED4, ROUTED6):
        shared_scene.far.run("ip", "address", "replace", address, "dev", "eth0")
    yield Bendable(host, lambda: shared_scene.daemon(ENTRIES, HEAD))
    for address in (f"{ROUTED4}/32", f"{ROUTED6}/128"):
        shared_scene.far.run("ip", "address", "del", address, "dev", "eth0")
    for name in switches:
        host.run("sysctl", "-w", f"{name}=0")


def filled(host: Host, text: str) -> str:
    for name, network in (("BRIDGE", "default"), ("OTHER", "other"), ("BARE", "bare")):
        text = text.replace(name, host.libvirt.bridge(network))
    return text


@pytest.mark.in_turn
@pytest.mark.parametrize("bends", ROUNDS, ids=lambda bends: "+".join(bend.what for bend in bends))
def test_what_is_bent_is_put_back_and_told(bendable: Bendable, bends: tuple[Bend, ...]) -> None:
    daemon = bendable.start()
    for bend in bends:
        before, start = bendable.settled(bend), len(daemon.log_lines())
        bendable.shell(bend.bend)
        daemon.wait_log(f"^restored {filled(bendable.host, bend.told)}", start=start)
        bendable.awaits(bend, before)


@pytest.mark.in_turn
@pytest.mark.parametrize("bends", ROUNDS, ids=lambda bends: "+".join(bend.what for bend in bends))
def test_what_was_bent_while_nobody_ran_is_put_back_and_told(bendable: Bendable, bends: tuple[Bend, ...]) -> None:
    daemon = bendable.start()
    before = [bendable.settled(bend) for bend in bends]
    daemon.terminate()
    for bend, as_set in zip(bends, before, strict=True):
        bendable.shell(bend.bend)
        assert bendable.shell(bend.look) != as_set
    later = bendable.start()
    for bend, as_set in zip(bends, before, strict=True):
        later.wait_log(f"^(restored|added|set) {filled(bendable.host, bend.told)}")
        bendable.awaits(bend, as_set)


@pytest.mark.in_turn
def test_a_guest_with_the_port_of_an_earlier_one_gets_hairpin_mode_too(bendable: Bendable, shared_scene: Scene) -> None:
    """The record says that a port of this name is ours; the kernel says that it is not in hairpin mode."""
    daemon = bendable.start()
    wait_until(lambda: bendable.shell(_HAIRPIN) == "1\n", "hairpin mode is on")
    daemon.terminate()
    shared_scene.web.stop()
    shared_scene.web.start()
    port = bendable.host.libvirt.virsh("domiflist", "web").split()[0]
    assert bendable.shell(f"cat /sys/class/net/{port}/brport/hairpin_mode") == "0\n"
    bendable.start().wait_log(f"^(set|restored) hairpin mode of bridge port {port}")
    assert bendable.shell(f"cat /sys/class/net/{port}/brport/hairpin_mode") == "1\n"


@pytest.mark.in_turn
def test_interfaces_are_put_back_with_the_last_exposure(bendable: Bendable) -> None:
    name = filled(bendable.host, "net.ipv4.conf.BRIDGE.forwarding")
    bendable.host.run("sysctl", "-w", f"{name}=0")
    daemon = bendable.start()
    daemon.wait_log(f"^set {name} = 1: forwards need it")
    daemon.reload_with(HEAD)
    wait_until(lambda: bendable.shell(f"sysctl -n {name}") == "0\n", "it is off, as it was")
    bendable.host.run("sysctl", "-w", f"{name}=1")
