"""Who gets what domains ask for: what a policy covers whole, and nobody has, the older live domain first."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon import config as configuration
from fwdaemon.audit import lines
from fwdaemon.audit.causes import why
from fwdaemon.audit.throttle import Rations
from fwdaemon.config.model import Config
from fwdaemon.core.inventory import (
    AddressSource,
    Asked,
    Domain,
    Element,
    GuestInterface,
    HostAddress,
    Inventory,
    LearnedAddress,
    Move,
    Network,
    Occupied,
)
from fwdaemon.core.state import Desired
from fwdaemon.core.types import PortRange, Protocol
from fwdaemon.explain.report import Cause, as_text
from fwdaemon.hostnet.owned_state import OwnedStateFile
from fwdaemon.hostnet.public_addresses import with_lent
from fwdaemon.resolve.placement import Placer, desired_state
from fwdaemon.resolve.sharing import Claimants, settled
from fwdaemon.status.rows import Facts, Readings, rows
from tests.unit import trace_scene

NETWORKS = tuple(
    Network(name, active=True, bridge=f"virbr{n}", subnets=(ip_network(f"192.168.{122 + n}.0/24"),))
    for n, name in enumerate(("default", "inner"))
)
HOST = (
    HostAddress(ip_address("198.51.100.1"), ip_network("198.51.100.0/24"), "eth0"),
    HostAddress(ip_address("198.51.100.7"), ip_network("198.51.100.7/32"), "eth0"),
)
ALLOW = """
[[allow]]
domains = ["ci-*", "00000000-0000-0000-0000-000000000009"]
networks = ["default"]
ports = ["8000-8099", "53"]
public = ["192.0.2.64/27"]
assign = "eth0"
max = 4
"""


def element(name: str = "forward", **attributes: str) -> Element:
    return Element(name, tuple(attributes.items()))


def forward(ports: str, **attributes: str) -> Element:
    return element(ports=ports, **attributes)


def domain(name: str, number: int, *elements: Element, network: str = "default", running: bool = True) -> Domain:
    """The domain that was started as number so many."""
    bridge = {"default": "virbr0", "inner": "virbr1"}[network]
    address = LearnedAddress(ip_address(f"192.168.{122 + int(bridge[-1])}.{number}"), AddressSource.LEASE)
    interfaces = (GuestInterface(f"52:54:00:00:00:{number:02x}", network, bridge, f"vnet{number}", (address,)),)
    uuid = UUID(int=number)
    return Domain(name, uuid, running, interfaces if running else (), asked=Asked(elements), instance=number)


def config(text: str = ALLOW) -> Config:
    return configuration.parse({Path("/portfwd.toml"): text})


def placed(*domains: Domain, text: str = ALLOW) -> Desired:
    return desired_state(config(text), Inventory(domains, NETWORKS, HOST))


def live(desired: Desired) -> set[str]:
    return {f"{exposure.owner.name} {exposure.listens_at()}" for exposure in desired.exposures}


def refused(desired: Desired) -> dict[str, str]:
    return {f"{item.owner.name} {item.claim}": why(item.reason) for item in desired.waiting if item.refused}


def test_what_a_policy_covers_is_open_and_says_by_which() -> None:
    desired = placed(domain("ci-1", 1, forward("8000:80 53/tcp+udp"), element("nat", public="192.0.2.70")))
    assert live(desired) == {"ci-1 tcp *:8000", "ci-1 tcp *:53", "ci-1 udp *:53", "ci-1 all of 192.0.2.70"}
    assert {str(item.origin) for item in desired.exposures} == {"domain ci-1, metadata"}
    assert {str(item.origin.allowed) for item in desired.exposures if item.origin} == {"/portfwd.toml:2"}
    assert {nat.assign for nat in desired.nats} == {"eth0"}


@pytest.mark.parametrize(
    ("asked", "lacking"),
    [
        (domain("ci-1", 1, forward("22")), "ports tcp 22"),
        (domain("ci-1", 1, forward("8099-8100")), "ports tcp 8099-8100"),
        (domain("ci-1", 1, forward("8000/sctp")), "ports sctp 8000"),
        (domain("ci-1", 1, forward("8000"), network="inner"), "networks inner"),
        (domain("ci-1", 1, forward("22"), network="inner"), "networks inner and ports tcp 22"),
        (domain("ci-1", 1, forward("8000", listen="198.51.100.9")), "listen 198.51.100.9"),
        (domain("ci-1", 1, forward("192.168.122.9:8000")), "listen 192.168.122.9"),
        (domain("ci-1", 1, element("nat", public="192.0.2.1")), "public 192.0.2.1"),
        (domain("ci-1", 1, element("nat", public="192.0.2.70", assign="eth1")), "assign eth1"),
        (domain("ci-1", 1, forward("8000-8004")), "max 4"),
        (
            domain("ci-1", 1, forward("22", listen=" ".join(f"192.0.2.{n}" for n in range(1, 10)))),
            "listen 192.0.2.1 and listen 192.0.2.2 and listen 192.0.2.3 and 7 more",
        ),
    ],
)
def test_what_no_policy_covers_is_refused_with_what_the_closest_lacks(asked: Domain, lacking: str) -> None:
    desired = placed(asked)
    assert not live(desired)
    (reason,) = set(refused(desired).values())
    assert reason == f"no [[allow]] covers it; the closest, /portfwd.toml:2, does not cover {lacking}"


@pytest.mark.parametrize("name", ["CI-1", "xci-1", "ci", "db"])
def test_a_domain_that_no_policy_is_for_gets_nothing(name: str) -> None:
    assert refused(placed(domain(name, 1, forward("8000")))) == {
        f"{name} tcp *:8000": "no [[allow]] is for this domain"
    }
    assert live(placed(domain(name, 9, forward("8000")))) == {f"{name} tcp *:8000"}  # by its UUID


def test_without_a_policy_nothing_is_open() -> None:
    assert not live(placed(domain("ci-1", 1, forward("8000"), element("nat", public="192.0.2.70")), text=""))


def test_one_policy_covers_it_whole_or_it_is_refused() -> None:
    text = '[[allow]]\ndomains = "*"\nports = "80"\nnetworks = "inner"\n[[allow]]\ndomains = "*"\nports = "81"'
    assert live(placed(domain("a", 1, forward("80 81 80-81")), text=text)) == {"a tcp *:81"}


def test_addresses_to_listen_on_are_those_of_the_policy_or_of_the_host() -> None:
    text = '[[allow]]\ndomains = "*"\nports = "80"\nlisten = ["198.51.100.7"]'
    desired = placed(domain("a", 1, forward("80"), forward("198.51.100.1:80"), forward("198.51.100.7:80")), text=text)
    assert live(desired) == {"a tcp 198.51.100.7:80"}
    everywhere = ALLOW.replace("8000-8099", "80")
    assert live(placed(domain("ci-1", 1, forward("198.51.100.1:80")), text=everywhere)) == {"ci-1 tcp 198.51.100.1:80"}


def test_a_domain_has_so_many_and_the_first_of_them_count() -> None:
    desired = placed(domain("ci-1", 1, forward("8000-8002 8010-8011 8020"), forward("8030")))
    assert live(desired) == {"ci-1 tcp *:8000-8002", "ci-1 tcp *:8020"}


@pytest.mark.parametrize(("most", "reason"), [("4", "max 4"), ("65535", "the host has it already")])
def test_a_range_is_not_walked_to_refuse_it(most: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ALLOW.replace('"8000-8099", "53"', '"1-65535"').replace("max = 4", f"max = {most}")
    waits = frozenset({Occupied(Protocol.TCP, None, 60000)})
    asked = domain("ci-1", 1, forward(" ".join(f"{n}-65000" for n in range(1, 9))))
    inventory, policy = Inventory((asked,), NETWORKS, HOST, occupied=waits), config(text)
    walked: list[PortRange] = []

    def walk(ports: PortRange) -> Iterator[int]:
        walked.append(ports)
        return iter(range(ports.first, ports.last + 1))

    monkeypatch.setattr(PortRange, "__iter__", walk)
    claims = settled(policy, inventory)
    assert not claims.given
    assert not walked
    assert {why(item.reason).rpartition("cover ")[2] for item in claims.refused} == {reason}


FILE = '[[forward]]\ndomain = "web"\nports = ["{}"]\n{}\n' + ALLOW


@pytest.mark.parametrize(
    ("has", "more", "asks"),
    [
        ("8000", "", "8000"),
        ("8000", "", "198.51.100.1:8000"),  # which the grammar of the file puts ahead
        ("198.51.100.1:8000", "", "8000"),
        ("8000", 'sources = ["203.0.113.0/24"]', "8000"),
        ("7000-9000", "", "8000"),
        ("8000-8002", 'interface = "eth0"', "8001"),
    ],
)
def test_what_a_file_asks_for_is_taken_whether_or_not_its_domain_runs(has: str, more: str, asks: str) -> None:
    desired = placed(domain("ci-1", 1, forward(asks)), text=FILE.format(has, more))
    assert not live(desired)
    assert list(refused(desired).values()) == ["web has it already (/portfwd.toml:1)"]


@pytest.mark.parametrize(
    ("has", "more", "asks"),
    [
        ("8000/udp", "", "8000"),
        ("8001", "", "8000"),
        ("198.51.100.1:8000", "", "198.51.100.7:8000"),
    ],
)
def test_what_does_not_meet_is_given(has: str, more: str, asks: str) -> None:
    assert live(placed(domain("ci-1", 1, forward(asks)), text=FILE.format(has, more)))


def test_no_port_of_anothers_public_address_and_no_address_of_the_host() -> None:
    mail = '[[nat]]\ndomain = "mail"\npublic = "192.0.2.70"\nassign = "eth0"\n' + ALLOW
    for asks in (forward("8000"), element("nat", public="192.0.2.70")):
        assert list(refused(placed(domain("ci-1", 1, asks), text=mail)).values()) == [
            "mail has it already (/portfwd.toml:3)"
        ]
    own = ALLOW.replace("192.0.2.64/27", "198.51.100.0/24")
    for address in ("198.51.100.1", "198.51.100.7"):
        desired = placed(domain("ci-1", 1, element("nat", public=address)), text=own)
        assert list(refused(desired).values()) == ["the host has it already"]
    routed = '[[route]]\nnetwork = "inner"\naddresses = ["192.0.2.64/28"]\n' + ALLOW
    assert not live(placed(domain("ci-1", 1, element("nat", public="192.0.2.70")), text=routed)) - {
        "inner route 192.0.2.64/28"
    }


MAIL = '[[nat]]\ndomain = "{}"\npublic = "192.0.2.70"\nassign = "eth0"\n' + ALLOW.replace('"ci-*"', '"*"')


def test_the_name_of_anothers_entry_gets_a_domain_of_a_later_uri_no_port_of_its_public_address() -> None:
    first, later = domain("mail", 1), replace(domain("mail", 2, forward("8000")), rank=1)
    for text in (MAIL.format("mail"), MAIL.format(UUID(int=1))):
        for meant in (first, domain("mail", 1, running=False)):
            assert "mail tcp *:8000" in refused(placed(meant, later, text=text))
    claimants, policy = Claimants(), config(MAIL.format("mail"))
    both = Inventory((first, later), NETWORKS, HOST)
    assert not claimants.settle(policy, both).given
    assert claimants.settle(policy, replace(both, domains=(later,))).given  # the entry is for this one now
    assert not claimants.settle(policy, both).given
    own = domain("mail", 1, forward("8000"))
    assert "mail tcp *:8000" in live(placed(own, later, text=MAIL.format("mail")))
    assert refused(placed(own, later, text=MAIL.format("mail"))).keys() == {"mail tcp *:8000"}


def test_a_public_address_that_a_domain_asked_for_is_that_of_no_namesake() -> None:
    asks = element("nat", public="192.0.2.70")
    later = replace(domain("ci-1", 2, forward("8000")), rank=1)
    assert "ci-1 tcp *:8000" in refused(placed(domain("ci-1", 1, asks), later))
    assert "ci-1 tcp *:8000" in live(placed(domain("ci-1", 1, asks, forward("8000"))))
    called, meant = domain(str(UUID(int=9)), 1, asks), domain("ci-9", 9, forward("8000"))
    anybody = ALLOW.replace('"ci-*"', '"*"')
    assert "ci-9 tcp *:8000" in refused(placed(called, meant, text=anybody))


@pytest.mark.parametrize("more", [(), (HostAddress(ip_address("198.51.100.7"), HOST[0].subnet, "eth0"),)])
def test_an_address_that_the_host_has_from_us_is_given_unless_it_has_that_otherwise_too(
    more: tuple[HostAddress, ...], tmp_path: Path
) -> None:
    address, directory = ip_address("198.51.100.7"), tmp_path
    asking = domain("ci-1", 1, element("nat", public=str(address)))
    OwnedStateFile("addresses", directory).write([{"interface": "eth0", "address": str(address)}])
    inventory = with_lent(Inventory((asking,), NETWORKS, HOST + more), directory)
    policy = config(ALLOW.replace("192.0.2.64/27", "198.51.100.0/24"))
    assert bool(live(desired_state(policy, inventory))) is not bool(more)
    claimants = Claimants()
    assert not claimants.settle(policy, replace(inventory, lent=frozenset())).given
    assert bool(claimants.settle(policy, inventory).given) is not bool(more)


@pytest.mark.parametrize(
    ("waits", "asks", "given"),
    [
        (Occupied(Protocol.TCP, None, 8001), "8000-8002", False),
        (Occupied(Protocol.TCP, ip_address("198.51.100.1"), 8001), "8001", False),
        (Occupied(Protocol.TCP, ip_address("198.51.100.1"), 8001), "198.51.100.1:8001", False),
        (Occupied(Protocol.TCP, ip_address("198.51.100.1"), 8001), "198.51.100.7:8001", True),
        (Occupied(Protocol.UDP, None, 8001), "8001", True),
    ],
)
def test_what_a_process_of_the_host_waits_on_is_not_given(waits: Occupied, asks: str, *, given: bool) -> None:
    inventory = Inventory((domain("ci-1", 1, forward(asks)),), NETWORKS, HOST, occupied=frozenset({waits}))
    desired = desired_state(config(), inventory)
    assert bool(live(desired)) is given
    assert given or set(refused(desired).values()) == {"the host has it already"}


def test_the_older_live_domain_keeps_it_and_the_next_gets_it_when_it_goes() -> None:
    younger, older = domain("ci-a", 7, forward("8000 8001")), domain("ci-z", 3, forward("8000"))
    assert live(placed(younger, older)) == {"ci-z tcp *:8000", "ci-a tcp *:8001"}
    assert refused(placed(younger, older)) == {"ci-a tcp *:8000": "ci-z has it already (domain ci-z, metadata)"}
    assert live(placed(younger, replace(older, running=False))) == {"ci-a tcp *:8000", "ci-a tcp *:8001"}
    gone = replace(older, running=False, move=Move.GONE)
    assert live(placed(younger, gone)) == {"ci-a tcp *:8000", "ci-a tcp *:8001"}
    coming = replace(older, running=False, move=Move.HERE)
    assert live(placed(younger, coming)) == {"ci-a tcp *:8001"}


def test_the_domain_that_has_run_for_longer_goes_first_also_with_a_newer_request() -> None:
    claimants, younger = Claimants(), domain("ci-a", 7, forward("8000"))
    for asked, has in ((None, "ci-a"), (Asked((forward("8000"),)), "ci-z")):
        older = replace(domain("ci-z", 3), asked=asked)
        given = claimants.settle(config(), Inventory((younger, older), NETWORKS, HOST)).given
        assert [entry.owner.name for entry in given] == [has]


def test_an_address_only_chooses_among_the_guests_own() -> None:
    asked = domain("ci-1", 5, forward("8000", address="192.168.122.5"), forward("8001", address="192.168.122.6"))
    victim = domain("ci-2", 6, forward("8002"))
    desired = placed(asked, victim)
    assert live(desired) == {"ci-1 tcp *:8000", "ci-2 tcp *:8002"}
    assert refused(desired) == {"ci-1 tcp *:8001": "192.168.122.6 is no address that this guest is known to have"}
    silent = replace(asked, interfaces=tuple(replace(item, learned=()) for item in asked.interfaces))
    assert live(placed(silent, victim)) == {"ci-2 tcp *:8002"}


def test_what_is_misread_is_told_and_the_rest_is_open() -> None:
    desired = placed(domain("ci-1", 1, forward("80x"), forward("8000")))
    assert live(desired) == {"ci-1 tcp *:8000"}
    ((what, reason),) = refused(desired).items()
    assert (what, reason[:28]) == ("ci-1 metadata", 'forward 1: ports[1]: "80x" i')


def test_a_domain_that_stopped_waits_and_may_be_rebooting() -> None:
    desired = placed(replace(domain("ci-1", 1, forward("8000"), running=False), returning=True))
    assert [(str(item.claim), item.returning, item.refused) for item in desired.waiting] == [
        ("tcp *:8000", True, False)
    ]


def test_a_domain_fills_no_journal_by_asking() -> None:
    rations = Rations()
    many = [
        item for n in range(1, 3) for item in placed(domain(f"ci-{n}", n, forward("22 23 24 25 26 27 28 29"))).waiting
    ]
    assert [item.owner.name for item in rations.admitted(many, 0.0)] == ["ci-1"] * 6 + ["ci-2"] * 6
    assert not rations.admitted(many, 59.0)
    assert len(rations.admitted(many, 61.0)) == 12


def test_a_domain_that_waits_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fwdaemon.audit")
    stopped = placed(replace(domain("ci-1", 1, forward("8000 8001 22")), running=False))
    lines.waiting(stopped.waiting)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "waiting ci-1: the domain is not running (domain ci-1",
        "declined ci-1: tcp *:22",
    ]


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
        "domain ci-1, metadata by /portfwd.toml:2",
        "domain ci-2, metadata by /portfwd.toml:2",
    }
    assert refused(desired) == {"ci-2 tcp 198.51.100.1:8000": "ci-1 has it already (domain ci-1, metadata)"}
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
    assert set(refused(desired).values()) == {"ci-1 has it already (/portfwd.toml:13)"}
    ((kind, told),) = {
        (row.state.value, row.reason)
        for row in rows(Facts(config(text), desired, desired), Readings())
        if row.origin is not None and row.origin.domain and row.state.value != "active"
    }
    assert (kind, told) == ("refused", "ci-1 has it already (/portfwd.toml:13)")


def test_where_few_ports_are_left_files_go_first_and_nobody_loses_one() -> None:
    asked = [domain(f"ci-{n}", n, forward("auto:22")) for n in (1, 2, 3)]
    text = AUTO + '[[forward]]\ndomain = "ci-4"\nports = ["auto:22"]\n'
    inventory = Inventory((*asked, replace(domain("ci-4", 4), asked=None)), NETWORKS, HOST)
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


def test_nothing_new_is_the_same_object() -> None:
    claimants, policy = Claimants(), config()
    one = Inventory((domain("ci-1", 1, forward("8000 22")), domain("db", 2)), NETWORKS, HOST)
    first = claimants.settle(policy, one)
    assert claimants.settle(policy, replace(one, uplinks=frozenset({"eth0"}))) is first
    assert claimants.settle(policy, Inventory((), NETWORKS, HOST)) is not first
    assert claimants.settle(policy, Inventory((), NETWORKS, HOST)).config == policy


_ASKS = st.lists(
    st.sampled_from(["8000", "8001/udp", "8000-8003", "198.51.100.1:8000", "198.51.100.7:8001", "53/tcp+udp", "22"]),
    min_size=1,
    max_size=4,
)


@given(st.lists(st.tuples(st.integers(1, 5), _ASKS, st.booleans()), max_size=6, unique_by=lambda item: item[0]))
def test_whatever_is_asked_no_two_domains_have_one_port(asks: list[tuple[int, list[str], bool]]) -> None:
    domains = [
        domain(f"ci-{number}", number, forward(" ".join(dict.fromkeys(ports))), running=running)
        for number, ports, running in asks
    ]
    inventory = Inventory(tuple(domains), NETWORKS, HOST)
    desired = desired_state(config(), inventory)
    claims = [
        (item.owner, claim, port) for item in desired.exposures for claim in [item.claim] for port in claim.ports or ()
    ]
    for owner, claim, port in claims:
        for other, conflicting, same in claims:
            meets = None in (claim.address, conflicting.address) or claim.address == conflicting.address
            assert owner == other or port != same or claim.protocol is not conflicting.protocol or not meets
    kept = Claimants()
    assert kept.settle(config(), inventory).given == settled(config(), inventory).given


def test_the_status_says_where_each_comes_from_and_why_the_rest_is_refused() -> None:
    desired = placed(domain("ci-1", 1, forward("8000 22")), replace(domain("ci-2", 2, forward("53")), running=False))
    shown = {row.listens: row.as_json() for row in rows(Facts(config(), desired, desired), Readings())}
    assert {
        listens: (row["state"], row["origin"], row["allowed_by"], row["file"]) for listens, row in shown.items()
    } == {
        "tcp *:8000": ("active", "domain ci-1, metadata", "/portfwd.toml:2", None),
        "tcp *:22": ("refused", "domain ci-1, metadata", None, None),
        "tcp *:53": ("waiting", "domain ci-2, metadata", "/portfwd.toml:2", None),
    }
    assert shown["tcp *:22"]["reason_kinds"] == ["not-allowed"]


def test_explain_follows_what_a_definition_asks_for() -> None:
    web = replace(trace_scene.WEB, asked=Asked((forward("8000:80 22"),)))
    policy = '[[allow]]\ndomains = "web"\nports = "8000"\n'
    open_ = trace_scene.told(text=policy, said=trace_scene.libvirt(web))
    assert trace_scene.cause(open_) is None
    assert "domain web, metadata" in as_text(open_, terminal=False, unicode=False)
    assigned = trace_scene.libvirt(replace(web, asked=Asked((forward("auto:80"),))))
    pool = policy + '[daemon]\nauto_ports = "8000-8000"\n'
    assert trace_scene.cause(trace_scene.told(text=pool, said=assigned)) is None
    shut = trace_scene.told("198.51.100.1:22", text=policy, said=trace_scene.libvirt(web))
    assert trace_scene.cause(shut) is Cause.UNCLAIMED
    assert "does not cover ports tcp 22" in as_text(shut, terminal=False, unicode=False)
