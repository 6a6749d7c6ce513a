"""The rules as text, one named case a file, for a reader to review.

`pytest tests/unit/test_golden.py --refresh-golden` writes them anew; read the difference before you commit it. That the
kernel takes such text, and gives it back equal, is shown in tests/kernel.
"""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from fwdaemon.core.admission import Admission, Rate, SourceSet
from fwdaemon.core.exposures import Exposure
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Origin
from fwdaemon.nftables.difference import creation
from fwdaemon.nftables.ruleset import tables
from tests.unit.forwards import forward, nat, route

GOLDEN = Path(__file__).parent / "golden"
SUBNETS = frozenset({ip_network("192.168.122.0/24"), ip_network("192.168.123.0/24"), ip_network("2001:db8:5::/64")})
UPLINK = frozenset({"eth0", "wg0"})
WEB, DB = "192.168.122.50", "192.168.123.60"


HERE = Origin(Path("/etc/portfwd.toml"), 1)
CLIENTS = ip_network("192.0.2.0/24")
BAD = SourceSet.of("bad", HERE, map(ip_network, ("203.0.113.7", "10.0.0.0/8", "2001:db8:9::/48")))
SETS = (BAD, SourceSet("others", HERE, external=True))
HOMES = frozenset((subnet, "virbr1" if "123" in str(subnet) else "virbr0") for subnet in SUBNETS)


def state(*exposures: Exposure) -> Desired:
    return Desired(guest_subnets=SUBNETS, homes=HOMES, uplinks=UPLINK).having(exposures)


# virbr0 is of mode nat, virbr2 isolated; virbr1 is of mode route, lan0 a bridge of the host.
AROUND = replace(
    state(
        forward("tcp *:80", f"{WEB}:80"),
        nat("198.51.100.8", "192.168.124.70", bridge="virbr2"),
        route("203.0.113.64/29", "virbr0"),
        route("203.0.113.80/29", "lan0"),
    ),
    inside=frozenset({"virbr0", "virbr1"}),
    closed=frozenset({(Family.IPV4, "virbr0"), (Family.IPV4, "virbr2"), (Family.IPV6, "virbr2")}),
    kept=frozenset(Family),
)

CASES: dict[str, Desired] = {
    "one-port-on-every-address": state(forward("tcp *:80", f"{WEB}:80")),
    "another-port": state(forward("tcp *:2222", f"{WEB}:22")),
    "one-address": state(forward("tcp 198.51.100.7:8443", f"{WEB}:443")),
    "one-address-before-every-address": state(
        forward("tcp *:80", f"{WEB}:80"),
        forward("tcp 198.51.100.7:80", f"{DB}:80", domain="db"),
    ),
    "ipv6": state(
        forward("tcp *:80", "[2001:db8:5::50]:80"), forward("tcp [2001:db8::7]:443", "[2001:db8:5::50]:8443")
    ),
    "tcp-udp-and-sctp": state(*(forward(f"{protocol} *:53", f"{WEB}:53") for protocol in ("tcp", "udp", "sctp"))),
    "range": state(forward("udp *:27015-27030", f"{WEB}:27015-27030", domain="game")),
    "range-shifted": state(forward("tcp *:30000-30003", f"{WEB}:40000-40003")),
    "ranges-that-overlap-by-interface": state(
        forward("udp *:100-109", f"{WEB}:100-109", interface="eth0"),
        forward("udp *:105-119", f"{DB}:105-119", interface="eth1", domain="db"),
    ),
    "interface": state(forward("tcp *:80", f"{WEB}:80", interface="eth0")),
    "sources": state(forward("tcp *:22", f"{WEB}:22", sources=("203.0.113.0/24", "203.0.113.7/32", "192.0.2.1/32"))),
    "two-guests-by-source": state(
        forward("tcp *:22", f"{WEB}:22", sources=("203.0.113.0/24",)),
        forward("tcp *:22", f"{DB}:22", sources=("192.0.2.0/24",), domain="db"),
    ),
    "masquerade": state(
        forward("tcp *:80", f"{WEB}:80", masquerade=True),
        forward("tcp 198.51.100.7:80", f"{WEB}:80"),
        forward("udp *:5300-5309", f"{WEB}:53-62", interface="eth0", sources=("192.0.2.0/24",), masquerade=True),
        forward("tcp *:443", f"{DB}:443", domain="db"),
    ),
    "masquerade-beside-one-to-one": replace(
        state(
            forward("tcp *:80", f"{WEB}:80", sources=("192.0.2.0/24", "192.168.122.0/25"), masquerade=True),
            forward("tcp 198.51.100.7:80", f"{WEB}:80", sources=("192.168.122.128/25", "203.0.113.0/24")),
            nat("198.51.100.8", WEB),
            nat("198.51.100.9", DB),
        ),
        unheld=frozenset({ip_address("198.51.100.8")}),
    ),
    "another-machine-may-hold-the-address": replace(
        state(
            forward("tcp 198.51.100.7:80", f"{WEB}:80"),
            forward("tcp [2001:db8::7]:80", "[2001:db8:5::50]:80"),
        ),
        elsewhere=frozenset({ip_address("198.51.100.7"), ip_address("2001:db8::7")}),
    ),
    "links-of-the-host": replace(
        state(forward("tcp *:22", f"{WEB}:22", sources=("10.0.0.0/24",)), route("203.0.113.64/29")),
        links=frozenset(
            {
                *((ip_network("10.0.0.0/24"), name) for name in ("br0", "eth1")),
                (ip_network("203.0.113.0/24"), "eth0"),
                (ip_network("203.0.113.128/25"), ""),
                (ip_network("203.0.113.192/28"), "eth1"),
                # What is a guest's is behind its bridge alone.
                (ip_network("203.0.113.68/32"), "eth0"),
                (ip_network("192.168.122.0/24"), "eth1"),
                (ip_network("2001:db8::/64"), "eth0"),
            }
        ),
    ),
    "hostile-name": state(forward("tcp *:80", f"{WEB}:80", domain='"; } flush ruleset; --comment\n' + "x" * 200)),
    "one-to-one": state(
        nat("198.51.100.8", WEB, bridge="virbr0", mac="52:54:00:00:00:50"), nat("2001:db8::8", "2001:db8:5::50")
    ),
    "one-to-one-imminent": replace(
        state(), imminent=frozenset({nat("198.51.100.8", WEB, bridge="virbr0", mac="52:54:00:00:00:50")})
    ),
    "one-to-one-beside-a-forward": state(nat("198.51.100.8", WEB), forward("tcp 198.51.100.8:80", f"{DB}:80")),
    "one-to-one-two-addresses-of-one-guest": state(nat("198.51.100.10", WEB), nat("198.51.100.9", WEB)),
    "route": state(
        route("203.0.113.64/29"), route("203.0.113.80/32", "virbr2", let_out=True), route("2001:db8:1::/64")
    ),
    "forwarding-was-off": replace(AROUND, confined=frozenset(Family)),
    "forwarding-was-off-on-one-interface": replace(AROUND, switched=frozenset({(Family.IPV4, "eth1")})),
    "sets-and-limits": replace(
        state(
            forward("tcp *:80", f"{WEB}:80"),
            replace(
                forward("tcp *:22-23", f"{WEB}:22-23"),
                admission=Admission(deny=(CLIENTS,), denied=("bad",), rate=Rate(30, "minute"), max_open=20, entry="22"),
            ),
            replace(forward("tcp *:443", f"{DB}:443"), admission=Admission((CLIENTS,), ("bad", "others"))),
        ),
        sets=SETS,
        barred=Admission(denied=("others",)),
    ),
    "sets-of-one-to-one-addresses-and-routes": replace(
        state(
            replace(nat("198.51.100.8", WEB), admission=Admission((CLIENTS,), denied=("others",))),
            replace(route("203.0.113.64/29"), admission=Admission(sets=("bad",))),
            replace(route("203.0.113.80/29"), admission=Admission(denied=("bad",))),
        ),
        sets=SETS,
    ),
    "route-and-a-one-to-one-guest-in-it": state(route("203.0.113.64/29"), nat("198.51.100.8", "203.0.113.66")),
}


def written(desired: Desired) -> str:
    return "\n\n".join(map(creation, tables(desired).values())) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_rules_are_as_reviewed(name: str, request: pytest.FixtureRequest) -> None:
    path = GOLDEN / f"{name}.nft"
    if request.config.getoption("--refresh-golden"):
        path.write_text(written(CASES[name]))
    assert written(CASES[name]) == path.read_text()


def test_every_reviewed_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.nft")} == set(CASES)


@pytest.mark.parametrize(
    "name", ['eth0" accept', "eth*", "eth+", "@outer", "-eth0", "", "e th0", "eth0\n", "ethernet0123456789"]
)
def test_an_interface_with_a_name_that_could_be_syntax_is_left_out(name: str) -> None:
    opened = Desired(uplinks=frozenset({"eth0", name})).having(
        [nat("198.51.100.8", WEB), route("203.0.113.64/29", name)]
    )
    table = tables(opened)[Family.IPV4]
    assert list(table.sets["uplinks"].elements) == ['"eth0"']
    # What has a source there is not believed anywhere.
    assert [chain for chain in table.chains if "203.0.113.64" in chain] == ["home.203.0.113.64/29"]
    assert [rule.expression for rule in table.chains["home.203.0.113.64/29"].rules] == ["accept"]
