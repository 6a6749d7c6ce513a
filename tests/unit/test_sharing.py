"""Who gets what domains ask for: what a policy covers whole, and is free, the older live domain first."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from uuid import UUID

import pytest

from fwdaemon.audit.causes import why
from fwdaemon.config.model import ForwardEntry
from fwdaemon.core.inventory import Domain, HostAddress, Inventory, Occupied
from fwdaemon.core.state import Desired
from fwdaemon.core.types import PortRange, Protocol
from fwdaemon.hostnet.owned_state import OwnedStateFile
from fwdaemon.hostnet.public_addresses import with_lent
from fwdaemon.resolve.expansion import AutoPort, Held
from fwdaemon.resolve.placement import desired_state
from fwdaemon.resolve.sharing import Allocator, grants
from tests.unit.asking import (
    ALLOW,
    HOST,
    NETWORKS,
    PUBLIC,
    config,
    domain,
    element,
    forward,
    live,
    placed,
    refused,
)


def test_what_a_policy_covers_is_open_and_says_by_which() -> None:
    asked = domain("ci-1", 1, forward("8000:80 53/tcp+udp", listen="198.51.100.7"), element("nat", public="192.0.2.70"))
    desired = placed(asked, text=PUBLIC)
    ports = {f"ci-1 {what}" for what in ("tcp 198.51.100.7:8000", "tcp 198.51.100.7:53", "udp 198.51.100.7:53")}
    assert live(desired) == {*ports, "ci-1 all of 192.0.2.70"}
    assert {str(item.origin) for item in desired.exposures} == {
        "domain ci-1, metadata: forward 1",
        "domain ci-1, metadata: nat 1",
    }
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
    desired = placed(asked, text=PUBLIC)
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


TWO = """
[[allow]]
domains = "*"
ports = ["8000-8003", "8004-8009"]
listen = ["198.51.100.1"]
max = 2
[[allow]]
domains = "*"
ports = ["8000-8009"]
listen = ["198.51.100.7", "198.51.100.1"]
max = 3
"""


def allowed_by(desired: Desired) -> dict[str, str]:
    found = ((item.listens_at(), item.origin) for item in desired.exposures)
    return {listens: str(origin.allowed).rpartition(":")[2] for listens, origin in found if origin is not None}


def test_each_port_on_each_address_takes_one_policy_with_room_for_it() -> None:
    both = domain("a", 1, forward("8000-8001 8003-8004 8009 8008", listen="198.51.100.1"))
    desired = placed(both, text=TWO)
    assert allowed_by(desired) == {
        "tcp 198.51.100.1:8000-8001": "2",
        "tcp 198.51.100.1:8003-8004": "7",
        "tcp 198.51.100.1:8009": "7",
    }
    assert list(refused(desired).values()) == [
        "no [[allow]] covers it; the closest, /portfwd.toml:7, does not cover max 3"
    ]
    apart = TWO.replace(', "198.51.100.1"]', "]")
    desired = placed(domain("a", 1, forward("8000", listen="198.51.100.1 198.51.100.7 198.51.100.9")), text=apart)
    assert allowed_by(desired) == {"tcp 198.51.100.1:8000": "2", "tcp 198.51.100.7:8000": "7"}
    assert refused(desired).keys() == {"a tcp 198.51.100.9:8000"}


@pytest.mark.parametrize("named", [{"network": "nonet"}, {"network": "inner"}, {"mac": "52:54:00:00:00:99"}])
def test_a_network_that_the_guest_is_not_on_is_none_that_a_policy_is_for(named: dict[str, str]) -> None:
    for text in (ALLOW, ALLOW.replace('["default"]', '["default", "nonet"]')):
        desired = placed(domain("ci-1", 1, forward("8000", **named)), text=text)
        assert not live(desired)
        ((what, reason),) = refused(desired).items()
        assert (what, reason.rpartition("cover ")[2]) == ("ci-1 tcp *:8000", f"networks {next(iter(named.values()))}")
    without = replace(domain("ci-1", 1, forward("8000")), interfaces=())
    assert refused(placed(without)).keys() == {"ci-1 tcp *:8000"}
    assert not refused(placed(domain("ci-1", 1, forward("8000", network="default"), running=False)))
    assert refused(placed(domain("ci-1", 1, forward("8000", network="nonet"), running=False)))


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


@pytest.mark.parametrize(
    ("owner", "reason"),
    [
        (1, "port 8000 is an automatic port of ci-1"),
        (2, "port 8000 is an automatic port of db"),
        (3, "port 8000 is an automatic port of a domain that may come back"),
    ],
)
def test_an_automatic_port_is_kept_for_whom_it_is_assigned_to(owner: int, reason: str) -> None:
    kept = {AutoPort(UUID(int=owner), 80, Protocol.TCP): Held(8000)}
    inventory = Inventory((domain("ci-1", 1, forward("8000 8001")), domain("db", 2)), NETWORKS, HOST)
    granted = grants(config(ALLOW), inventory, kept)
    assert [why(item.reason) for item in granted.refused] == [reason]
    (given,) = granted.given
    assert isinstance(given, ForwardEntry)
    assert [str(mapping.host) for mapping in given.mappings] == ["8001"]


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
    mail = '[[nat]]\ndomain = "mail"\npublic = "192.0.2.70"\nassign = "eth0"\n' + PUBLIC
    mail = f'{mail}listen = ["192.0.2.70"]\n'
    for asks in (forward("192.0.2.70:8000"), element("nat", public="192.0.2.70")):
        assert list(refused(placed(domain("ci-1", 1, asks), text=mail)).values()) == [
            "mail has it already (/portfwd.toml:3)"
        ]
    own = PUBLIC.replace("192.0.2.64/27", "198.51.100.0/24")
    for address in ("198.51.100.1", "198.51.100.7"):
        desired = placed(domain("ci-1", 1, element("nat", public=address)), text=own)
        assert list(refused(desired).values()) == ["the host has it already"]
    routed = '[[route]]\nnetwork = "inner"\naddresses = ["192.0.2.64/28"]\n' + PUBLIC
    assert not live(placed(domain("ci-1", 1, element("nat", public="192.0.2.70")), text=routed)) - {
        "inner route 192.0.2.64/28"
    }


MAIL = '[[nat]]\ndomain = "{}"\npublic = "192.0.2.70"\n' + PUBLIC.replace('"ci-*"', '"*"')
# The host holds what is 1:1 the guest mail's, in a way that is none of ours.
HOLDS = (*HOST, HostAddress(ip_address("192.0.2.70"), ip_network("192.0.2.70/32"), "eth0"))


def on_host(*domains: Domain, text: str) -> set[str]:
    return live(desired_state(config(text), Inventory(domains, NETWORKS, HOLDS)))


OTHERWISE = {"ci-1 tcp 198.51.100.1:8000", "ci-1 tcp 198.51.100.7:8000"}


@pytest.mark.parametrize("running", [True, False])
def test_who_listens_on_every_address_listens_on_none_that_is_another_guests(*, running: bool) -> None:
    mail, other = domain("mail", 1, running=running), domain("ci-1", 2, forward("8000"))
    assert {line for line in on_host(mail, other, text=MAIL.format("mail")) if line.startswith("ci-1")} == OTHERWISE
    asked = domain("mail", 1, element("nat", public="192.0.2.70"))
    lent = Inventory((other, asked), NETWORKS, HOLDS, lent=frozenset({("eth0", ip_address("192.0.2.70"))}))
    desired = desired_state(config(PUBLIC.replace('"ci-*"', '"*"')), lent)
    assert live(desired) == {*OTHERWISE, "mail all of 192.0.2.70"}
    assert not refused(desired)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_who_has_an_address_has_its_ports_whatever_others_have_on_every_address(order: tuple[int, int]) -> None:
    text = MAIL.format("mail")
    mail = domain("mail", order[0], forward("192.0.2.70:8000:80 8001"))
    other = domain("ci-1", order[1], forward("8000"))
    got = on_host(mail, other, text=text)
    assert {"mail tcp 192.0.2.70:8000", "mail tcp 192.0.2.70:8001"} < got
    assert got > OTHERWISE
    assert "ci-1 tcp 192.0.2.70:8000" not in got


def test_what_a_file_has_on_every_address_is_every_address() -> None:
    web = '[[forward]]\ndomain = "web"\nports = ["8000"]\n' + MAIL.format("mail")
    got = on_host(domain("web", 3), domain("mail", 1, forward("192.0.2.70:8000")), text=web)
    assert got == {"web tcp *:8000", "mail all of 192.0.2.70"}


def test_where_no_address_is_left_nothing_is_open() -> None:
    inventory = Inventory((domain("mail", 1), domain("ci-1", 2, forward("8000"))), NETWORKS, HOLDS[-1:])
    desired = desired_state(config(MAIL.format("mail")), inventory)
    assert live(desired) == {"mail all of 192.0.2.70"}
    assert refused(desired) == {"ci-1 tcp *:8000": "the host has it already"}


def test_the_name_of_anothers_entry_gets_a_domain_of_a_later_uri_no_port_of_its_public_address() -> None:
    first, later = domain("mail", 1), replace(domain("mail", 2, forward("8000")), rank=1)
    for text in (MAIL.format("mail"), MAIL.format(UUID(int=1))):
        for meant in (first, domain("mail", 1, running=False)):
            assert "mail tcp 192.0.2.70:8000" not in on_host(meant, later, text=text)
    assert "mail tcp 192.0.2.70:8000" in on_host(later, text=MAIL.format("mail"))  # the entry is for this one now
    own = domain("mail", 1, forward("8000"))
    assert "mail tcp 192.0.2.70:8000" in on_host(own, later, text=MAIL.format("mail"))
    assert refused(placed(own, later, text=MAIL.format("mail"))).keys() == {"mail tcp *:8000"}


def test_a_public_address_that_a_domain_asked_for_is_that_of_no_namesake() -> None:
    asks, anybody = element("nat", public="192.0.2.70"), PUBLIC.replace('"ci-*"', '"*"')
    lent = frozenset({("eth0", ip_address("192.0.2.70"))})

    def got(*domains: Domain) -> set[str]:
        return live(desired_state(config(anybody), Inventory(domains, NETWORKS, HOLDS, lent=lent)))

    later = replace(domain("ci-1", 2, forward("8000")), rank=1)
    assert "ci-1 tcp 192.0.2.70:8000" not in got(domain("ci-1", 1, asks), later)
    assert "ci-1 tcp 192.0.2.70:8000" in got(domain("ci-1", 1, asks, forward("8000")))
    called, meant = domain(str(UUID(int=9)), 1, asks), domain("ci-9", 9, forward("8000"))
    assert "ci-9 tcp 192.0.2.70:8000" not in got(called, meant)


@pytest.mark.parametrize("more", [(), (HostAddress(ip_address("198.51.100.7"), HOST[0].subnet, "eth0"),)])
def test_an_address_that_the_host_has_from_us_is_given_unless_it_has_that_otherwise_too(
    more: tuple[HostAddress, ...], tmp_path: Path
) -> None:
    address, directory = ip_address("198.51.100.7"), tmp_path
    asking = domain("ci-1", 1, element("nat", public=str(address)))
    OwnedStateFile("addresses", directory).write([{"interface": "eth0", "address": str(address)}])
    inventory = with_lent(Inventory((asking,), NETWORKS, HOST + more), directory)
    policy = config(PUBLIC.replace("192.0.2.64/27", "198.51.100.0/24"))
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
