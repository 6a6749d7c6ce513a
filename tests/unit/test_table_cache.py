"""What is brought up to date is what would have been made anew: placing, port segments, and the tables of nftables."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.config.model import Config, DaemonSettings, ForwardEntry, NatEntry, PortMapping, RouteEntry
from fwdaemon.core.exposures import Exposure, Forward, Owner
from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    GuestInterface,
    HostAddress,
    Inventory,
    LearnedAddress,
    Network,
)
from fwdaemon.core.state import Desired, Waiting
from fwdaemon.core.types import Address, Family, Origin, PortRange, Protocol
from fwdaemon.nftables.difference import difference, tables_difference
from fwdaemon.nftables.dispatch_chains import EVERYWHERE, PLAIN, TARGETS, MapKey, MapKeys
from fwdaemon.nftables.model import VERDICT, Table
from fwdaemon.nftables.ruleset import map_keys_of, tables
from fwdaemon.nftables.table_cache import TableCache
from fwdaemon.resolve.placement import Placement, desired_state
from fwdaemon.resolve.segments import PortSegment, SegmentIndex, segments
from tests.unit.forwards import forward, some_forwards, some_states
from tests.unit.saying import STOPPED

ORIGIN = Origin(Path("portfwd.toml"), 1)
NAMES = ("web", "mail", "00000000-0000-0000-0000-000000000001")
UUIDS = (UUID(int=1), UUID(int=2), UUID(int=3))
ADDRESSES = (*map(ip_address, ("192.168.122.1", "192.168.122.2", "192.168.122.3")), ip_address("10.0.0.9"))


# --- port segments
# -----------------------------------------------------------------------------------------------------------


def as_set(found: Iterable[PortSegment]) -> set[tuple[object, ...]]:
    return {(segment.listen, segment.protocol, segment.ports, frozenset(segment.forwards)) for segment in found}


@given(some_forwards())
def test_a_forward_says_where_it_is_as_its_claim_and_destination_do(item: Forward) -> None:
    assert (item.listens_at(), item.leads_to()) == (str(item.claim), str(item.destination))


@given(st.lists(st.frozensets(some_forwards(), max_size=10), max_size=6))
def test_segments_that_are_kept_are_those_that_would_be_cut_anew(states: list[frozenset[Forward]]) -> None:
    index, kept, before = SegmentIndex(), set[tuple[object, ...]](), frozenset[Forward]()
    for state in states:
        gone, new = map(as_set, index.change(before - state, state - before))
        assert gone <= kept
        kept, before = (kept - gone) | new, state
        assert kept == as_set(segments(state))


def test_a_change_touches_the_segments_that_share_its_ports_and_no_others() -> None:
    near = forward("tcp *:100-109", "192.168.122.50:100-109")
    far = forward("tcp *:200-209", "192.168.122.50:200-209")
    index = SegmentIndex()
    index.change([], [near, far])
    added = forward("tcp *:105", "192.168.122.51:105", interface="eth0")
    gone, new = index.change([], [added])
    assert [segment.ports for segment in gone] == [near.ports]
    assert [str(segment.ports) for segment in new] == ["100-104", "105", "106-109"]


# --- tables ----------------------------------------------------------------------------------------------------------


def opened(book: TableCache, family: Family, map_key: MapKey) -> tuple[Exposure, ...]:
    return tuple(book.exposures(family, MapKeys(frozenset({map_key}))))


def leading(table: Table) -> set[MapKey]:
    return {(name, key) for name, found in table.sets.items() if found.type.data == VERDICT for key in found.elements}


def led_to(table: Table, map_key: MapKey) -> object:
    """The target of a plain forward, the chain of any other exposure."""
    name, key = map_key
    chain = table.sets[name].elements[key]
    return table.sets[TARGETS[name]].elements[key] if chain == PLAIN.get(name) else table.chains[str(chain)]


@given(st.lists(some_states(), min_size=1, max_size=6), st.sampled_from([25, 1]))
def test_tables_that_are_kept_are_those_that_would_be_made_anew(states: list[Desired], label: int) -> None:
    book = TableCache()
    for number, state in enumerate(states):
        desired = replace(state, label=label) if number % 3 == 2 else state
        kept, whole = book.tables(desired), tables(desired)
        assert kept == whole
        served = map_keys_of(desired)
        assert {(family, map_key): opened(book, family, map_key) for family, map_key in served} == served
        for family in Family:
            every = {exposure for (other, _), exposures in served.items() if other is family for exposure in exposures}
            assert set(book.exposures(family, EVERYWHERE)) == every


@given(some_states(), some_states())
def test_what_stays_is_the_same_object(before: Desired, after: Desired) -> None:
    book = TableCache()
    old, new = book.tables(before), book.tables(after)
    for family in old.keys() & new.keys():
        changed = {segment.ports for segment in segments(before.forwards ^ after.forwards)}
        for map_key in leading(old[family]) & leading(new[family]):
            ports = {item.ports for item in opened(book, family, map_key) if isinstance(item, Forward)}
            if ports and not any(port.overlaps(other) for port in ports for other in changed):
                assert led_to(old[family], map_key) is led_to(new[family], map_key)
    assert book.tables(after) is new
    assert tables_difference(new, book.tables(after)) == {}


@given(st.lists(some_states(), min_size=2, max_size=6))
def test_what_a_table_knows_of_the_one_before_it_is_all_that_differs(states: list[Desired]) -> None:
    book = TableCache()
    before: dict[Family, Table] = {}
    for state in states:
        now = book.tables(state)
        for family in before.keys() & now.keys():
            # A copy is another object, of which nothing is known.
            known, compared = (
                difference(family, now[family], old) for old in (before[family], replace(before[family]))
            )
            assert (sorted(known.script), known.mended) == (sorted(compared.script), compared.mended)
        before = now


def test_a_state_that_changes_no_table_gives_the_very_same_one() -> None:
    book = TableCache()
    first = Desired(frozenset({forward("tcp *:80", "192.168.122.50:80")}))
    before = book.tables(first)[Family.IPV4]
    assert book.tables(replace(first, waiting=(Waiting(Owner("mail"), STOPPED, ORIGIN),)))[Family.IPV4] is before
    mended = book.tables(replace(first, guest_subnets=frozenset({ip_network("192.168.122.0/24")})))[Family.IPV4]
    assert mended is not before
    assert mended.step_from(before) is not None


def test_a_table_keeps_no_list_of_all_that_is_in_it() -> None:
    book = TableCache()
    book.tables(Desired(kept=frozenset({Family.IPV4})))
    every = frozenset(forward(f"tcp *:{port}", "192.168.122.50:80") for port in range(1000, 1020))
    assert book.tables(Desired(every))[Family.IPV4].step is None


def test_a_table_knows_only_the_one_it_was_made_of() -> None:
    book = TableCache()
    first, second, third = (
        book.tables(Desired(frozenset(forward(f"tcp *:{port}", f"192.168.122.50:{port}") for port in ports)))[
            Family.IPV4
        ]
        for ports in ((80,), (80, 81), (80, 81, 82))
    )
    assert third.step_from(second) is third.step is not None
    assert second.step_from(first) is not None
    assert third.step_from(first) is None
    assert third.step.elements["every_address"] == {"tcp . 82"}
    (commands,) = [line for line in difference(Family.IPV4, third, second).script if "every_address {" in line]
    assert commands == "add element ip kvm_portfwd every_address { tcp . 82 : jump every_address_plain }"


# --- placing ---------------------------------------------------------------------------------------------------------


def some_interfaces() -> st.SearchStrategy[tuple[GuestInterface, ...]]:
    learned = st.lists(
        st.builds(LearnedAddress, st.sampled_from(ADDRESSES), st.sampled_from(list(AddressSource)[1:])), max_size=2
    )
    interface = st.builds(
        lambda number, network, device, claims: GuestInterface(
            f"52:54:00:00:00:0{number}", network, "virbr0", device, claims
        ),
        st.integers(0, 3),
        st.sampled_from(["default", "default", "default", "absent"]),
        st.sampled_from([None, "vnet0", "vnet1"]),
        learned.map(tuple),
    )
    return st.lists(interface, max_size=2).map(tuple)


def some_domains() -> st.SearchStrategy[tuple[Domain, ...]]:
    """Any domains; names pass from one to another, are taken twice, and look like the UUIDs of others."""
    domain = st.builds(
        lambda name, running, interfaces: (name, running, interfaces if running else ()),
        st.sampled_from(NAMES),
        st.booleans(),
        some_interfaces(),
    )
    return st.dictionaries(st.sampled_from(UUIDS), domain).map(
        lambda found: tuple(
            Domain(name, uuid, running, interfaces) for uuid, (name, running, interfaces) in sorted(found.items())
        )
    )


def some_inventories() -> st.SearchStrategy[Inventory]:
    here = HostAddress(ip_address("192.168.122.3"), ip_network("192.168.122.0/24"), "virbr0")
    own = HostAddress(ip_address("fe80::1"), ip_network("fe80::/64"), "vnet0")
    return st.builds(
        lambda domains, active, host: Inventory(
            domains, (Network("default", active, "virbr0", (ip_network("192.168.122.0/24"),)),), host, frozenset()
        ),
        some_domains(),
        st.sampled_from([True, True, True, False]),
        st.sampled_from([(), (), (own,), (here,)]),
    )


def entry(domain: str, port: int, written: Address | None) -> ForwardEntry:
    mapping = PortMapping(PortRange(port, port), PortRange(80, 80), Protocol.TCP, None, ORIGIN)
    return ForwardEntry(domain, (mapping,), ORIGIN, address=written)


def some_configurations() -> st.SearchStrategy[Config]:
    domains, written = st.sampled_from([*NAMES, NAMES[2].upper().replace("-", "")]), st.sampled_from([None, *ADDRESSES])
    return st.builds(
        lambda forwards, nat, route: Config(
            DaemonSettings(),
            tuple(entry(domain, 1000 + number, address) for number, (domain, address) in enumerate(forwards)),
            (NatEntry(nat[0], ip_address("198.51.100.8"), ORIGIN, address=nat[1]),) if nat else (),
            (RouteEntry("default", ip_network("203.0.113.64/29"), ORIGIN),) if route else (),
        ),
        st.lists(st.tuples(domains, written), max_size=5),
        st.none() | st.tuples(domains, written),
        st.booleans(),
    )


def told(desired: Desired) -> tuple[Desired, Collection[object]]:
    """Give all of a state, also what two equal exposures may differ in."""
    return desired, sorted((str(item), item.bridge) for item in desired.exposures)


@given(some_configurations(), st.lists(some_inventories(), min_size=1, max_size=6))
def test_what_is_placed_again_is_what_would_be_placed_anew(config: Config, inventories: list[Inventory]) -> None:
    placement = Placement(config, inventories[0])
    for inventory in inventories:
        chosen = dict(placement.chosen)
        desired = placement.move(inventory)
        assert told(desired) == told(desired_state(config, inventory, chosen))
        # A copy finds out by itself what the state was given of its exposures.
        for told_so in (desired, desired.keeping(frozenset({Family.IPV6}))):
            found = replace(told_so)
            assert (told_so.families, told_so.bridge_ports) == (found.families, found.bridge_ports)


def test_a_domain_that_starts_leaves_the_forwards_of_others_the_same_objects() -> None:
    def inventory(*, running: bool) -> Inventory:
        nics = [
            GuestInterface(f"52:54:00:00:00:0{number}", None, "br0", None, (LearnedAddress(item, AddressSource.LEASE),))
            for number, item in enumerate(ADDRESSES[:2])
        ]
        domains = (
            Domain("mail", UUIDS[1], running=running, interfaces=(nics[0],) if running else ()),
            Domain("web", UUIDS[2], running=True, interfaces=(nics[1],)),
        )
        return Inventory(domains, (), (HostAddress(ADDRESSES[2], ip_network("192.168.122.0/24"), "br0"),))

    config = Config(DaemonSettings(), (entry("web", 80, None), entry("mail", 25, None)))
    placement = Placement(config, inventory(running=False))
    (before,) = placement.desired.forwards
    after = placement.move(inventory(running=True))
    assert {item.domain for item in after.forwards} == {"web", "mail"}
    assert any(item is before for item in after.forwards)
    assert placement.move(inventory(running=True)) is after
    assert Family.IPV4 in after.families
