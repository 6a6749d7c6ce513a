"""Ports that domains ask to be assigned: who is given one, keeps it, and what the policy has to cover."""

from dataclasses import replace

import pytest

from fwdaemon.audit.causes import why
from fwdaemon.core.inventory import Element, Inventory
from fwdaemon.core.state import Desired
from fwdaemon.resolve.placement import Placer
from fwdaemon.status.rows import Facts, Readings, rows
from tests.unit.asking import ALLOW, HOST, NETWORKS, config, domain, forward, placed, refused

AUTO = ALLOW.replace('"53"]', '"40000-40009"]') + '[daemon]\nauto_ports = "40000-40002"\n'


def ports(desired: Desired) -> dict[str, int]:
    return {item.owner.name: item.claim.ports.first for item in desired.forwards if item.claim.ports is not None}


def test_a_domain_that_asks_is_given_a_port_of_its_own() -> None:
    asked = [domain(f"ci-{n}", n, forward("auto:22 8000", listen="198.51.100.1")) for n in (1, 2)]
    desired = placed(*asked, text=AUTO)
    automatic = [item for item in desired.forwards if item.claim.auto]
    assert sorted(item.owner.name for item in automatic) == ["ci-1", "ci-2"]
    assert len({item.claim.ports for item in automatic}) == 2
    assert {f"{item.origin} by {item.origin.allowed}" for item in automatic if item.origin} == {
        "domain ci-1, metadata: forward 1 by /portfwd.toml:2",
        "domain ci-2, metadata: forward 1 by /portfwd.toml:2",
    }
    assert refused(desired) == {"ci-2 tcp 198.51.100.1:8000": "ci-1 has it already (domain ci-1, metadata: forward 1)"}
    told = rows(Facts(config(AUTO), desired, desired), Readings())
    assert sorted((row.owner.name, row.state.value) for row in told) == [
        ("ci-1", "active"),
        ("ci-1", "active"),
        ("ci-2", "active"),
        ("ci-2", "refused"),
    ]


@pytest.mark.parametrize(
    ("text", "asked", "reason"),
    [
        (ALLOW, "auto:22", "ports tcp auto:22 (no auto_ports are set)"),
        (AUTO.replace("40000-40009", "40000-40001"), "auto:22", "ports tcp auto:22 (one of auto_ports, 40000-40002)"),
        (AUTO, "auto:22/sctp", "ports sctp auto:22 (one of auto_ports, 40000-40002)"),
        (AUTO, "192.168.122.9:auto:22", "listen 192.168.122.9"),
        (AUTO, "auto:1 auto:2 auto:3 auto:4 auto:5", "max 4"),
    ],
)
def test_what_is_assigned_is_covered_whole_or_refused(text: str, asked: str, reason: str) -> None:
    desired = placed(domain("ci-1", 1, forward(asked)), text=text)
    (told,) = {why(item.reason) for item in desired.waiting if "does not cover" in why(item.reason)}
    assert told == f"no [[allow]] covers it; the closest, /portfwd.toml:2, does not cover {reason}"
    assert not desired.forwards or reason == "max 4"


@pytest.mark.parametrize("named", ["ci-*", "ci-1", "00000000-0000-0000-0000-000000000001"])
@pytest.mark.parametrize(
    "asked",
    [
        forward("auto:22"),
        forward("auto:22", sources="192.0.2.0/24"),
        forward("auto:22", listen="198.51.100.1"),
        forward("auto:22 auto:23"),
    ],
)
def test_the_port_that_a_file_assigns_keeps_the_terms_of_the_file(named: str, asked: Element) -> None:
    text = f'{AUTO}[[forward]]\ndomain = "{named}"\nports = ["auto:22"]\nsources = ["203.0.113.0/24"]\n'
    desired = placed(domain("ci-1", 1, asked), text=text)
    (opened,) = (item for item in desired.forwards if item.target_ports.first == 22)
    assert [str(source) for source in opened.claim.sources] == ["203.0.113.0/24"]
    assert set(refused(desired).values()) == {"ci-1 has it already (/portfwd.toml:11)"}
    ((kind, told),) = {
        (row.state.value, row.reason)
        for row in rows(Facts(config(text), desired, desired), Readings())
        if row.origin is not None and row.origin.domain and row.state.value != "active"
    }
    assert (kind, told) == ("refused", "ci-1 has it already (/portfwd.toml:11)")


def test_where_few_ports_are_left_files_go_first_and_nobody_loses_one() -> None:
    asked = [domain(f"ci-{n}", n, forward("auto:22")) for n in (1, 2, 3)]
    text = AUTO + '[[forward]]\ndomain = "ci-4"\nports = ["auto:22"]\n'
    inventory = Inventory((*asked, replace(domain("ci-4", 4), metadata=None)), NETWORKS, HOST)
    placer = Placer({})
    first = placer.place(config(text), inventory)
    assert {"ci-4"} < set(ports(first))
    assert list(refused(first).values()) == ["no port of auto_ports (40000-40002) is free"]
    held = ports(first)
    bold = domain("ci-5", 5, forward("40000 40001 40002"))
    after = placer.place(config(text), replace(inventory, domains=(*inventory.domains, bold)))
    assert ports(after) == held
    assert {name for name in refused(after) if name.startswith("ci-5")} == {
        f"ci-5 tcp *:{n}" for n in range(40000, 40003)
    }


def test_no_port_is_assigned_that_a_domain_has_by_its_number_or_keeps_when_it_asks_for_another() -> None:
    bold, text = domain("ci-1", 1, forward("40000-40001")), config(AUTO)
    placer = Placer({})
    one = placer.place(text, Inventory((bold, domain("ci-2", 2, forward("auto:22"))), NETWORKS, HOST))
    assert ports(one) == {"ci-1": 40000, "ci-2": 40002}
    other = placer.place(text, Inventory((bold, domain("ci-2", 2, forward("auto:23"))), NETWORKS, HOST))
    assert ports(other) == {"ci-1": 40000, "ci-2": 40002}
    assert [item.guest for item in placer.ports] == [23]


def test_a_misread_element_gives_up_no_port_and_gathers_none() -> None:
    placer, text = Placer({}), config(AUTO)

    def kept(*elements: Element) -> list[int]:
        placer.place(text, Inventory((domain("ci-1", 1, *elements),), NETWORKS, HOST))
        return sorted(item.guest for item in placer.ports)

    assert kept(forward("auto:22"), forward("auto:23")) == [22, 23]
    before = dict(placer.ports)
    assert kept(forward("auto:22"), forward("auto:23x")) == [22, 23]
    assert kept(forward("auto:22"), forward("auto:23")) == [22, 23]
    assert dict(placer.ports) == before
    assert kept(forward("auto:22"), forward("auto:23x")) == [22, 23]
    assert kept(forward("auto:22")) == [22]
    assert kept(forward("auto:24"), forward("auto:23x")) == [24]
    assert kept(forward("auto:23x")) == [24]
    assert kept(forward("auto:25"), forward("auto:23x")) == [25]


def test_a_domain_that_is_off_waits_for_its_port_and_keeps_none_from_others() -> None:
    desired = placed(domain("ci-1", 1, forward("auto:22"), running=False), text=AUTO)
    assert [(str(item.claim), item.refused) for item in desired.waiting] == [("tcp *:auto", False)]
