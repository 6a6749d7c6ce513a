"""All that exposures need of the host besides rules, on the real kernel; needs no root of the machine."""

import socket
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from fwdaemon.core.report import Setting, SettingKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family
from fwdaemon.kernel import sysctl
from tests import sentences
from tests.kernel.host_side import FILTERED, MakeHost, apply, without_forwarding
from tests.kernel.links import Links
from tests.lab.netns import open_socket
from tests.lab.place import wait_until
from tests.unit.forwards import forward, nat, route

GUEST = "192.168.123.60"
WEB = replace(forward("tcp *:8000", f"{GUEST}:80"), bridge="virbr1", bridge_port="vnet0")
MAIL = nat("198.51.100.8", GUEST, assign="eth0", bridge="virbr1")
ROUTED = route("203.0.113.64/29", proxy="eth0")
STATE = Desired(uplinks=frozenset({"eth0"}), inside=frozenset({"virbr1"})).having([WEB, MAIL, ROUTED])
ON = "net.ipv4.ip_forward"
# RFC 4861, section 4.2: a router's word of half an hour; the kernel fills in the checksum.
ADVERTISEMENT = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
NOTED = "IPv4 forwarding was off before kvm-portfwd"


@pytest.fixture
def links(links: Links) -> Links:
    return without_forwarding(links)


def ours(links: Links) -> str:
    addresses = links.told("-oneline", "address", "show", "dev", "eth0")
    routes = links.told("route", "show", "proto", "107")
    return f"{addresses}\n{routes}\n{sysctl.read(ON)}"


def test_what_exposures_need_is_there_and_goes_again(links: Links, begin: MakeHost) -> None:
    before, host = ours(links), begin()
    assert host.confine(STATE, ip_forward=True).confined == {Family.IPV4}
    plan = host.preview(STATE)
    assert (set(plan.mended), ours(links)) == ({MAIL, ROUTED}, before)
    result = apply(host, STATE)
    assert (set(result.mended), result.faults, result.changed) == ({MAIL, ROUTED}, (), True)
    assert [(setting.what, setting.restored) for setting in result.settings] == [(f"{ON} = 1", False)]
    assert sentences.notes(result)[0].startswith(NOTED)
    assert "198.51.100.8/32" in ours(links)
    assert "203.0.113.64/29 dev virbr1" in ours(links)
    for full in (False, True):
        assert not apply(host, STATE, full=full).changed
    assert not host.preview(STATE).changed
    removed = host.remove(frozenset())
    assert sentences.notes(removed) == (f"set {ON} = 0 again: it was off before kvm-portfwd",)
    assert (ours(links), removed.faults) == (before, ())
    assert not host.has_turned_on()


def test_what_others_bend_is_put_back(links: Links, begin: MakeHost) -> None:
    host = begin()
    apply(host, STATE)
    held = ours(links)
    links.host.ip("address del 198.51.100.8/32 dev eth0", "route del 203.0.113.64/29")
    sysctl.write(ON, "0")
    result = apply(host, STATE)
    assert set(result.damaged) == {MAIL, ROUTED}
    assert [(setting.what, setting.restored) for setting in result.settings] == [(f"{ON} = 1", True)]
    assert not result.notes
    assert ours(links) == held


def test_an_address_goes_before_the_rules_do(links: Links, begin: MakeHost) -> None:
    host = begin()
    apply(host, STATE)
    host.release(replace(STATE, nats=frozenset()))
    assert "198.51.100.8" not in ours(links)
    assert "203.0.113.64/29" in ours(links)


def test_what_one_keeper_cannot_do_keeps_the_others_from_nothing(links: Links, begin: MakeHost) -> None:
    other = replace(MAIL, assign="wg0")
    result = apply(begin(), replace(STATE, nats=frozenset({other})))
    assert [exposure for exposure, _ in result.refused] == [other]
    assert sentences.faults(result) == ("198.51.100.8 is not assigned to wg0: there is no such interface",)
    assert "203.0.113.64/29" in ours(links)


def test_a_later_run_gives_back_what_an_earlier_one_turned_on(links: Links, begin: MakeHost) -> None:
    before = ours(links)
    apply(begin(), STATE)
    later = begin()
    assert later.has_turned_on()
    assert later.confine(STATE, ip_forward=True).confined == {Family.IPV4}
    later.remove(frozenset())
    assert ours(links) == before


def test_forwarding_that_rules_say_is_ours_is_given_back_without_a_record(links: Links, begin: MakeHost) -> None:
    del links
    sysctl.write(ON, "1")
    host = begin()
    host.adopt({Family.IPV4})
    host.remove(frozenset())
    assert sysctl.read(ON) == "0"


def test_an_interface_that_rules_say_is_ours_stays_confined_and_is_given_back_without_a_record(
    links: Links, begin: MakeHost, tmp_path: Path
) -> None:
    links.host.sysctl("ipv4.ip_forward=1", "ipv4.conf.eth0.forwarding=0")
    name = "net.ipv4.conf.eth0.forwarding"
    state = Desired(uplinks=frozenset({"eth0"}), inside=frozenset({"virbr1"})).having([WEB])
    confined = begin().confine(state, ip_forward=True)
    apply(begin(), confined)
    for record in tmp_path.iterdir():
        record.unlink()
    assert not begin().confine(state, ip_forward=True).switched
    host = begin()
    host.adopt(frozenset(), confined.switched)
    assert host.confine(state, ip_forward=True) == confined
    # From now on there is a record again.
    later = begin()
    assert later.confine(state, ip_forward=True) == confined
    later.remove(frozenset())
    assert (sysctl.read(name), sysctl.read(ON)) == ("0", "1")
    # What is off by now cannot be given back.
    host = begin()
    host.adopt(frozenset(), confined.switched)
    links.host.sysctl("ipv4.conf.eth0.forwarding=1")
    host.remove(frozenset())
    assert sysctl.read(name) == "1"


def test_forwarding_that_libvirt_needs_stays_on(links: Links, begin: MakeHost) -> None:
    del links
    host = begin()
    apply(host, STATE)
    result = host.remove(frozenset({(Family.IPV4, "default")}))
    assert sysctl.read(ON) == "1"
    assert sentences.notes(result) == (
        "IPv4 forwarding stays on for everything, as libvirt turns it on for its networks: default",
    )


def test_forwarding_that_is_left_to_the_admin_is_a_fault_where_it_is_off(links: Links, begin: MakeHost) -> None:
    left = "and [daemon] ip_forward = false leaves it to you"
    host, state = begin(), Desired(uplinks=frozenset({"eth0"})).having([WEB])
    result = host.apply(state, ip_forward=False)
    assert sentences.faults(result) == (f"IPv4 forwarding is off, {left}",)
    assert not host.confine(state, ip_forward=False).confined
    links.host.sysctl("ipv4.ip_forward=1", "ipv4.conf.eth0.forwarding=0")
    result = host.apply(state, ip_forward=False)
    assert sentences.faults(result) == (f"IPv4 forwarding is off on eth0, {left}",)
    assert (sysctl.read(ON), result.changed) == ("1", False)


def test_forwarding_of_one_interface_is_turned_on_and_back(links: Links, begin: MakeHost) -> None:
    links.host.sysctl("ipv4.ip_forward=1", "ipv4.conf.eth0.forwarding=0")
    host, state = begin(), Desired(uplinks=frozenset({"eth0"}), inside=frozenset({"virbr1"})).having([WEB])
    name = "net.ipv4.conf.eth0.forwarding"
    result = host.apply(state, ip_forward=True, full=True)
    assert sentences.faults(result)[0].startswith(f"{name} stays off: no rules block other traffic arriving there")
    assert (sysctl.read(name), result.settings) == ("0", ())
    assert not host.confine(state, ip_forward=False).switched
    confined = host.confine(state, ip_forward=True)
    assert confined == state.confining(frozenset(), frozenset(), frozenset({(Family.IPV4, "eth0")}))
    result = apply(host, confined)
    assert ([setting.what for setting in result.settings], result.faults) == ([f"{name} = 1"], ())
    # It stays confined, also for a later run.
    assert host.confine(state, ip_forward=True) == begin().confine(state, ip_forward=True) == confined
    apply(host, Desired())
    assert sysctl.read(name) == "0"
    assert not host.confine(Desired(), ip_forward=True).switched
    assert sysctl.read(ON) == "1"


def advertise_router(links: Links) -> None:
    """Have the neighbour say that it is a router, and the host believe it: only so a route gets the flag for that."""
    with open_socket(links.neighbour.namespace, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as router:
        router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        router.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        router.sendto(ADVERTISEMENT, ("ff02::1", 0))
    wait_until(lambda: "default via fe80::" in links.told("-6", "route", "show", "proto", "ra"), "there is a route")


def test_ipv6_is_not_forwarded_where_the_host_would_lose_its_route(links: Links, begin: MakeHost) -> None:
    links.host.sysctl("ipv6.conf.all.forwarding=0", "ipv6.conf.eth0.accept_ra=1")
    advertise_router(links)
    result = apply(begin(), Desired().having([forward("tcp *:80", "[2001:db8:5::50]:80")]))
    assert (
        "IPv6 forwarding stays off: it would take away the default route that eth0 learned"
        in sentences.faults(result)[0]
    )
    assert sysctl.read("net.ipv6.conf.all.forwarding") == "0"


def test_what_an_earlier_version_turned_on_is_turned_off_once(links: Links, begin: MakeHost, tmp_path: Path) -> None:
    name = "net.ipv4.conf.eth0.route_localnet"
    links.host.sysctl("ipv4.conf.eth0.route_localnet=1")
    record = tmp_path / "route-localnet"
    record.write_bytes(b"eth0 0\nvirbr1 0\ngone 0\nlo 1\na/b 0\n\xff\n")
    result = apply(begin(), Desired())
    assert result.settings == (Setting(f"{name} = 0", restored=True, kind=SettingKind.FORMER_SYSCTL),)
    assert (sysctl.read(name), record.exists()) == ("0", False)


def test_what_an_earlier_version_assigned_is_ours(links: Links, begin: MakeHost, tmp_path: Path) -> None:
    links.host.ip("address add 198.51.100.8/32 dev eth0")
    links.host.ip("address add 198.51.100.9/32 dev eth0")
    record = tmp_path / "addresses"
    record.write_bytes(b"address eth0 198.51.100.8\naddress eth0 198.51.100.9\naddress eth0 x\nvirbr1 0\n\xff\n")
    host = begin()
    assert apply(host, Desired().having([MAIL])).stale == {"198.51.100.9 on eth0"}
    assert ("198.51.100.8/32" in ours(links), "198.51.100.9/32" in ours(links), record.exists()) == (True, False, False)
    # The next run has it in a record of its own.
    apply(begin(), Desired())
    assert "198.51.100.8/32" not in ours(links)


# --- bridge ports -----------------------------------------------------------------------------------------------------


def hairpin(links: Links) -> bool:
    return "hairpin on" in links.host.run("bridge", "-details", "link", "show", "dev", "vnet0")


def test_ports_of_guests_hairpin_while_bridged_frames_are_filtered(links: Links, begin: MakeHost) -> None:
    state = Desired().having([WEB])
    sysctl.write(FILTERED, "1")
    host = begin()
    switched = Setting("vnet0", restored=False, kind=SettingKind.HAIRPIN_MODE)
    assert switched in apply(host, state).settings
    assert hairpin(links)
    links.host.run("bridge", "link", "set", "dev", "vnet0", "hairpin", "off")
    assert not apply(host, state, full=False).settings
    assert apply(host, state).settings == (replace(switched, restored=True),)
    # The next run knows which were ours; what goes with its port is forgotten.
    later = begin()
    sysctl.write(FILTERED, "0")
    assert apply(later, state).changed
    assert not hairpin(links)
    sysctl.write(FILTERED, "1")
    apply(later, state)
    links.host.ip("link del vnet0")
    assert not apply(later, Desired()).faults


# --- records that cannot be written -----------------------------------------------------------------------------------

STATE_FILES = (
    "forwarding-ipv4",
    "hairpin-ports",
    "addresses",
    "proxy-ndp",
    "disable-ipv6",
    "accept-ra",
    "addr-gen-mode",
)
REASON = "its record cannot be written ({directory}/{state_file}.json: Is a directory)"
ROUTES6 = route("2001:db8:1::/64", proxy="eth0"), route("2001:db8:2::/64", bridge="virbr2")
EVERYTHING = STATE.having([WEB, MAIL, *ROUTES6])
FAULTS = [
    ("addresses", "198.51.100.8 is not assigned to eth0: "),
    ("accept-ra", "virbr2 has no IPv6: cannot set net.ipv6.conf.virbr2.accept_ra to 0: "),
    ("forwarding-ipv4", "IPv4 is not forwarded on eth0: cannot set net.ipv4.conf.eth0.forwarding to 1: "),
    ("hairpin-ports", "bridge port vnet0 is not in hairpin mode: "),
    ("proxy-ndp", "cannot set net.ipv6.conf.eth0.proxy_ndp to 1: "),
]


@pytest.fixture
def needy(links: Links) -> Links:
    """The machines, where everything that is switched with a record is as it must not be."""
    links.host.ip("link add virbr2 type bridge", "link set virbr2 up")
    links.host.sysctl("ipv4.ip_forward=1", "ipv4.conf.eth0.forwarding=0")
    links.host.sysctl("ipv6.conf.virbr2.disable_ipv6=1", "ipv6.conf.virbr2.addr_gen_mode=1")
    sysctl.write(FILTERED, "1")
    return links


def switched(links: Links) -> tuple[object, ...]:
    """What the host has of all that is changed with a record alone."""
    names = ("ipv4.conf.eth0.forwarding", "ipv6.conf.eth0.proxy_ndp")
    of_bridge = ("disable_ipv6", "accept_ra", "addr_gen_mode")
    values = [sysctl.read(f"net.{name}") for name in names]
    values += [sysctl.read(f"net.ipv6.conf.virbr2.{name}") for name in of_bridge]
    return *values, hairpin(links), "198.51.100.8" in ours(links)


CHANGED = ("1", "1", "0", "0", "0", True, True)


def unwritable(directory: Path, *, full: bool) -> None:
    """Have no record written, or every one again."""
    for state_file in STATE_FILES:
        path = directory / f"{state_file}.json.new"
        path.mkdir() if full else path.rmdir()


def test_nothing_is_changed_that_cannot_be_recorded(needy: Links, begin: MakeHost, tmp_path: Path) -> None:
    before, host = switched(needy), begin()
    unwritable(tmp_path, full=True)
    for full in (True, False, True):
        result = apply(host, EVERYTHING, full=full)
        assert switched(needy) == before
        for state_file, what in FAULTS:
            assert what + REASON.format(directory=tmp_path, state_file=state_file) in sentences.faults(result)
        assert MAIL in dict(result.refused)
    unwritable(tmp_path, full=False)
    result = apply(host, EVERYTHING, full=False)
    assert not [fault for fault in sentences.faults(result) if "record" in fault]
    assert switched(needy) == CHANGED
    begin().remove(frozenset())
    assert switched(needy) == before


def test_what_was_recorded_is_healed_and_goes_where_nothing_more_can_be(
    needy: Links, begin: MakeHost, tmp_path: Path
) -> None:
    before, host = switched(needy), begin()
    assert not apply(host, EVERYTHING).faults
    unwritable(tmp_path, full=True)
    more = nat("198.51.100.9", GUEST, assign="eth0", bridge="virbr1")
    for running in (host, begin()):
        needy.host.ip("address del 198.51.100.8/32 dev eth0")
        needy.host.run("bridge", "link", "set", "dev", "vnet0", "hairpin", "off")
        needy.host.sysctl("ipv4.conf.eth0.forwarding=0", "ipv6.conf.eth0.proxy_ndp=0")
        needy.host.sysctl("ipv6.conf.virbr2.disable_ipv6=1", "ipv6.conf.virbr2.addr_gen_mode=1")
        result = apply(running, EVERYTHING.having([WEB, MAIL, more, *ROUTES6]))
        assert [exposure for exposure, _ in result.refused] == [more]
        assert switched(needy) == CHANGED
        assert "198.51.100.9" not in ours(needy)
    begin().remove(frozenset())
    assert switched(needy) == before
