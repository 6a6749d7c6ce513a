"""Solicitations read and advertisements written, byte by byte."""

from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.kernel.packets import ALL_NODES, Advertisement, Solicitation, multicast_mac, read_solicitation
from tests.unit.nd_packets import group, is_sound, solicitation, source_option

TARGET = "2001:db8:1::7"
MAC = "52:54:00:00:00:01"
OWN = source_option(MAC)
NONCE = bytes([14, 1, 1, 2, 3, 4, 5, 6])  # RFC 3971: a probe may carry one (RFC 7527)


@pytest.mark.parametrize("options", [b"", OWN, OWN + NONCE])
@pytest.mark.parametrize("source", ["fe80::2", "2001:db8::2"])
def test_a_solicitation_is_read(source: str, options: bytes) -> None:
    packet = solicitation(TARGET, source=source, options=options)
    assert read_solicitation(packet) == Solicitation(IPv6Address(source), IPv6Address(TARGET))


def test_what_follows_a_packet_is_padding() -> None:
    assert read_solicitation(solicitation(TARGET) + bytes(6)) is not None


def test_a_probe_is_one_without_a_source() -> None:
    probe = read_solicitation(solicitation(TARGET, source="::", options=NONCE))
    assert probe is not None
    assert probe.is_probe


@pytest.mark.parametrize(
    "packet",
    [
        solicitation(TARGET, hop_limit=254),
        solicitation(TARGET, checksum=0),
        solicitation(TARGET, code=1),
        solicitation(TARGET, kind=136),
        solicitation(TARGET, next_header=6),
        solicitation("ff02::1"),
        solicitation(TARGET, source="ff02::1"),
        solicitation(TARGET, source="::", options=OWN),
        solicitation(TARGET, source="::", destination=TARGET),
        solicitation(TARGET, options=bytes(8)),
        solicitation(TARGET, options=b"\x01\x02" + bytes(6)),
        solicitation(TARGET, options=b"\x01"),
        solicitation(TARGET)[:63],
        b"\x45" + solicitation(TARGET)[1:],
        b"",
    ],
)
def test_what_has_to_be_ignored_is_ignored(packet: bytes) -> None:
    assert read_solicitation(packet) is None


@given(st.binary(max_size=200))
def test_no_packet_is_too_odd_to_be_read(packet: bytes) -> None:
    read_solicitation(packet)


@given(st.binary(max_size=40), st.integers(0, 99), st.integers(0, 255))
def test_no_solicitation_is_too_bent_to_be_read(options: bytes, place: int, value: int) -> None:
    packet = bytearray(solicitation(TARGET, options=options))
    packet[place % len(packet)] = value
    read_solicitation(bytes(packet))


@pytest.mark.parametrize("flags", range(8))
def test_an_advertisement_says_what_it_is_to_say(flags: int) -> None:
    packet = Advertisement(
        source=IPv6Address("fe80::1"),
        destination=IPv6Address("2001:db8::2"),
        target=IPv6Address(TARGET),
        mac=bytes.fromhex(MAC.replace(":", "")),
        router=bool(flags & 4),
        solicited=bool(flags & 2),
        override=bool(flags & 1),
    ).packed()
    assert is_sound(packet)
    assert packet[:8] == bytes.fromhex("60000000 0020 3a ff")
    assert packet[8:40] == IPv6Address("fe80::1").packed + IPv6Address("2001:db8::2").packed
    assert packet[40:42] == b"\x88\x00"
    assert packet[44:48] == bytes([flags << 5, 0, 0, 0])
    assert packet[48:] == IPv6Address(TARGET).packed + bytes.fromhex("0201525400000001")


def test_groups_have_their_mac() -> None:
    assert multicast_mac(ALL_NODES) == bytes.fromhex("333300000001")
    assert multicast_mac(group(IPv6Address("2001:db8::12:3456"))) == bytes.fromhex("3333ff123456")
