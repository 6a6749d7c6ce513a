"""`routed-ips`: each line is a route, but those the old hook passed over."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.importing.findings import BrokenFileError, Kind, recognise
from fwdaemon.importing.ports_script import parse_routed_ips
from tests.unit.imports import FILE, accepted, warnings

SAMPLE = """\
# IP address     libvirt network

203.0.113.66     public
  203.0.113.72/29\tpublic\r
2001:db8:1::/64  public
2001:db8:2::7    public_2
"""


def routes(text: str) -> list[str]:
    return [f"{route.subnet} {route.network} at {route.origin.line}" for route in parse_routed_ips(FILE, text).routes]


def test_either_family_with_or_without_a_prefix_length() -> None:
    assert routes(SAMPLE) == [
        "203.0.113.66/32 public at 3",
        "203.0.113.72/29 public at 4",
        "2001:db8:1::/64 public at 5",
        "2001:db8:2::7/128 public_2 at 6",
    ]
    assert warnings(parse_routed_ips(FILE, SAMPLE)) == []


@pytest.mark.parametrize(
    "line",
    [
        "203.0.113.66 public-net",
        "203.0.113.66 public.net",
        "203.0.113.66 public # mail",
        "203.0.113.5 web.example.com",
        "10.0.0.5 10.0.0.6",
    ],
)
def test_what_the_old_hook_passed_over_is_left_out(line: str) -> None:
    assert routes(line) == []
    assert warnings(parse_routed_ips(FILE, line)) == [
        f'1: left out: the old hook passed over "{line}", as more than an address and a name of letters, digits and _'
    ]


@pytest.mark.parametrize(
    "line", ["203.0.113.66", "203.0.113.66 a b", "host public", "203.0.113.66/24 public", "0.0.0.0/0 public"]
)
def test_what_cannot_be_a_route_is_left_out_with_a_warning(line: str) -> None:
    assert routes(line) == []
    assert len(warnings(parse_routed_ips(FILE, line))) == 1


def test_one_address_for_two_networks_goes_to_the_first() -> None:
    config = accepted([parse_routed_ips(FILE, "203.0.113.66 one\n203.0.113.64/29 two\n203.0.113.66 one\n")])
    assert [(str(route.subnet), route.network) for route in config.routes] == [("203.0.113.66/32", "one")]


LINE = st.text(alphabet="0123456789.:/# abx\r\"'\x00\x1b", max_size=30)


@given(st.lists(LINE | st.text(max_size=30) | st.just("203.0.113.66 x"), max_size=6).map("\n".join))
def test_any_text_gives_a_configuration_that_is_accepted(text: str) -> None:
    accepted([parse_routed_ips(FILE, text)])


def test_a_file_is_of_routes_where_every_line_is() -> None:
    assert recognise(FILE, SAMPLE) is Kind.ROUTED_IPS
    assert recognise(FILE, "203.0.113.66 public # mail\n") is Kind.ROUTED_IPS


@pytest.mark.parametrize(
    "line",
    [
        "127.0.0.1 localhost",
        "::1 localhost ip6-localhost",
        "ff02::1 ip6-allnodes",
        "fe80::1 gateway",
        "192.0.2.9 web1 www",
        "203.0.113.0/24 via 192.0.2.1 dev eth0",
        "192.0.2.0/24 dev eth0 proto kernel scope link",
        "203.0.113.66",
        "203.0.113.66 $(reboot)",
        "203.0.113.999 public",
    ],
)
def test_a_line_of_another_kind_makes_the_file_one_that_is_not_known(line: str) -> None:
    with pytest.raises(BrokenFileError, match=r"^FILE:2: .* is from no known kind of file"):
        recognise(FILE, f"198.51.100.7 host1\n{line}\n")


@pytest.mark.parametrize("name", ["hosts", "/etc/hosts", "hosts.new", "default.addnhosts", "web.hostsfile"])
def test_a_list_of_hosts_is_none_of_routes(name: str) -> None:
    with pytest.raises(BrokenFileError, match=r":1: is a list of hosts by its name; give one of the routed-ips hook"):
        recognise(Path(name), "10.0.0.2 host2\n")


TAKEN = "the second column is taken for libvirt networks, which `virsh net-list --all` lists"


def test_what_the_names_are_taken_for_is_told() -> None:
    assert [remark.text for remark in parse_routed_ips(FILE, SAMPLE).remarks] == [TAKEN]


@pytest.mark.parametrize("address", ["192.168.122.50", "172.16.0.0/16", "10.0.0.1", "fd00::7"])
def test_a_private_address_is_a_warning(address: str) -> None:
    findings = parse_routed_ips(FILE, f"203.0.113.9 public\n{address} web1\n192.168.122.51 web2\n")
    told = f"2: {address.partition('/')[0]} is private, as in a list of hosts: {TAKEN}"
    assert warnings(findings) == [told]


@pytest.mark.parametrize("text", ['{"nftables": [{"metainfo": {}}]}', '\n{ "nftables" : [\n'])
def test_rules_of_nft_as_json_are_known(text: str) -> None:
    with pytest.raises(BrokenFileError, match=r"give the output of `nft list ruleset`, without -j"):
        recognise(FILE, text)


def test_a_domain_called_nftables_is_one() -> None:
    assert recognise(FILE, '{"nftables": {"private_ip": "192.168.122.10"}}') is Kind.HOOKS_JSON
