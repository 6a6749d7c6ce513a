"""What a `[[route]]` becomes, and what is reported of one that is wrong."""

from ipaddress import ip_network

import pytest

from fwdaemon.config.model import RouteEntry
from fwdaemon.core.types import Origin
from tests.unit.test_config_support import MAIN, problems_of, read, route


def test_each_element_is_a_route_with_its_line() -> None:
    text = """[[route]]
    network = "a\\n--comment"
    addresses = ["203.0.113.64/29",
                 "203.0.113.80",
                 "2001:db8:1::/64"]
    proxy = "eth0.5"
    [[route]]
    addresses = "2001:db8::7"
    network = "b"
    """
    first = [("203.0.113.64/29", 3), ("203.0.113.80/32", 4), ("2001:db8:1::/64", 5)]
    assert read(text).routes == (
        *(RouteEntry("a\n--comment", ip_network(subnet), Origin(MAIN, line), "eth0.5") for subnet, line in first),
        RouteEntry("b", ip_network("2001:db8::7/128"), Origin(MAIN, 8)),
    )


ROUTED = 'write what is routed to this host, such as "203.0.113.64/29" or "2001:db8:1::/64"'
OTHERS = "wider than any network that is routed to one host, and would lead other people's addresses to the guests"


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        (
            "203.0.113.65/29",
            'is one address with a network\'s prefix; write "203.0.113.65/32"',
        ),
        ("203.0.113.64/33", 'has no valid prefix length; write a number from 0 to 32 after "/"'),
        ("0.0.0.0/0", f"is wider than /8, {OTHERS}; {ROUTED}"),
        ("::/0", f"is wider than /16, {OTHERS}; {ROUTED}"),
        ("8.0.0.0/7", f"is wider than /8, {OTHERS}; {ROUTED}"),
        ("2000::/15", f"is wider than /16, {OTHERS}; {ROUTED}"),
        ("0.1.2.3", f'is in 0.0.0.0/8, the addresses of "this network", which cannot be routed; {ROUTED}'),
        ("127.0.0.0/8", f"is 127.0.0.0/8, the loopback addresses, which cannot be routed; {ROUTED}"),
        ("127.0.0.1", f"is in 127.0.0.0/8, the loopback addresses, which cannot be routed; {ROUTED}"),
        ("169.254.7.0/24", f"is in 169.254.0.0/16, the link-local addresses, which cannot be routed; {ROUTED}"),
        ("169.0.0.0/8", f"contains 169.254.0.0/16, the link-local addresses, which cannot be routed; {ROUTED}"),
        ("239.0.0.0/8", f"is in 224.0.0.0/4, the multicast addresses, which cannot be routed; {ROUTED}"),
        ("255.255.255.0/24", f"contains 255.255.255.255/32, the broadcast address, which cannot be routed; {ROUTED}"),
        ("::", f"is ::/128, the unspecified address, which cannot be routed; {ROUTED}"),
        ("::1", f"is ::1/128, the loopback address, which cannot be routed; {ROUTED}"),
        ("::/16", f"contains ::/128, the unspecified address, which cannot be routed; {ROUTED}"),
        ("fe80::/64", f"is in fe80::/10, the link-local addresses, which cannot be routed; {ROUTED}"),
        ("ff0e::/16", f"is in ff00::/8, the multicast addresses, which cannot be routed; {ROUTED}"),
    ],
)
def test_subnet_refused(subnet: str, message: str) -> None:
    assert problems_of(route(f'[\n"{subnet}"]')) == [f'portfwd.toml:4: route 1: addresses[1]: "{subnet}" {message}']


@pytest.mark.parametrize("subnet", ["10.0.0.0/8", "9.9.9.9", "64:ff9b::/96", "fd00::/16", "::2", "240.0.0.0/8"])
def test_subnets_at_the_edge_of_what_is_refused(subnet: str) -> None:
    assert problems_of(route(f'["{subnet}"]')) == []


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        ("[]", 'addresses: is empty; write at least one subnet, ["203.0.113.64/29"]'),
        ("29", 'addresses: must be an array, not 29; write one such as ["203.0.113.64/29"]'),
        ("[29]", 'addresses[1]: must be a string, not 29; write a string such as "203.0.113.64/29"'),
        ('["public"]', f'addresses[1]: "public" is not an IP address; {ROUTED}'),
        ('["2001:db8::%eth0"]', f'addresses[1]: "2001:db8::%eth0" names an interface after "%", {{}}; {ROUTED}'),
    ],
)
def test_addresses_refused(addresses: str, message: str) -> None:
    expected = message.replace("{}", "which no address here can have")
    assert problems_of(route(addresses)) == [f"portfwd.toml:3: route 1: {expected}"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('prox = "eth0"', 'unknown key "prox"; did you mean "proxy"?'),
        ("x = 1", 'unknown key "x"; write one of addresses, deny, network, proxy, sources'),
        ("proxy = []", 'proxy: must be a string, not an array; write a string such as "eth0"'),
        ('proxy = "a b"', 'proxy: "a b" is no name the kernel accepts; write one that "ip link" shows'),
    ],
)
def test_refused(line: str, message: str) -> None:
    assert problems_of(route(lines=line)) == [f"portfwd.toml:4: route 1: {message}"]


@pytest.mark.parametrize("network", ["any", "def*", "default,other"])
def test_several_networks_refused(network: str) -> None:
    text = '[[route]]\nnetwork = "{}"\naddresses = ["203.0.113.64/29"]\n'
    said = 'stands for several networks, and an entry names one; write one that "virsh net-list" shows'
    assert problems_of(text.format(network)) == [f'portfwd.toml:2: route 1: network: "{network}" {said}']
    assert problems_of(text.format("default")) == []


def test_missing_keys() -> None:
    assert problems_of("\n[[route]]") == [
        'portfwd.toml:2: route 1: has no network; write network = "…" with the name that virsh net-list shows',
        'portfwd.toml:2: route 1: has no addresses; write for example addresses = ["203.0.113.64/29"]',
    ]


def test_ipv4_is_answered_for_address_by_address() -> None:
    addresses = '[\n"203.0.60.0/22",\n"203.0.64.0/21",\n"fd00::/16"]'
    assert problems_of(route(addresses)) == []
    assert problems_of(route(addresses, 'proxy = "eth0"')) == [
        (
            'portfwd.toml:5: route 1: addresses[2]: "203.0.64.0/21" is wider than /22, and with proxy the host answers'
            " ARP for each address singly; leave proxy out and have the subnet routed to this host,"
            " or write the part in use"
        )
    ]


def test_a_drop_in_may_add_entries() -> None:
    assert problems_of("", route()) == []
