"""What the neighbour table says is remembered, doubted, and put right."""

from ipaddress import ip_address
from uuid import UUID

from fwdaemon.audit.causes import remark
from fwdaemon.core.inventory import AddressSource, Domain, GuestInterface, Inventory, LearnedAddress, Neighbour
from fwdaemon.resolve.addresses import ConfiguredAddress
from fwdaemon.resolve.neighbours import changed_hands, hijacked_addresses, outdated_neighbours, remembered

MAC, OTHER_MAC, STRANGER = "52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:99"


def neighbour(address: str, mac: str = MAC, device: str = "virbr0") -> Neighbour:
    return Neighbour(device, mac, ip_address(address))


def domain(name: str, mac: str, *claims: tuple[str, AddressSource]) -> Domain:
    learned = tuple(LearnedAddress(ip_address(address), source) for address, source in claims)
    plugged = GuestInterface(mac, "default", "virbr0", "vnet0", learned)
    return Domain(name, UUID(bytes=mac.encode()[:16]), running=True, interfaces=(plugged,))


def test_forgotten_neighbour_is_remembered_while_its_guest_runs() -> None:
    before = (neighbour("192.168.122.9"),)
    assert remembered(before, (), {MAC}) == before
    assert remembered(before, (), frozenset()) == ()


def test_neighbour_that_moved_is_not_remembered() -> None:
    before = (neighbour("192.168.122.9"),)
    stranger = (neighbour("192.168.122.9", mac=OTHER_MAC),)
    renumbered = (neighbour("192.168.122.10"),)
    assert remembered(before, stranger, {MAC}) == stranger
    assert remembered(before, renumbered, {MAC}) == renumbered


def test_an_address_that_another_guest_takes_over_is_claimed_by_both() -> None:
    before, taken = (neighbour("192.168.122.9"),), (neighbour("192.168.122.9", mac=OTHER_MAC),)
    assert remembered(before, taken, {MAC, OTHER_MAC}) == (*before, *taken)
    renumbered = (neighbour("192.168.122.10"),)
    assert remembered(before, (*taken, *renumbered), {MAC, OTHER_MAC}) == (*taken, *renumbered)


def test_a_second_address_does_not_take_the_place_of_the_first() -> None:
    first, second = neighbour("192.168.122.9"), neighbour("192.168.122.10")
    assert remembered((first,), (second, first), {MAC}) == (first, second)
    assert remembered((first, second), (second,), {MAC}) == (second,)


def test_a_guest_with_one_more_address_may_have_moved() -> None:
    old, new, another = neighbour("192.168.122.9"), neighbour("192.168.122.10"), neighbour("192.168.122.11", OTHER_MAC)
    macs = {MAC, OTHER_MAC}
    assert outdated_neighbours((old, another), (old, new, another), macs) == (old, new)
    assert outdated_neighbours((old, new, another), (old, new, another), macs) == ()
    assert outdated_neighbours((old,), (old, neighbour("2001:db8::1")), macs) == ()
    assert outdated_neighbours((old,), (old, new), {OTHER_MAC}) == ()


OWN = neighbour("192.168.122.9")
STOLEN = neighbour("192.168.122.9", OTHER_MAC)


def test_a_leased_address_that_another_guest_answers_for_is_hijacked() -> None:
    web = domain("web", MAC, ("192.168.122.9", AddressSource.LEASE))
    inventory = Inventory((web, domain("thief", OTHER_MAC, ("192.168.122.9", AddressSource.NEIGHBOUR))))
    (found,) = hijacked_addresses(inventory, [OWN], [STOLEN])
    assert found.rightful == OWN
    assert remark(found).startswith("domain thief answered for 192.168.122.9, which is the address of domain web: ")
    (found,) = hijacked_addresses(inventory, [OWN], [neighbour("192.168.122.9", STRANGER)])
    assert remark(found).startswith("a machine on bridge virbr0 answered for 192.168.122.9")
    assert hijacked_addresses(inventory, [OWN], [OWN]) == ()
    # The guest was not seen there before, or shows another address since.
    assert hijacked_addresses(inventory, [], [STOLEN]) == ()


def test_what_nobody_was_given_is_not_hijacked() -> None:
    """A guest may hand its address over to another, as high availability does."""
    web = domain("web", MAC, ("192.168.122.9", AddressSource.NEIGHBOUR), ("192.168.122.8", AddressSource.LEASE))
    assert hijacked_addresses(Inventory((web, domain("other", OTHER_MAC))), [OWN], [STOLEN]) == ()


def test_a_reservation_goes_before_a_lease_that_has_not_ended() -> None:
    leased = domain("was", MAC, ("192.168.122.9", AddressSource.LEASE))
    reserved = domain("is", OTHER_MAC, ("192.168.122.9", AddressSource.RESERVATION))
    for domains in ((leased, reserved), (reserved, leased)):
        assert hijacked_addresses(Inventory(domains), [OWN, STOLEN], [STOLEN]) == ()
        assert [item.rightful for item in hijacked_addresses(Inventory(domains), [OWN, STOLEN], [OWN])] == [STOLEN]


def configured(guest: Domain, address: str = "192.168.122.9") -> ConfiguredAddress:
    return ConfiguredAddress(guest, guest.interfaces[0], ip_address(address))


def test_a_configured_address_that_somebody_else_answers_for_is_hijacked() -> None:
    web, thief = domain("web", MAC), domain("thief", OTHER_MAC)
    inventory = Inventory((web, thief))
    (found,) = hijacked_addresses(inventory, [OWN], [STOLEN], [configured(web)])
    assert found.rightful == OWN
    assert remark(found).startswith("domain thief answered for 192.168.122.9, which is the address of domain web: ")
    assert hijacked_addresses(inventory, [OWN], [OWN], [configured(web)]) == ()
    assert (
        hijacked_addresses(inventory, [OWN], [neighbour("192.168.122.9", OTHER_MAC, "virbr1")], [configured(web)]) == ()
    )
    # Its guest may answer with another MAC address: as a router that others stand in for, or for a guest of its own.
    assert hijacked_addresses(inventory, [], [STOLEN], [configured(web)]) == ()
    assert hijacked_addresses(inventory, [STOLEN], [neighbour("192.168.122.9", STRANGER)], [configured(web)]) == ()


def test_the_configuration_goes_before_what_a_dhcp_server_gave() -> None:
    web = domain("web", MAC)
    reserved = domain("reserved", OTHER_MAC, ("192.168.122.9", AddressSource.RESERVATION))
    inventory = Inventory((web, reserved))
    assert [item.rightful for item in hijacked_addresses(inventory, [OWN, STOLEN], [STOLEN], [configured(web)])] == [
        OWN
    ]
    assert hijacked_addresses(inventory, [OWN, STOLEN], [OWN], [configured(web)]) == ()


def test_a_guest_takes_nothing_from_itself() -> None:
    """Linux answers for all its addresses on each interface."""
    first, second = (GuestInterface(mac, "default", "virbr0", None) for mac in (MAC, OTHER_MAC))
    web = Domain("web", UUID(int=1), running=True, interfaces=(first, second))
    assert hijacked_addresses(Inventory((web,)), [OWN], [STOLEN], [configured(web)]) == ()
    # Another domain of that name is another guest.
    namesake = Domain("web", UUID(int=2), running=True, interfaces=(second,))
    inventory = Inventory((Domain("web", UUID(int=1), running=True, interfaces=(first,)), namesake))
    assert len(hijacked_addresses(inventory, [OWN], [STOLEN], [configured(web)])) == 1


def test_only_what_is_seen_elsewhere_changed_hands() -> None:
    assert changed_hands([OWN], [STOLEN])
    assert changed_hands([OWN, STOLEN], [OWN])
    assert not changed_hands([OWN], [OWN, neighbour("192.168.122.8")])
    assert not changed_hands([OWN], [])
    assert not changed_hands([OWN], [neighbour("192.168.122.9", OTHER_MAC, "virbr1")])


def test_a_hostile_name_stays_one_line() -> None:
    web = domain("a\nb", MAC, ("192.168.122.9", AddressSource.LEASE))
    (found,) = hijacked_addresses(Inventory((web,)), [OWN], [STOLEN])
    assert remark(found).isprintable()
