"""What the kernel says of our rules and connections: nftables' counters, and the list of connections."""

import struct

import pytest

from fwdaemon.conntrack_listing import listing_request, read_entry, read_open_flow
from fwdaemon.desired import Desired
from fwdaemon.model import Family
from fwdaemon.netlink import Message
from fwdaemon.nftables.counters import counting_rules, read_packets
from tests.unit.forwards import forward, nat, route

LISTING = """table ip kvm_portfwd {
	map every_address {
		type inet_proto . inet_service : verdict
		elements = { tcp . 80 : jump any.tcp.80 }
	}

	map every_address_targets {
		type inet_proto . inet_service : ipv4_addr . inet_service
		counter
		elements = { tcp . 81 counter packets 3 bytes 180 comment "counter_packets_8" : 192.0.2.1 . 81,
			     132 . 82 counter packets 4 bytes 240 comment "x" : 192.0.2.1 . 82 }
	}

	chain forwards {
		ip daddr . meta l4proto . th dport vmap @one_address comment "all 0119cbc0cd77"
	}

	chain any.tcp.80 {
		meta l4proto tcp iifname "counter" ct mark set ct mark | 0x2 counter packets 5 bytes 300 dnat to 192.0.2.1:80 comment "web counter packets 7 bytes 8"
		meta l4proto tcp counter packets 18446744073709551615 bytes 1 dnat to 192.0.2.1 : tcp dport map { 80 : 81 } comment "x"
		counter packets 9 bytes 9
	}

	chain as.2001_db8__8 {
		counter packets 0 bytes 0 snat to 192.0.2.9 comment "mail 01"
	}
}
"""  # noqa: E101, E501  nft's own lines


def test_packets_are_read_by_chain_and_comment_or_map_and_key() -> None:
    assert dict(read_packets(Family.IPV4, LISTING)) == {
        ("ip", "any.tcp.80", "web counter packets 7 bytes 8"): 5,
        ("ip", "any.tcp.80", "x"): (1 << 64) - 1,
        ("ip", "as.2001_db8__8", "mail 01"): 0,
        ("ip", "every_address_targets", "tcp . 81"): 3,
        ("ip", "every_address_targets", "sctp . 82"): 4,
    }


def test_only_what_translates_counts_connections() -> None:
    web, ssh, mail, routed = (
        forward("tcp *:80-81", "192.0.2.1:80-81"),
        forward("tcp [2001:db8::7]:22", "[2001:db8:5::5]:22"),
        nat("198.51.100.8", "192.0.2.2"),
        route("203.0.113.64/29"),
    )
    rules = counting_rules(Desired(outer=frozenset({"eth0"})).having([web, ssh, mail, routed]))
    assert sorted(where for _, where, _ in rules) == [
        "any.tcp.80_81",
        "as.198.51.100.8",
        "nat.198.51.100.8",
        "one_address_targets",
    ]
    assert rules["ip6", "one_address_targets", "2001:db8::7 . tcp . 22"] == ssh
    assert set(rules.values()) == {web, ssh, mail}


def test_forwards_that_share_ports_have_rules_of_their_own() -> None:
    """Whatever the order they come in: a slot's rules and its forwards are told apart by what they match."""
    first = forward("tcp *:22", "192.0.2.1:22", sources=("203.0.113.0/24",), domain="a")
    second = forward("tcp *:22", "192.0.2.2:22", sources=("192.0.2.0/24",), domain="b")
    rules = counting_rules(Desired().having([second, first]))
    assert {comment.split()[0]: opening for (_, _, comment), opening in rules.items()} == {"a": first, "b": second}


@pytest.mark.parametrize("kind", [0x100, 0x102, 77])
@pytest.mark.parametrize("body", [b"", bytes(4), bytes(24), b"xyz"])
def test_what_is_no_connection(kind: int, body: bytes) -> None:
    message = Message(kind, 0, 1, 0, body)
    assert read_open_flow(message) is None
    assert read_entry(message) is None


def test_the_request_asks_the_kernel_to_choose_by_mark() -> None:
    request = listing_request(0x02000000)
    assert request[:4] == bytes(4), "of every family"
    marks = [(kind, int.from_bytes(mark)) for _, kind, mark in struct.iter_unpack("=HH4s", request[4:])]
    assert marks == [(8, 0x02000000), (21, 0x02000000)]
