"""Policies and direct rules of firewalld: what they may take or refuse, no zone forwards."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from fwdaemon.importing import firewalld
from fwdaemon.importing.findings import Findings, Kind, recognise
from fwdaemon.importing.firewalld import parse_list, parse_xml, policies_in
from fwdaemon.importing.iptables_save import no_way
from tests.unit.imports import FILE, left_out, warnings
from tests.unit.test_import_command import Run, run
from tests.unit.test_import_firewalld import ETH0, HTTP
from tests.unit.test_import_nft import live

__all__ = ["run"]

POLICY, DIRECT = Path("policies/admin.xml"), Path("direct.xml")
LIVE = ["*:80/tcp -> 192.168.122.10:80 on eth0"]
TO_ANOTHER = '<forward-port port="80" protocol="tcp" to-addr="192.168.122.99"/>'
NEAR = '<source address="128.0.0.0/1"/>'
HALF = ["*:80/tcp -> 192.168.122.10:80 on eth0 from 0.0.0.0/1"]


def policy(body: str, *, head: str = 'priority="-10"', ingress: str = "public", egress: str = "HOST") -> str:
    zones = f'<ingress-zone name="{ingress}"/>\n<egress-zone name="{egress}"/>'
    return f"<policy {head}>\n{zones}\n{body}\n</policy>"


def found(policies: Sequence[str], siblings: Sequence[str] | None = (), *, file: Path = POLICY) -> Findings:
    given = [each for text in policies for each in policies_in(file, text)]
    return parse_xml(Path("public.xml"), f"<zone>{ETH0}{HTTP}</zone>", siblings, no_way, given)


@pytest.mark.parametrize(
    "text",
    [
        policy(TO_ANOTHER),
        policy(f'<rule family="ipv4">{TO_ANOTHER}</rule>'),
        policy('<forward-port port="79-81" protocol="tcp" to-port="8080"/>'),
        policy('<forward-port port="x" protocol="tcp" to-port="8080"/>'),
        policy(f'<rule><source ipset="office"/>{TO_ANOTHER}</rule>'),
        policy(TO_ANOTHER, ingress="ANY"),
        policy(TO_ANOTHER, ingress="unheard-of"),
        policy(TO_ANOTHER, head=""),
        policy("", head='target="DROP"', egress="ANY"),
        policy("", head='priority="10" target="REJECT"', egress="libvirt"),
        policy("<rule><drop/></rule>", egress="libvirt"),
    ],
)
def test_what_a_policy_may_take_or_refuse_is_left_out(text: str) -> None:
    findings = found([text])
    assert live(findings) == []
    assert all("of policies/admin.xml, " in told for told in left_out(findings))


@pytest.mark.parametrize(
    "text",
    [
        policy(f'<rule family="ipv4">{NEAR}{TO_ANOTHER}</rule>'),
        policy(f'<rule family="ipv4">{NEAR}<reject/></rule>', egress="ANY"),
    ],
)
def test_clients_that_a_policy_leaves_to_the_zone_are_let_in(text: str) -> None:
    assert live(found([text])) == HALF


@pytest.mark.parametrize(
    "text",
    [
        policy(TO_ANOTHER.replace("80", "81")),
        policy(TO_ANOTHER, ingress="HOST"),
        policy(TO_ANOTHER, head='priority="10"'),
        policy("<rule><drop/></rule>"),
        policy("", head='target="ACCEPT"', egress="libvirt"),
        policy('<rule family="ipv6"><drop/></rule>', egress="ANY"),
        f"<policy>{TO_ANOTHER}</policy>",
    ],
)
def test_a_policy_that_takes_nothing_of_it_stops_nothing(text: str) -> None:
    assert live(found([text])) == LIVE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<rule ipv="ipv4" table="filter" chain="FORWARD" priority="0">-s 203.0.113.0/24 -j DROP</rule>', []),
        ("<passthrough ipv='ipv4'>-A FORWARD -j DROP</passthrough>", []),
        ('<rule ipv="ipv4" table="filter" chain="FORWARD" priority="0">-i virbr0 -j ACCEPT</rule>', LIVE),
        ('<rule ipv="ipv4" table="filter" chain="INPUT_direct" priority="0">-j DROP</rule>', LIVE),
        ('<rule ipv="ipv4" table="nat" chain="POSTROUTING" priority="0">-j MASQUERADE</rule>', LIVE),
        ('<chain ipv="ipv4" table="filter" chain="own"/>', LIVE),
    ],
)
def test_direct_rules_may_take_all_that_comes_to_them(text: str, expected: list[str]) -> None:
    direct = f"<direct>\n{text}\n</direct>"
    assert recognise(DIRECT, direct) is Kind.FIREWALLD_XML
    assert live(found([direct], file=DIRECT)) == expected


BLOCK = """{name}{mark}
  {head}
  target: {target}
  {zones}
  forward-ports:
{ports}  rich rules:
"""
PUBLIC = BLOCK.format(
    name="public",
    mark=" (default, active)",
    head="ingress-priority: 0",
    target="default",
    zones="interfaces: eth0\n  sources:",
    ports="\tport=80:proto=tcp:toport=80:toaddr=192.168.122.10\n",
)
LIBVIRT = BLOCK.format(
    name="libvirt", mark=" (active)", head="ingress-priority: 0", target="ACCEPT", zones="interfaces: virbr0", ports=""
)


def listed(ingress: str, *, priority: int = -10, rest: str = "") -> str:
    zones = f"ingress-zones: {ingress}\n  egress-zones: HOST"
    ports = "\tport=80:proto=tcp:toport=8080:toaddr=192.168.122.99\n"
    head = f"priority: {priority}"
    return BLOCK.format(name="pol", mark=" (active)", head=head, target="CONTINUE", zones=zones, ports=ports) + rest


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        (listed("public"), []),
        (listed("ANY"), []),
        (listed("libvirt"), LIVE),
        (listed("public", priority=10), LIVE),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_policies_of_a_listing(policies: str, expected: list[str], *, together: bool) -> None:
    zones = f"{PUBLIC}\n{LIBVIRT}\n"
    given = () if together else list(policies_in(POLICY, policies))
    findings = parse_list(FILE, zones + policies * together, no_way, given)
    assert live(findings) == expected


def built_in(name: str, target: str, ingress: str, egress: str, rich: str = "") -> str:
    zones = f"ingress-zones: {ingress}\n  egress-zones: {egress}"
    return BLOCK.format(name=name, mark=" (active)", head="priority: -1", target=target, zones=zones, ports="") + rich


def test_the_policies_that_firewalld_and_libvirt_bring_stop_nothing() -> None:
    routed = BLOCK.format(
        name="libvirt-routed", mark="", head="icmp-blocks:", target="ACCEPT", zones="interfaces:", ports=""
    )
    brought = (
        built_in(
            "allow-host-ipv6", "CONTINUE", "ANY", "HOST", '\trule family="ipv6" icmp-type name="redirect" accept\n'
        ),
        built_in("libvirt-routed-in", "ACCEPT", "ANY", "libvirt-routed"),
        built_in("libvirt-routed-out", "ACCEPT", "libvirt-routed", "ANY"),
        built_in("libvirt-to-host", "REJECT", "libvirt-routed", "HOST"),
    )
    findings = parse_list(FILE, "\n".join([PUBLIC, LIBVIRT, routed, *brought]), no_way)
    assert live(findings) == LIVE


def test_a_policy_is_no_further_zone() -> None:
    findings = parse_list(FILE, f"{PUBLIC}\n{listed('libvirt')}", no_way)
    assert live(findings) == []


def test_what_was_not_read_is_told() -> None:
    assert warnings(found([])) == [f"1: ../policies and ../direct.xml were not read, {_MAY}"]
    assert warnings(found([policy("")])) == [f"1: ../direct.xml was not read, {_MAY}"]
    given = [*policies_in(POLICY, policy("")), *policies_in(DIRECT, "<direct/>")]
    assert warnings(firewalld.parse_xml(FILE, f"<zone>{ETH0}{HTTP}</zone>", (), no_way, given)) == []
    listing = warnings(parse_list(FILE, f"{PUBLIC}\n{LIBVIRT}", no_way))
    policies = "what `firewall-cmd --list-all-policies` prints and /etc/firewalld/direct.xml"
    assert listing == [f"1: {policies} were not read, {_MAY}"]


_MAY = "and may send or refuse some of this first; where there is any, give it too"


def test_files_that_are_imported_together_are_judged_together(run: Run) -> None:
    text, errors = run({"admin.xml": policy(TO_ANOTHER), "public.xml": f"<zone>{ETH0}{HTTP}</zone>"}, code=1)
    assert "stopped it" in text
    assert any("public.xml:1: 80 left out: line 4 of" in error for error in errors)
