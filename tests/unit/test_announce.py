"""What is sent to announce an address, byte by byte; that neighbours heed it is shown in tests/kernel."""

from ipaddress import IPv4Address, IPv6Address

from fwdaemon.hostnet.public_addresses import gratuitous_arps, unsolicited_advertisement
from tests.unit.nd_packets import is_sound

MAC = bytes.fromhex("525400000001")


def test_a_gratuitous_request_and_reply() -> None:
    request, reply = gratuitous_arps(IPv4Address("198.51.100.8"), MAC)
    head, address = bytes.fromhex("0001 0800 06 04"), bytes([198, 51, 100, 8])
    assert request == head + b"\x00\x01" + MAC + address + bytes(6) + address
    # Linux takes a reply for gratuitous only if both MAC addresses are the same.
    assert reply == head + b"\x00\x02" + MAC + address + MAC + address


def test_an_unsolicited_advertisement_overrides() -> None:
    address = IPv6Address("2001:db8::8")
    for is_router, flags in ((False, 0x20), (True, 0xA0)):
        packet = unsolicited_advertisement(address, MAC, is_router=is_router)
        assert is_sound(packet)
        assert packet[8:40] == address.packed + IPv6Address("ff02::1").packed
        assert packet[44] == flags
