"""No two forwards claim one packet, and the guest that the configuration means gets it, in the rules of every backend.

What the rules do is found by walking their text; what is meant, from the configuration alone.
"""

from dataclasses import replace
from ipaddress import ip_address
from itertools import product
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from fwdaemon.core.types import Family
from fwdaemon.legacy import ruleset as legacy
from fwdaemon.nftables import ruleset as nftables
from fwdaemon.resolve import placement
from tests.unit.configurations import (
    ELSEWHERE4,
    ELSEWHERE6,
    INTERFACES,
    LOCAL4,
    LOCAL6,
    accepted,
    inventory,
    some_entries,
    some_heads,
)
from tests.unit.memory_backend import Kernel, MemoryBackend
from tests.unit.walking import BRIDGE, Arrival, by_configuration, by_iptables, by_memory, by_nftables

HOST = inventory()


# Packets on the edges of what entries say, of every kind that makes a difference.
SOURCES = {
    Family.IPV4: ("203.0.113.7", "203.0.113.200", "1.2.3.4", "192.168.122.10"),
    Family.IPV6: ("2001:db8:9::9", "2001:db8:9::1", "9000::1"),
}
DESTINATIONS = {
    Family.IPV4: (*LOCAL4, *ELSEWHERE4, "127.0.0.1"),
    Family.IPV6: (*LOCAL6, *ELSEWHERE6, "::1"),
}
PORTS = (53, 80, 81, 84, 85, 89, 90, 65535)
PACKETS = tuple(
    Arrival(protocol, ip_address(source), ip_address(to), port, came_in, to not in ELSEWHERE4 + ELSEWHERE6)
    for family in Family
    for source, to in product(SOURCES[family], DESTINATIONS[family])
    for protocol, port, came_in in product(("tcp", "udp"), PORTS, ("eth0", INTERFACES[2], BRIDGE))
)


@settings(max_examples=8)
@given(some_entries(), some_heads())
def test_a_packet_goes_where_the_configuration_says(entries: list[str], head: str) -> None:
    found, _ = accepted(entries, head)
    desired = placement.desired_state(found, HOST)
    native, old, memory = nftables.tables(desired), legacy.tables(desired), Kernel()
    MemoryBackend(memory).apply(desired, full=True)
    for packet in PACKETS:
        family = Family.of(packet.to)
        meant = by_configuration(found, packet)
        assert (by_nftables(native[family], packet) if family in native else None) == meant
        assert by_iptables(old.get(family, {}), packet) == meant
        assert by_memory(memory, packet) == meant


@settings(max_examples=15)
@given(some_entries(), st.randoms(use_true_random=False))
def test_the_order_of_entries_and_guests_does_not_matter(entries: list[str], order: Random) -> None:
    _, kept = accepted(entries)
    shuffled = replace(HOST, domains=tuple(order.sample(HOST.domains, len(HOST.domains))))
    first = placement.desired_state(accepted(kept)[0], HOST)
    second = placement.desired_state(accepted(order.sample(kept, len(kept)))[0], shuffled)
    assert first.exposures == second.exposures
    assert nftables.tables(first) == nftables.tables(second)
    assert legacy.tables(first) == legacy.tables(second)
