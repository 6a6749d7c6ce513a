"""Which questions are asked on a bridge for silent guests, and whose answers count."""

from ipaddress import ip_address, ip_network
from uuid import UUID

import pytest

from fwdaemon.core.inventory import AddressSource, Domain, GuestInterface, HostAddress, Inventory, LearnedAddress
from fwdaemon.core.state import Silent
from fwdaemon.core.types import Family
from fwdaemon.resolve.neighbours import Answer, Question, credible, questions

MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"
WEB4, WEB6 = Silent("virbr0", MAC, Family.IPV4), Silent("virbr0", MAC, Family.IPV6)


def host(*addresses: str, device: str = "virbr0") -> tuple[HostAddress, ...]:
    """Write `192.168.122.1/24`."""
    parts = [(address.split("/")[0], ip_network(address, strict=False)) for address in addresses]
    return tuple(HostAddress(ip_address(address), subnet, device) for address, subnet in parts)


def asked(silent: set[Silent], inventory: Inventory) -> list[Question]:
    return list(questions(silent, inventory))


def test_every_address_of_the_subnet_that_nobody_is_known_to_have() -> None:
    taken = LearnedAddress(ip_address("192.168.122.3"), AddressSource.LEASE)
    other = Domain(
        "other", UUID(int=2), running=True, interfaces=(GuestInterface(OTHER, "default", "virbr0", "vnet1", (taken,)),)
    )
    (question,) = asked({WEB4}, Inventory((other,), (), host("192.168.122.1/29")))
    assert [str(target) for target in question.targets] == [f"192.168.122.{number}" for number in (2, 4, 5, 6)]
    assert (question.source, question.macs) == (ip_address("192.168.122.1"), frozenset({MAC}))
    assert not question.everybody


@pytest.mark.parametrize(("subnet", "number"), [("10.0.0.1/22", 1021), ("10.0.0.1/21", None), ("10.0.0.1/32", 0)])
def test_up_to_a_22(subnet: str, number: int | None) -> None:
    found = asked({WEB4}, Inventory(host_addresses=host(subnet)))
    assert [len(question.targets) for question in found] == ([] if number is None else [number])


def test_in_ipv6_the_address_made_of_the_mac_and_all_at_once() -> None:
    (question,) = asked({WEB6}, Inventory(host_addresses=host("2001:db8:122::1/64", "fe80::1/64", "192.168.122.1/24")))
    assert question.targets == (ip_address("2001:db8:122::5054:ff:fe00:1"),)
    assert question.everybody
    (longer,) = asked({WEB6}, Inventory(host_addresses=host("2001:db8:122::1/120")))
    assert (longer.targets, longer.everybody) == ((), True)


def test_nothing_is_asked_elsewhere() -> None:
    assert asked({WEB4}, Inventory(host_addresses=host("192.168.123.1/24", device="virbr1"))) == []
    assert asked(set(), Inventory(host_addresses=host("192.168.122.1/24"))) == []


ROUTED4, ROUTED6, WIDE6 = map(ip_network, ("203.0.113.64/30", "2001:db8:5::40/126", "2001:db8:1::/64"))


@pytest.mark.parametrize(
    ("addresses", "source"),
    [(("192.168.122.1/24",), "192.168.122.1"), ((), "0.0.0.0")],  # noqa: S104  the sender of a probe
)
def test_a_routed_subnet_is_asked_whole(addresses: tuple[str, ...], source: str) -> None:
    silent = {Silent("virbr0", MAC, Family.IPV4, ROUTED4)}
    inventory = Inventory(host_addresses=host(*addresses) + host("198.51.100.1/24", device="eth0"))
    (question,) = asked(silent, inventory)
    assert [str(target) for target in question.targets] == [f"203.0.113.{number}" for number in range(64, 68)]
    assert (str(question.source), question.bridge, question.subnet) == (source, "virbr0", ROUTED4)


def test_all_of_a_wide_one_are_asked_from_an_address_of_the_host_wherever_it_has_one() -> None:
    narrow, wide = (Silent("virbr0", MAC, Family.IPV6, subnet) for subnet in (ROUTED6, WIDE6))
    known = host("fe80::1/64") + host("::1/128", device="lo") + host("2001:db8::1/64", device="eth0")
    found = {question.subnet: question for question in asked({narrow, wide}, Inventory(host_addresses=known))}
    assert {str(question.source) for question in found.values()} == {"2001:db8::1"}
    assert len(found[ROUTED6].targets) == 4
    assert found[WIDE6].targets == (ip_address("2001:db8:1::5054:ff:fe00:1"),)
    assert found[WIDE6].everybody
    assert asked({narrow, wide}, Inventory(host_addresses=host("fe80::1/64"))) == []


def test_guests_of_one_bridge_are_searched_for_together() -> None:
    both = {WEB4, Silent("virbr0", OTHER, Family.IPV4)}
    (question,) = asked(both, Inventory(host_addresses=host("192.168.122.1/24")))
    assert question.macs == {MAC, OTHER}


QUESTION = Question("virbr0", ip_address("192.168.122.1"), ip_network("192.168.122.0/24"), frozenset({MAC}), ())


@pytest.mark.parametrize(
    ("mac", "address", "counts"),
    [
        pytest.param(MAC, "192.168.122.9", True, id="the guest's own"),
        pytest.param(OTHER, "192.168.122.9", False, id="somebody else's"),
        pytest.param(MAC, "192.168.123.9", False, id="of another subnet"),
        pytest.param(MAC, "192.168.122.1", False, id="the host's"),
        pytest.param(MAC, "fe80::1", False, id="of another family"),
    ],
)
def test_only_what_its_own_mac_answers_from_its_own_subnet_counts(mac: str, address: str, counts: bool) -> None:  # noqa: FBT001  what pytest gives
    answer = Answer(mac, ip_address(address))
    assert list(credible(QUESTION, [answer, answer])) == ([answer] if counts else [])


def test_one_that_answers_for_everything_is_not_believed() -> None:
    answers = [Answer(MAC, ip_address(f"192.168.122.{number}")) for number in range(2, 12)]
    assert list(credible(QUESTION, answers)) == []
    assert list(credible(QUESTION, answers[:8])) == answers[:8]
