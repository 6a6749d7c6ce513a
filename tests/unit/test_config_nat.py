"""What a `[[nat]]` becomes, and what is reported of one that is wrong."""

from ipaddress import ip_address

import pytest

from fwdaemon.config.model import NatEntry
from fwdaemon.core.types import Origin
from tests.unit.test_config_support import MAIN, nat, problems_of, read


def test_every_key() -> None:
    text = """[[nat]]
    domain = "a\\n--comment \\"x"
    public = "2001:db8::8"
    assign = "eth0.5"
    address = "2001:db8:1::51"
    mac = "52-54-00-AB-CD-EF"
    [[nat]]
    domain = "b"
    network = "default"
    public = "198.51.100.8"
    """
    assert read(text).nats == (
        NatEntry(
            domain='a\n--comment "x',
            public=ip_address("2001:db8::8"),
            origin=Origin(MAIN, 3),
            assign="eth0.5",
            address=ip_address("2001:db8:1::51"),
            mac="52:54:00:ab:cd:ef",
        ),
        NatEntry(domain="b", public=ip_address("198.51.100.8"), origin=Origin(MAIN, 10), network="default"),
    )


PUBLIC = 'write the one address that is to lead to the guest, such as "198.51.100.8"'


@pytest.mark.parametrize(
    ("public", "message"),
    [
        ("198.51.100.8/29", f"is a network; {PUBLIC}"),
        ("mail", f"is not an IP address; {PUBLIC}"),
        ("", f"is not an IP address; {PUBLIC}"),
        ("127.0.0.1", f"is a loopback address, which leads to the host itself; {PUBLIC}"),
        ("::1", f"is a loopback address, which leads to the host itself; {PUBLIC}"),
        ("0.0.0.0", f"is no host's address; {PUBLIC}"),  # noqa: S104 - nothing is bound, it is refused
        ("::", f"is no host's address; {PUBLIC}"),
        ("224.0.0.1", f"is a multicast address, which belongs to no single host; {PUBLIC}"),
        ("ff02::1", f"is a multicast address, which belongs to no single host; {PUBLIC}"),
        ("255.255.255.255", f"is the broadcast address, which belongs to no single host; {PUBLIC}"),
        ("169.254.1.1", f"is a link-local address, which is known on one link only; {PUBLIC}"),
        ("fe80::1", f"is a link-local address, which is known on one link only; {PUBLIC}"),
        ("fe80::1%eth0", f'names an interface after "%", which no address here can have; {PUBLIC}'),
        ("::ffff:198.51.100.8", 'is IPv4 mapped into IPv6; write "198.51.100.8"'),
    ],
)
def test_public_refused(public: str, message: str) -> None:
    assert problems_of(nat(public)) == [f'portfwd.toml:3: nat 1: public: "{public}" {message}']


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('asign = "eth0"', 'unknown key "asign"; did you mean "assign"?'),
        ('x = ["80"]', 'unknown key "x"; write one of address, assign, deny, domain, mac, network, public, sources'),
        ("assign = true", 'assign: must be a string, not true; write the name of one, such as "eth0"'),
        (
            'assign = "eth+"',
            (
                'assign: "eth+" has a quote, backslash, wildcard or sign that is syntax in a firewall rule;'
                " write the plain name of one interface"
            ),
        ),
        (
            'mac = "52:54:00:12:34:56"\nnetwork = "default"',
            "mac: picks the guest's interface, as network already does; remove one of the two",
        ),
        (
            'address = "2001:db8::1"',
            "address: is IPv6 only, but public is IPv4 only, so nothing could match; write both in one family",
        ),
        (
            'address = "198.51.100.8"',
            "address: is public itself, so nothing is left to translate; write a [[route]] instead",
        ),
        ('network = ""', 'network: "" is empty; write the name that virsh shows'),
    ],
)
def test_refused(line: str, message: str) -> None:
    assert problems_of(nat(lines=line)) == [f"portfwd.toml:4: nat 1: {message}"]


def test_an_array_is_not_one_address() -> None:
    assert problems_of('[[nat]]\ndomain = "a"\npublic = ["198.51.100.8"]') == [
        'portfwd.toml:3: nat 1: public: must be a string, not an array; write "198.51.100.8"'
    ]


def test_missing_keys() -> None:
    assert problems_of("\n[[nat]]") == [
        'portfwd.toml:2: nat 1: has no public; write for example public = "198.51.100.8"',
        'portfwd.toml:2: nat 1: has no domain; write domain = "…" with the name or UUID that virsh shows',
    ]


def test_all_that_contradicts_is_told_at_once() -> None:
    lines = 'address = "2001:db8::1"\nnetwork = "a"\nmac = "52:54:00:12:34:56"\nassign = ""'
    assert [text.split(": ")[2] for text in problems_of(nat(lines=lines))] == ["address", "mac", "assign"]


def test_a_drop_in_may_add_entries() -> None:
    assert problems_of("", nat()) == []
