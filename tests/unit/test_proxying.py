"""For which addresses of proxied routes the host answers: those of guests that run behind its bridge."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from uuid import UUID

import pytest

from fwdaemon.core.inventory import AddressSource, Domain, GuestInterface, HostAddress, Inventory, LearnedAddress, Move
from fwdaemon.core.state import Proxied, Silent
from fwdaemon.core.types import Family
from fwdaemon.resolve.neighbours import proxied, unseen
from tests.unit.forwards import route

MAC = "52:54:00:00:00:01"
FOUR, SIX = route("203.0.113.64/29", proxy="eth0"), route("2001:db8:1::/64", proxy="eth0")
GUEST, GUEST6, PRIVATE = "203.0.113.66", "2001:db8:1::66", "192.168.130.10"


def domain(*addresses: str, bridge: str | None = "virbr1") -> Domain:
    learned = tuple(LearnedAddress(ip_address(address), AddressSource.NEIGHBOUR) for address in addresses)
    interface = GuestInterface(MAC, "public", bridge, "vnet0", learned)
    return Domain("vm", UUID(int=1), running=True, interfaces=(interface,))


def answered(inventory: Inventory) -> set[str]:
    return {str(item.address) for item in proxied({FOUR, SIX}, inventory)}


def test_what_a_guest_behind_the_bridge_shows() -> None:
    inventory = Inventory((domain(GUEST, GUEST6, PRIVATE),))
    assert proxied({FOUR, SIX}, inventory) == {
        Proxied(FOUR, ip_address(GUEST)),
        Proxied(SIX, ip_address(GUEST6)),
    }
    assert unseen({FOUR, SIX}, inventory) == frozenset()


@pytest.mark.parametrize("move", [None, *Move])
def test_nothing_of_a_guest_that_does_not_run_here(move: Move | None) -> None:
    inventory = Inventory((replace(domain(GUEST, GUEST6), running=False, move=move),))
    assert answered(inventory) == set()
    assert unseen({FOUR, SIX}, inventory) == frozenset()


def test_nothing_of_a_guest_on_another_bridge() -> None:
    inventory = Inventory((domain(GUEST, GUEST6, bridge="virbr2"), domain(GUEST, bridge=None)))
    assert answered(inventory) == set()
    assert unseen({FOUR, SIX}, inventory) == frozenset()


def test_no_address_of_the_host_itself() -> None:
    own = HostAddress(ip_address(GUEST), ip_network("203.0.113.64/29"), "eth0")
    assert answered(Inventory((domain(GUEST, GUEST6),), host_addresses=(own,))) == {GUEST6}


def test_nothing_without_a_proxy() -> None:
    inventory = Inventory((domain(GUEST),))
    assert proxied({route("203.0.113.64/29")}, inventory) == frozenset()
    assert unseen({route("203.0.113.64/29")}, Inventory((domain(),))) == frozenset()


def test_a_guest_that_shows_none_is_to_be_asked_in_each_family() -> None:
    assert unseen({FOUR, SIX}, Inventory((domain(PRIVATE, GUEST6),))) == {
        Silent("virbr1", MAC, Family.IPV4, ip_network("203.0.113.64/29"))
    }


def test_a_guest_that_shows_ever_more_has_a_thousand() -> None:
    many = (str(ip_address("2001:db8:1::") + number) for number in range(2000))
    assert len(answered(Inventory((domain(*many),)))) == 1024
