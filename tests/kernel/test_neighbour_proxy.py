"""Answers for routed addresses on the uplink, on the real kernel, to a real neighbour."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest

from fwdaemon import nd_responder
from fwdaemon import neighbour_proxy as module
from fwdaemon.desired import Route
from fwdaemon.ledger import Ledger
from fwdaemon.neighbour_proxy import NeighbourProxies
from fwdaemon.outcome import Outcome
from tests.kernel.links import Links, linked
from tests.lab.netns import open_socket
from tests.lab.place import wait_until
from tests.unit.forwards import route
from tests.unit.nd_packets import group, is_sound, solicitation, source_option

NARROW, NARROW6, WIDE = "203.0.113.64/29", "2001:db8:5::40/125", "2001:db8:1::/64"
GUEST, GUEST6, GUEST_IN_WIDE = "203.0.113.66", "2001:db8:5::42", "2001:db8:1::66"
TARGET = "2001:db8:1::7"
OTHER = "2001:db8:9::/64"
PROBE = "::"
NOTHING: frozenset[Route] = frozenset()
ALL = frozenset(route(subnet, proxy="eth0") for subnet in (NARROW, NARROW6, WIDE))
ONLY_NARROW = frozenset(one for one in ALL if str(one.subnet) != WIDE)
ONLY_WIDE = ALL - ONLY_NARROW

Make = Callable[[], NeighbourProxies]


@pytest.fixture
def links(lab: None) -> Iterator[Links]:
    del lab
    with linked() as links:
        links.host.ip(*(f"route add {subnet} dev virbr1" for subnet in (NARROW, NARROW6, WIDE)))
        yield links


@pytest.fixture
def make(links: Links, tmp_path: Path) -> Iterator[Make]:
    """Give runs of the program, one after the other, which end with the test."""
    del links
    runs: list[NeighbourProxies] = []

    def make() -> NeighbourProxies:
        runs.append(NeighbourProxies(Ledger("proxy-ndp", tmp_path)))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


def shown(links: Links) -> str:
    entries = links.told("neighbour", "show", "proxy") + links.told("-6", "neighbour", "show", "proxy")
    settings = links.host.run("sysctl", "-a", "--pattern", "proxy")
    link = links.host.run("ip", "-details", "link", "show", "eth0")
    return f"{entries}\n{settings}\n{link}"


class Asker:
    """Solicits on the neighbour's link, and reads what is advertised there."""

    def __init__(self, links: Links) -> None:
        self._host = bytes.fromhex(links.mac(links.host).replace(":", ""))
        self.own = links.mac(links.neighbour)
        self._link = open_socket(links.neighbour.namespace, socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._link.bind(("eth0", 0x86DD))
        self._link.settimeout(5)

    def close(self) -> None:
        self._link.close()

    def solicit(self, packet: bytes, *, to: str = "") -> None:
        mac = bytes.fromhex(to.replace(":", "")) if to else b"\x33\x33" + packet[36:40]
        self._link.sendto(packet, ("eth0", 0x86DD, 0, 0, mac))

    def answer(self) -> bytes:
        """The next advertisement from the host for an address it does not have itself."""
        while True:
            packet, (*_rest, kind, _, sender) = self._link.recvfrom(2048)
            if kind != socket.PACKET_OUTGOING and sender == self._host and packet[40] == 136:
                return packet


@pytest.fixture
def asker(links: Links) -> Iterator[Asker]:
    asker = Asker(links)
    yield asker
    asker.close()


def fields(answer: bytes) -> tuple[str, str, int, str]:
    """Destination, target, flags, and the MAC address that is told."""
    destination, target = IPv6Address(answer[24:40]), IPv6Address(answer[48:64])
    return str(destination), str(target), answer[44] >> 5, answer[66:72].hex(":")


def test_guests_are_reached_by_a_neighbour_that_thinks_them_on_its_link(links: Links, make: Make) -> None:
    links.guest.ip(*(f"address add {address} dev eth0" for address in (GUEST, GUEST6, GUEST_IN_WIDE)))
    links.neighbour.ip(*(f"route add {one.subnet} dev eth0" for one in ALL))
    assert not links.neighbour.pings(GUEST_IN_WIDE)
    before, kept = shown(links), make()
    assert kept.keep(ALL) == Outcome(mended=ALL, changed=True)
    links.neighbour.ip("neighbour flush dev eth0")
    for address in (GUEST, GUEST6, GUEST_IN_WIDE):
        wait_until(partial(links.neighbour.pings, address), f"{address} answers")
    assert kept.keep(ALL) == Outcome()
    assert kept.keep(NOTHING) == Outcome(changed=True)
    assert shown(links) == before
    assert kept.keep(NOTHING) == Outcome()


def test_every_address_of_a_small_subnet_has_an_entry(links: Links, make: Make) -> None:
    make().keep(ALL)
    entries = {line.split()[0] for line in links.told("neighbour", "show", "proxy").split("\n")}
    first, first6 = ip_address("203.0.113.64"), ip_address("2001:db8:5::40")
    assert entries == {str(address + number) for address in (first, first6) for number in range(8)}


def test_entries_of_somebody_else_are_left_as_they_are(links: Links, make: Make) -> None:
    links.host.ip(f"neighbour add proxy {GUEST} dev eth0", "neighbour add proxy 203.0.113.200 dev eth0")
    links.host.ip(f"neighbour add proxy {GUEST6} dev eth0 protocol 5", f"neighbour add proxy {GUEST} dev virbr1")
    before, kept = shown(links), make()
    kept.keep(ALL)
    assert shown(links) != before
    kept.keep(NOTHING)
    assert shown(links) == before


def test_an_entry_that_somebody_took_away_comes_back(links: Links, make: Make) -> None:
    kept, damaged = make(), frozenset({route(NARROW, proxy="eth0")})
    kept.keep(ALL)
    links.host.ip(f"neighbour del proxy {GUEST} dev eth0")
    assert kept.keep(ALL) == Outcome(mended=damaged, damaged=damaged, changed=True)
    assert kept.keep(ALL) == Outcome()


def test_a_link_that_was_down_has_its_entries_again(links: Links, make: Make) -> None:
    kept = make()
    kept.keep(ALL)
    links.host.ip("link set eth0 down", "link set eth0 up")
    wait_until(links.are_settled, "the link is up")
    assert kept.keep(ALL) == Outcome(mended=ONLY_NARROW, damaged=ONLY_NARROW, changed=True)


def test_what_an_earlier_run_left_goes_and_what_is_wanted_stays(links: Links, make: Make) -> None:
    before = shown(links)
    make().keep(ONLY_NARROW)
    left = frozenset({f"proxy entries on eth0 for {NARROW6}"})
    wanted = frozenset({route(NARROW, proxy="eth0")})
    assert make().keep(wanted) == Outcome(stale=left, changed=True)
    outcome = make().keep(NOTHING)
    assert outcome == Outcome(stale=frozenset({f"proxy entries on eth0 for {NARROW}"}), changed=True)
    assert shown(links) == before


def test_a_setting_that_was_on_stays_on(links: Links, make: Make) -> None:
    links.host.sysctl("ipv6.conf.eth0.proxy_ndp=1")
    before, kept = shown(links), make()
    kept.keep(ALL)
    kept.keep(NOTHING)
    assert shown(links) == before


def test_nothing_is_asked_while_nothing_is_wanted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = make()
    kept.keep(frozenset({route(NARROW)}))
    monkeypatch.setattr(module, "Rtnetlink", None)
    assert kept.keep(frozenset({route(NARROW), route(WIDE)})) == Outcome()


@pytest.mark.parametrize("interface", ["eth9", "", "..", "all", "a b", "x" * 300, "nul\0", "--help", "eth\n0"])
@pytest.mark.parametrize("subnet", [NARROW6, WIDE])
def test_an_interface_that_is_not_there_is_a_fault(links: Links, make: Make, interface: str, subnet: str) -> None:
    before, kept, good = shown(links), make(), frozenset({route(NARROW, proxy="eth0")})
    outcome = kept.keep(good | {route(subnet, proxy=interface)})
    assert outcome.mended == good
    (fault,) = outcome.faults
    assert fault.startswith(f"nobody answers for {subnet} on ")
    assert fault.endswith("there is no such interface")
    assert fault.isprintable()
    kept.keep(NOTHING)
    assert shown(links) == before


def test_an_interface_without_ipv6_is_a_fault(links: Links, make: Make) -> None:
    links.host.sysctl("ipv6.conf.eth0.disable_ipv6=1")
    kept = make()
    assert kept.keep(ONLY_WIDE).faults == (f"nobody answers for {WIDE} on eth0: it has no IPv6 address",)
    links.host.sysctl("ipv6.conf.eth0.disable_ipv6=0")
    assert kept.keep(ONLY_WIDE) == Outcome(mended=ONLY_WIDE, changed=True)
    links.host.sysctl("ipv6.conf.eth0.disable_ipv6=1")
    assert kept.keep(ONLY_WIDE).faults
    assert "allmulti 0" in shown(links)


@pytest.mark.parametrize("prefix", [WIDE, "2001:db8:1::/48", "2001:db8:1::/100", "2001:db8:1::/117"])
def test_a_solicitation_is_answered(links: Links, make: Make, asker: Asker, prefix: str) -> None:
    links.host.ip(f"route replace {prefix} dev virbr1", f"route add {OTHER} dev virbr1")
    make().keep(frozenset({route(OTHER, proxy="eth0"), route(prefix, proxy="eth0")}))
    asker.solicit(solicitation(TARGET, options=source_option(asker.own)))
    answer = asker.answer()
    # To who asked, as a router, solicited, and without override.
    assert fields(answer) == ("fe80::2", TARGET, 0b110, links.mac(links.host))
    assert is_sound(answer)
    assert answer[7] == 255


def test_a_solicitation_to_the_host_alone_is_answered(links: Links, make: Make, asker: Asker) -> None:
    make().keep(ONLY_WIDE)
    asker.solicit(solicitation(TARGET, source="2001:db8::2", destination=TARGET), to=links.mac(links.host))
    assert fields(asker.answer()) == ("2001:db8::2", TARGET, 0b110, links.mac(links.host))


def test_who_wants_to_take_an_address_is_told_that_it_is_taken(links: Links, make: Make, asker: Asker) -> None:
    make().keep(ONLY_WIDE)
    asker.solicit(solicitation(TARGET, source=PROBE))
    assert fields(asker.answer()) == ("ff02::1", TARGET, 0b100, links.mac(links.host))
    links.neighbour.sysctl("ipv6.conf.eth0.accept_dad=1")
    links.neighbour.ip("address add 2001:db8:1::77/128 dev eth0")
    wait_until(
        lambda: "dadfailed" in links.neighbour.run("ip", "address", "show", "to", "2001:db8:1::77"),
        "the neighbour gives the address up",
    )


def test_the_host_itself_may_take_an_address_of_the_prefix(links: Links, make: Make) -> None:
    make().keep(ONLY_WIDE)
    links.host.sysctl("ipv6.conf.eth0.accept_dad=1")
    links.host.ip("address add 2001:db8:1::1/64 dev eth0")
    taken = partial(links.host.run, "ip", "address", "show", "to", "2001:db8:1::1")
    wait_until(lambda: "tentative" not in taken() or "dadfailed" in taken(), "nobody else has it")
    assert "dadfailed" not in taken()


def wrong_ones() -> dict[str, bytes]:
    """Solicitations for the address 2001:db8:1::bad, or for others, which nobody is to answer."""
    bad = "2001:db8:1::bad"
    own = source_option("02:00:00:00:00:02")
    return {
        "from beyond the link": solicitation(bad, hop_limit=254),
        "outside the prefix": solicitation("2001:db8:2::1"),
        "just outside the prefix": solicitation("2001:db8:0:ffff:ffff:ffff:ffff:ffff"),
        "an address of the interface": solicitation("2001:db8:1::1"),
        "no checksum": solicitation(bad, checksum=0),
        "wrong checksum": solicitation(bad, checksum=0x1234),
        "wrong code": solicitation(bad, code=1),
        "an advertisement": solicitation(bad, kind=136),
        "not ICMPv6": solicitation(bad, next_header=17),
        "an option without a length": solicitation(bad, options=bytes([1, 0, 0, 0, 0, 0, 0, 0])),
        "an option longer than the packet": solicitation(bad, options=bytes([1, 2, 0, 0, 0, 0, 0, 0])),
        "an option cut short": solicitation(bad, options=b"\x01\x01\x00"),
        "a probe that tells a MAC address": solicitation(bad, source=PROBE, options=own),
        "a probe to one host": solicitation(bad, source=PROBE, destination=bad),
        "from a group": solicitation(bad, source="ff02::1"),
        "cut short": solicitation(bad)[:-1],
        "header only": solicitation(bad)[:40],
        "for a group": solicitation(str(group(IPv6Address(bad)))),
    }


def test_what_is_not_to_be_answered_is_not(links: Links, make: Make, asker: Asker) -> None:
    links.host.ip("address add 2001:db8:1::1/128 dev eth0")
    make().keep(ONLY_WIDE)
    for packet in wrong_ones().values():
        asker.solicit(packet)
    asker.solicit(solicitation(TARGET))
    answered = set()
    while fields(answer := asker.answer())[1] != TARGET:
        answered.add(fields(answer)[1:3])
    # Its own address the kernel answers for, with override.
    assert answered <= {("2001:db8:1::1", 0b111)}


def test_who_floods_the_link_is_answered_only_so_often(
    make: Make, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nd_responder, "_MOST_PER_SECOND", 2)
    make().keep(ONLY_WIDE)
    begun = time.monotonic()
    for _ in range(3):
        asker.solicit(solicitation(TARGET))
    for _ in range(3):
        asker.answer()
    assert time.monotonic() - begun >= 1


def test_other_prefixes_take_the_place_of_the_first(links: Links, make: Make, asker: Asker) -> None:
    links.host.ip(f"route add {OTHER} dev virbr1")
    kept, other = make(), frozenset({route(OTHER, proxy="eth0")})
    kept.keep(ONLY_WIDE)
    assert kept.keep(other) == Outcome(mended=other, changed=True)
    asker.solicit(solicitation(TARGET))
    asker.solicit(solicitation("2001:db8:9::9"))
    assert fields(asker.answer())[1] == "2001:db8:9::9"


def test_an_interface_that_is_made_anew_is_answered_on(links: Links, make: Make) -> None:
    kept = make()
    kept.keep(ONLY_WIDE)
    links.host.ip("link del eth0")
    assert kept.keep(ONLY_WIDE).faults
    links.host.ip(f"link add eth0 type veth peer name eth0 netns {links.neighbour.namespace}", "link set eth0 up")
    links.neighbour.ip("link set eth0 up")
    wait_until(links.are_settled, "the link is up")
    assert kept.keep(ONLY_WIDE) == Outcome(mended=ONLY_WIDE, damaged=ONLY_WIDE, changed=True)
    asker = Asker(links)
    asker.solicit(solicitation(TARGET))
    assert fields(asker.answer())[1] == TARGET
    asker.close()


def test_a_link_that_was_down_is_answered_on(links: Links, make: Make, asker: Asker) -> None:
    kept = make()
    kept.keep(ONLY_WIDE)
    links.host.ip("link set eth0 down", "link set eth0 up")
    wait_until(links.are_settled, "the link is up")
    assert kept.keep(ONLY_WIDE) == Outcome()
    asker.solicit(solicitation(TARGET))
    assert fields(asker.answer())[1] == TARGET


def test_a_vlan_of_the_link_is_another_link(links: Links, make: Make, asker: Asker) -> None:
    # A neighbour on a VLAN may ask for the same address there; this kernel may not have VLANs, so the frame is made.
    make().keep(ONLY_WIDE)
    frames = open_socket(links.neighbour.namespace, socket.AF_PACKET, socket.SOCK_RAW, 0)
    frames.bind(("eth0", 0))
    packet = solicitation("2001:db8:1::bad")
    own = bytes.fromhex(asker.own.replace(":", ""))
    frames.send(b"\x33\x33" + packet[36:40] + own + b"\x81\x00\x00\x64\x86\xdd" + packet)
    frames.close()
    asker.solicit(solicitation(TARGET))
    assert fields(asker.answer())[1] == TARGET


def test_an_interface_on_the_link_is_another_link(links: Links, make: Make, asker: Asker) -> None:
    links.host.ip("link add mac0 link eth0 type macvlan mode bridge", "link set mac0 up")
    make().keep(ONLY_WIDE)
    asker.solicit(solicitation("2001:db8:1::bad", destination="2001:db8:1::bad"), to=links.mac(links.host, "mac0"))
    asker.solicit(solicitation(TARGET))
    assert fields(asker.answer())[1] == TARGET


def test_a_responder_leaves_no_trace(links: Links, make: Make) -> None:
    before, threads, kept = shown(links), threading.active_count(), make()
    kept.keep(ONLY_WIDE)
    assert "allmulti 1" in shown(links)
    kept.close()
    assert threading.active_count() == threads
    assert shown(links) == before


def test_too_many_prefixes_are_a_fault(links: Links, make: Make) -> None:
    subnets = [f"2001:db8:9:{number:x}::/64" for number in range(1000)]
    links.host.ip(*(f"route add {subnet} dev virbr1" for subnet in subnets))
    (fault,) = make().keep(frozenset(route(subnet, proxy="eth0") for subnet in subnets)).faults
    assert fault.startswith("nobody answers for ")


def test_nobody_has_mac_addresses_on_a_tunnel(links: Links, make: Make) -> None:
    links.host.ip("tuntap add tun0 mode tun", "link set tun0 up", "address add 2001:db8:7::1/64 dev tun0")
    (fault,) = make().keep(frozenset({route(WIDE, proxy="tun0")})).faults
    assert fault == f"nobody answers for {WIDE} on tun0: nobody there has a MAC address"


def test_only_what_is_routed_to_the_network_is_answered_for(links: Links, make: Make, asker: Asker) -> None:
    # As where a provider has the whole prefix on the link, with a router of its own that has an address in it.
    before, kept = shown(links), make()
    assert kept.keep(ALL).mended == ALL
    links.host.ip("address add 2001:db8:1::2/64 dev eth0", "address add 2001:db8:5::41/125 dev eth0")
    links.host.ip(f"route replace {NARROW} dev eth0")
    faults = kept.keep(ALL).faults
    assert faults == tuple(
        f"nobody answers for {subnet} on eth0: its addresses are not routed to virbr1"
        for subnet in sorted((NARROW, NARROW6, WIDE))
    )
    assert "proxy" not in links.told("neighbour", "show", "proxy")
    links.host.ip("address del 2001:db8:1::2/64 dev eth0", "address del 2001:db8:5::41/125 dev eth0")
    assert shown(links) == before
    assert kept.keep(frozenset({route(WIDE, proxy="eth0")})).damaged == ONLY_WIDE
    asker.solicit(solicitation(TARGET))
    assert fields(asker.answer())[1] == TARGET
