"""Who gets what domains ask for: what a policy covers whole, and nobody has, the older live domain first."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.audit.causes import why
from fwdaemon.core.inventory import Domain, HostAddress, Inventory, Metadata, Move, Occupied
from fwdaemon.core.types import PortRange, Protocol
from fwdaemon.hostnet.owned_state import OwnedStateFile
from fwdaemon.hostnet.public_addresses import with_lent
from fwdaemon.resolve.placement import desired_state
from fwdaemon.resolve.sharing import Allocator, grants
from tests.unit.asking import ALLOW, HOST, NETWORKS, config, domain, element, forward, live, placed, refused


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
    granted = grants(policy, inventory)
    assert not granted.given
    assert not walked
    assert {why(item.reason).rpartition("cover ")[2] for item in granted.refused} == {reason}


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
    allocator, policy = Allocator(), config(MAIL.format("mail"))
    both = Inventory((first, later), NETWORKS, HOST)
    assert not allocator.settle(policy, both).given
    assert allocator.settle(policy, replace(both, domains=(later,))).given  # the entry is for this one now
    assert not allocator.settle(policy, both).given
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
    allocator = Allocator()
    assert not allocator.settle(policy, replace(inventory, lent=frozenset())).given
    assert bool(allocator.settle(policy, inventory).given) is not bool(more)


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
    allocator, younger = Allocator(), domain("ci-a", 7, forward("8000"))
    for asked, has in ((None, "ci-a"), (Metadata((forward("8000"),)), "ci-z")):
        older = replace(domain("ci-z", 3), metadata=asked)
        given = allocator.settle(config(), Inventory((younger, older), NETWORKS, HOST)).given
        assert [entry.owner.name for entry in given] == [has]


def test_an_address_only_chooses_among_the_guests_own() -> None:
    asked = domain("ci-1", 5, forward("8000", address="192.168.122.5"), forward("8001", address="192.168.122.6"))
    victim = domain("ci-2", 6, forward("8002"))
    desired = placed(asked, victim)
    assert live(desired) == {"ci-1 tcp *:8000", "ci-2 tcp *:8002"}
    assert refused(desired) == {"ci-1 tcp *:8001": "192.168.122.6 is no address that this guest is known to have"}
    silent = replace(asked, interfaces=tuple(replace(item, learned=()) for item in asked.interfaces))
    assert live(placed(silent, victim)) == {"ci-2 tcp *:8002"}


def test_a_domain_that_stopped_waits_and_may_be_rebooting() -> None:
    desired = placed(replace(domain("ci-1", 1, forward("8000"), running=False), returning=True))
    assert [(str(item.claim), item.returning, item.refused) for item in desired.waiting] == [
        ("tcp *:8000", True, False)
    ]


def test_nothing_new_is_the_same_object() -> None:
    allocator, policy = Allocator(), config()
    one = Inventory((domain("ci-1", 1, forward("8000 22")), domain("db", 2)), NETWORKS, HOST)
    first = allocator.settle(policy, one)
    assert allocator.settle(policy, replace(one, uplinks=frozenset({"eth0"}))) is first
    assert allocator.settle(policy, Inventory((), NETWORKS, HOST)) is not first
    assert allocator.settle(policy, Inventory((), NETWORKS, HOST)).config == policy


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
    kept = Allocator()
    assert kept.settle(config(), inventory).given == grants(config(), inventory).given
