"""Routes to libvirt networks, on the real kernel."""

from functools import partial
from ipaddress import ip_interface
from pathlib import Path

import pytest

from fwdaemon.core.exposures import Route
from fwdaemon.core.report import ApplyResult, Setting
from fwdaemon.errors import KernelError
from fwdaemon.hostnet.owned_state import Ipv6Bridges, OwnedStateFile
from fwdaemon.hostnet.routing import RouteKeeper
from tests import sentences
from tests.kernel.links import Links
from tests.lab.limits import no_descriptors
from tests.lab.place import wait_until
from tests.unit.forwards import route

OURS = "203.0.113.64/29"
OURS6 = "2001:db8:1::/64"
NOTHING: frozenset[Route] = frozenset()
BOTH = frozenset({route(OURS), route(OURS6)})


def keeper(directory: Path) -> RouteKeeper:
    return RouteKeeper(Ipv6Bridges(partial(OwnedStateFile, directory=directory)))


def shown(links: Links) -> str:
    return links.told("-details", "route", "show", "table", "all") + links.told("-6", "route", "show", "table", "all")


def assign(links: Links, address: str, interface: str) -> None:
    """Give the host an address; of one of IPv6, the kernel adds the last route a little later."""
    links.host.ip(f"address add {address} dev {interface}")
    first = ip_interface(address).network.network_address
    last = f"anycast {first} dev {interface} " if first.version == 6 else ""
    wait_until(lambda: last in shown(links), f"all routes of {address} are there")


def setting(links: Links, name: str) -> str:
    return links.host.run("sysctl", "-n", f"net.ipv6.conf.virbr1.{name}").strip()


def test_routes_come_and_go(links: Links, tmp_path: Path) -> None:
    links.guest.ip("address add 203.0.113.66/32 dev eth0", "address add 2001:db8:1::66/128 dev eth0")
    before, kept = shown(links), keeper(tmp_path)
    assert kept.apply(BOTH) == ApplyResult(mended=BOTH, changed=True)
    assert "203.0.113.64/29 dev virbr1 " in links.told("route", "show", "proto", "107")
    assert links.host.pings("203.0.113.66")
    assert links.host.pings("2001:db8:1::66")
    assert kept.apply(BOTH) == ApplyResult()
    assert kept.apply(NOTHING) == ApplyResult(changed=True)
    assert shown(links) == before


def test_a_bridge_needs_no_guest(links: Links, tmp_path: Path) -> None:
    links.host.ip("link del vnet0")
    kept = keeper(tmp_path)
    assert kept.apply(BOTH) == ApplyResult(mended=BOTH, changed=True)
    assert kept.apply(BOTH) == ApplyResult()


def test_nothing_is_asked_while_nothing_is_wanted(links: Links, tmp_path: Path) -> None:
    del links
    kept = keeper(tmp_path)
    kept.apply(NOTHING)
    with no_descriptors():
        assert kept.apply(NOTHING) == ApplyResult()
        with pytest.raises((KernelError, OSError)):
            kept.apply(NOTHING, full=True)


def test_a_flush_is_mended(links: Links, tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    kept.apply(BOTH)
    links.host.run("ip", "route", "flush", "proto", "107")
    damaged = frozenset({route(OURS)})
    assert kept.apply(BOTH) == ApplyResult(mended=damaged, damaged=damaged, changed=True)
    assert kept.apply(BOTH) == ApplyResult()


def test_what_an_earlier_run_left_goes_and_what_is_wanted_stays(links: Links, tmp_path: Path) -> None:
    before = shown(links)
    keeper(tmp_path).apply(BOTH)
    later = keeper(tmp_path)
    left = frozenset({f"route {OURS6}"})
    assert later.apply(frozenset({route(OURS)})) == ApplyResult(stale=left, changed=True)
    assert keeper(tmp_path).apply(NOTHING) == ApplyResult(stale=frozenset({f"route {OURS}"}), changed=True)
    assert shown(links) == before


def test_a_network_with_another_bridge(links: Links, tmp_path: Path) -> None:
    links.host.ip("link add virbr2 type bridge", "link set virbr2 up")
    kept = keeper(tmp_path)
    kept.apply(frozenset({route(OURS)}))
    moved = frozenset({route(OURS, "virbr2")})
    assert kept.apply(moved) == ApplyResult(mended=moved, changed=True)
    assert "dev virbr2" in links.told("route", "show", OURS)


@pytest.mark.parametrize("subnet", [OURS, OURS6])
@pytest.mark.parametrize("metric", ["", "metric 5", "metric 5000"])
def test_a_route_of_somebody_else_is_left_and_told(links: Links, tmp_path: Path, subnet: str, metric: str) -> None:
    links.host.ip(f"route add {subnet} dev eth0 proto static {metric}")
    before, kept = shown(links), keeper(tmp_path)
    result = kept.apply(frozenset({route(subnet)}))
    (fault,) = sentences.faults(result)
    assert result == ApplyResult(
        faults=result.faults, refused=tuple((route(subnet), each) for _, each in result.refused)
    )
    assert tuple(each for _, each in result.refused) == result.faults
    assert fault.startswith(
        f"{subnet} is not routed to network public: it is already routed to eth0 by another program"
    )
    assert fault.endswith("(protocol static): remove that route")
    assert kept.apply(NOTHING) == ApplyResult()
    assert shown(links) == before
    links.host.ip(f"route del {subnet} dev eth0")
    assert kept.apply(frozenset({route(subnet)})).changed


def test_a_subnet_that_somebody_refuses_is_left_so(links: Links, tmp_path: Path) -> None:
    links.host.ip(f"route add blackhole {OURS}", f"route add unreachable {OURS6}")
    before, kept = shown(links), keeper(tmp_path)
    faults = sentences.faults(kept.apply(BOTH))
    assert [fault.split()[0] for fault in faults] == [OURS6, OURS]
    assert all("remove that" in fault for fault in faults)
    kept.apply(NOTHING)
    assert shown(links) == before


@pytest.mark.parametrize("subnet", [OURS, OURS6])
def test_a_route_of_somebody_else_to_the_same_bridge_will_do(links: Links, tmp_path: Path, subnet: str) -> None:
    links.host.ip(f"route add {subnet} dev virbr1")
    before, kept, wanted = shown(links), keeper(tmp_path), frozenset({route(subnet)})
    assert kept.apply(wanted) == ApplyResult()
    assert shown(links) == before
    links.host.ip(f"route del {subnet} dev virbr1")
    assert kept.apply(wanted) == ApplyResult(mended=wanted, changed=True)


@pytest.mark.parametrize(("subnet", "address"), [(OURS, "203.0.113.65/29"), (OURS6, "2001:db8:1::2/64")])
def test_a_subnet_that_is_on_another_link_is_told(links: Links, tmp_path: Path, subnet: str, address: str) -> None:
    assign(links, address, "eth0")
    before, kept = shown(links), keeper(tmp_path)
    (fault,) = sentences.faults(kept.apply(frozenset({route(subnet)})))
    assert "already routed to eth0 by another program (protocol kernel)" in fault
    assert shown(links) == before


@pytest.mark.parametrize(("subnet", "address"), [(OURS, "203.0.113.65/29"), (OURS6, "2001:db8:1::1/64")])
def test_a_subnet_of_the_bridge_itself_needs_no_route(links: Links, tmp_path: Path, subnet: str, address: str) -> None:
    assign(links, address, "virbr1")
    before, kept = shown(links), keeper(tmp_path)
    assert kept.apply(frozenset({route(subnet)})) == ApplyResult()
    assert shown(links) == before


def test_a_route_of_somebody_else_that_comes_first_is_told(links: Links, tmp_path: Path) -> None:
    kept, wanted = keeper(tmp_path), frozenset({route(OURS6)})
    kept.apply(wanted)
    links.host.ip(f"route add {OURS6} dev eth0 metric 5")
    (fault,) = sentences.faults(kept.apply(wanted))
    assert "already routed to eth0 by another program (protocol boot)" in fault
    links.host.ip(f"route del {OURS6} dev eth0 metric 5")
    assert kept.apply(wanted) == ApplyResult()


def test_an_address_of_the_host_itself_is_no_route(links: Links, tmp_path: Path) -> None:
    (fault,) = sentences.faults(keeper(tmp_path).apply(frozenset({route("198.51.100.1/32")})))
    assert fault == "198.51.100.1/32 is not routed to network public: it is an address of this host"
    assert "proto 107" not in shown(links)


def test_a_bridge_that_is_not_there_or_down_is_told_and_its_return_mends(links: Links, tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    kept.apply(BOTH)
    links.host.ip("link set virbr1 down")
    assert [fault.split(":")[-1] for fault in sentences.faults(kept.apply(frozenset({route(OURS)})))] == [
        " Device for nexthop is not up"
    ]
    links.host.ip("link del virbr1")
    assert all(fault.endswith("there is no bridge virbr1") for fault in sentences.faults(kept.apply(BOTH)))
    links.host.ip("link add virbr1 type bridge", "link set virbr1 up")
    assert kept.apply(BOTH) == ApplyResult(mended=BOTH, changed=True)


@pytest.mark.parametrize("bridge", ["", "..", "../eth0", "all", "a b", "x" * 300, "nul\0", "--help", "virbr\n1"])
def test_a_hostile_bridge_is_a_fault(links: Links, tmp_path: Path, bridge: str) -> None:
    before, kept = shown(links), keeper(tmp_path)
    result = kept.apply(frozenset({route(OURS6, bridge), route(OURS)}))
    assert result.mended == {route(OURS)}
    assert result.faults
    assert all(fault.isprintable() for fault in sentences.faults(result))
    kept.apply(NOTHING)
    assert shown(links) == before


def test_ipv6_is_switched_on_for_a_bridge_that_has_none(links: Links, tmp_path: Path) -> None:
    links.host.sysctl("ipv6.conf.virbr1.disable_ipv6=1")
    links.guest.ip("address add 2001:db8:1::66/128 dev eth0")
    kept = keeper(tmp_path)
    assert kept.apply(BOTH).faults == ()
    assert setting(links, "disable_ipv6") == "0"
    wait_until(lambda: links.host.pings("2001:db8:1::66"), "the bridge can use its new address, and the guest answers")
    # Only the route of IPv6 needs it, and a later run knows that it was off.
    assert keeper(tmp_path).apply(frozenset({route(OURS)})).changed
    assert setting(links, "disable_ipv6") == "1"


def test_ipv6_is_switched_on_again(links: Links, tmp_path: Path) -> None:
    links.host.sysctl("ipv6.conf.virbr1.disable_ipv6=1")
    kept = keeper(tmp_path)
    kept.apply(BOTH)
    links.host.sysctl("ipv6.conf.virbr1.disable_ipv6=1")
    lost, opened = frozenset({route(OURS6)}), (Setting("net.ipv6.conf.virbr1.disable_ipv6 = 0", restored=True),)
    assert kept.apply(BOTH) == ApplyResult(mended=lost, damaged=lost, changed=True, settings=opened)
    kept.apply(NOTHING)
    assert setting(links, "disable_ipv6") == "1"


@pytest.mark.parametrize(
    ("subnet", "bend"),
    [
        (OURS, "route replace {} dev virbr1 proto 107 scope link mtu 600"),
        (OURS, "route replace {} via 192.168.123.60 dev virbr1 proto 107"),
        (OURS, "route replace blackhole {} proto 107"),
        (OURS, "route replace {} dev eth0 proto 107 scope link"),
        (OURS, "route replace {} dev virbr1 proto 107 scope link src 198.51.100.1"),
        (OURS, "route add {} dev virbr1 proto 107 scope link metric 7"),
        (OURS, "route add {} dev virbr1 proto 107 scope link tos 8"),
        (OURS6, "route replace {} dev virbr1 proto 107 mtu 1400"),
        (OURS6, "route replace {} via fe80::9 dev virbr1 proto 107"),
        (OURS6, "route replace {} dev virbr1 proto 107 expires 600"),
        (OURS6, "route add {} dev virbr1 proto 107 metric 7"),
    ],
)
def test_a_route_of_ours_that_was_changed_is_put_back(links: Links, tmp_path: Path, subnet: str, bend: str) -> None:
    def of_ours() -> list[str]:
        version = "-6" if ":" in subnet else "-4"
        lines = links.told(version, "-details", "route", "show", "table", "all", "proto", "107").splitlines()
        return [" ".join(line.split()) for line in lines]

    kept, wanted = keeper(tmp_path), frozenset({route(subnet)})
    kept.apply(wanted)
    before = of_ours()
    links.host.ip(bend.format(subnet))
    assert of_ours() != before
    bent = kept.apply(wanted)
    assert bent.changed
    assert of_ours() == before
    assert kept.apply(wanted) == ApplyResult()
    links.host.ip(bend.format(subnet))
    assert keeper(tmp_path).apply(wanted).stale == frozenset()
    assert of_ours() == before


def test_guests_on_it_are_heard_as_routers_no_more_than_before(links: Links, tmp_path: Path) -> None:
    links.host.sysctl("ipv6.conf.virbr1.accept_ra=2", "ipv6.conf.virbr1.disable_ipv6=1")
    kept = keeper(tmp_path)
    kept.apply(BOTH)
    assert setting(links, "accept_ra") == "0"
    kept.apply(NOTHING)
    assert setting(links, "accept_ra") == "2"


def test_ipv6_that_is_on_stays_as_it_is(links: Links, tmp_path: Path) -> None:
    links.host.sysctl("ipv6.conf.virbr1.accept_ra=2")
    kept = keeper(tmp_path)
    kept.apply(BOTH)
    assert setting(links, "accept_ra") == "2"
    kept.apply(NOTHING)
    assert setting(links, "disable_ipv6") == "0"


def test_a_bridge_gets_a_link_local_address(links: Links, tmp_path: Path) -> None:
    links.host.sysctl("ipv6.conf.virbr1.addr_gen_mode=1", "ipv6.conf.virbr1.disable_ipv6=1")
    kept = keeper(tmp_path)
    kept.apply(BOTH)
    kept.apply(BOTH)
    assert "inet6 fe80::" in links.told("address", "show", "virbr1")
    kept.apply(NOTHING)
    assert setting(links, "addr_gen_mode") == "1"
    assert "inet6" not in links.told("address", "show", "virbr1")
