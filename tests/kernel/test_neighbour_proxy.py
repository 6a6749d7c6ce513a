"""Answers for routed addresses on the uplink, on the real kernel, to a real neighbour."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from fwdaemon.core.exposures import Route
from fwdaemon.core.report import ApplyResult, Setting
from fwdaemon.core.state import Proxied
from fwdaemon.errors import KernelError
from fwdaemon.hostnet.neighbour_proxy import Duty, Listener, NeighbourProxies, Turns
from fwdaemon.hostnet.owned_state import OwnedStateFile
from fwdaemon.kernel.process import budget_of_guests
from tests import sentences
from tests.kernel.asker import Asker
from tests.kernel.links import Links
from tests.lab.limits import no_descriptors
from tests.lab.netns import open_socket
from tests.lab.place import wait_until
from tests.unit.forwards import route
from tests.unit.nd_packets import group, solicitation, source_option

NARROW, NARROW6, WIDE = "203.0.113.64/29", "2001:db8:5::40/125", "2001:db8:1::/64"
GUEST, GUEST6, GUEST_IN_WIDE = "203.0.113.66", "2001:db8:5::42", "2001:db8:1::66"
GUESTS = (GUEST, GUEST6, GUEST_IN_WIDE)
NOBODY, NOBODY6, NOBODY_IN_WIDE = "203.0.113.67", "2001:db8:5::43", "2001:db8:1::67"
NOTHING: frozenset[Route] = frozenset()
NO_ADDRESS: frozenset[Proxied] = frozenset()
NARROW_ROUTE, NARROW6_ROUTE, WIDE_ROUTE = (route(subnet, proxy="eth0") for subnet in (NARROW, NARROW6, WIDE))
ALL = frozenset({NARROW_ROUTE, NARROW6_ROUTE, WIDE_ROUTE})

Make = Callable[[], NeighbourProxies]


def shown_by_guests(*addresses: str) -> frozenset[Proxied]:
    """Those that guests behind the bridge have, each with the route that covers it."""
    return frozenset(
        Proxied(one, ip_address(address))
        for address in addresses
        for one in ALL
        if one.subnet.version == ip_address(address).version and ip_address(address) in one.subnet
    )


SHOWN = shown_by_guests(*GUESTS)


@pytest.fixture
def links(links: Links) -> Links:
    links.host.ip(*(f"route add {subnet} dev virbr1" for subnet in (NARROW, NARROW6, WIDE)))
    links.guest.ip(*(f"address add {address} dev eth0" for address in GUESTS))
    links.neighbour.ip(*(f"route add {subnet} dev eth0" for subnet in (NARROW, NARROW6, WIDE)))
    return links


@pytest.fixture
def make(links: Links, tmp_path: Path) -> Iterator[Make]:
    """Give runs of the program, one after the other, which end with the test."""
    del links
    runs: list[NeighbourProxies] = []

    def make() -> NeighbourProxies:
        runs.append(NeighbourProxies(OwnedStateFile("proxy-ndp", tmp_path)))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


def shown(links: Links) -> str:
    settings = links.host.run("sysctl", "-a", "--pattern", "proxy")
    link = links.host.run("ip", "-details", "link", "show", "eth0")
    return f"{entries(links)}\n{settings}\n{link}"


def entries(links: Links) -> str:
    return links.told("neighbour", "show", "proxy") + links.told("-6", "neighbour", "show", "proxy")


def known(links: Links, address: str) -> str:
    """What the host's neighbour table says of an address on the bridge."""
    return links.told("neighbour", "show", "to", address, "dev", "virbr1")


@pytest.fixture
def asker(links: Links) -> Iterator[Asker]:
    asker = Asker(links)
    yield asker
    asker.close()


def test_guests_here_are_reached_by_a_neighbour_and_nobody_else_is_answered_for(links: Links, make: Make) -> None:
    assert not links.neighbour.pings(GUEST_IN_WIDE)
    before, kept = shown(links), make()
    heeded = (Setting("net.ipv6.conf.eth0.proxy_ndp = 1", restored=False),)
    assert kept.apply(ALL, SHOWN) == ApplyResult(mended=ALL, changed=True, settings=heeded)
    links.neighbour.ip("neighbour flush dev eth0")
    for address in GUESTS:
        wait_until(partial(links.neighbour.pings, address), f"{address} answers")
    for address in (NOBODY, NOBODY6, NOBODY_IN_WIDE):
        assert not links.neighbour.pings(address)
        told = links.neighbour.run("ip", "neighbour", "show", "to", address)
        assert "lladdr" not in told
    assert kept.apply(ALL, SHOWN) == ApplyResult()
    assert kept.apply(NOTHING, NO_ADDRESS) == ApplyResult(changed=True)
    assert shown(links) == before
    assert kept.apply(NOTHING, NO_ADDRESS) == ApplyResult()


def test_who_left_is_answered_for_no_more(links: Links, make: Make) -> None:
    kept = make()
    kept.apply(ALL, SHOWN)
    kept.release(shown_by_guests(GUEST, GUEST6))
    assert GUEST_IN_WIDE not in entries(links)
    assert GUEST in entries(links)
    assert kept.apply(ALL, shown_by_guests(GUEST, GUEST6)) == ApplyResult()
    assert kept.apply(ALL, shown_by_guests(GUEST)) == ApplyResult(changed=True)
    assert kept.apply(ALL, shown_by_guests(GUEST, GUEST_IN_WIDE)) == ApplyResult(changed=True)
    links.neighbour.ip("neighbour flush dev eth0")
    wait_until(partial(links.neighbour.pings, GUEST), f"{GUEST} answers")
    assert not links.neighbour.pings(GUEST6)


def test_who_came_is_announced(links: Links, make: Make) -> None:
    """As where the neighbour knows the address at the host that the guest left."""
    for address in GUESTS:
        links.neighbour.ip(f"neighbour replace {address} lladdr 02:00:00:00:00:99 dev eth0 nud reachable")
    make().apply(ALL, SHOWN)
    for address in GUESTS:
        links.awaits_neighbour(address, links.mac(links.host))


@pytest.mark.parametrize("address", GUESTS)
def test_who_is_asked_for_outside_is_asked_for_on_the_bridge(
    links: Links, make: Make, asker: Asker, address: str
) -> None:
    make().apply(ALL, NO_ADDRESS)
    assert known(links, address) == ""
    asker.ask(address)
    wait_until(lambda: links.mac(links.guest) in known(links, address), "the guest is known")


def test_who_is_known_and_went_is_found_out(links: Links, make: Make, asker: Asker) -> None:
    links.host.sysctl("ipv4.neigh.virbr1.delay_first_probe_time=1", "ipv4.neigh.virbr1.retrans_time_ms=100")
    links.host.ip(f"neighbour replace {GUEST} lladdr {links.mac(links.guest)} dev virbr1 nud stale")
    links.guest.ip(f"address del {GUEST}/32 dev eth0")
    make().apply(ALL, SHOWN)
    asker.ask(GUEST)
    wait_until(lambda: "FAILED" in known(links, GUEST), "nobody answers")


@pytest.mark.parametrize("state", ["permanent", "noarp"])
def test_what_somebody_entered_by_hand_stays_so(links: Links, make: Make, asker: Asker, state: str) -> None:
    links.host.ip(f"neighbour add {GUEST} lladdr 02:00:00:00:00:77 dev virbr1 nud {state}")
    before = known(links, GUEST)
    make().apply(ALL, SHOWN)
    asker.ask(GUEST)
    asker.ask(NOBODY)
    wait_until(lambda: known(links, NOBODY) != "", "what was asked later is heard")
    assert known(links, GUEST) == before


def test_who_asks_for_everything_has_little_asked(links: Links, asker: Asker) -> None:
    uplink, bridge = map(socket.if_nametoindex, ("eth0", "virbr1"))
    duty = Duty(frozenset({(ip_network(WIDE), bridge)}))
    with closing(Listener("eth0", uplink, duty, budget_of_guests(), Turns(seconds=3600.0, most=20))):
        for number in range(300):
            asker.ask(f"2001:db8:1:0:1::{number:x}")
            asker.ask(f"2001:db8:1:0:1::{number:x}")
        wait_until(
            lambda: len(links.told("-6", "neighbour", "show", "to", WIDE).splitlines()) == 20, "twenty are asked for"
        )
        asker.ask(GUEST_IN_WIDE)
        asker.ask("2001:db8:1::bad")
        assert known(links, GUEST_IN_WIDE) == ""


def test_entries_of_somebody_else_are_left_as_they_are(links: Links, make: Make) -> None:
    links.host.ip(f"neighbour add proxy {GUEST} dev eth0", "neighbour add proxy 203.0.113.200 dev eth0")
    links.host.ip(f"neighbour add proxy {GUEST6} dev eth0 protocol 5", f"neighbour add proxy {GUEST} dev virbr1")
    before, kept = shown(links), make()
    kept.apply(ALL, SHOWN)
    assert shown(links) != before
    kept.apply(NOTHING, NO_ADDRESS)
    assert shown(links) == before


def test_an_entry_that_somebody_took_away_comes_back(links: Links, make: Make) -> None:
    kept, damaged = make(), frozenset({NARROW_ROUTE})
    kept.apply(ALL, SHOWN)
    links.host.ip(f"neighbour del proxy {GUEST} dev eth0")
    assert kept.apply(ALL, SHOWN) == ApplyResult(mended=damaged, damaged=damaged, changed=True)
    assert kept.apply(ALL, SHOWN) == ApplyResult()


@pytest.mark.parametrize("how", ["router", "router protocol 107"])
def test_an_entry_that_was_changed_is_put_back(links: Links, make: Make, how: str) -> None:
    kept, damaged = make(), frozenset({NARROW6_ROUTE})
    kept.apply(ALL, SHOWN)
    before = shown(links)
    links.host.ip(f"neighbour replace proxy {GUEST6} dev eth0 {how}")
    assert shown(links) != before
    assert kept.apply(ALL, SHOWN) == ApplyResult(mended=damaged, damaged=damaged, changed=True)
    assert shown(links) == before


def test_the_setting_is_put_back_on(links: Links, make: Make) -> None:
    kept = make()
    kept.apply(ALL, SHOWN)
    links.host.sysctl("ipv6.conf.eth0.proxy_ndp=0")
    assert kept.apply(ALL, SHOWN).settings == (Setting("net.ipv6.conf.eth0.proxy_ndp = 1", restored=True),)


def test_a_link_that_was_down_has_its_entries_again(links: Links, make: Make, asker: Asker) -> None:
    kept = make()
    kept.apply(ALL, SHOWN)
    links.host.ip("link set eth0 down", "link set eth0 up")
    wait_until(links.are_settled, "the link is up")
    assert kept.apply(ALL, SHOWN) == ApplyResult(mended=ALL, damaged=ALL, changed=True)
    asker.ask(NOBODY_IN_WIDE)
    wait_until(lambda: known(links, NOBODY_IN_WIDE) != "", "it is heard there")


def test_what_an_earlier_run_left_goes_and_what_is_wanted_stays(links: Links, make: Make) -> None:
    before = entries(links)
    make().apply(ALL, shown_by_guests(GUEST, GUEST6))
    wanted = shown_by_guests(GUEST)
    left = frozenset({f"proxy entries on eth0 for {GUEST6}/128"})
    assert make().apply(frozenset({NARROW_ROUTE}), wanted) == ApplyResult(stale=left, changed=True)
    result = make().apply(NOTHING, NO_ADDRESS)
    assert result == ApplyResult(stale=frozenset({f"proxy entries on eth0 for {GUEST}/32"}), changed=True)
    assert entries(links) == before


def test_a_setting_that_was_on_stays_on(links: Links, make: Make) -> None:
    links.host.sysctl("ipv6.conf.eth0.proxy_ndp=1")
    before, kept = shown(links), make()
    kept.apply(ALL, SHOWN)
    kept.apply(NOTHING, NO_ADDRESS)
    assert shown(links) == before


def test_nothing_is_asked_while_nothing_is_wanted(make: Make) -> None:
    kept, unproxied = make(), frozenset({route(NARROW), route(WIDE)})
    kept.apply(frozenset({route(NARROW)}), NO_ADDRESS)
    with no_descriptors():
        assert kept.apply(unproxied, NO_ADDRESS) == ApplyResult()
        with pytest.raises((KernelError, OSError)):
            kept.apply(unproxied, NO_ADDRESS, full=True)


@pytest.mark.parametrize("interface", ["eth9", "", "..", "all", "a b", "x" * 300, "nul\0", "--help", "eth\n0"])
def test_an_interface_that_is_not_there_is_a_fault(links: Links, make: Make, interface: str) -> None:
    before, kept, wrong = shown(links), make(), route(WIDE, proxy=interface)
    wanted = shown_by_guests(GUEST) | {Proxied(wrong, ip_address(GUEST_IN_WIDE))}
    (fault,) = sentences.faults(kept.apply(frozenset({NARROW_ROUTE, wrong}), wanted))
    assert GUEST in entries(links)
    assert fault.startswith(f"cannot answer for {WIDE} on ")
    assert fault.endswith("there is no such interface")
    assert fault.isprintable()
    kept.apply(NOTHING, NO_ADDRESS)
    assert shown(links) == before


def wrong_ones() -> dict[str, bytes]:
    """Solicitations for the address 2001:db8:1::bad, or for others, which are to be ignored."""
    bad = "2001:db8:1::bad"
    own = source_option("02:00:00:00:00:02")
    return {
        "from beyond the link": solicitation(bad, hop_limit=254),
        "outside the prefix": solicitation("2001:db8:2::1"),
        "just outside the prefix": solicitation("2001:db8:0:ffff:ffff:ffff:ffff:ffff"),
        "no checksum": solicitation(bad, checksum=0),
        "wrong checksum": solicitation(bad, checksum=0x1234),
        "wrong code": solicitation(bad, code=1),
        "an advertisement": solicitation(bad, kind=136),
        "not ICMPv6": solicitation(bad, next_header=17),
        "an option without a length": solicitation(bad, options=bytes([1, 0, 0, 0, 0, 0, 0, 0])),
        "an option longer than the packet": solicitation(bad, options=bytes([1, 2, 0, 0, 0, 0, 0, 0])),
        "an option cut short": solicitation(bad, options=b"\x01\x01\x00"),
        "a probe that tells a MAC address": solicitation(bad, source="::", options=own),
        "a probe to one host": solicitation(bad, source="::", destination=bad),
        "from a group": solicitation(bad, source="ff02::1"),
        "cut short": solicitation(bad)[:-1],
        "header only": solicitation(bad)[:40],
        "for a group": solicitation(str(group(ip_address(bad)))),  # type: ignore[arg-type]  # it is IPv6
    }


def test_what_is_not_to_be_heeded_is_not(links: Links, make: Make, asker: Asker) -> None:
    make().apply(ALL, NO_ADDRESS)
    for packet in wrong_ones().values():
        asker.solicit(packet)
    asker.ask(GUEST_IN_WIDE)
    wait_until(lambda: known(links, GUEST_IN_WIDE) != "", "what came last is heard")
    assert links.told("-6", "neighbour", "show", "to", "2001:db8::/32", "dev", "virbr1") == known(links, GUEST_IN_WIDE)


def test_an_interface_that_is_made_anew_is_heard_on(links: Links, make: Make) -> None:
    kept = make()
    kept.apply(ALL, SHOWN)
    links.host.ip("link del eth0")
    assert kept.apply(ALL, SHOWN).faults
    links.host.ip(f"link add eth0 type veth peer name eth0 netns {links.neighbour.namespace}", "link set eth0 up")
    links.neighbour.ip("link set eth0 up")
    wait_until(links.are_settled, "the link is up")
    assert kept.apply(ALL, SHOWN).changed
    asker = Asker(links)
    asker.ask(NOBODY_IN_WIDE)
    wait_until(lambda: known(links, NOBODY_IN_WIDE) != "", "it is heard there")
    asker.close()


def test_a_vlan_of_the_link_is_another_link(links: Links, make: Make, asker: Asker) -> None:
    # A neighbour on a VLAN may ask for the same address there; this kernel may not have VLANs, so the frame is made.
    make().apply(ALL, NO_ADDRESS)
    frames = open_socket(links.neighbour.namespace, socket.AF_PACKET, socket.SOCK_RAW, 0)
    frames.bind(("eth0", 0))
    packet = solicitation(NOBODY_IN_WIDE)
    own = bytes.fromhex(asker.own.replace(":", ""))
    frames.send(b"\x33\x33" + packet[36:40] + own + b"\x81\x00\x00\x64\x86\xdd" + packet)
    frames.close()
    asker.ask(GUEST_IN_WIDE)
    wait_until(lambda: known(links, GUEST_IN_WIDE) != "", "what came last is heard")
    assert known(links, NOBODY_IN_WIDE) == ""


def test_an_interface_on_the_link_is_another_link(links: Links, make: Make, asker: Asker) -> None:
    links.host.ip("link add mac0 link eth0 type macvlan mode bridge", "link set mac0 up")
    make().apply(ALL, NO_ADDRESS)
    mac = links.mac(links.host, "mac0")
    asker.solicit(solicitation(NOBODY_IN_WIDE, destination=NOBODY_IN_WIDE), to=mac)
    asker.ask(GUEST_IN_WIDE)
    wait_until(lambda: known(links, GUEST_IN_WIDE) != "", "what came last is heard")
    assert known(links, NOBODY_IN_WIDE) == ""


def test_a_listener_leaves_no_trace(links: Links, make: Make) -> None:
    before, threads, kept = shown(links), threading.active_count(), make()
    kept.apply(frozenset({WIDE_ROUTE}), NO_ADDRESS)
    assert "allmulti 1" in shown(links)
    kept.close()
    assert threading.active_count() == threads
    assert shown(links).replace("eth0.proxy_ndp = 1", "eth0.proxy_ndp = 0") == before


def test_too_many_subnets_are_a_fault(links: Links, make: Make) -> None:
    subnets = [f"2001:db8:9:{number:x}::/64" for number in range(1000)]
    links.host.ip(*(f"route add {subnet} dev virbr1" for subnet in subnets))
    routes = frozenset(route(subnet, proxy="eth0") for subnet in subnets)
    (fault,) = sentences.faults(make().apply(routes, NO_ADDRESS))
    assert fault.startswith("cannot listen for ARP/ND requests for ")


def test_nobody_has_mac_addresses_on_a_tunnel(links: Links, make: Make) -> None:
    links.host.ip("tuntap add tun0 mode tun", "link set tun0 up", "address add 2001:db8:7::1/64 dev tun0")
    (fault,) = sentences.faults(make().apply(frozenset({route(WIDE, proxy="tun0")}), NO_ADDRESS))
    assert fault == f"cannot listen for ARP/ND requests for {WIDE} on tun0: the link has no MAC addresses"


def test_only_what_is_routed_to_the_network_is_answered_for(links: Links, make: Make) -> None:
    # As where a provider has the whole prefix on the link, with a router of its own that has an address in it.
    before, kept = entries(links), make()
    assert kept.apply(ALL, SHOWN).changed
    links.host.ip("address add 2001:db8:1::2/64 dev eth0", "address add 2001:db8:5::41/125 dev eth0")
    links.host.ip(f"route replace {NARROW} dev eth0")
    faults = sentences.faults(kept.apply(ALL, SHOWN))
    assert faults == tuple(
        f"cannot answer for {subnet} on eth0: its addresses are not routed to virbr1"
        for subnet in sorted((NARROW, NARROW6, WIDE))
    )
    assert entries(links) == before
    links.host.ip("address del 2001:db8:1::2/64 dev eth0", "address del 2001:db8:5::41/125 dev eth0")
    assert kept.apply(frozenset({WIDE_ROUTE}), SHOWN).changed
    assert GUEST_IN_WIDE in entries(links)
