from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Protocol
from fwdaemon.resolve.flows import Flow, Judge, Strangers, is_claimed, is_strayed
from tests.unit.forwards import forward, nat, route


def flow(sent_to: str, answered_from: str, *, source: str = "203.0.113.9", protocol: str | None = "tcp") -> Flow:
    destination, _, port = sent_to.rpartition(":")
    answers, _, answers_port = answered_from.rpartition(":")
    return Flow(
        Protocol(protocol) if protocol else None,
        ip_address(source),
        ip_address(destination),
        int(port),
        ip_address(answers),
        int(answers_port),
        ip_address(source),
        12345,
    )


def opened(guest: str, known_as: str) -> Flow:
    """A connection that a guest opened to the outside, which knows it under another address."""
    outside = ip_address("192.0.2.9")
    return Flow(Protocol.TCP, ip_address(guest), outside, 443, outside, 443, ip_address(known_as), 12345)


LOCAL = {ip_address("198.51.100.1")}
WEB = forward("tcp *:80", "192.168.122.50:8080")
RANGE = forward("tcp 198.51.100.7:100-109", "192.168.122.50:200-209")
FENCED = forward("tcp *:81", "192.168.122.50:81", sources=("203.0.113.0/24",))


@pytest.mark.parametrize(
    ("seen", "outdated"),
    [
        pytest.param(flow("198.51.100.1:80", "192.168.122.50:8080"), False, id="carried on any address"),
        pytest.param(flow("198.51.100.7:103", "192.168.122.50:203"), False, id="carried by a shifted range"),
        pytest.param(flow("198.51.100.7:103", "192.168.122.50:204"), True, id="another port of the same guest"),
        pytest.param(flow("198.51.100.1:103", "192.168.122.50:203"), True, id="another address of the host"),
        pytest.param(flow("198.51.100.1:80", "192.168.122.51:8080"), True, id="another guest"),
        pytest.param(flow("198.51.100.1:80", "192.168.122.50:8080", protocol="udp"), True, id="another protocol"),
        pytest.param(flow("198.51.100.1:81", "192.168.122.50:81"), False, id="from an allowed source"),
        pytest.param(
            flow("198.51.100.1:81", "192.168.122.50:81", source="192.0.2.1"), True, id="from a source not allowed"
        ),
        pytest.param(flow("198.51.100.1:22", "198.51.100.1:22"), False, id="of the host itself, so not ours"),
    ],
)
def test_a_labelled_flow_is_outdated_when_no_live_forward_carries_it(seen: Flow, *, outdated: bool) -> None:
    assert Judge([WEB, RANGE, FENCED], LOCAL).is_outdated(seen) is outdated


def test_what_went_through_a_forward_before_it_was_bound_to_an_interface_is_outdated() -> None:
    bound, seen = replace(WEB, interface="eth0"), flow("198.51.100.1:80", "192.168.122.50:8080")
    assert Judge([bound, RANGE], LOCAL, [WEB]).is_outdated(seen)
    assert not Judge([bound, RANGE], LOCAL).is_outdated(seen)
    assert not Judge([bound, RANGE], LOCAL, [RANGE]).is_outdated(seen)
    assert not Judge([WEB], LOCAL, [bound]).is_outdated(seen)
    other = flow("198.51.100.7:103", "192.168.122.50:203")
    assert not Judge([bound, RANGE], LOCAL, [WEB]).is_outdated(other)


def test_what_may_have_come_by_the_interface_of_a_forward_that_went_is_outdated() -> None:
    """Another forward leads to the same port of the guest, for what comes in by another interface."""
    seen = flow("198.51.100.1:80", "192.168.122.50:8080")
    left, stays = replace(WEB, interface="eth0"), replace(WEB, interface="eth1")
    assert Judge([stays, RANGE], LOCAL, [left]).is_outdated(seen)
    assert Judge([stays, RANGE], LOCAL, [WEB]).is_outdated(seen)
    assert not Judge([stays, WEB], LOCAL, [left]).is_outdated(seen)


def test_another_forward_by_the_same_interface_goes_on_with_the_flows_of_one_that_went() -> None:
    seen = flow("198.51.100.1:80", "192.168.122.50:8080")
    left = replace(WEB, interface="eth0", sources=(ip_network("203.0.113.0/25"),))
    assert not Judge([replace(WEB, interface="eth0")], LOCAL, [left]).is_outdated(seen)


MAIL = nat("198.51.100.8", "192.168.122.60")
ROUTED = route("203.0.113.64/29", "virbr0")


@pytest.mark.parametrize(
    ("seen", "outdated"),
    [
        pytest.param(flow("198.51.100.8:25", "192.168.122.60:25"), False, id="to the public address"),
        pytest.param(flow("198.51.100.8:0", "192.168.122.60:0", protocol=None), False, id="a ping"),
        pytest.param(flow("198.51.100.8:25", "192.168.122.61:25"), True, id="to another guest"),
        pytest.param(flow("198.51.100.8:25", "192.168.122.60:26"), True, id="to another port"),
        pytest.param(flow("198.51.100.9:25", "192.168.122.60:25"), True, id="to another public address"),
        pytest.param(opened("192.168.122.60", "198.51.100.8"), False, id="opened by the guest, under its address"),
        pytest.param(opened("192.168.122.60", "198.51.100.9"), True, id="opened by the guest, under another address"),
        pytest.param(opened("192.168.122.61", "198.51.100.8"), True, id="opened by another guest"),
        pytest.param(opened("203.0.113.66", "203.0.113.66"), False, id="opened from a routed address"),
        pytest.param(flow("203.0.113.71:80", "203.0.113.71:80", source="192.0.2.9"), False, id="to a routed address"),
        pytest.param(flow("203.0.113.72:80", "203.0.113.72:80", source="192.0.2.9"), True, id="beyond what is routed"),
        pytest.param(flow("198.51.100.1:22", "198.51.100.1:22"), False, id="of the host itself, so not ours"),
    ],
)
def test_flows_of_public_and_routed_addresses(seen: Flow, *, outdated: bool) -> None:
    assert Judge([MAIL, ROUTED], LOCAL).is_outdated(seen) is outdated


GONE = nat("198.51.100.9", "192.168.122.60")


@pytest.mark.parametrize(
    ("seen", "after_removal", "after_a_start", "with_fewer_uplinks"),
    [
        pytest.param(opened("192.168.122.60", "198.51.100.8"), False, False, True, id="of a live exposure"),
        pytest.param(opened("192.168.122.60", "198.51.100.9"), True, True, False, id="of one that went"),
        pytest.param(opened("192.168.122.61", "198.51.100.9"), False, False, False, id="another guest's"),
        pytest.param(opened("192.168.122.60", "198.51.100.1"), False, False, False, id="under the host's address"),
        pytest.param(opened("203.0.113.66", "203.0.113.66"), False, False, False, id="from a routed address"),
    ],
)
def test_what_guests_opened_under_a_public_address_is_known_by_both(
    seen: Flow, *, after_removal: bool, after_a_start: bool, with_fewer_uplinks: bool
) -> None:
    live: list[Exposure] = [MAIL, ROUTED]
    assert Judge(live, LOCAL, [GONE]).is_misnamed(seen) is after_removal
    assert Judge(live, LOCAL, left=[GONE.renaming, MAIL.renaming]).is_misnamed(seen) is after_a_start
    assert Judge(live, LOCAL, fewer_uplinks=True).is_misnamed(seen) is with_fewer_uplinks


DNS = forward("udp *:53", "192.168.122.50:53", sources=("203.0.113.0/24",))


@pytest.mark.parametrize(
    ("seen", "claimed"),
    [
        pytest.param(flow("198.51.100.1:53", "198.51.100.1:53", protocol="udp"), True, id="to the host itself"),
        pytest.param(flow("198.51.100.9:53", "198.51.100.9:53", protocol="udp"), False, id="only passing through"),
        pytest.param(flow("198.51.100.1:54", "198.51.100.1:54", protocol="udp"), False, id="another port"),
        pytest.param(flow("198.51.100.1:53", "198.51.100.1:53"), False, id="tcp ends by itself"),
        pytest.param(flow("198.51.100.1:53", "10.0.0.1:53", protocol="udp"), False, id="somebody else's forward"),
        pytest.param(
            flow("198.51.100.1:53", "198.51.100.1:53", source="192.0.2.1", protocol="udp"), False, id="not admitted"
        ),
    ],
)
def test_a_new_forward_claims_udp_flows_to_the_host_itself(seen: Flow, *, claimed: bool) -> None:
    assert is_claimed(seen, [DNS.claim], LOCAL) is claimed


def test_a_new_public_address_claims_all_flows_to_it() -> None:
    assert is_claimed(flow("198.51.100.8:0", "198.51.100.8:0", protocol=None), [MAIL.claim], LOCAL)
    assert is_claimed(flow("198.51.100.8:53", "198.51.100.8:53", protocol="udp"), [MAIL.claim], LOCAL)
    assert not is_claimed(flow("198.51.100.1:53", "198.51.100.1:53", protocol="udp"), [MAIL.claim], LOCAL)


def test_a_flow_that_began_before_its_forward_masqueraded_is_outdated() -> None:
    hidden = forward("udp *:5353", "192.168.122.50:53", masquerade=True)
    seen = flow("198.51.100.1:5353", "192.168.122.50:53", protocol="udp")
    assert Judge([hidden], LOCAL).is_outdated(seen)
    assert not Judge([hidden], LOCAL).is_outdated(replace(seen, client=ip_address("192.168.122.1")))
    assert not Judge([hidden], {seen.source}).is_outdated(seen)
    assert not Judge([replace(hidden, masquerade=False)], LOCAL).is_outdated(seen)


@pytest.mark.parametrize("order", [1, -1])
def test_a_flow_that_shows_its_client_goes_on_beside_a_forward_of_another_interface_that_masquerades(
    order: int,
) -> None:
    hidden = forward("udp *:5353", "192.168.122.50:53", interface="eth0", masquerade=True)
    plain = replace(hidden, interface="eth1", masquerade=False)
    seen = flow("198.51.100.1:5353", "192.168.122.50:53", protocol="udp")
    assert not Judge([hidden, plain][::order], LOCAL).is_outdated(seen)


@pytest.mark.parametrize(
    ("seen", "strayed"),
    [
        pytest.param(opened("192.168.122.60", "198.51.100.1"), True, id="masqueraded"),
        pytest.param(opened("192.168.122.60", "192.168.122.60"), True, id="not translated"),
        pytest.param(opened("192.168.122.60", "198.51.100.8"), False, id="under its public address"),
        pytest.param(opened("192.168.122.60", "198.51.100.65"), False, id="under another one of its own"),
        pytest.param(opened("192.168.122.61", "198.51.100.1"), False, id="of another guest"),
        pytest.param(flow("198.51.100.8:80", "192.168.122.60:80", source="192.168.122.60"), False, id="to itself"),
        pytest.param(flow("198.51.100.65:80", "198.51.100.65:80"), True, id="to it, and not led there"),
        pytest.param(flow("198.51.100.65:80", "192.168.122.60:80"), False, id="to it, and led there"),
        pytest.param(flow("198.51.100.66:80", "198.51.100.66:80"), False, id="to others"),
    ],
)
def test_what_is_not_translated_as_the_address_of_a_guest_is_strayed(seen: Flow, *, strayed: bool) -> None:
    own = [ip_address("198.51.100.8"), ip_address("198.51.100.65")]
    assert is_strayed(seen, {ip_address("192.168.122.60"): own}, own) is strayed


# Networks of type nat (virbr0), none (virbr1) and route (virbr2).
CONFINED = Desired(
    homes=frozenset((ip_network(f"192.168.12{n}.0/24"), f"virbr{n}") for n in range(3)),
    inside=frozenset({"virbr0", "virbr2"}),
    closed=frozenset({(Family.IPV4, "virbr0"), (Family.IPV4, "virbr1")}),
    confined=frozenset({Family.IPV4}),
)


@pytest.mark.parametrize(
    ("source", "server", "slipped_in"),
    [
        pytest.param("203.0.113.9", "10.0.0.2", True, id="between others"),
        pytest.param("203.0.113.9", "192.168.120.5", True, id="into a network of type nat"),
        pytest.param("203.0.113.9", "192.168.121.5", True, id="into an isolated one"),
        pytest.param("203.0.113.9", "192.168.122.5", False, id="into one of type route"),
        pytest.param("192.168.120.5", "203.0.113.9", False, id="out of one of type nat"),
        pytest.param("192.168.121.5", "203.0.113.9", True, id="out of an isolated one"),
        pytest.param("192.168.122.5", "203.0.113.9", False, id="out of one of type route"),
        pytest.param("192.168.121.5", "192.168.121.6", False, id="within one"),
        pytest.param("192.168.120.5", "192.168.122.5", False, id="out of one into another"),
        pytest.param("192.168.122.5", "192.168.120.5", True, id="into one that lets nobody in"),
        pytest.param("192.168.121.5", "192.168.122.5", True, id="out of an isolated one into another"),
        pytest.param("198.51.100.1", "10.0.0.2", False, id="of the host"),
        pytest.param("203.0.113.9", "198.51.100.1", False, id="to the host"),
        pytest.param("10.0.0.2", "224.0.0.251", False, id="to many"),
        pytest.param("127.0.0.1", "127.0.0.53", False, id="within the host"),
        pytest.param("2001:db8::9", "2001:db8:1::2", False, id="of a family that was forwarded before"),
    ],
)
def test_what_the_rules_would_have_refused_slipped_in(source: str, server: str, *, slipped_in: bool) -> None:
    seen = flow(f"{server}:80", f"{server}:80", source=source)
    assert Strangers.of(CONFINED, LOCAL).include(seen) is slipped_in


@pytest.mark.parametrize(
    ("source", "server", "slipped_in"),
    [
        pytest.param("192.0.2.60", "203.0.113.9", False, id="a 1:1 guest on a bridge of the host"),
        pytest.param("192.0.2.61", "203.0.113.9", True, id="its neighbour"),
        pytest.param("192.0.2.60", "192.168.120.5", True, id="that guest, into a network of libvirt"),
        pytest.param("203.0.113.66", "203.0.113.9", False, id="a routed guest on a bridge of the host"),
    ],
)
def test_what_guests_may_open_by_our_rules_has_not_slipped_in(source: str, server: str, *, slipped_in: bool) -> None:
    guest = nat("198.51.100.8", "192.0.2.60", bridge="br0")
    state = CONFINED.having([guest, replace(route("203.0.113.64/29", "br0"), let_out=True)])
    assert Strangers.of(state, LOCAL).include(flow(f"{server}:80", f"{server}:80", source=source)) is slipped_in


def test_link_local_addresses_are_not_forwarded() -> None:
    confined = replace(CONFINED, confined=frozenset(Family))
    assert not Strangers.of(confined, LOCAL).include(flow("fe80::1:547", "fe80::1:547", source="fe80::2"))
    assert Strangers.of(confined, LOCAL).include(flow("2001:db8:1::2:80", "2001:db8:1::2:80", source="2001:db8::9"))


# Forwarding was off on eth0 alone, which leads away, and behind which a gateway leads to a part of eth1's subnet.
PARTLY = replace(
    CONFINED,
    confined=frozenset(),
    switched=frozenset({(Family.IPV4, "eth0")}),
    uplinks=frozenset({"eth0"}),
    links=frozenset(
        (ip_network(subnet), name)
        for subnet, name in (("203.0.113.0/24", "eth0"), ("10.0.0.0/24", "eth1"), ("10.0.0.128/25", ""))
    ),
)
TWO_UPLINKS = replace(PARTLY, uplinks=frozenset({"eth0", "eth1"}))


@pytest.mark.parametrize(
    ("state", "source", "server", "slipped_in"),
    [
        pytest.param(PARTLY, "203.0.113.9", "10.0.0.2", True, id="from its link"),
        pytest.param(PARTLY, "192.0.2.7", "10.0.0.2", True, id="by the only uplink"),
        pytest.param(PARTLY, "10.0.0.129", "10.0.0.2", True, id="behind a gateway"),
        pytest.param(PARTLY, "10.0.0.2", "192.0.2.7", False, id="from another link"),
        pytest.param(PARTLY, "203.0.113.9", "203.0.113.10", False, id="within its link"),
        pytest.param(PARTLY, "203.0.113.9", "192.168.122.5", False, id="into a network of type route"),
        pytest.param(PARTLY, "203.0.113.9", "192.168.120.5", True, id="into one of type nat"),
        pytest.param(PARTLY, "192.168.120.5", "192.0.2.7", False, id="from a guest"),
        pytest.param(PARTLY, "203.0.113.9", "198.51.100.1", False, id="to the host"),
        pytest.param(TWO_UPLINKS, "203.0.113.9", "10.0.0.2", True, id="from its link, of two uplinks"),
        pytest.param(TWO_UPLINKS, "192.0.2.7", "10.0.0.2", False, id="by either of two uplinks"),
        pytest.param(TWO_UPLINKS, "10.0.0.129", "10.0.0.2", False, id="behind a gateway, of two uplinks"),
    ],
)
def test_what_came_in_where_nothing_was_forwarded_slipped_in(
    state: Desired, source: str, server: str, *, slipped_in: bool
) -> None:
    seen = flow(f"{server}:80", f"{server}:80", source=source)
    assert Strangers.of(state, LOCAL).include(seen) is slipped_in
