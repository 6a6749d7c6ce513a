"""ARP replies and requests are read, and everything else is not."""

from ipaddress import IPv4Address

import pytest

from fwdaemon.kernel import packets

HOST, GUEST = IPv4Address("192.168.122.1"), IPv4Address("192.168.122.50")
MAC, OTHER = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
REPLY = packets.packed(packets.REPLY, GUEST, MAC, HOST, OTHER)


def test_a_request_names_who_asks() -> None:
    head = bytes.fromhex("0001 0800 06 04 0001")
    assert packets.packed(packets.REQUEST, HOST, MAC, GUEST) == head + MAC + HOST.packed + bytes(6) + GUEST.packed


def test_a_reply_is_read_also_where_the_link_filled_it_up() -> None:
    assert packets.read_reply(REPLY + bytes(18)) == packets.Reply(GUEST, MAC)


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(REPLY[:-1], id="cut short"),
        pytest.param(packets.packed(packets.REQUEST, GUEST, MAC, HOST), id="a request"),
        pytest.param(b"\x00\x06" + REPLY[2:], id="another link"),
        pytest.param(REPLY[:2] + b"\x86\xdd" + REPLY[4:], id="another family"),
    ],
)
def test_anything_else_is_no_reply(packet: bytes) -> None:
    assert packets.read_reply(packet) is None


def test_a_request_is_read_and_nothing_else() -> None:
    request = packets.packed(packets.REQUEST, HOST, MAC, GUEST)
    assert packets.read_request(request + bytes(18)) == GUEST
    assert [packets.read_request(packet) for packet in (REPLY, request[:-1], b"\x00\x06" + request[2:])] == [None] * 3
