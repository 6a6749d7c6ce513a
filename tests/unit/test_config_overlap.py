"""Two claims on one address, port and protocol."""

from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.config.model import ForwardEntry, PortMapping
from fwdaemon.config.overlap import MOST_CONFLICTS, find_conflicts
from fwdaemon.core.types import Address, Family, Origin, PortRange, Protocol, Subnet
from tests.unit.test_config_support import forward, problems_of, read
from tests.unit.work import grows_no_faster, lines_run


def test_names_both_places() -> None:
    drop_in = '[[forward]]\ndomain = "b\\nc"\nports = ["1",\n"79-81:9079-9081/tcp"]'
    assert problems_of(forward(), drop_in) == [
        (
            'a.toml:4: domain "b\\nc": *:80/tcp is already claimed at /etc/portfwd.toml:3 for domain "web1";'
            " use another port or address, or give both an interface or sources that tell them apart"
        )
    ]


@pytest.mark.parametrize(
    ("one", "other", "conflicts"),
    [
        ("", "", 1),
        ('listen = "198.51.100.7"', "", 0),
        ('listen = "198.51.100.7"', 'listen = ["198.51.100.8", "198.51.100.7"]', 1),
        ('listen = "198.51.100.7"', 'listen = "2001:db8::1"', 0),
        ('listen = "198.51.100.7"\ninterface = "eth0"', 'listen = "198.51.100.7"\ninterface = "eth1"', 0),
        ('interface = "eth0"', 'interface = "eth0"', 1),
        ('interface = "eth0"', "", 1),
        ('sources = "192.0.2.0/24"', "", 1),
        ('sources = "192.0.2.0/24"', 'sources = "198.51.100.0/24"', 0),
        ('sources = "192.0.2.0/24"', 'sources = ["198.51.100.0/24", "192.0.2.8"]', 1),
        ('sources = ["192.0.2.8"]', 'sources = "192.0.2.0/24"', 1),
        ('sources = "192.0.2.0/24"', 'sources = "2001:db8::/32"', 0),
        ('sources = "192.0.2.0/24"', 'sources = "0.0.0.0/0"', 1),
        ('address = "192.168.122.2"', 'address = "2001:db8::2"', 0),
        ('address = "192.168.122.2"', 'address = "192.168.122.3"', 1),
        ('address = "192.168.122.2"', 'sources = "2001:db8::/32"', 0),
        ('address = "192.168.122.2"', 'sources = ["2001:db8::/32", "192.0.2.0/24"]', 1),
    ],
)
def test_what_conflicts(one: str, other: str, conflicts: int) -> None:
    assert len(problems_of(forward(one) + forward(other))) == conflicts
    assert len(problems_of(forward(other), forward(one))) == conflicts


@pytest.mark.parametrize(
    ("ports", "conflicts"),
    [
        ('["80", "80"]', 1),
        ('["80", "80/udp"]', 0),
        ('["53/tcp+udp", "53/tcp+udp"]', 1),
        ('["80-89", "85"]', 1),
        ('["80-89", "90"]', 0),
        ('["80:1", "80:2"]', 1),
        ('["80:1", "81:1"]', 0),
        ('["198.51.100.7:80", "80"]', 0),
        ('["198.51.100.7:80", "198.51.100.7:80:8080"]', 1),
    ],
)
def test_within_one_entry(ports: str, conflicts: int) -> None:
    assert len(problems_of(forward(ports=ports))) == conflicts


def test_no_conflict_is_made_up_from_an_entry_that_is_wrong() -> None:
    assert problems_of(forward() + forward('interfaces = "eth0"')) == [
        'portfwd.toml:8: forward 2: unknown key "interfaces"; did you mean "interface"?'
    ]


def test_conflicts_are_told_beside_a_bad_port() -> None:
    assert [text.split(":")[1] for text in problems_of(forward() + forward(ports='["x",\n"80"]'))] == ["7", "8"]


def test_many_conflicts_are_cut_short() -> None:
    problems = problems_of("".join(forward() for _ in range(1000)))
    assert len(problems) == MOST_CONFLICTS + 1
    assert sum("there are more than 100 conflicts; fix those listed" in text for text in problems) == 1


LISTENS: list[Address] = [ip_address("198.51.100.7"), ip_address("2001:db8::1")]
SOURCES: list[Subnet] = [
    ip_network(text) for text in ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "::/0", "2001:db8::/32")
]


@st.composite
def entries(draw: st.DrawFn) -> list[ForwardEntry]:
    """Entries of one mapping each, whose line is its number."""
    found = []
    for line in range(1, draw(st.integers(2, 7)) + 1):
        first = draw(st.integers(1, 8))
        ports = PortRange(first, first + draw(st.integers(0, 4)))
        protocol = draw(st.sampled_from(list(Protocol)[:2]))
        origin = Origin(Path("x"), line)
        found.append(
            ForwardEntry(
                domain="d",
                mappings=(PortMapping(ports, ports, protocol, None, origin),),
                origin=origin,
                listen=tuple(draw(st.lists(st.sampled_from(LISTENS), unique=True))),
                interface=draw(st.sampled_from([None, "eth0", "eth1"])),
                sources=tuple(draw(st.lists(st.sampled_from(SOURCES), unique=True))),
                address=draw(st.sampled_from([None, None, *LISTENS])),
            )
        )
    return found


def claims(entry: ForwardEntry) -> set[tuple[Family, Address | None, Subnet]]:
    everyone: list[Subnet] = [ip_network("0.0.0.0/0"), ip_network("::/0")]
    return {
        (family, listen, source)
        for family in Family
        for listen in entry.listen or (None,)
        for source in entry.sources or everyone
        if all(Family.of(item) is family for item in (listen, source, entry.address) if item is not None)
    }


def do_conflict(one: ForwardEntry, other: ForwardEntry) -> bool:
    """The definition, without any cleverness."""
    mine, its = one.mappings[0], other.mappings[0]
    if mine.protocol is not its.protocol or not mine.host.overlaps(its.host):
        return False
    if one.interface and other.interface and one.interface != other.interface:
        return False
    return any(
        (family, listen) == (family_2, listen_2) and source.overlaps(source_2)
        for family, listen, source in claims(one)
        for family_2, listen_2, source_2 in claims(other)
    )


@given(entries())
def test_agrees_with_the_definition(found: list[ForwardEntry]) -> None:
    expected = {(two.origin.line, str(one.origin)) for one, two in combinations(found, 2) if do_conflict(one, two)}
    problems = find_conflicts(found)
    told = {(problem.line, problem.text.split(" claimed at ")[1].split(" ")[0]) for problem in problems}
    assert told == expected
    assert len(problems) == len(expected)


ENTRY = ForwardEntry("d", (), Origin(Path("x"), 1))


def numbered(number: int, first: int, last: int) -> tuple[PortMapping, ...]:
    ports = PortRange(first, last)
    return (PortMapping(ports, ports, Protocol.TCP, None, Origin(Path("x"), number + 1)),)


def many(kind: str, size: int) -> list[ForwardEntry]:
    base = int(ip_address("10.0.0.0"))
    lists = tuple(ip_network((base + number * 256, 24)) for number in range(5000))
    found = []
    for number in range(size):
        mappings = numbered(number, 80, 80)
        match kind:
            case "one port and many sources":
                entry = replace(ENTRY, mappings=mappings, sources=(ip_network(base + number),))
            case "many addresses":
                entry = replace(ENTRY, mappings=mappings, listen=(ip_address(base + number),))
            case "nested ranges":
                mappings = numbered(number, number + 1, 65535 - number)
                entry = replace(ENTRY, mappings=mappings, sources=(ip_network(base + number),))
            case _:
                entry = replace(ENTRY, mappings=numbered(number, number + 1, number + 1), sources=lists)
        found.append(entry)
    return found


@pytest.mark.parametrize(
    ("kind", "few", "all_of_them"),
    [
        ("one port and many sources", 200, 2_000),
        ("many addresses", 200, 2_000),
        ("nested ranges", 200, 2_000),
        ("long source lists", 5, 100),
    ],
)
def test_work_grows_with_the_configuration_and_not_with_its_square(kind: str, few: int, all_of_them: int) -> None:
    assert grows_no_faster(lambda size: partial(find_conflicts, many(kind, size)), few)
    assert find_conflicts(many(kind, all_of_them)) == []


def of_lengths(size: int, lengths: int) -> list[ForwardEntry]:
    """Entries with one port, for sources apart from each other and of so many prefix lengths."""
    base = int(ip_address("2001:db8::"))
    sources = [ip_network((base + (number << 64), 64 + number % lengths)) for number in range(size)]
    return [replace(ENTRY, mappings=numbered(number, 80, 80), sources=(each,)) for number, each in enumerate(sources)]


def test_work_does_not_grow_with_the_lengths_of_prefixes() -> None:
    few, many_lengths = (lines_run(partial(find_conflicts, of_lengths(1000, lengths))) for lengths in (1, 65))
    assert many_lengths < 2 * few


def passed_interfaces(size: int) -> list[ForwardEntry]:
    """Ports taken one by one on interfaces of their own, then on any, while one wide range holds them together."""
    texts = [forward('sources = ["10.9.9.9"]', '["1-65535"]')]
    for port in range(1, 2 * size + 1):
        interface = f'interface = "e{port}"\n' if port <= size else ""
        texts.append(forward(f'{interface}sources = ["192.0.2.1"]', f'["{port}"]'))
    return list(read("".join(texts)).forwards)


def test_claims_that_are_passed_cost_nothing_later() -> None:
    assert grows_no_faster(lambda size: partial(find_conflicts, passed_interfaces(size)), 200)
