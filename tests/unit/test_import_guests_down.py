"""While a guest is down, its clients come to no other guest to which the old rules did not let them."""

import re
from ipaddress import ip_address, ip_network

import pytest

from fwdaemon import config
from fwdaemon.config.model import Config
from fwdaemon.importing.assembling import Owners, assemble
from fwdaemon.importing.findings import Findings
from fwdaemon.importing.iptables_save import parse
from tests.unit.imports import FILE
from tests.unit.nft_samples import PASSING
from tests.unit.test_import_nft import found as found_in_nft

CLIENTS = ip_network("203.0.113.0/24")
HERE = "198.51.100.1"
ADDRESSES = ("192.168.122.10", "192.168.122.11", "192.168.122.12", "2001:db8:122::10", "2001:db8:122::11")
OWNERS: Owners = {ip_address(address): (f"web{re.split('[.:]', address)[-1]}",) for address in ADDRESSES}


def of_iptables(*rules: str) -> Findings:
    """DNAT rules from line 3 on."""
    lines = [
        f"-A PREROUTING -p tcp -m tcp --dport 22 {rule.replace(' > ', ' -j DNAT --to-destination ')}" for rule in rules
    ]
    text = ["*nat", ":PREROUTING ACCEPT [0:0]", *lines, "COMMIT", "*filter", ":FORWARD ACCEPT [0:0]", "COMMIT"]
    return parse(FILE, "\n".join(text), way_out=lambda _: "virbr0")


def of_nft(*rules: str) -> Findings:
    """Rules of one chain from line 4 on."""
    lines = [f"tcp dport 22 {rule.replace(' > ', ' dnat to ')}" for rule in rules]
    head = ["table ip nat {", "chain pre {", "type nat hook prerouting priority -100;"]
    return found_in_nft("\n".join([*head, *lines, "}", "}", PASSING]))


def made(findings: Findings) -> tuple[Config, list[str]]:
    imported = assemble([findings], OWNERS)
    return config.parse({FILE: imported.text}), [str(warning) for warning in imported.warnings]


@pytest.mark.parametrize(
    "findings",
    [
        of_iptables("-s 203.0.113.0/24 > 192.168.122.10", " > 192.168.122.11"),
        of_iptables(f"-s 203.0.113.0/24 -d {HERE} > 192.168.122.10", " > 192.168.122.11"),
        of_iptables(f"-s 203.0.113.0/24 -d {HERE} > 192.168.122.10", f"-d {HERE} > 192.168.122.11"),
        of_iptables(f"-s 203.0.113.0/24 -d {HERE} > 192.168.122.10", "-s 203.0.113.0/24,9.9.9.9 > 192.168.122.11"),
        of_nft(f"ip saddr 203.0.113.0/24 ip daddr {HERE} > 192.168.122.10", " > 192.168.122.11"),
    ],
)
def test_clients_of_some_sources_come_to_no_other_guest(findings: Findings) -> None:
    first, then = made(findings)[0].forwards
    assert (first.domain, first.sources) == ("web10", (CLIENTS,))
    assert then.domain == "web11"
    assert then.sources
    assert not [source for source in then.sources if CLIENTS.overlaps(source)]


def test_sources_that_are_left_out_on_more_addresses_than_before_are_told() -> None:
    _, said = made(of_iptables(f"-s 203.0.113.0/24 -d {HERE} > 192.168.122.10", " > 192.168.122.11"))
    (warning,) = [warning for warning in said if "left out" in warning]
    assert warning.startswith('FILE:4: 22: the clients of line 3, "-A PREROUTING')
    assert warning.endswith("are left out, not only on its address: while its guest is down they would come here")


@pytest.mark.parametrize(
    ("findings", "line", "why"),
    [
        (of_iptables("-i eth0 > 192.168.122.10", " > 192.168.122.11"), 3, 'every interface but "eth0"'),
        (of_iptables(f"-i eth0 -d {HERE} > 192.168.122.10", " > 192.168.122.11"), 3, 'every interface but "eth0"'),
        (
            of_nft(f"iifname eth0 ip daddr {HERE} > 192.168.122.10", " > 192.168.122.11"),
            4,
            'every interface but "eth0"',
        ),
        (
            of_iptables("-s 2001:db8::/64 -d 2001:db8:9::1 > 2001:db8:122::10", "-s ::/0 > 2001:db8:122::11"),
            3,
            "more than 32 networks",
        ),
    ],
)
def test_where_no_entry_can_leave_them_out_it_is_a_comment(findings: Findings, line: int, why: str) -> None:
    entries, said = made(findings)
    assert [entry.domain for entry in entries.forwards] == ["web10"]
    (warning,) = [warning for warning in said if "left out" in warning]
    assert warning.startswith(f"FILE:{line + 1}: 22 left out: line {line}, ")
    assert why in warning


@pytest.mark.parametrize(
    ("findings", "lines"),
    [
        (of_iptables(f"-d {HERE} > 192.168.122.10", " > 192.168.122.11"), [(4, 3)]),
        (of_iptables(f"-i eth0 -d {HERE} > 192.168.122.10", "-i eth0 > 192.168.122.11"), [(4, 3)]),
        (of_iptables(f"-s 203.0.113.0/24 -d {HERE} > 192.168.122.10", "-s 203.0.113.0/24 > 192.168.122.11"), [(4, 3)]),
        (of_nft(f"ip daddr {HERE} > 192.168.122.10", " > 192.168.122.11"), [(5, 4)]),
    ],
)
def test_all_clients_of_an_address_come_to_the_guest_of_every_address_and_that_is_told(
    findings: Findings, lines: list[tuple[int, int]]
) -> None:
    entries, said = made(findings)
    assert [entry.domain for entry in entries.forwards] == ["web10", "web11"]
    told = [warning for warning in said if "while" in warning]
    assert told == [
        f"FILE:{line}: 22: clients of {HERE}, which line {first} leads to 192.168.122.10, come to 192.168.122.11 while"
        " that guest is down"
        for line, first in lines
    ]


def test_where_clients_of_all_sources_have_a_guest_of_their_own_the_next_is_for_every_source() -> None:
    some, rest = f"-s 203.0.113.0/24 -d {HERE} > 192.168.122.10", f"-d {HERE} > 192.168.122.12"
    entries, said = made(of_iptables(some, rest, " > 192.168.122.11"))
    assert [(entry.domain, bool(entry.sources)) for entry in entries.forwards] == [
        ("web10", True),
        ("web12", True),
        ("web11", False),
    ]
    assert len([warning for warning in said if "while" in warning]) == 2


def test_another_port_of_the_same_guest_is_down_with_it() -> None:
    entries, said = made(of_iptables(f"-s 203.0.113.0/24 -d {HERE} > 192.168.122.11:2222", " > 192.168.122.11"))
    assert [bool(entry.sources) for entry in entries.forwards] == [True, False]
    assert not [warning for warning in said if "while" in warning]


@pytest.mark.parametrize("doubt", ["", " -m mark --mark 0x1"])
def test_what_a_rule_for_every_address_took_is_no_hole_where_one_for_a_single_address_went_before(doubt: str) -> None:
    """It takes all addresses but one, and no forward for one address goes before for these."""
    rules = (
        f"-d {HERE} -p tcp -m tcp --dport 86 -j DNAT --to-destination 192.168.122.10",
        f"-p tcp -m tcp --dport 80:86{doubt} -j DNAT --to-destination 192.168.122.11",
        "-p tcp -m tcp --dport 80:90 -j DNAT --to-destination 192.168.122.12",
    )
    lines = [f"-A PREROUTING {rule}" for rule in rules]
    text = ["*nat", ":PREROUTING ACCEPT [0:0]", *lines, "COMMIT", "*filter", ":FORWARD ACCEPT [0:0]", "COMMIT"]
    entries = made(parse(FILE, "\n".join(text), way_out=lambda _: "virbr0"))[0].forwards
    led = {(entry.domain, str(mapping.host)) for entry in entries for mapping in entry.mappings}
    assert led == {("web10", "86"), ("web12", "87-90")} | (set() if doubt else {("web11", "80-86")})
