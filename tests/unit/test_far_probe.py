"""What a guest sends back to a client off its link, as packets: only answers to this very probe count."""

import struct
from itertools import product

import pytest

from fwdaemon.core.types import Family
from fwdaemon.explain.far_probe import LAYOUTS, Layout, Probe

PORT, OURS = 80, 40_000
IDENT, OTHER = b"\x12\x34\x00\x07", b"\x12\x34\x00\x08"
TCP = 6
EVERY = [pytest.param(LAYOUTS[family], id=f"IPv{family}") for family in Family]


def probe(layout: Layout) -> Probe:
    return Probe(layout, PORT, OURS, IDENT)


def packet(layout: Layout, protocol: int, payload: bytes, options: int = 0) -> bytes:
    """Give a packet; `options` are words of them in its IPv4 header."""
    header = bytearray(40 if layout is LAYOUTS[Family.IPV6] else 20 + 4 * options)
    header[0] = 0x60 if layout is LAYOUTS[Family.IPV6] else 0x45 + options
    header[layout.protocol_at] = protocol
    return bytes(header) + payload


def tcp(layout: Layout, source: int, destination: int, options: int = 0) -> bytes:
    return packet(layout, TCP, struct.pack("!HH16x", source, destination), options)


def icmp(layout: Layout, kind: int, rest: bytes) -> bytes:
    return packet(layout, layout.ping, struct.pack("!BBH", kind, 0, 0) + rest)


def refusal(layout: Layout, of: bytes) -> bytes:
    """Give what says that a packet was refused, with its begin."""
    return icmp(layout, min(layout.error_types), bytes(4) + of[: layout.header(of) + 8])


@pytest.mark.parametrize("layout", EVERY)
@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [(PORT, OURS, True), (PORT, OURS + 1, None), (PORT + 1, OURS, None)],
    ids=["to us", "to an earlier probe", "from another port"],
)
def test_a_port_answers_this_probe(layout: Layout, source: int, destination: int, *, expected: bool | None) -> None:
    assert probe(layout).answered(tcp(layout, source, destination)) is expected


def test_options_of_a_header_hide_no_port() -> None:
    layout = LAYOUTS[Family.IPV4]
    assert probe(layout).answered(tcp(layout, PORT, OURS, options=2)) is True


@pytest.mark.parametrize("layout", EVERY)
def test_a_pong_is_no_answer_of_the_port_nor_one_to_an_earlier_ping(layout: Layout) -> None:
    assert probe(layout).answered(icmp(layout, layout.pong_type, IDENT)) is False
    assert probe(layout).answered(icmp(layout, layout.pong_type, OTHER)) is None


@pytest.mark.parametrize("layout", EVERY)
def test_a_refusal_counts_for_what_it_refuses(layout: Layout) -> None:
    refused = (
        (tcp(layout, OURS, PORT), True),
        (icmp(layout, layout.ping_type, IDENT), False),
        (tcp(layout, OURS + 1, PORT), None),
        (tcp(layout, OURS, PORT + 1), None),
        (icmp(layout, layout.ping_type, OTHER), None),
        (packet(layout, 17, struct.pack("!HH", OURS, PORT)), None),
    )
    for of, expected in refused:
        assert probe(layout).answered(refusal(layout, of)) is expected


@pytest.mark.parametrize("layout", EVERY)
def test_what_else_a_guest_sends_is_no_answer(layout: Layout) -> None:
    """Its own pings, redirects, and in IPv6 its neighbour discovery."""
    for kind in set(range(256)) - layout.error_types - {layout.pong_type}:
        assert probe(layout).answered(icmp(layout, kind, IDENT)) is None


@pytest.mark.parametrize("layout", EVERY)
def test_only_what_this_probe_asks_shows_that_it_asks(layout: Layout) -> None:
    assert probe(layout).is_asking(tcp(layout, OURS, PORT))
    assert probe(layout).is_asking(icmp(layout, layout.ping_type, IDENT))
    for other in (tcp(layout, PORT, OURS), tcp(layout, OURS + 1, PORT), icmp(layout, layout.ping_type, OTHER)):
        assert not probe(layout).is_asking(other)


@pytest.mark.parametrize("layout", EVERY)
def test_a_packet_that_ends_early_is_no_answer(layout: Layout) -> None:
    whole = (tcp(layout, PORT, OURS), refusal(layout, tcp(layout, OURS, PORT)), icmp(layout, layout.pong_type, IDENT))
    for sent, asked in product(whole, (probe(layout),)):
        ports = layout.header(sent) + 4
        assert all(asked.answered(sent[:length]) is None for length in range(ports))
