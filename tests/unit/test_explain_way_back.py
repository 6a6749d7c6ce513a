"""What the guest's answer shows, and from where it is asked."""

from dataclasses import replace

import pytest

from fwdaemon.explain.report import Cause, FarAnswer, GuestAnswer, RouteAnswer, Sighting
from tests.unit.explaining import PlainHost, own
from tests.unit.forwards import address
from tests.unit.trace_scene import FORWARD, HELD, INTERFACE, WEB, cause, host, libvirt, told

UDP = '[[forward]]\ndomain = "web"\nports = ["8000:80/udp"]\n'


def seen(device: str, *, to_host: bool = True, by_port: bool = True) -> FarAnswer:
    return FarAnswer(sent=True, seen=frozenset({Sighting(device, to_host, by_port)}))


def answering(far: FarAnswer, **changes: object) -> PlainHost:
    return host(far=far, **changes)


def test_an_answer_that_comes_back_is_fine() -> None:
    world = answering(seen("virbr0"))
    report = told(world=world)
    assert report.sentence == "It works: tcp 198.51.100.1:8000 leads to web, 192.168.122.10:80."
    assert world.asked_as == [address("198.51.100.1")]


@pytest.mark.parametrize(
    ("far", "found"),
    [
        (FarAnswer(sent=True), Cause.NO_WAY_BACK),
        (seen("vnet0", to_host=False), Cause.ANSWER_ASTRAY),
        (seen("virbr1"), None),
        (FarAnswer(sent=False), None),
        (seen("virbr0", by_port=False), None),
    ],
)
def test_what_was_seen_of_the_answer(far: FarAnswer, found: Cause | None) -> None:
    report = told(world=answering(far))
    assert cause(report) is found
    if found is not None:
        assert report.sentence.startswith("Write masquerade = true in /etc/portfwd.toml:1 and run `kvm-portfwd reload`")
        assert "its default route through 192.168.122.1" in report.sentence


def test_a_strict_filter_where_the_answer_comes_in() -> None:
    settings = dict(host().settings) | {"net.ipv4.conf.virbr1.rp_filter": "1"}
    assert cause(told(world=answering(seen("virbr1"), settings=settings))) is Cause.ANSWER_ASTRAY


def test_a_ping_alone_tells_of_the_guests_own_firewall() -> None:
    report = told(world=answering(seen("virbr0", by_port=False)))
    assert "may admit its own network only" in report.sentence
    assert "masquerade" not in report.sentence


def test_what_could_not_be_asked_is_said() -> None:
    assert "was not asked" in told(world=answering(FarAnswer(sent=False))).sentence


def test_a_masquerading_forward_needs_no_way_back() -> None:
    world = answering(FarAnswer(sent=True))
    report = told(text=f"{FORWARD}masquerade = true\n", world=world)
    assert report.works
    assert any("forwards tcp *:8000 to web, masqueraded" in step.text for step in report.steps)
    assert world.asked_as == []


def test_datagrams_come_back_the_same_way() -> None:
    asked = "198.51.100.1:8000/udp"
    for near, found in ((GuestAnswer.REFUSES, Cause.NO_WAY_BACK), (GuestAnswer.SILENT, None)):
        world = answering(FarAnswer(sent=True), guest=near, rules=())
        steps = told(asked, text=UDP, world=world).steps
        assert [step.cause for step in steps if step.name == "way back"] == [found] * (found is not None)


def test_the_host_is_asked_as_what_it_connects_from() -> None:
    world = answering(seen("virbr0"))
    told(source="198.51.100.1", world=world)
    told(source="192.168.122.1", world=world)
    assert world.asked_as == [address("198.51.100.1")]


def test_no_address_on_another_link_of_the_guest_is_asked_from() -> None:
    second = replace(INTERFACE, mac="52:54:00:00:00:02", network=None, bridge="eth0", device="vnet1", learned=())
    said = libvirt(replace(WEB, interfaces=(INTERFACE, second)))
    text = FORWARD + 'network = "default"\n'
    world = answering(seen("virbr0"))
    told(text=text, said=said, world=world)
    assert world.asked_as == [address("192.0.2.1")]


# --- the client's side -----------------------------------------------------------------------------------------------

AWAY = RouteAnswer("eth0", address("198.51.100.2"))


def two_uplinks(**changes: object) -> PlainHost:
    held = (*HELD, own("198.51.101.1/24", "eth1"))
    return host(held=held, routes={"203.0.113.9": AWAY}, **changes)


def test_an_answer_that_leaves_by_another_uplink() -> None:
    settings = dict(host().settings) | {"net.ipv4.conf.eth1.forwarding": "1"}
    report = told("198.51.101.1:8000", "203.0.113.9", world=two_uplinks(settings=settings))
    assert report.works
    assert "the answer leaves by eth0, where the network may refuse 198.51.101.1 as its source" in report.sentence
    assert report.commands == []
    gateways = {"eth1": "198.51.101.2"}
    report = told("198.51.101.1:8000", "203.0.113.9", world=two_uplinks(settings=settings, gateways=gateways))
    assert report.commands == ["ip route add 203.0.113.9/32 via 198.51.101.2 dev eth1"]


def test_a_strict_filter_is_loosened_only_where_no_route_can_be_named() -> None:
    settings = dict(host().settings) | {"net.ipv4.conf.eth1.forwarding": "1", "net.ipv4.conf.eth1.rp_filter": "1"}
    gateways = {"eth1": "198.51.101.2"}
    asked = "198.51.101.1:8000", "203.0.113.9"
    refusing = {"198.51.101.1": RouteAnswer(None), "203.0.113.9": AWAY}
    world = replace(two_uplinks(settings=settings), routes=refusing)
    report = told(*asked, world=world)
    assert cause(report) is Cause.REVERSE_PATH
    assert report.commands == ["sysctl -w net.ipv4.conf.eth1.rp_filter=2"]
    assert "the network must take 198.51.101.1 as their source" in report.sentence
    report = told(*asked, world=replace(world, gateways=gateways))
    assert report.commands == ["ip route add 203.0.113.9/32 via 198.51.101.2 dev eth1"]
