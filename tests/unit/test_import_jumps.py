"""DNAT rules in chains that are jumped to: what the jumps ask counts as what the rule itself asks."""

import pytest

from fwdaemon.importing.findings import Findings
from fwdaemon.importing.iptables_save import parse
from tests.unit import test_import_nft
from tests.unit.imports import FILE, left_out, warnings
from tests.unit.test_import_nft import live, nats

DNAT = "-A WEB -j DNAT --to-destination 192.168.122.11"
WEB = "192.168.122.11:{0}"
EVERY = "it is for every protocol, and a forward is for one"


def saved(*rules: str) -> Findings:
    chains = (":PREROUTING ACCEPT [0:0]", ":POSTROUTING ACCEPT [0:0]", ":WEB - [0:0]", ":MORE - [0:0]")
    return parse(FILE, "\n".join(["*nat", *chains, *rules, "COMMIT", "*filter", ":FORWARD ACCEPT [0:0]", "COMMIT"]))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["-A PREROUTING -p tcp --dport 80 -j WEB", DNAT], ["*:80/tcp -> 192.168.122.11:80"]),
        (["-A PREROUTING -p tcp --dport 80 -g WEB", DNAT], ["*:80/tcp -> 192.168.122.11:80"]),
        (
            ["-A PREROUTING -p tcp --dport 80 -j WEB", f"{DNAT}:8080"],
            ["*:80/tcp -> 192.168.122.11:8080"],
        ),
        (
            ["-A PREROUTING -p tcp -j WEB", DNAT.replace(" -j", " -p tcp --dport 80 -j")],
            ["*:80/tcp -> 192.168.122.11:80"],
        ),
        (
            ["-A PREROUTING -i eth0 -p tcp -m multiport --dports 80,443 -j WEB", DNAT],
            ["*:443/tcp -> 192.168.122.11:443 on eth0", "*:80/tcp -> 192.168.122.11:80 on eth0"],
        ),
        (
            ["-A PREROUTING -p tcp -j MORE", "-A MORE -d 198.51.100.7 -m tcp -p tcp --dport 1:99 -j WEB", DNAT],
            ["198.51.100.7:1-99/tcp -> 192.168.122.11:1-99"],
        ),
        (
            ["-A PREROUTING -p tcp --dport 53 -j WEB", "-A PREROUTING -p udp --dport 53 -j WEB", DNAT],
            ["*:53/tcp -> 192.168.122.11:53", "*:53/udp -> 192.168.122.11:53"],
        ),
        (
            ["-A PREROUTING -p tcp --dport 80 -j WEB", "-A WEB -s 0.0.0.0/1 -j RETURN", DNAT],
            ["*:80/tcp -> 192.168.122.11:80 from OTHERS"],
        ),
        (
            ["-A PREROUTING -s 203.0.113.1 -p tcp --dport 80 -j WEB", DNAT],
            ["*:80/tcp -> 192.168.122.11:80 from 203.0.113.1/32"],
        ),
        (["-A PREROUTING -p tcp --dport 80 -m recent --name x --set -j WEB", DNAT], []),
        (["-A PREROUTING -j WEB", DNAT], []),
    ],
)
def test_what_a_jump_of_iptables_asks_counts(rules: list[str], expected: list[str]) -> None:
    found = saved(*rules)
    assert [text.replace("128.0.0.0/2,192.0.0.0/3,240.0.0.0/4", "OTHERS") for text in live(found)] == expected
    assert expected or left_out(found) or warnings(found)


def test_a_whole_address_may_be_asked_for_by_the_jump() -> None:
    out = "-A POSTROUTING -s 192.168.122.11 -j SNAT --to-source 198.51.100.7"
    assert nats(saved("-A PREROUTING -d 198.51.100.7 -j WEB", DNAT, out)) == ["198.51.100.7 is 192.168.122.11"]


@pytest.mark.parametrize(
    ("jump", "rule", "expected"),
    [
        ("tcp dport { 80, 443 } jump web", "dnat to 192.168.122.11", ["443/tcp -> {}:443", "80/tcp -> {}:80"]),
        ("tcp dport vmap { 22 : jump web }", "dnat to 192.168.122.11:2222", ["22/tcp -> {}:2222"]),
        ("tcp dport 22 goto web", "dnat to 192.168.122.11", ["22/tcp -> {}:22"]),
        (
            "tcp dport 22 jump web; udp dport 22 jump web",
            "dnat to 192.168.122.11",
            ["22/tcp -> {}:22", "22/udp -> {}:22"],
        ),
        ("jump web", "dnat to 192.168.122.11", []),
    ],
)
def test_what_a_jump_of_nft_asks_counts(jump: str, rule: str, expected: list[str]) -> None:
    text = f"""table ip nat {{
chain web {{ {rule}; }}
chain pre {{ type nat hook prerouting priority -100; {jump}; }}
}}
table ip filter {{ chain forward {{ type filter hook forward priority 0; }}; }}
"""
    assert live(test_import_nft.found(text)) == [f"*:{one.format('192.168.122.11')}" for one in expected]


def test_chains_that_lead_in_circles_and_everywhere_are_read_in_no_time() -> None:
    names = [f"c{number}" for number in range(20)]
    jumps = [f"-A {one} -p tcp --dport {index} -j {other}" for one in names for index, other in enumerate(names, 1)]
    found = saved(*(f":{name} - [0:0]" for name in names), "-A PREROUTING -j c0", *jumps, DNAT.replace("WEB", "c9"))
    assert live(found) == []
    assert warnings(found)
