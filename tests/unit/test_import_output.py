"""The configuration an import writes: grouped, with the place of each port, and accepted whatever was found."""

import contextlib
import dataclasses
from ipaddress import ip_address, ip_network
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon import config
from fwdaemon.config.model import RouteEntry
from fwdaemon.core.inventory import AddressSource, Domain, GuestInterface, Inventory, LearnedAddress
from fwdaemon.core.types import Address, Origin, PortRange, Protocol
from fwdaemon.importing.assembling import Imported, assemble, owners_of
from fwdaemon.importing.findings import BrokenFileError, Findings, Forward, Kind, recognise
from tests.unit.imports import FILE, OWNERS, accepted

WEB = Forward(
    "web",
    ip_address("192.168.122.10"),
    PortRange(80, 80),
    PortRange(80, 80),
    Protocol.TCP,
    Origin(Path("hooks.json"), 7),
)
NOBODYS = dataclasses.replace(WEB, domain=None, address=ip_address("192.168.122.99"))


def found(*forwards: Forward, file: str = "hooks.json", routes: tuple[RouteEntry, ...] = ()) -> Findings:
    return Findings(Path(file), "hooks.json of libvirt-hook-qemu", list(forwards), list(routes))


def at(line: int, ports: str = "80", **changes: object) -> Forward:
    """WEB with other ports, on another line."""
    first, _, last = ports.partition("-")
    span = PortRange(int(first), int(last or first))
    more = {"host": span, "guest": span, "origin": Origin(Path("hooks.json"), line), **changes}
    return dataclasses.replace(WEB, **more)  # type: ignore[arg-type]  # each test gives fields of their own type


def entries(imported: Imported) -> str:
    """What follows the head."""
    return imported.text.partition("\n\n")[2]


def reasons(imported: Imported) -> list[str]:
    return [str(warning) for warning in imported.warnings]


def hosts(imported: Imported) -> dict[str, list[str]]:
    """The host's ports that are not commented out, by domain."""
    entries = config.parse({FILE: imported.text}).forwards
    return {entry.domain: [str(mapping.host) for mapping in entry.mappings] for entry in entries}


def test_one_entry_for_all_ports_that_differ_in_nothing_else() -> None:
    public = ip_address("198.51.100.7")
    shifted = at(9, "443", guest=PortRange(8443, 8443), listen=public, interface="eth0", protocol=Protocol.UDP)
    route = RouteEntry("public", ip_network("203.0.113.66"), Origin(Path("hooks.json"), 12))
    imported = assemble([found(at(7), shifted, at(8, "81-82"), routes=(route,))], OWNERS)
    assert imported.warnings == ()
    assert (
        entries(imported)
        == """\
[[forward]]
domain = "web"
address = "192.168.122.10"
ports = [
    "80", # hooks.json:7
    "81-82", # hooks.json:8
]

[[forward]]
domain = "web"
address = "192.168.122.10"
listen = "198.51.100.7"
interface = "eth0"
ports = [
    "443:8443/udp", # hooks.json:9
]

[[route]]
network = "public"
addresses = [
    "203.0.113.66", # hooks.json:12
]
"""
    )


def test_what_conflicts_with_an_earlier_entry_is_commented_out_and_says_where() -> None:
    imported = assemble([found(at(7, domain='a"b'), at(8, domain="c"), at(9, "81", domain="c"))], OWNERS)
    (reason,) = reasons(imported)
    claimed = 'hooks.json:8: 80 left out: domain "c": *:80/tcp is already claimed at hooks.json:7 for domain "a\\"b";'
    assert reason.startswith(claimed)
    assert entries(imported).splitlines()[-6:] == [
        "# [[forward]]",
        '# domain = "c"',
        '# address = "192.168.122.10"',
        "# ports = [",
        '#     "80", # hooks.json:8',
        "# ]",
    ]
    assert hosts(imported) == {'a"b': ["80"], "c": ["81"]}


def test_what_stands_against_an_entry_that_goes_stays() -> None:
    imported = assemble([found(at(1, "1-10"), at(2, "5-15"), at(3, "12-20"), at(4, "16-30"))], OWNERS)
    assert hosts(imported) == {"web": ["1-10", "12-20"]}


def test_the_same_in_two_files_is_written_once_and_no_contradiction() -> None:
    imported = assemble([found(at(7)), found(at(3), file="other.json")], OWNERS)
    assert imported.warnings == ()
    assert entries(imported).count('"80"') == 1
    assert "#   line 3: 80 is the same as at hooks.json:7" in imported.text


def test_a_contradiction_of_the_families_leaves_the_entry_out() -> None:
    imported = assemble([found(at(7, listen=ip_address("2001:db8::1")), at(8, "81"))], OWNERS)
    assert len(imported.warnings) == 1
    assert hosts(imported) == {"web": ["81"]}


@pytest.mark.parametrize(
    ("owners", "reason"),
    [
        (None, "libvirt did not say which domain has 192.168.122.99; write its name"),
        ({}, "no running domain is known to have 192.168.122.99; start it, or write its name"),
        (
            {NOBODYS.address: ("a", "b")},
            'domains "a" and "b" are both said to have 192.168.122.99; write the name of one',
        ),
    ],
)
def test_an_entry_whose_domain_nobody_knows_is_commented_out(
    owners: dict[Address, tuple[str, ...]] | None, reason: str
) -> None:
    imported = assemble([found(NOBODYS)], owners)
    assert reasons(imported) == [f"hooks.json:7: 80 left out: {reason}"]
    assert (
        entries(imported)
        == f"""\
# Left out: {reason}
# [[forward]]
# domain = "?"
# address = "192.168.122.99"
# ports = [
#     "80", # hooks.json:7
# ]
"""
    )


def test_a_domain_is_found_by_the_best_evidence_for_an_address() -> None:
    def domain(name: str, number: int, *learned: tuple[str, AddressSource]) -> Domain:
        claims = tuple(LearnedAddress(ip_address(address), source) for address, source in learned)
        interface = GuestInterface(f"52:54:00:00:00:0{number}", "default", "virbr0", "vnet0", claims)
        return Domain(name, UUID(int=number), running=True, interfaces=(interface,))

    owners = owners_of(
        Inventory(
            (
                domain("a", 1, ("192.168.122.10", AddressSource.LEASE), ("192.168.122.11", AddressSource.NEIGHBOUR)),
                domain(
                    "b", 2, ("192.168.122.10", AddressSource.NEIGHBOUR), ("192.168.122.11", AddressSource.NEIGHBOUR)
                ),
            )
        )
    )
    assert {str(address): names for address, names in owners.items()} == {
        "192.168.122.10": ("a",),
        "192.168.122.11": ("a", "b"),
    }


def test_hostile_names_of_files_stay_in_their_comment() -> None:
    hostile = Origin(Path('a\n[[forward]]\x1b"\udcff.json'), 7)
    findings = Findings(hostile.file, "a file", [dataclasses.replace(WEB, origin=hostile)])
    findings.warn(1, "said\n[daemon]")
    assert len(accepted([findings]).forwards) == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"web": {}}', Kind.HOOKS_JSON),
        ("// said\n/* and\n   again */ {}", Kind.HOOKS_JSON),
        ("[]", Kind.HOOKS_JSON),
        ("[", Kind.HOOKS_JSON),
        ('[\n  {"web": {}}\n]', Kind.HOOKS_JSON),
        ("# Generated by iptables-save\n*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n", Kind.IPTABLES_SAVE),
        ("#!/bin/sh\nset -e\nexport PRIVATE_IP=1.2.3.4\n PORTS='tcp:80'", Kind.PORTS_SCRIPT),
        ("PORTS = tcp:80\nPRIVATE_IP = 1", Kind.PORTS_SCRIPT),
        ("# IP  network\n 203.0.113.7 public\n", Kind.ROUTED_IPS),
        ("203.0.113.7 public\n2001:db8::/64 public # junk\n", Kind.ROUTED_IPS),
        ("", Kind.EMPTY),
        ("# IP address   libvirt network\n\n", Kind.EMPTY),
    ],
)
def test_the_content_tells_the_kind(text: str, kind: Kind) -> None:
    assert recognise(FILE, text) is kind


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("key = 1\n[daemon]", 1),
        ("hello", 1),
        ("/* { ", 1),
        ("iptables -t nat -A PREROUTING", 1),
        ("web:\n  - 80", 1),
        ("PORTS=tcp:80", 1),
        ("#!/bin/sh\n. /etc/hook.conf\nexport PRIVATE_IP=1.2.3.4\n", 2),
        (". /etc/hook.conf\n", 1),
        ("- a list\n*nat\n", 1),
        ("*emphasis\n", 1),
        ("203.0.113.7 public\njunk\n", 2),
        ("\tset x {\n\t\telements = { 192.0.2.1,\n\t\t\t     192.0.2.2 }\n\t}\n}\n", 1),
        ("a table of contents\ntable ip nat {\n}\n", 1),
        ("define = 1\n", 1),
        ("public\n  target: default\n", 1),
        ("  forward-ports: \n\tport=80:proto=tcp:toport=:toaddr=192.168.122.10\n", 1),
        ("<domain type='kvm'/>\n", 1),
        ("192.0.2.2 }\n", 1),
        ("192.0.2.2, 192.0.2.3,\n", 1),
        ("10:20 stands up\n", 1),
        ("[daemon]\nlibvirt = []\n", 1),
        ("[DEFAULT]\nkey = value\n", 1),
        ("; said\n[Interface]\nMTU = 1400\n", 1),
        ("\n  [a section]\n", 2),
        ("// said\n[web\n", 1),
        ("[true]", 1),
    ],
)
def test_another_kind_is_refused(text: str, line: int) -> None:
    with pytest.raises(BrokenFileError, match=rf"^FILE:{line}: .* is from no known kind of file; give hooks\.json"):
        recognise(FILE, text)


@pytest.mark.parametrize("head", ["", "# said\n", "key = 1\n", "[daemon]\n\n", "\ufeff[x]\n"])
@pytest.mark.parametrize("entry", ["[[forward]]", "[[ nat ]]", '  [[route]] # of "net"'])
def test_a_configuration_of_this_program_is_told(head: str, entry: str) -> None:
    with pytest.raises(
        BrokenFileError, match=rf"^FILE:{head.count(chr(10)) + 1}: is of a configuration of kvm-portfwd"
    ):
        recognise(FILE, f'{head}{entry}\ndomain = "web"\n')


@given(st.text(alphabet="/*{[# \n*natPORTS=1.:ab", max_size=30))
def test_any_text_has_a_kind_or_is_refused(text: str) -> None:
    with contextlib.suppress(BrokenFileError):
        assert recognise(FILE, text) in Kind


PLACE = st.integers(1, 9)
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
DOMAIN = st.sampled_from(["a", "b", None]) | st.text(LETTERS, min_size=1, max_size=5)
ADDRESS = st.sampled_from([None, *map(ip_address, ["198.51.100.1", "198.51.100.7", "2001:db8::1"])])


@st.composite
def any_forward(draw: st.DrawFn) -> Forward:
    first, last = sorted([draw(st.integers(1, 20)), draw(st.integers(1, 20))])
    return Forward(
        draw(DOMAIN),
        draw(st.sampled_from([ip_address("192.168.122.10"), ip_address("2001:db8:122::10")])),
        PortRange(first, last),
        PortRange(first, last),
        draw(st.sampled_from(Protocol)),
        Origin(FILE, draw(PLACE)),
        draw(ADDRESS),
        draw(st.sampled_from([None, "eth0", "eth1"])),
    )


@given(st.lists(any_forward(), max_size=12))
def test_whatever_was_found_gives_a_configuration_that_is_accepted(forwards: list[Forward]) -> None:
    accepted([found(*forwards)])
