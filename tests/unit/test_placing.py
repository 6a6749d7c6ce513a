"""From configuration and inventory to the desired state: what is live, what waits, and why."""

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from uuid import UUID

import pytest

from fwdaemon import config as configuration
from fwdaemon.audit import causes
from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    GuestInterface,
    HostAddress,
    Inventory,
    LearnedAddress,
    Network,
)
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family
from fwdaemon.resolve.placement import Placement, desired_state

WEB = UUID("00000000-0000-0000-0000-000000000001")
DB = UUID("00000000-0000-0000-0000-000000000002")
DEFAULT = Network(
    "default",
    active=True,
    bridge="virbr0",
    subnets=(IPv4Network("192.168.122.0/24"), IPv6Network("2001:db8:122::/64")),
    gateways=(ip_address("192.168.122.1"), ip_address("2001:db8:122::1")),
)
INNER = Network(
    "inner",
    active=True,
    bridge="virbr1",
    subnets=(IPv4Network("192.168.123.0/24"),),
    gateways=(ip_address("192.168.123.1"),),
)
PUBLIC: Address = ip_address("198.51.100.1")
HOST = HostAddress(PUBLIC, ip_network("198.51.100.0/24"), "eth0")


def nic(*addresses: str, network: str = "default", mac: str = "52:54:00:00:00:01") -> GuestInterface:
    learned = tuple(LearnedAddress(ip_address(address), AddressSource.LEASE) for address in addresses)
    bridge = {"default": "virbr0", "inner": "virbr1"}[network]
    return GuestInterface(mac, network, bridge, "vnet0", learned)


def host(*domains: Domain, networks: tuple[Network, ...] = (DEFAULT, INNER)) -> Inventory:
    return Inventory(domains, networks, (HOST,))


def web(*interfaces: GuestInterface, running: bool = True) -> Domain:
    return Domain("web", WEB, running, interfaces)


def placed(entry: str, inventory: Inventory) -> Desired:
    config = configuration.parse({Path("portfwd.toml"): f'[[forward]]\ndomain = "web"\n{entry}\n'})
    return desired_state(config, inventory)


def lines(desired: Desired) -> list[str]:
    return sorted(f"{forward.listens_at()} -> {forward.leads_to()}" for forward in desired.forwards)


def reasons(desired: Desired) -> list[str]:
    return [causes.why(waiting.reason) for waiting in desired.waiting]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        pytest.param(
            'ports = ["80"]',
            ["tcp *:80 -> 192.168.122.50:80", "tcp *:80 -> [2001:db8:122::50]:80"],
            id="every address, in each family the guest has",
        ),
        pytest.param(
            'ports = ["5353:53/tcp+udp"]\naddress = "192.168.122.50"',
            ["tcp *:5353 -> 192.168.122.50:53", "udp *:5353 -> 192.168.122.50:53"],
            id="two protocols, the family of the address",
        ),
        pytest.param(
            'ports = ["8000-8001:9000-9001"]\nlisten = ["198.51.100.7", "2001:db8::7"]',
            [
                "tcp 198.51.100.7:8000-8001 -> 192.168.122.50:9000-9001",
                "tcp [2001:db8::7]:8000-8001 -> [2001:db8:122::50]:9000-9001",
            ],
            id="each listening address in its family",
        ),
        pytest.param(
            'ports = ["198.51.100.7:80", "81"]\nsources = ["203.0.113.0/24"]',
            ["tcp 198.51.100.7:80 -> 192.168.122.50:80", "tcp *:81 -> 192.168.122.50:81"],
            id="sources of one family let nobody of the other in",
        ),
    ],
)
def test_what_is_live(entry: str, expected: list[str]) -> None:
    desired = placed(entry, host(web(nic("192.168.122.50", "2001:db8:122::50"))))
    assert lines(desired) == sorted(expected)
    assert reasons(desired) == []


@pytest.mark.parametrize(
    ("inventory", "entry", "expected"),
    [
        pytest.param(host(), "", ["libvirt knows no such domain"], id="unknown"),
        pytest.param(host(web(running=False)), "", ["the domain is not running"], id="stopped"),
        pytest.param(host(web(nic())), "", ["no address yet: no lease, agent or neighbour names one"], id="no address"),
        pytest.param(host(web()), "", ["has no network interface"], id="no interface"),
        pytest.param(
            host(web(nic("192.168.122.1"))), "", ["192.168.122.1 belongs to the host"], id="the gateway's address"
        ),
        pytest.param(host(web(nic("198.51.100.1"))), "", ["198.51.100.1 belongs to the host"], id="the public address"),
        pytest.param(
            host(web(nic("192.168.122.50"))),
            'listen = ["198.51.100.7", "2001:db8::7"]',
            ["no address yet: no lease, agent or neighbour names one"],
            id="a family that was asked for",
        ),
        pytest.param(
            host(Domain("web", DB, running=True, interfaces=(nic("192.168.122.50"),), rank=1), web(running=False)),
            "",
            ["the domain is not running"],
            id="another domain of this name runs, on a later URI",
        ),
    ],
)
def test_what_waits_says_why(inventory: Inventory, entry: str, expected: list[str]) -> None:
    assert reasons(placed(f'ports = ["80"]\n{entry}', inventory)) == expected


def test_nobody_believes_two_guests_that_claim_one_address() -> None:
    other = Domain("db", DB, running=True, interfaces=(nic("192.168.122.50", mac="52:54:00:00:00:02"),))
    desired = placed('ports = ["80"]', host(web(nic("192.168.122.50")), other))
    assert lines(desired) == []
    assert reasons(desired) == ["192.168.122.50 is claimed by both db and web (DHCP lease)"]


@pytest.mark.parametrize(
    ("claimed", "by_another", "expected"),
    [
        pytest.param(
            ["2001:db8:122::50"],
            ["2001:db8:122::50"],
            "2001:db8:122::50 is claimed by both db and web (DHCP lease)",
            id="contested",
        ),
        pytest.param(["2001:db8:122::1"], [], "2001:db8:122::1 belongs to the host", id="the host's"),
        pytest.param(
            ["2001:db8:9::50"],
            [],
            "2001:db8:9::50 (DHCP lease) is outside 2001:db8:122::/64, the guest's own network",
            id="outside",
        ),
        pytest.param(
            ["192.168.122.1", "2001:db8:122::1"], [], "192.168.122.1 belongs to the host", id="in each family"
        ),
    ],
)
def test_a_claim_that_is_refused_says_more_than_silence_in_another_family(
    claimed: list[str], by_another: list[str], expected: str
) -> None:
    other = Domain("db", DB, running=True, interfaces=(nic(*by_another, mac="52:54:00:00:00:02"),))
    desired = placed('ports = ["80"]', host(web(nic(*claimed)), other))
    assert lines(desired) == []
    assert reasons(desired) == [expected]


def test_a_claim_in_a_family_that_the_network_does_not_have_says_nothing() -> None:
    guest = web(nic("2001:db8:122::50", network="inner"))
    assert reasons(placed('ports = ["80"]', host(guest))) == ["no address yet: no lease, agent or neighbour names one"]


def test_a_second_network_is_ambiguous_until_the_entry_names_one() -> None:
    guest = web(nic("192.168.122.50"), nic("192.168.123.50", network="inner", mac="52:54:00:00:00:02"))
    assert reasons(placed('ports = ["80"]\nlisten = "198.51.100.7"', host(guest)))[0].startswith("has 2 interfaces")
    for choice in ('network = "inner"', 'mac = "52:54:00:00:00:02"', 'address = "192.168.123.50"'):
        desired = placed(f'ports = ["80"]\nlisten = "198.51.100.7"\n{choice}', host(guest))
        assert lines(desired) == ["tcp 198.51.100.7:80 -> 192.168.123.50:80"]


def test_a_domain_may_be_named_by_its_uuid() -> None:
    config = configuration.parse({Path("portfwd.toml"): f'[[forward]]\ndomain = "{WEB}"\nports = ["80"]\n'})
    (forward,) = desired_state(config, host(web(nic("192.168.122.50")))).forwards
    assert forward.domain == "web"


def test_guests_of_every_active_network_may_come_through_hairpin() -> None:
    desired = placed('ports = ["80"]', host(web(nic("192.168.122.50"))))
    assert set(map(str, desired.guest_subnets)) == {"192.168.122.0/24", "2001:db8:122::/64", "192.168.123.0/24"}


def test_addresses_of_the_link_that_nobody_here_has_may_be_elsewhere() -> None:
    inside = HostAddress(ip_address("192.168.122.1"), ip_network("192.168.122.0/24"), "virbr0")
    listens = "198.51.100.1", "198.51.100.7", "203.0.113.7", "198.51.100.8", "192.168.122.77"
    ports = ", ".join(f'"{listen}:80"' for listen in listens)
    nat = '[[nat]]\ndomain = "web"\npublic = "198.51.100.8"\n'
    around = Inventory((web(nic("192.168.122.50")),), (DEFAULT, INNER), (HOST, inside))
    assert placed(f'ports = [{ports}, "81"]\n{nat}', around).elsewhere == {ip_address("198.51.100.7")}


def test_public_addresses_that_the_host_does_not_hold_are_known() -> None:
    nats = "".join(f'[[nat]]\ndomain = "web"\npublic = "198.51.100.{number}"\n' for number in (1, 8))
    assert placed(f'ports = ["81"]\n{nats}', host(web(FIRST))).unheld == {ip_address("198.51.100.8")}


SECOND = nic("192.168.123.50", network="inner", mac="52:54:00:00:00:02")
FIRST = nic("192.168.122.50")


def test_a_second_interface_closes_nothing_and_is_told() -> None:
    config = configuration.parse({Path("portfwd.toml"): '[[forward]]\ndomain = "web"\nports = ["80"]\n'})
    placement = Placement(config, host(web(FIRST)))
    before = placement.desired
    after = placement.move(host(web(FIRST, SECOND)))
    assert lines(after) == lines(before) == ["tcp *:80 -> 192.168.122.50:80"]
    (advice,) = map(causes.remark, after.remarks)
    assert advice.startswith("domain web has 2 interfaces (52:54:00:00:00:01 on network default, ")
    assert advice.endswith(": write network = … or mac = …; until then it leads to 52:54:00:00:00:01 (portfwd.toml:1)")
    # A configuration that is loaded again knows too where the entry led.
    assert lines(Placement(config, host(web(FIRST, SECOND)), placement.chosen).desired) == lines(before)
    assert not placement.move(host(web(FIRST))).remarks


def test_it_goes_with_the_only_interface_and_waits_when_the_domain_starts_with_two() -> None:
    config = configuration.parse({Path("portfwd.toml"): '[[forward]]\ndomain = "web"\nports = ["80"]\n'})
    placement = Placement(config, host(web(FIRST)))
    placement.move(host(web(FIRST, SECOND)))
    assert lines(placement.move(host(web(SECOND)))) == ["tcp *:80 -> 192.168.123.50:80"]
    placement.move(host(web(running=False)))
    assert lines(placement.move(host(web(FIRST, SECOND)))) == []


def test_where_libvirt_lets_guests_out_and_where_it_lets_nobody_in() -> None:
    hidden = replace(DEFAULT, forwards=True, closed=frozenset({Family.IPV4}))
    isolated = replace(INNER, closed=frozenset(Family))
    leading_away = replace(INNER, name="away", bridge="virbr2", forwards=True, closed=frozenset(Family))
    asleep = replace(leading_away, name="asleep", active=False, bridge="virbr3")
    around = Inventory((), (hidden, isolated, leading_away, asleep), (HOST,), frozenset({"virbr2"}))
    desired = placed('ports = ["80"]', around)
    assert desired.inside == {"virbr0"}
    assert desired.closed == {(Family.IPV4, "virbr0"), (Family.IPV4, "virbr1"), (Family.IPV6, "virbr1")}
