"""Zones of firewalld: forward-ports and rich rules, for the connections that firewalld gives to their zone."""

from collections.abc import Sequence

import pytest

from fwdaemon.importing import firewalld, firewalld_zones
from fwdaemon.importing.findings import Findings, Kind, recognise
from fwdaemon.importing.firewalld import carry
from fwdaemon.importing.firewalld_zones import BrokenXmlError, Zone
from tests.unit.imports import FILE, left_out, warnings
from tests.unit.test_import_nft import live

PUBLIC = """<?xml version="1.0" encoding="utf-8"?>
<zone>
  <short>Public</short>
  <description>For use in public areas.</description>
  <interface name="eth0"/>
  <service name="ssh"/>
  <forward-port port="80" protocol="tcp" to-port="8080" to-addr="192.168.122.10"/>
  <forward-port port="8000-8002" protocol="udp" to-addr="192.168.122.10"/>
  <forward-port port="22" protocol="tcp" to-port="22" to-addr="2001:db8:122::10"/>
  <forward-port port="99" protocol="tcp" to-port="100"/>
  <rule family="ipv4">
    <source address="203.0.113.0/24"/>
    <forward-port port="2222" protocol="tcp" to-port="22" to-addr="192.168.122.10"/>
  </rule>
  <rule family="ipv4"><source address="198.51.100.9"/><log prefix="x"><limit value="1/m"/></log><drop/></rule>
  <masquerade/>
  <forward/>
</zone>
"""
LISTED = """public (active)
  target: default
  icmp-block-inversion: no
  interfaces: eth0
  sources:
  services: ssh
  ports:
  protocols:
  forward: yes
  masquerade: yes
  forward-ports:
\tport=80:proto=tcp:toport=8080:toaddr=192.168.122.10
\tport=8000-8002:proto=udp:toport=:toaddr=192.168.122.10
\tport=22:proto=tcp:toport=22:toaddr=2001:db8:122::10
\tport=99:proto=tcp:toport=100:toaddr=
  source-ports:
  icmp-blocks:
  rich rules:
\trule family="ipv4" source address="203.0.113.0/24" \
forward-port port="2222" protocol="tcp" to-port="22" to-addr="192.168.122.10"
\trule family="ipv4" source address="198.51.100.9" log prefix="x" limit value="1/m" drop
"""
EXPECTED = [
    "*:22/tcp -> [2001:db8:122::10]:22 on eth0",
    "*:2222/tcp -> 192.168.122.10:22 on eth0 from 203.0.113.0/24",
    "*:80/tcp -> 192.168.122.10:8080 on eth0",
    "*:8000-8002/udp -> 192.168.122.10:8000-8002 on eth0",
]


def zone(body: str, *, head: str = "<zone>", name: str = "public") -> Zone:
    return firewalld_zones.parse_zone(f"{head}\n{body}\n</{head.strip('<>').split()[0]}>", name)


def found(zones: Sequence[Zone], others: Sequence[Zone] | None = ()) -> Findings:
    findings = Findings(FILE, "zones")
    carry(findings, zones, others, lambda _: None)
    return findings


def rich(rest: str, attributes: str = 'family="ipv4"', port: int = 80, to: str = "192.168.122.10") -> str:
    return f'<rule {attributes}>{rest}<forward-port port="{port}" protocol="tcp" to-addr="{to}"/></rule>'


ETH0 = '<interface name="eth0"/>'
HTTP = '<forward-port port="80" protocol="tcp" to-addr="192.168.122.10"/>'
WEB80 = "*:80/tcp -> 192.168.122.10:80"
UPPER_HALF = f"{WEB80} on eth0 from 128.0.0.0/2,192.0.0.0/3,240.0.0.0/4"


def test_a_zone_file_and_its_listing_are_the_same() -> None:
    assert live(found([firewalld_zones.parse_zone(PUBLIC, "public")])) == EXPECTED
    assert live(found(firewalld_zones.parse_listing(LISTED.replace(":\n", ": \n")))) == EXPECTED


def test_what_led_to_the_host_itself_is_told_with_its_line() -> None:
    (told,) = warnings(found([firewalld_zones.parse_zone(PUBLIC, "public")]))
    left_out = '10: "forward-port port=99 protocol=tcp to-port=100" left out'
    assert told == f"{left_out}: it has no to-addr: this host itself answered there"


def test_older_listings_have_the_first_port_on_the_line_of_the_key() -> None:
    text = "work (active)\n  interfaces: eth1\n  forward-ports: port=80:proto=tcp:toport=:toaddr=192.168.122.10\n"
    assert live(found(firewalld_zones.parse_listing(text))) == [f"{WEB80} on eth1"]


def test_a_forward_port_is_for_the_sources_of_its_zone() -> None:
    assert live(found([zone(f'<source address="203.0.113.0/24"/>{HTTP}')])) == [f"{WEB80} from 203.0.113.0/24"]


@pytest.mark.parametrize("together", [True, False])
def test_zones_of_sources_go_before_those_of_interfaces(*, together: bool) -> None:
    public = zone(ETH0 + rich('<source address="198.51.100.0/24"/>'))
    ban = zone('<source address="198.51.100.0/25"/>', head='<zone target="DROP">', name="drop")
    findings = found([public, ban]) if together else found([public], [ban])
    assert live(findings) == [f"{WEB80} on eth0 from 198.51.100.128/25"]


def test_zones_of_two_interfaces_do_not_mix() -> None:
    work = zone(
        '<interface name="eth1"/><forward-port port="80" protocol="tcp" to-addr="192.168.122.11"/>', name="work"
    )
    expected = [f"{WEB80} on eth0", "*:80/tcp -> 192.168.122.11:80 on eth1"]
    assert live(found([zone(ETH0 + HTTP), work])) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (rich('<destination address="198.51.100.1"/>'), "198.51.100.1:80/tcp -> 192.168.122.10:80 on eth0"),
        (
            rich('<source address="0.0.0.0/1" invert="yes"/>'),
            UPPER_HALF,
        ),
        (
            rich('<source address="0.0.0.0/1" invert="True"/>'),
            UPPER_HALF,
        ),
        (rich("", 'family="ipv6"', to="2001:db8:122::10"), "*:80/tcp -> [2001:db8:122::10]:80 on eth0"),
        (rich("<log/>"), f"{WEB80} on eth0"),
        (rich('<log><limit value="1/m"/></log>'), f"{WEB80} on eth0"),
    ],
)
def test_rich_rules(rule: str, expected: str) -> None:
    assert [text.replace(",224.0.0.0/4", "") for text in live(found([zone(ETH0 + rule)]))] == [expected]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (rich('<source ipset="office"/>'), "which addresses are in ipset office"),
        (rich('<source mac="52:54:00:00:00:01"/>'), "which addresses are in mac 52:54:00:00:00:01"),
        (rich('<source ipset="office" invert="yes"/>'), "which addresses are in ipset office"),
        (rich('<limit value="1/m"/>'), "its limit"),
    ],
)
def test_what_is_not_known_is_left_out(rule: str, reason: str) -> None:
    findings = found([zone(ETH0 + rule)])
    assert live(findings) == []
    assert {forward.reason for forward in findings.forwards} == {f"{reason} is not followed"}


def test_who_is_in_a_set_may_be_taken_by_another_zone() -> None:
    ban = zone('<source ipset="banned"/>', name="drop")
    assert live(found([zone(ETH0 + HTTP)], [ban])) == []


def test_the_order_of_zones_whose_sources_overlap_is_not_known() -> None:
    one = zone(f'<source address="203.0.113.0/24"/>{HTTP}', name="one")
    two = zone('<source address="203.0.113.128/25"/>', name="two")
    assert "203.0.113.128" not in "".join(live(found([one], [two])))


def test_rich_rules_go_by_priority() -> None:
    before = rich("", 'family="ipv4" priority="-1"', to="192.168.122.11")
    assert live(found([zone(ETH0 + HTTP + before)])) == ["*:80/tcp -> 192.168.122.11:80 on eth0"]
    assert live(found([zone(ETH0 + HTTP + before.replace("-1", "1"))])) == [f"{WEB80} on eth0"]


def test_which_of_a_plain_and_a_rich_one_goes_first_is_not_known() -> None:
    assert live(found([zone(ETH0 + HTTP + rich("", to="192.168.122.11"))])) == []


def test_without_the_other_zones_nothing_is_live_by_its_interface() -> None:
    findings = found([zone(ETH0 + HTTP)], None)
    assert live(findings) == []
    assert "firewall-cmd --list-all-zones" in findings.forwards[0].reason


def test_without_the_other_zones_nothing_is_live_by_its_sources() -> None:
    findings = found([zone(f'<source address="203.0.113.0/24"/>{HTTP}')], None)
    assert live(findings) == []
    assert [text.partition(";")[2] for text in left_out(findings)] == [_ALL_ZONES]


_ALL_ZONES = " give what `firewall-cmd --list-all-zones` prints"


def test_a_zone_that_nothing_is_in_says_what_to_write() -> None:
    findings = found([zone(HTTP)])
    assert live(findings, is_live=False) == [WEB80]
    assert findings.forwards[0].reason.startswith("no interface and no source is in zone public here; where it is")


def test_a_policy_is_not_followed() -> None:
    findings = found([zone(HTTP, head='<policy target="CONTINUE">')])
    assert findings.forwards == []
    assert "belongs to a policy" in warnings(findings)[0]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<zone>\n<forward-port", 2),
        ("<zone>\n</policy>", 2),
        ('<!DOCTYPE zone [\n<!ENTITY a "b">]>\n<zone>&a;</zone>', 2),
        ("<service/>", 1),
        ("", 1),
    ],
)
def test_what_is_no_zone_is_told_with_its_line(text: str, line: int) -> None:
    with pytest.raises(BrokenXmlError) as raised:
        firewalld_zones.parse_zone(text, "public")
    assert raised.value.line == line


@pytest.mark.parametrize(
    "port",
    ['port="0" protocol="tcp"', 'port="80" protocol="icmp"', 'port="90-80" protocol="tcp"', 'port="x" protocol="tcp"'],
)
def test_a_port_that_is_none_is_told(port: str) -> None:
    findings = found([zone(f'{ETH0}<forward-port {port} to-addr="192.168.122.10"/>')])
    assert live(findings) == []
    assert len(warnings(findings)) == 1


_BUILT_IN = (
    "block",
    "dmz",
    "drop",
    "external",
    "home",
    "internal",
    "libvirt",
    "libvirt-routed",
    "public",
    "trusted",
    "work",
)
_EMPTY = """\
  target: default
  ingress-priority: 0
  egress-priority: 0
  icmp-block-inversion: no
  interfaces: {}
  sources: {}
  services: ssh
  ports:
  protocols:
  forward: yes
  masquerade: no
  forward-ports:
  source-ports:
  icmp-blocks:
  rich rules:
"""
_PORTS = LISTED.partition("forward-ports:\n")[2]


def listing(heads: dict[str, str], interfaces: dict[str, str], ports_in: str = "public", sources: str = "") -> Findings:
    """Give what is found in a listing of all zones that firewalld and libvirt bring."""
    zones = {
        name: f"{name}{heads.get(name, '')}\n"
        + _EMPTY.format(interfaces.get(name, ""), sources if name == "drop" else "")
        for name in _BUILT_IN
    }
    zones[ports_in] = zones[ports_in].partition("  forward-ports:")[0] + "  forward-ports:\n" + _PORTS
    text = "\n".join(zones.values())
    assert recognise(FILE, text) is Kind.FIREWALLD_LIST
    return firewalld.parse_list(FILE, text, lambda _: None)


BRIDGE = {"libvirt": "virbr0"}


@pytest.mark.parametrize("mark", [" (default, active)", " (active)"])
def test_zones_that_nothing_is_in_take_nothing(mark: str) -> None:
    heads = {"public": mark, "libvirt": " (active)"}
    assert live(listing(heads, {"public": "eth0", **BRIDGE})) == EXPECTED


def test_the_listing_of_all_zones_is_the_way_out_of_the_listing_of_one() -> None:
    alone = firewalld.parse_list(FILE, LISTED, lambda _: None)
    assert live(alone) == []
    assert all("give what `firewall-cmd --list-all-zones` prints" in forward.reason for forward in alone.forwards)
    assert live(listing({"public": " (active)"}, {"public": "eth0"})) == EXPECTED


def test_the_default_zone_has_the_interfaces_of_no_zone() -> None:
    findings = listing({"public": " (default, active)"}, {}, sources="0.0.0.0/1")
    assert "*:22/tcp -> [2001:db8:122::10]:22" in live(findings)
    assert any(f"{WEB80}80" in text and "128.0.0.0/2" in text for text in live(findings))


def test_the_default_zone_has_no_interface_of_another_zone() -> None:
    findings = listing({"public": " (default, active)"}, BRIDGE)
    assert live(findings) == []
    assert any("zone libvirt" in forward.reason for forward in findings.forwards)


@pytest.mark.parametrize(
    ("heads", "reason"),
    [
        ({"public": " (default, active)"}, "and zone public is the default zone"),
        ({"public": " (active)"}, "where it is the default zone, which this listing does not say"),
        ({"home": " (default)"}, "where it is the default zone, which this listing does not say"),
    ],
)
def test_a_zone_that_nothing_is_in_does_not_ask_for_the_same_listing(heads: dict[str, str], reason: str) -> None:
    findings = listing(heads, {"public": "eth0"}, "home")
    assert live(findings) == []
    assert findings.forwards
    assert all(reason in forward.reason for forward in findings.forwards)
    assert all("--list-all-zones" not in forward.reason for forward in findings.forwards)
