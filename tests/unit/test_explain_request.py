"""What people may ask about, and from where."""

import pytest

from fwdaemon.core.types import Protocol
from fwdaemon.explain.arrival import Request, UsageError, parse_request
from tests.unit.forwards import address

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("198.51.100.7:443", Request(TCP, 443, address("198.51.100.7"))),
        ("198.51.100.7:53/udp", Request(UDP, 53, address("198.51.100.7"))),
        ("[2001:db8::1]:80/sctp", Request(SCTP, 80, address("2001:db8::1"))),
        (":80", Request(TCP, 80)),
        ("80", Request(TCP, 80)),
        ("80/tcp", Request(TCP, 80)),
        ("*:80/UDP", Request(UDP, 80)),
    ],
)
def test_what_can_be_asked(text: str, request_: Request) -> None:
    assert parse_request(text) == request_


@pytest.mark.parametrize(
    "text",
    [
        "",
        "web:80",
        "198.51.100.7",
        "198.51.100.7:0",
        "198.51.100.7:65536",
        "198.51.100.7:80/",
        "198.51.100.777:80",
        "[198.51.100.7]:80",
        "2001:db8::1:80",
        "[]:80x",
        "[fe80::1%eth0;x]:8 0",
        "80:",
        "*80",
        "80/icmp",
        "80\n",
        "٨٠",
    ],
)
def test_what_cannot_be_asked(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("0.0.0.0:80", "write :80 to ask about one of them"),
        ("[::]:80", "write :80 to ask about one of them"),
        ("224.0.0.1:80", "write an address that one machine has"),
        ("255.255.255.255:80", "write an address that one machine has"),
        ("[ff02::1]:80", "write an address that one machine has"),
        ("[fe80::1]:80", "write another address"),
        ("198.51.100.7", "write the port too, 198.51.100.7:80"),
        ("2001:db8::7", "write the port too, [2001:db8::7]:80"),
        ("[2001:db8::7]", "write the port too, [2001:db8::7]:80"),
        ("2001:db8::7:80:x", "write an IPv6 address in brackets"),
        ("198.51.100.7:http", "write one such as 198.51.100.7:443 or :443"),
    ],
)
def test_what_to_ask_instead(text: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request(text)
    assert str(caught.value).endswith(f"; {remedy}")


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "::/0"])
def test_all_addresses_are_a_client_outside(everybody: str) -> None:
    assert parse_request(":80", everybody).source is None


@pytest.mark.parametrize(
    ("source", "found"),
    [("203.0.113.9", "203.0.113.9"), ("203.0.113.0/24", "203.0.113.1"), ("203.0.113.9/32", "203.0.113.9")],
)
def test_a_source_may_be_a_network(source: str, found: str) -> None:
    assert parse_request(":80", source).source == address(found)


@pytest.mark.parametrize("name", ["web1", "a:b", "00000000-0000-0000-0000-000000000001", "--from", "wéb 1"])
def test_any_other_word_is_a_domain(name: str) -> None:
    request = parse_request("[2001:db8::7]:80", name)
    assert (request.domain, request.source) == (name, None)


@pytest.mark.parametrize(
    "source", ["203.0.113", "203.0.113.0/33", "203.0.113.9/0.0.0.255", "2001:db8::9", "fe80::1%eth0", "::%\n\x1b[2J"]
)
def test_a_source_that_cannot_be(source: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request("198.51.100.7:80", source)
    assert str(caught.value).isprintable()
