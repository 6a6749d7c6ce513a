"""What several witnesses said becomes one inventory."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    GuestInterface,
    HostAddress,
    HostObservation,
    Inventory,
    LearnedAddress,
    LibvirtObservation,
    MacClaim,
    Move,
    Neighbour,
    Network,
    ObservedDomain,
    ObservedNetwork,
)
from fwdaemon.resolve.snapshot import awaited_macs, devices_without_bridge, guest_macs, merge, wants_agent

MAC = "52:54:00:00:00:01"
WEB1 = UUID(int=1)
DEFAULT = Network("default", active=True, bridge="virbr0", subnets=(ip_network("192.168.122.0/24"),))


def claim(address: str, source: AddressSource, mac: str = MAC) -> MacClaim:
    return MacClaim(mac, LearnedAddress(ip_address(address), source))


def observation(
    *claims: MacClaim, interface: GuestInterface | None = None, network: Network = DEFAULT, agent: bool = False
) -> LibvirtObservation:
    plugged = interface or GuestInterface(MAC, "default", "virbr0", "vnet0")
    web1 = Domain("web1", WEB1, running=True, interfaces=(plugged,))
    return LibvirtObservation((ObservedDomain(web1, 7, agent),), (ObservedNetwork(network, claims),))


def neighbour(address: str, mac: str = MAC, device: str = "virbr0") -> Neighbour:
    return Neighbour(device, mac, ip_address(address))


def learned(inventory: Inventory) -> list[str]:
    return [f"{item.address} {item.source}" for item in inventory.domains[0].interfaces[0].learned]


def test_what_leads_to_a_guest_leads_nowhere_else_even_when_its_bridge_is_gone() -> None:
    host = HostObservation(uplinks=frozenset({"eth0", "vnet0"}))
    assert merge([observation()], host, {}).uplinks == {"eth0"}


def test_of_a_guest_an_address_is_awaited_until_any_witness_names_one() -> None:
    for said, awaited in ((), {MAC}), ((claim("192.168.122.11", AddressSource.LEASE),), set[str]()):
        assert awaited_macs(merge([observation(*said)], HostObservation(), {})) == awaited
    seen = merge([observation()], HostObservation(neighbours=(neighbour("192.168.122.9"),)), {})
    assert not awaited_macs(seen)
    assert not awaited_macs(replace(seen, domains=(replace(seen.domains[0], running=False),)))


def test_claims_are_sorted_by_precedence() -> None:
    seen = observation(
        claim("192.168.122.12", AddressSource.RESERVATION),
        claim("192.168.122.11", AddressSource.LEASE),
        claim("192.168.122.10", AddressSource.LEASE),
    )
    host = HostObservation(neighbours=(neighbour("192.168.122.11"), neighbour("192.168.122.9")))
    agents = {WEB1: (claim("192.168.122.13", AddressSource.AGENT),)}
    assert learned(merge([seen], host, agents)) == [
        "192.168.122.11 DHCP lease",
        "192.168.122.10 DHCP lease",
        "192.168.122.12 DHCP reservation",
        "192.168.122.13 guest agent",
        "192.168.122.11 neighbour table",
        "192.168.122.9 neighbour table",
    ]


def test_claims_made_elsewhere_do_not_count() -> None:
    other = Network("other", active=True, bridge="virbr1")
    seen = LibvirtObservation(
        observation().domains,
        (ObservedNetwork(other, (claim("192.168.122.10", AddressSource.LEASE),)), ObservedNetwork(DEFAULT)),
    )
    host = HostObservation(neighbours=(neighbour("192.168.122.9", device="virbr1"),))
    agents = {
        UUID(int=2): (claim("192.168.122.13", AddressSource.AGENT),),
        WEB1: (claim("192.168.122.14", AddressSource.AGENT, mac="52:54:00:00:00:02"),),
    }
    assert learned(merge([seen], host, agents)) == []


def test_link_local_never_counts() -> None:
    agents = {WEB1: (claim("fe80::1", AddressSource.AGENT), claim("169.254.3.4", AddressSource.AGENT))}
    assert learned(merge([observation()], HostObservation(), agents)) == []


@pytest.mark.parametrize("stable", ["2001:db8::5054:ff:fe00:1", "2001:db8::50"], ids=["from the MAC", "by hand"])
def test_an_address_that_stays_goes_before_rotating_ones(stable: str) -> None:
    rotating = "2001:db8::1:2:3:4"
    agents = {WEB1: (claim(rotating, AddressSource.AGENT), claim(stable, AddressSource.AGENT))}
    assert learned(merge([observation()], HostObservation(), agents))[0] == f"{stable} guest agent"


def test_bridge_from_the_network() -> None:
    seen = observation(interface=GuestInterface(MAC, "default", None, "vnet0"))
    assert merge([seen], HostObservation(), {}).domains[0].interfaces[0].bridge == "virbr0"
    assert devices_without_bridge([seen]) == frozenset()


def test_bridge_from_the_kernel() -> None:
    seen = observation(interface=GuestInterface(MAC, None, None, "tap7"))
    host = HostObservation(neighbours=(neighbour("192.0.2.5", device="br0"),), bridges={"tap7": "br0"})
    assert devices_without_bridge([seen]) == {"tap7"}
    inventory = merge([seen], host, {})
    assert inventory.domains[0].interfaces[0].bridge == "br0"
    assert learned(inventory) == ["192.0.2.5 neighbour table"]


def test_several_uris() -> None:
    container = Domain("container", UUID(int=2), running=False)
    lxc = LibvirtObservation((ObservedDomain(container),), (ObservedNetwork(DEFAULT),))
    address = HostAddress(ip_address("198.51.100.7"), ip_network("198.51.100.0/24"), "eth0")
    inventory = merge([observation(), lxc], HostObservation(addresses=(address,)), {})
    assert [domain.name for domain in inventory.domains] == ["container", "web1"]
    assert inventory.networks == (DEFAULT,)
    assert inventory.host_addresses == (address,)


def test_the_first_uri_has_the_name_of_a_network() -> None:
    asleep = replace(DEFAULT, active=False, uuid=UUID(int=1))
    other = replace(DEFAULT, bridge="virbr9", uuid=UUID(int=2))
    inventory = merge([observation(network=asleep), observation(network=other)], HostObservation(), {})
    assert inventory.networks == (asleep,)
    assert inventory.namesakes == (replace(other, rank=1),)


def test_of_one_network_that_two_uris_know_the_active_one_counts() -> None:
    known = replace(DEFAULT, uuid=UUID(int=1))
    asleep = replace(known, active=False, bridge=None)
    inventory = merge([observation(network=asleep), observation(network=known)], HostObservation(), {})
    assert inventory.networks == (replace(known, rank=1),)
    assert not inventory.namesakes


def test_nothing_observed() -> None:
    assert merge([], HostObservation(), {}) == Inventory()


def test_agent_is_asked_while_no_better_source_speaks() -> None:
    seen = observation(agent=True)
    assert wants_agent(merge([seen], HostObservation(), {}), seen) == seen.domains
    host = HostObservation(neighbours=(neighbour("192.168.122.9"),))
    assert wants_agent(merge([seen], host, {}), seen) == seen.domains


def test_agent_is_not_asked_when_a_lease_is_there_or_no_agent() -> None:
    leased = observation(claim("192.168.122.10", AddressSource.LEASE), agent=True)
    assert wants_agent(merge([leased], HostObservation(), {}), leased) == ()
    agentless = observation()
    assert wants_agent(merge([agentless], HostObservation(), {}), agentless) == ()


def test_agent_is_asked_for_the_family_that_is_missing() -> None:
    dual = replace(DEFAULT, subnets=(*DEFAULT.subnets, ip_network("2001:db8::/64")))
    seen = observation(claim("192.168.122.10", AddressSource.LEASE), network=dual, agent=True)
    assert wants_agent(merge([seen], HostObservation(), {}), seen) == seen.domains


def test_guest_macs() -> None:
    assert guest_macs([observation(), LibvirtObservation()]) == {MAC}


@given(st.lists(st.tuples(st.ip_addresses(), st.sampled_from(AddressSource)), max_size=20))
def test_learned_is_sorted_and_without_repetition(claims: list[tuple[object, AddressSource]]) -> None:
    said = tuple(claim(str(address), source) for address, source in claims)
    found = merge([observation()], HostObservation(), {WEB1: said}).domains[0].interfaces[0].learned
    by_precedence = sorted(
        (item.source for item in found), key=lambda source: (source is not AddressSource.LEASE, source)
    )
    assert [item.source for item in found] == by_precedence
    assert len(set(found)) == len(found)
    assert set(found) == {item.learned for item in said if not item.learned.address.is_link_local}


def test_the_first_uri_has_the_uuid() -> None:
    other = LibvirtObservation((ObservedDomain(Domain("thief", WEB1, running=False)),), ())
    for observations in ([observation(), other], [observation(), other, other]):
        (domain,) = merge(observations, HostObservation(), {}).domains
        assert (domain.name, domain.running, domain.rank) == ("web1", True, 0)
    (domain,) = merge([LibvirtObservation((), ()), other], HostObservation(), {}).domains
    assert (domain.name, domain.rank) == ("thief", 1)


def test_a_domain_that_is_defined_only_hides_none_of_its_uuid_that_runs() -> None:
    defined = LibvirtObservation((ObservedDomain(Domain("web1", WEB1, running=False)),), ())
    coming = LibvirtObservation((ObservedDomain(Domain("web1", WEB1, running=False, move=Move.HERE)),), ())
    (domain,) = merge([defined, coming, observation()], HostObservation(), {}).domains
    assert (domain.running, domain.rank) == (True, 2)
    (domain,) = merge([defined, coming, defined], HostObservation(), {}).domains
    assert (domain.move, domain.rank) == (Move.HERE, 1)
    (domain,) = merge([observation(), observation()], HostObservation(), {}).domains
    assert domain.rank == 0
