"""Which claim about a guest's address is believed, and which interface is meant."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.audit.causes import why
from fwdaemon.core.inventory import (
    AddressSource,
    Attachment,
    Domain,
    GuestInterface,
    Hindrance,
    HindranceKind,
    HostAddress,
    Inventory,
    LearnedAddress,
    Network,
)
from fwdaemon.core.types import Family
from fwdaemon.resolve.addresses import AddressBook, ConfiguredAddress
from tests.unit.work import grows_no_faster

RESERVATION, LEASE, AGENT, NEIGHBOUR = (
    AddressSource.RESERVATION,
    AddressSource.LEASE,
    AddressSource.AGENT,
    AddressSource.NEIGHBOUR,
)

DEFAULT = Network(
    "default",
    active=True,
    bridge="virbr0",
    subnets=(ip_network("192.168.122.0/24"), ip_network("2001:db8:122::/64")),
    gateways=(ip_address("192.168.122.1"), ip_address("2001:db8:122::1")),
)
OTHER = Network("other", active=True, bridge="virbr1", subnets=(ip_network("192.168.100.0/24"),))
LAN = Network("lan", active=True, bridge="br0")
HOST = (
    HostAddress(ip_address("198.51.100.7"), ip_network("198.51.100.0/24"), "br0"),
    HostAddress(ip_address("fe80::1"), ip_network("fe80::/64"), "br0"),
    HostAddress(ip_address("192.168.122.200"), ip_network("192.168.122.200/32"), "lo"),
)


def nic(
    *claims: tuple[str, AddressSource], network: str | None = "default", bridge: str | None = None, number: int = 1
) -> GuestInterface:
    learned = tuple(LearnedAddress(ip_address(address), source) for address, source in claims)
    return GuestInterface(f"52:54:00:00:00:{number:02x}", network, bridge, None, learned)


def guest(name: str, *interfaces: GuestInterface, running: bool = True) -> Domain:
    return Domain(name, uuid5(UUID(int=0), name), running, interfaces)


def inventory(*domains: Domain, networks: tuple[Network, ...] = (DEFAULT, OTHER, LAN)) -> Inventory:
    return Inventory(domains, networks, HOST)


def verdict(interface: GuestInterface, *others: Domain, family: Family = Family.IPV4, configured: str = "") -> str:
    """Give what is believed of web1's interface, as text."""
    web1 = guest("web1", interface)
    address = ip_address(configured) if configured else None
    own = [ConfiguredAddress(web1, interface, address)] if address else []
    result = AddressBook(inventory(web1, *others), own).believed(web1, interface, family, address)
    return why(result) if isinstance(result, Hindrance) else f"{result.address} by {result.source}"


@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        pytest.param(nic(("192.168.122.50", LEASE)), "192.168.122.50 by DHCP lease", id="lease"),
        pytest.param(
            nic(("192.168.122.51", RESERVATION), ("192.168.122.50", LEASE)),
            "192.168.122.51 by DHCP reservation",
            id="reservation before lease",
        ),
        pytest.param(
            nic(("10.0.0.5", AGENT), ("192.168.122.9", NEIGHBOUR)),
            "192.168.122.9 by neighbour table",
            id="credible neighbour before incredible agent",
        ),
        pytest.param(
            nic(("10.0.0.5", AGENT)),
            "10.0.0.5 (guest agent) is outside 192.168.122.0/24, the guest's own network",
            id="other network",
        ),
        pytest.param(nic(("192.168.122.1", AGENT)), "192.168.122.1 belongs to the host", id="gateway"),
        pytest.param(nic(("192.168.122.200", LEASE)), "192.168.122.200 belongs to the host", id="address of the host"),
        pytest.param(
            nic(("192.168.122.255", AGENT)),
            "192.168.122.255 is not a guest's address but that of 192.168.122.0/24 itself",
            id="broadcast",
        ),
        pytest.param(
            nic(("192.168.122.0", AGENT)),
            "192.168.122.0 is not a guest's address but that of 192.168.122.0/24 itself",
            id="network address",
        ),
        pytest.param(
            nic(("224.0.0.5", AGENT)), "224.0.0.5 (guest agent) is no address a guest can be reached at", id="multicast"
        ),
        pytest.param(
            nic(("127.0.0.1", AGENT)), "127.0.0.1 (guest agent) is no address a guest can be reached at", id="loopback"
        ),
        pytest.param(nic(), "no address yet: no lease, agent or neighbour names one", id="silence"),
        pytest.param(nic(("192.168.122.50", LEASE), network="gone"), "network gone does not exist", id="no network"),
        pytest.param(
            nic(("198.51.100.20", NEIGHBOUR), network="lan", bridge="br0"),
            "198.51.100.20 by neighbour table",
            id="bridge, in the host's subnet there",
        ),
        pytest.param(
            nic(("203.0.113.5", AGENT), network=None, bridge="br9"),
            "it is not known which addresses belong to bridge br9: write address = …",
            id="bridge nobody described",
        ),
    ],
)
def test_learned(interface: GuestInterface, expected: str) -> None:
    assert verdict(interface) == expected


@pytest.mark.parametrize(
    ("interface", "configured", "expected"),
    [
        (nic(("192.168.122.50", LEASE)), "192.168.122.60", "192.168.122.60 by configuration"),
        (nic(), "192.168.122.1", "192.168.122.1 belongs to the host"),
        (nic(), "10.1.1.1", "10.1.1.1 (configuration) is outside 192.168.122.0/24, the guest's own network"),
        (nic(network=None, bridge="br9"), "203.0.113.5", "203.0.113.5 by configuration"),
        (nic(network="other"), "2001:db8::5", "network other has no IPv6 subnet"),
    ],
)
def test_configured(interface: GuestInterface, configured: str, expected: str) -> None:
    assert verdict(interface, family=Family.of(ip_address(configured)), configured=configured) == expected


def test_ipv6() -> None:
    interface = nic(("192.168.122.50", LEASE), ("2001:db8:122::50", AGENT))
    assert verdict(interface, family=Family.IPV6) == "2001:db8:122::50 by guest agent"
    assert verdict(nic(network="other"), family=Family.IPV6) == "network other has no IPv6 subnet"
    routers = "2001:db8:122:: is not a guest's address but that of 2001:db8:122::/64 itself"
    assert verdict(nic(("2001:db8:122::", AGENT)), family=Family.IPV6) == routers


def test_inactive_network() -> None:
    web1 = guest("web1", nic(("192.168.122.50", LEASE)))
    book = AddressBook(inventory(web1, networks=(replace(DEFAULT, active=False),)))
    assert book.believed(web1, web1.interfaces[0], Family.IPV4) == Hindrance(
        HindranceKind.NETWORK_NOT_ACTIVE, names=("default",)
    )


ADDRESS = "192.168.122.50"


@pytest.mark.parametrize(
    ("mine", "conflicting", "expected"),
    [
        (LEASE, AGENT, f"{ADDRESS} by DHCP lease"),
        (AGENT, LEASE, f"{ADDRESS} belongs to domain web2 (DHCP lease)"),
        (AGENT, AGENT, f"{ADDRESS} is claimed by both web1 and web2 (guest agent)"),
        (LEASE, LEASE, f"{ADDRESS} is claimed by both web1 and web2 (DHCP lease)"),
    ],
)
def test_contested(mine: AddressSource, conflicting: AddressSource, expected: str) -> None:
    assert verdict(nic((ADDRESS, mine)), guest("web2", nic((ADDRESS, conflicting), number=2))) == expected


def test_claim_from_another_network_denies_nobody() -> None:
    attacker = guest("web2", nic((ADDRESS, LEASE), network="other", number=2))
    assert verdict(nic((ADDRESS, AGENT)), attacker) == f"{ADDRESS} by guest agent"


def test_claim_of_a_stopped_domain_denies_nobody() -> None:
    stopped = guest("web2", nic((ADDRESS, LEASE), number=2), running=False)
    assert verdict(nic((ADDRESS, AGENT)), stopped) == f"{ADDRESS} by guest agent"


def test_own_other_interface_is_no_rival() -> None:
    first, second = nic((ADDRESS, AGENT)), nic((ADDRESS, AGENT), number=2)
    web1 = guest("web1", first, second)
    believed = AddressBook(inventory(web1)).believed(web1, first, Family.IPV4)
    assert believed == LearnedAddress(ip_address(ADDRESS), AGENT)


def test_configuration_of_another_domain_wins() -> None:
    web1, web2 = guest("web1", nic((ADDRESS, LEASE))), guest("web2", nic(number=2))
    configured = ConfiguredAddress(web2, web2.interfaces[0], ip_address(ADDRESS))
    book = AddressBook(inventory(web1, web2), [configured])
    found = book.believed(web1, web1.interfaces[0], Family.IPV4)
    assert isinstance(found, Hindrance)
    assert (why(found), found.is_claimed) == (f"{ADDRESS} belongs to domain web2 (configuration)", True)


def test_reason_with_a_hostile_name_is_one_line() -> None:
    conflicting = guest("web2\nERROR all is lost" + "x" * 200, nic((ADDRESS, LEASE), number=2))
    reason = verdict(nic((ADDRESS, LEASE)), conflicting)
    assert "\n" not in reason
    assert len(reason) < 200


SOURCES = st.sampled_from([RESERVATION, LEASE, AGENT, NEIGHBOUR])
LAST_OCTETS = st.integers(0, 255)


@given(st.lists(st.lists(st.tuples(LAST_OCTETS, SOURCES), max_size=4), min_size=1, max_size=6))
def test_no_two_guests_are_believed_to_have_one_address(guests: list[list[tuple[int, AddressSource]]]) -> None:
    domains = [
        guest(f"web{number}", nic(*((f"192.168.122.{octet}", source) for octet, source in claims), number=number))
        for number, claims in enumerate(guests)
    ]
    book = AddressBook(inventory(*domains))
    verdicts = [book.believed(domain, domain.interfaces[0], Family.IPV4) for domain in domains]
    believed = [claim.address for claim in verdicts if isinstance(claim, LearnedAddress)]
    assert len(believed) == len(set(believed))
    assert not {ip_address(f"192.168.122.{octet}") for octet in (0, 1, 200, 255)}.intersection(believed)


@pytest.mark.parametrize(
    ("interfaces", "wanted", "expected"),
    [
        pytest.param([nic()], {}, 0, id="only one"),
        pytest.param([], {}, "has no network interface", id="none"),
        pytest.param([nic(), nic(network="other", number=2)], {"network": "other"}, 1, id="named by network"),
        pytest.param([nic(), nic(number=2)], {"mac": "52:54:00:00:00:02"}, 1, id="named by MAC"),
        pytest.param([nic()], {"network": "other"}, "has no interface on network other", id="not on that network"),
        pytest.param([nic()], {"mac": "52:54:00:ff:ff:ff"}, "has no interface with mac 52:54:00:ff:ff:ff", id="no MAC"),
        pytest.param(
            [nic(), nic(network="other", number=2)],
            {},
            "has 2 interfaces (52:54:00:00:00:01 on network default, 52:54:00:00:00:02 on network other): "
            "write network = … or mac = …",
            id="ambiguous",
        ),
        pytest.param(
            [nic(), nic(number=2)],
            {"network": "default"},
            "has 2 interfaces (52:54:00:00:00:01 on network default, 52:54:00:00:00:02 on network default): "
            "write mac = …",
            id="twice on that network",
        ),
        pytest.param([nic(), nic(network=None, number=2)], {}, 0, id="the other cannot be reached at all"),
        pytest.param([nic(), nic(network=None, bridge="br9", number=2)], {}, 0, id="nothing is known of the other"),
    ],
)
def test_select_interface(interfaces: list[GuestInterface], wanted: dict[str, str], expected: int | str) -> None:
    book = AddressBook(inventory(web1 := guest("web1", *interfaces)))
    chosen = book.select_interface(web1, Family.IPV4, network=wanted.get("network"), mac=wanted.get("mac"))
    assert (why(chosen) if isinstance(chosen, Hindrance) else interfaces.index(chosen)) == expected


def test_select_interface_by_family_and_configured_address() -> None:
    first, second = nic(), nic(network="other", number=2)
    book = AddressBook(inventory(web1 := guest("web1", first, second)))
    assert book.select_interface(web1, Family.IPV6) is first
    assert book.select_interface(web1, Family.IPV4, configured=ip_address("192.168.100.5")) is second
    nowhere = book.select_interface(web1, Family.IPV4, configured=ip_address("10.0.0.5"))
    assert isinstance(nowhere, Hindrance)
    assert why(nowhere) == "none of its 2 interfaces can have 10.0.0.5"


def test_families() -> None:
    book = AddressBook(inventory())
    assert book.families(nic()) == {Family.IPV4, Family.IPV6}
    assert book.families(nic(network="lan", bridge="br0")) == {Family.IPV4}
    assert book.families(nic(network=None)) == frozenset()


def test_many_claims_on_one_address_cost_no_more() -> None:
    """Guests that all claim the same 50 addresses: were every claim compared with every other, twice would be four."""
    claims = tuple((f"192.168.122.{octet}", AGENT) for octet in range(10, 60))

    def judging(number_of_guests: int) -> Callable[[], None]:
        domains = [guest(f"web{number}", nic(*claims, number=number % 256)) for number in range(number_of_guests)]

        def judge() -> None:
            book = AddressBook(inventory(*domains))
            for domain in domains:
                assert isinstance(book.believed(domain, domain.interfaces[0], Family.IPV4), Hindrance)

        return judge

    assert grows_no_faster(judging, 100)


MACVTAP = GuestInterface("52:54:00:00:00:07", None, None, "macvtap0", (), Attachment.MACVTAP, "eth0")
USER_MODE = GuestInterface("52:54:00:00:00:08", None, None, None, (), Attachment.USER_MODE)
INSIDE = GuestInterface("52:54:00:00:00:09", "default", "virbr0", "vnet9")
BRIDGED = GuestInterface("52:54:00:00:00:0a", None, "br0", "vnet10")
ALONE = HostAddress(ip_address("198.51.100.2"), ip_network("198.51.100.2/32"), "br0")


@pytest.mark.parametrize(
    ("interface", "configured", "reason"),
    [
        (MACVTAP, "", "it is on macvtap of eth0, where every machine but this host reaches it"),
        (MACVTAP, "203.0.113.50", "it is on macvtap of eth0, where every machine but this host reaches it"),
        (USER_MODE, "", "its network is user-mode (slirp or passt), which this host cannot reach"),
        (USER_MODE, "10.0.2.15", "its network is user-mode (slirp or passt), which this host cannot reach"),
    ],
)
def test_what_the_host_does_not_reach_is_never_believed(
    interface: GuestInterface, configured: str, reason: str
) -> None:
    assert verdict(interface, configured=configured).startswith(reason)
    selected = AddressBook(inventory()).select_interface(guest("web1", interface, interface), Family.IPV4)
    assert isinstance(selected, Hindrance)
    assert why(selected).startswith(reason)


def test_an_interface_that_the_host_reaches_is_meant() -> None:
    book = AddressBook(inventory())
    for other in (MACVTAP, USER_MODE):
        assert book.select_interface(guest("web1", other, INSIDE), Family.IPV4) == INSIDE


def test_a_macvlan_of_the_host_reaches_a_guest_on_macvtap() -> None:
    configured, web1 = ip_address("203.0.113.50"), guest("web1", MACVTAP)
    for device, reached in (("macvlan0", True), ("eth0", False)):
        host = replace(inventory(), routed=frozenset({(device, ip_network("203.0.113.50/32"))}))
        found = AddressBook(host).believed(web1, MACVTAP, Family.IPV4, configured)
        assert isinstance(found, Hindrance) is not reached


@pytest.mark.parametrize(
    ("device", "subnet", "believed"),
    [
        ("br0", "203.0.113.66/32", True),
        ("br0", "203.0.113.64/29", True),
        ("virbr0", "203.0.113.66/32", False),
        ("br0", "203.0.113.72/29", False),
    ],
)
def test_a_configured_address_that_is_routed_to_its_bridge(device: str, subnet: str, *, believed: bool) -> None:
    routed = frozenset({(device, ip_network(subnet))})
    book = AddressBook(replace(inventory(), host_addresses=(ALONE,), routed=routed))
    configured, web1 = ip_address("203.0.113.66"), guest("web1", BRIDGED, INSIDE)
    found = book.believed(web1, BRIDGED, Family.IPV4, configured)
    assert isinstance(found, Hindrance) is not believed
    assert (book.select_interface(web1, Family.IPV4, configured=configured) == BRIDGED) is believed


def test_only_the_configuration_is_believed_outside_the_bridges_own_subnet() -> None:
    host = replace(inventory(), host_addresses=(ALONE,), routed=frozenset({("br0", ip_network("203.0.113.66/32"))}))
    learned = replace(BRIDGED, learned=(LearnedAddress(ip_address("203.0.113.66"), NEIGHBOUR),))
    assert isinstance(AddressBook(host).believed(guest("web1", learned), learned, Family.IPV4), Hindrance)
