"""A forward works from everywhere: outside, the host, the guest itself, its neighbours, guests of other networks."""

from functools import partial

import pytest

from tests.host.conftest import FAR4, HEAD, NEIGHBOUR4, WEB4, Scene, each_backend, entry
from tests.lab.host import (
    CLIENT4,
    CLIENT4_OTHER_LINK,
    CLIENT4_SECOND,
    CLIENT6,
    CLIENT6_SECOND,
    OTHER_LINK4,
    PUBLIC4,
    PUBLIC4_SECOND,
    PUBLIC6,
    PUBLIC6_SECOND,
    Host,
)
from tests.lab.place import wait_until

THEIRS = """
table ip theirs {
    chain pre {
        type nat hook prerouting priority -100
        tcp dport 9000 dnat to 192.168.122.10:80
    }
}
"""
BOTH = entry("web", "8000:80", "WEB4") + entry("web", "8000:80", "WEB6")


def url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


@pytest.mark.everywhere
def test_from_outside_the_guest_sees_the_client(shared_scene: Scene) -> None:
    shared_scene.daemon(BOTH)
    for public, client in (
        (PUBLIC4, CLIENT4),
        (PUBLIC4_SECOND, CLIENT4),
        (PUBLIC6, CLIENT6),
        (PUBLIC6_SECOND, CLIENT6),
    ):
        shared_scene.answers(partial(shared_scene.host.outside.fetch, url(public, 8000)), f"web {client}")


def test_the_host_reaches_its_own_public_address(shared_scene: Scene) -> None:
    shared_scene.daemon(BOTH)
    for public, own in ((PUBLIC4, PUBLIC4), (PUBLIC4_SECOND, PUBLIC4), (PUBLIC6, PUBLIC6)):
        shared_scene.answers(partial(shared_scene.host.place.fetch, url(public, 8000)), f"web {own}")


@pytest.mark.parametrize("netfilter_on_bridges", ["0", "1"])
def test_guests_reach_it_through_the_public_address(shared_scene: Scene, netfilter_on_bridges: str) -> None:
    for family in ("iptables", "ip6tables"):
        shared_scene.host.run("sysctl", "-w", f"net.bridge.bridge-nf-call-{family}={netfilter_on_bridges}")
    shared_scene.daemon(BOTH)
    for public, gateway in ((PUBLIC4, "192.168.122.1"), (PUBLIC6, "2001:db8:122::1")):
        for guest in (shared_scene.neighbour, shared_scene.web):
            shared_scene.answers(partial(guest.place.fetch, url(public, 8000)), f"web {gateway}")
        assert shared_scene.far.place.fetch(url(public, 8000)).text.startswith("web ")


@each_backend
def test_udp_and_sctp(shared_scene: Scene) -> None:
    shared_scene.web.serve_udp(53)
    shared_scene.web.serve_sctp(99)
    shared_scene.daemon(entry("web", "5353:53/udp 99/sctp", "WEB4") + entry("web", "5353:53/udp 99/sctp", "WEB6"))
    outside = shared_scene.host.outside
    shared_scene.answers(lambda: outside.udp(PUBLIC4, 5353), f"web {CLIENT4}")
    shared_scene.answers(lambda: outside.udp(PUBLIC6, 5353), f"web {CLIENT6}")
    shared_scene.answers(lambda: outside.sctp(PUBLIC4, 99), f"web {CLIENT4}")
    shared_scene.answers(lambda: outside.sctp(PUBLIC6, 99), f"web {CLIENT6}")


@pytest.mark.in_turn
@each_backend
def test_tcp_and_udp_in_one(shared_scene: Scene) -> None:
    shared_scene.web.serve_udp(53)
    shared_scene.web.serve_tcp(53)
    shared_scene.daemon(entry("web", "5353:53/tcp+udp", "WEB4"))
    shared_scene.answers(lambda: shared_scene.host.outside.udp(PUBLIC4, 5353), f"web {CLIENT4}")
    shared_scene.answers(lambda: shared_scene.host.outside.tcp(PUBLIC4, 5353), f"web {CLIENT4}")


@pytest.mark.in_turn
@each_backend
def test_ranges_keep_or_shift_their_ports(shared_scene: Scene) -> None:
    for port in (7002, 7012, 7022):
        shared_scene.web.serve_tcp(port)
        shared_scene.web.serve_udp(port)
    shared_scene.daemon(entry("web", "7000-7004 8010-8014:7010-7014/udp 8020-8024:7020-7024", "WEB4"))
    outside = shared_scene.host.outside
    shared_scene.answers(lambda: outside.tcp(PUBLIC4, 7002), f"web {CLIENT4}")
    shared_scene.answers(lambda: outside.udp(PUBLIC4, 8012), f"web {CLIENT4}")
    shared_scene.answers(lambda: outside.tcp(PUBLIC4, 8022), f"web {CLIENT4}")
    assert not outside.tcp(PUBLIC4, 8021).answered
    assert not outside.tcp(PUBLIC4, 7005).answered
    assert not outside.tcp(PUBLIC4, 7012).answered


@pytest.mark.in_turn
@each_backend
def test_one_address_goes_before_every_address(shared_scene: Scene) -> None:
    shared_scene.daemon(
        entry("web", "80", "WEB4")
        + entry("neighbour", "80", "NEIGHBOUR4", f'listen = "{PUBLIC4_SECOND}"')
        + entry("far", f"{PUBLIC4_SECOND}:81:80", "FAR4")
    )
    outside = shared_scene.host.outside
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC4, 80)), f"web {CLIENT4}")
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC4_SECOND, 80)), f"neighbour {CLIENT4}")
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC4_SECOND, 81)), f"far {CLIENT4}")
    assert not outside.fetch(url(PUBLIC4, 81)).answered


@pytest.mark.in_turn
@each_backend
def test_only_what_came_in_through_the_interface(shared_scene: Scene) -> None:
    shared_scene.daemon(
        entry("web", "80", "WEB4", 'interface = "eth0"') + entry("neighbour", "80", "NEIGHBOUR4", 'interface = "eth1"')
    )
    outside = shared_scene.host.outside
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC4, 80)), f"web {CLIENT4}")
    shared_scene.answers(lambda: outside.fetch(url(OTHER_LINK4, 80)), f"neighbour {CLIENT4_OTHER_LINK}")
    assert not shared_scene.host.place.fetch(url(PUBLIC4, 80)).answered
    assert not shared_scene.far.place.fetch(url(PUBLIC4, 80)).answered


@pytest.mark.in_turn
@each_backend
def test_sources_hold_for_everyone(shared_scene: Scene) -> None:
    shared_scene.daemon(
        entry("web", "80", "WEB4", f'sources = ["{CLIENT4_SECOND}/32"]')
        + entry("neighbour", "80", "NEIGHBOUR4", f'sources = ["{CLIENT4}/32"]')
        + entry("web", "80", "WEB6", 'sources = ["2001:db8:9::/48"]')
    )
    outside = shared_scene.host.outside
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC4, 80), source=CLIENT4_SECOND), f"web {CLIENT4_SECOND}")
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC4, 80)), f"neighbour {CLIENT4}")
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC6, 80), source=CLIENT6_SECOND), f"web {CLIENT6_SECOND}")
    assert not outside.fetch(url(PUBLIC6, 80)).answered
    assert not shared_scene.host.place.fetch(url(PUBLIC4, 80)).answered
    assert not shared_scene.far.place.fetch(url(PUBLIC4, 80)).answered
    assert not shared_scene.web.place.fetch(url(PUBLIC4, 80)).answered


def test_nothing_else_becomes_reachable(shared_scene: Scene) -> None:
    shared_scene.daemon(BOTH)
    outside = shared_scene.host.outside
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC4, 8000)), f"web {CLIENT4}")
    assert not outside.fetch(url(PUBLIC4, 8001)).answered
    assert not outside.fetch(url(PUBLIC4, 80)).answered
    assert not outside.fetch(url(PUBLIC6, 8001)).answered
    assert not outside.udp(PUBLIC4, 8000).answered
    # Straight to the guests, as a neighbour of the host could who sets a route.
    outside.run(["ip", "route", "replace", "192.168.122.0/23", "via", PUBLIC4])
    try:
        for guest in (WEB4, NEIGHBOUR4, FAR4):
            assert not outside.fetch(url(guest, 80)).answered
    finally:
        outside.run(["ip", "route", "del", "192.168.122.0/23"])


@each_backend
def test_the_dnat_of_another_tool_is_not_let_through(shared_scene: Scene) -> None:
    shared_scene.daemon(BOTH)
    shared_scene.host.run("nft", "-f", "-", stdin=THEIRS)
    try:
        shared_scene.answers(lambda: shared_scene.host.outside.fetch(url(PUBLIC4, 8000)), f"web {CLIENT4}")
        assert not shared_scene.host.outside.fetch(url(PUBLIC4, 9000)).answered
    finally:
        shared_scene.host.run("nft", "delete", "table", "ip", "theirs")


@pytest.mark.in_turn
def test_the_sysctl_is_turned_on_when_a_forward_needs_it(host: Host, shared_scene: Scene) -> None:
    host.run("sysctl", "-w", "net.ipv4.ip_forward=0")
    daemon = shared_scene.daemon(BOTH)
    daemon.wait_log("^set net.ipv4.ip_forward = 1: forwards need it")
    shared_scene.answers(lambda: host.outside.fetch(url(PUBLIC4, 8000)), f"web {CLIENT4}")
    assert host.run("sysctl", "-n", "net.ipv4.ip_forward").stdout == "1\n"


@pytest.mark.in_turn
def test_forwarding_that_is_turned_off_later_is_found_at_a_resync(host: Host, shared_scene: Scene) -> None:
    shared_scene.daemon(BOTH, HEAD + 'resync = "1s"\n')
    shared_scene.answers(lambda: host.outside.fetch(url(PUBLIC4, 8000)), f"web {CLIENT4}")
    host.run("sysctl", "-w", "net.ipv4.ip_forward=0")
    wait_until(lambda: host.run("sysctl", "-n", "net.ipv4.ip_forward").stdout == "1\n", "forwarding is on again")


@pytest.mark.in_turn
def test_forwarding_is_left_to_the_administrator_who_says_so(host: Host, shared_scene: Scene) -> None:
    host.run("sysctl", "-w", "net.ipv4.ip_forward=0")
    try:
        daemon = shared_scene.daemon(BOTH, HEAD + "ip_forward = false\n")
        daemon.wait_log("^warning: IPv4 forwarding is off, and .* leaves it to you")
        assert host.run("sysctl", "-n", "net.ipv4.ip_forward").stdout == "0\n"
    finally:
        host.run("sysctl", "-w", "net.ipv4.ip_forward=1")
