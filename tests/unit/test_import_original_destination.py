"""A DNAT rule that asks where its client sent the connection: before the translation that is where it is sent."""

from collections.abc import Sequence

import pytest

from tests.unit.imports import accepted, forwards, left_out, warnings
from tests.unit.nft_samples import PASSING
from tests.unit.saved_rules import found
from tests.unit.test_import_nft import HEAD, live
from tests.unit.test_import_nft import found as found_in_nft

TO = "-j DNAT --to-destination 192.168.122.10"
IS = "-> 192.168.122.10"
OUT = "-A POSTROUTING -s 192.168.122.10/32 -j SNAT --to-source 198.51.100.8"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("-p tcp -m conntrack --ctorigdstport 102", [f"*:102/tcp {IS}:102"]),
        ("-p tcp -m conntrack ! --ctorigdstport 3:65535", [f"*:1-2/tcp {IS}:1-2"]),
        ("-p tcp --dport 102 -m conntrack --ctorigdst 198.51.100.9", [f"198.51.100.9:102/tcp {IS}:102"]),
        ("-p tcp --dport 100:110 -m conntrack --ctorigdstport 102:103", [f"*:102-103/tcp {IS}:102-103"]),
        ("-d 198.51.100.9/32 -p tcp --dport 102 -m conntrack ! --ctorigdst 198.51.100.9", []),
        (
            "-d 198.51.100.8/31 -p tcp --dport 102 -m conntrack ! --ctorigdst 198.51.100.9",
            [f"198.51.100.8:102/tcp {IS}:102"],
        ),
        ("-p tcp --dport 102 -m conntrack ! --ctorigdst 198.51.100.9", []),
        ("-p tcp --dport 102 -m conntrack --ctorigdstport 103", []),
    ],
)
def test_a_rule_of_iptables_takes_no_more_than_it_asks(asked: str, expected: Sequence[str]) -> None:
    findings = found([f"-A PREROUTING {asked} {TO}"])
    assert forwards(findings) == [f"? {forward} at 3" for forward in expected]
    assert expected or warnings(findings) or left_out(findings)


def test_one_address_that_is_asked_for_so_is_no_rule_for_any() -> None:
    findings = found([f"-A PREROUTING -p tcp --dport 102 -m conntrack --ctorigdst 198.51.100.9 {TO}"])
    assert warnings(findings) == []


@pytest.mark.parametrize("asked", ["-o virbr0", "! -o virbr0"])
def test_a_rule_that_asks_for_a_way_out_says_so(asked: str) -> None:
    """No way out is known before the translation."""
    findings = found(["-A PREROUTING -j a", f"-A a {asked} -p tcp --dport 102 {TO}"])
    assert findings.forwards == []
    (warning,) = warnings(findings)
    assert warning.endswith(
        "left out: it asks which interface a packet leaves by, and before it is sent elsewhere there is none"
    )


@pytest.mark.parametrize("asked", ["tcp dport 102", "ip daddr 198.51.100.8"])
def test_a_rule_of_nft_that_asks_for_a_way_out_is_a_comment(asked: str) -> None:
    findings = found_in_nft(f'{HEAD}oifname "virbr0" {asked} dnat ip to 192.168.122.10\n}}\n}}\n{PASSING}')
    reasons = {forward.reason for forward in findings.forwards} | {nat.reason for nat in findings.nats}
    assert len(reasons) == 1
    assert all(reasons)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("ct original proto-dst 102 meta l4proto tcp dnat ip to 192.168.122.10", [f"*:102/tcp {IS}:102"]),
        (
            "ct original ip daddr 198.51.100.9 tcp dport 102 dnat ip to 192.168.122.10",
            [f"198.51.100.9:102/tcp {IS}:102"],
        ),
        (
            "ip daddr 198.51.100.9 ct original proto-dst { 80, 443 } meta l4proto tcp dnat ip to 192.168.122.10:8080",
            [f"198.51.100.9:443/tcp {IS}:8080", f"198.51.100.9:80/tcp {IS}:8080"],
        ),
        ("ct original ip daddr != 198.51.100.9 tcp dport 102 dnat ip to 192.168.122.10", []),
        ('oifname "virbr0" tcp dport 102 dnat ip to 192.168.122.10', []),
    ],
)
def test_a_rule_of_nft_takes_no_more_than_it_asks(rule: str, expected: Sequence[str]) -> None:
    assert live(found_in_nft(f"{HEAD}{rule}\n}}\n}}\n{PASSING}")) == expected


@pytest.mark.parametrize("port", ["--ctorigdstport 80", "! --ctorigdstport 80"])
def test_a_part_of_an_address_is_no_nat_entry(port: str) -> None:
    findings = found([f"-A PREROUTING -d 198.51.100.8/32 -m conntrack {port} {TO}", OUT])
    assert findings.nats == []
    config = accepted([findings])
    assert config.nats == ()
    hosts = {str(mapping.host) for entry in config.forwards for mapping in entry.mappings}
    assert hosts == ({"80"} if port[0] == "-" else {"1-79", "81-65535"})


def test_a_part_of_an_address_of_nft_is_no_nat_entry() -> None:
    rule = "ip daddr 198.51.100.8 ct original proto-dst 80 dnat to 192.168.122.10"
    out = "chain post {\ntype nat hook postrouting priority 100;\nip saddr 192.168.122.10 snat to 198.51.100.8\n}\n"
    findings = found_in_nft(f"{HEAD}{rule}\n}}\n{out}}}\n{PASSING}")
    assert findings.nats == []
    protocols = ("sctp", "tcp", "udp")
    assert live(findings) == [f"198.51.100.8:80/{protocol} {IS}:80" for protocol in protocols]
