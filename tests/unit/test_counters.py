"""What the kernel says of our rules and connections: nftables' counters, and the list of connections."""

import struct
import sys
from collections.abc import Iterable

import pytest

from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family
from fwdaemon.kernel.conntrack_listing import labelled, read_entry, read_open_flow
from fwdaemon.kernel.netlink import Message, attribute, messages, packed
from fwdaemon.nftables.table_cache import counting_rules, read_packets
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
		meta l4proto tcp iifname "counter" ct label set 25 counter packets 5 bytes 300 dnat to 192.0.2.1:80 comment "web counter packets 7 bytes 8"
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
    rules = counting_rules(Desired(uplinks=frozenset({"eth0"})).having([web, ssh, mail, routed]))
    assert sorted(where for _, where, _ in rules) == [
        "any.tcp.80_81",
        "as.198.51.100.8",
        "nat.198.51.100.8",
        "one_address_targets",
    ]
    assert rules["ip6", "one_address_targets", "2001:db8::7 . tcp . 22"] == ssh
    assert set(rules.values()) == {web, ssh, mail}


def test_forwards_that_share_ports_have_rules_of_their_own() -> None:
    """Whatever the order they come in: a port segment's rules and its forwards are distinguished by what they match."""
    first = forward("tcp *:22", "192.0.2.1:22", sources=("203.0.113.0/24",), domain="a")
    second = forward("tcp *:22", "192.0.2.2:22", sources=("192.0.2.0/24",), domain="b")
    rules = counting_rules(Desired().having([second, first]))
    assert {comment.split()[0]: exposure for (_, _, comment), exposure in rules.items()} == {"a": first, "b": second}


@pytest.mark.parametrize("kind", [0x100, 0x102, 77])
@pytest.mark.parametrize("body", [b"", bytes(4), bytes(24), b"xyz"])
def test_what_is_no_connection(kind: int, body: bytes) -> None:
    message = Message(kind, 0, 1, 0, body)
    assert read_open_flow(message) is None
    assert read_entry(message) is None


@pytest.mark.parametrize("bit", [0, 25, 63, 64, 127])
def test_connections_with_a_label_are_found_among_bytes(bit: int) -> None:
    """The kernel keeps labels as bits of its own words."""
    word = struct.calcsize("@L")
    numbers = [1 << bit % (8 * word) if number == bit // (8 * word) else 0 for number in range(16 // word)]
    ours = b"".join(number.to_bytes(word, sys.byteorder) for number in numbers)
    others = bytes(0xFF ^ octet for octet in ours)
    found = [
        [message.body for message in messages(datagram(labels), (labelled(bit),))]
        for labels in ((ours,), (others,), (bytes(16), ours, others))
    ]
    assert found == [[attribute(22, ours)], [], [attribute(22, ours)]]


def test_what_netlink_itself_says_is_never_passed_over() -> None:
    done = packed(3, 0, 1, bytes(4))
    assert [message.kind for message in messages(datagram((bytes(16),)) + done, (labelled(25),))] == [3]


def datagram(labels: Iterable[bytes]) -> bytes:
    return b"".join(packed(0x100, 0, 1, attribute(22, label)) for label in labels)
