"""The rules as text, one named case a file, for a reader to review.

`pytest tests/unit/test_golden.py --refresh-golden` writes them anew; read the difference before you commit it. That the
kernel takes such text, and gives it back equal, is shown in tests/kernel.
"""

from ipaddress import ip_network
from pathlib import Path

import pytest

from fwdaemon.desired import Desired, Forward
from fwdaemon.nftables.difference import creation
from fwdaemon.nftables.ruleset import tables
from tests.unit.forwards import forward

GOLDEN = Path(__file__).parent / "golden"
SUBNETS = frozenset({ip_network("192.168.122.0/24"), ip_network("192.168.123.0/24"), ip_network("2001:db8:5::/64")})
WEB, DB = "192.168.122.50", "192.168.123.60"

CASES: dict[str, list[Forward]] = {
    "one-port-on-every-address": [forward("tcp *:80", f"{WEB}:80")],
    "another-port": [forward("tcp *:2222", f"{WEB}:22")],
    "one-address": [forward("tcp 198.51.100.7:8443", f"{WEB}:443")],
    "one-address-before-every-address": [
        forward("tcp *:80", f"{WEB}:80"),
        forward("tcp 198.51.100.7:80", f"{DB}:80", domain="db"),
    ],
    "ipv6": [forward("tcp *:80", "[2001:db8:5::50]:80"), forward("tcp [2001:db8::7]:443", "[2001:db8:5::50]:8443")],
    "tcp-udp-and-sctp": [forward(f"{protocol} *:53", f"{WEB}:53") for protocol in ("tcp", "udp", "sctp")],
    "range": [forward("udp *:27015-27030", f"{WEB}:27015-27030", domain="game")],
    "range-shifted": [forward("tcp *:30000-30003", f"{WEB}:40000-40003")],
    "ranges-that-overlap-by-interface": [
        forward("udp *:100-109", f"{WEB}:100-109", interface="eth0"),
        forward("udp *:105-119", f"{DB}:105-119", interface="eth1", domain="db"),
    ],
    "interface": [forward("tcp *:80", f"{WEB}:80", interface="eth0")],
    "sources": [forward("tcp *:22", f"{WEB}:22", sources=("203.0.113.0/24", "203.0.113.7/32", "192.0.2.1/32"))],
    "two-guests-by-source": [
        forward("tcp *:22", f"{WEB}:22", sources=("203.0.113.0/24",)),
        forward("tcp *:22", f"{DB}:22", sources=("192.0.2.0/24",), domain="db"),
    ],
    "hostile-name": [forward("tcp *:80", f"{WEB}:80", domain='"; } flush ruleset; --comment\n' + "x" * 200)],
}


def written(forwards: list[Forward]) -> str:
    found = tables(Desired(frozenset(forwards), guest_subnets=SUBNETS)).values()
    return "\n\n".join(map(creation, found)) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_rules_are_as_reviewed(name: str, request: pytest.FixtureRequest) -> None:
    path = GOLDEN / f"{name}.nft"
    if request.config.getoption("--refresh-golden"):
        path.write_text(written(CASES[name]))
    assert written(CASES[name]) == path.read_text()


def test_every_reviewed_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.nft")} == set(CASES)
