"""A public address that is claimed twice, by `[[nat]]` or `[[route]]`."""

from functools import partial
from ipaddress import ip_address, ip_network
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.config.model import Entry, NatEntry, RouteEntry
from fwdaemon.config.overlap import MOST_CONFLICTS, find_public_conflicts
from fwdaemon.core.types import Origin, Subnet
from tests.unit.test_config_support import forward, nat, problems_of, route
from tests.unit.work import grows_no_faster

REMEDY = "; an address leads to one guest or network only, so take it out of one of the two"


@pytest.mark.parametrize(
    ("main", "drop_in", "message"),
    [
        (
            nat(),
            nat(),
            'a.toml:3: domain "mail": 198.51.100.8 is already claimed at /etc/portfwd.toml:3 for domain "mail"',
        ),
        (
            route('["203.0.113.64/29"]'),
            nat("203.0.113.70"),
            (
                'a.toml:3: domain "mail": 203.0.113.70 is in 203.0.113.64/29, which is already claimed at'
                ' /etc/portfwd.toml:3 for network "public"'
            ),
        ),
        (
            nat("2001:db8:1::7"),
            route('[\n"2001:db8::/64",\n"2001:db8:1::/64"]').replace('"public"', '"b\\nc"'),
            (
                'a.toml:5: network "b\\nc": 2001:db8:1::/64 contains 2001:db8:1::7, which is already claimed at'
                ' /etc/portfwd.toml:3 for domain "mail"'
            ),
        ),
        (
            route('["203.0.113.70/32"]'),
            nat("203.0.113.70"),
            'a.toml:3: domain "mail": 203.0.113.70 is already claimed at /etc/portfwd.toml:3 for network "public"',
        ),
        (
            "",
            route('["203.0.113.64/29",\n"203.0.113.64/29"]'),
            (
                'a.toml:4: network "public": 203.0.113.64/29 is already claimed at /etc/portfwd.d/a.toml:3'
                ' for network "public"'
            ),
        ),
        (
            "",
            route('["203.0.113.65",\n"203.0.113.64/29"]'),
            (
                'a.toml:4: network "public": 203.0.113.64/29 contains 203.0.113.65, which is already claimed at'
                ' /etc/portfwd.d/a.toml:3 for network "public"'
            ),
        ),
    ],
)
def test_names_both_places(main: str, drop_in: str, message: str) -> None:
    assert problems_of(main, drop_in) == [message + REMEDY]


def test_the_later_one_is_told_whatever_its_kind() -> None:
    assert [text.split(":")[1] for text in problems_of(route() + nat("203.0.113.66"))] == ["7"]
    assert [text.split(":")[1] for text in problems_of(nat("203.0.113.66") + route())] == ["7"]


@pytest.mark.parametrize(
    "text",
    [
        nat("198.51.100.8") + nat("198.51.100.9") + nat("2001:db8::8"),
        route('["203.0.113.64/29", "203.0.113.72/29", "2001:db8:1::/64"]') + nat("203.0.113.80"),
        nat("198.51.100.8") + forward('listen = "198.51.100.8"'),
        nat("198.51.100.8") + forward(ports='["198.51.100.8:80"]'),
        route('["203.0.113.64/29"]') + forward('listen = "203.0.113.65"'),
        # The same number, but not the same address.
        nat("203.0.113.64") + nat("::cb00:7140"),
    ],
)
def test_what_does_not_conflict(text: str) -> None:
    assert problems_of(text) == []


def test_no_conflict_is_made_up_from_an_entry_that_is_wrong() -> None:
    assert problems_of(nat() + nat(lines='asign = "eth0"')) == [
        'portfwd.toml:8: nat 2: unknown key "asign"; did you mean "assign"?'
    ]
    assert len(problems_of(nat() + nat(lines='address = "2001:db8::1"'))) == 1
    assert problems_of(route() + route(lines='prox = "eth0"')) == [
        'portfwd.toml:8: route 2: unknown key "prox"; did you mean "proxy"?'
    ]


def test_conflicts_are_told_beside_a_bad_element() -> None:
    assert [text.split(":")[1] for text in problems_of(route() + route('["x",\n"203.0.113.65"]'))] == ["7", "8"]


def test_many_conflicts_are_cut_short() -> None:
    problems = problems_of(nat() * 1000 + route('["198.51.100.0/24"]') * 1000)
    assert len(problems) == MOST_CONFLICTS + 1
    assert sum("there are more than 100 conflicts; fix those listed" in text for text in problems) == 1


def entry(line: int, subnet: Subnet) -> Entry:
    """A 1:1 address or a route, whose line is its number."""
    origin = Origin(Path("x"), line)
    if subnet.prefixlen == subnet.max_prefixlen and line % 2:
        return NatEntry("d", subnet.network_address, origin)
    return RouteEntry("n", subnet, origin)


SUBNETS = st.one_of(
    st.tuples(st.integers(0, 15), st.integers(28, 32)).map(lambda drawn: ip_network(drawn, strict=False)),
    st.tuples(st.integers(0, 15), st.integers(124, 128)).map(
        lambda drawn: ip_network((drawn[0] + (1 << 64), drawn[1]), strict=False)
    ),
)


@given(st.lists(SUBNETS, max_size=8))
def test_agrees_with_the_definition(subnets: list[Subnet]) -> None:
    numbered = list(enumerate(subnets, 1))
    expected = sorted((two, f"x:{one}") for (one, a), (two, b) in combinations(numbered, 2) if a.overlaps(b))
    problems = find_public_conflicts([entry(line, subnet) for line, subnet in numbered])
    assert sorted((item.line, item.text.split(" claimed at ")[1].split(" ")[0]) for item in problems) == expected


def many(kind: str, size: int) -> list[Entry]:
    base = int(ip_address("10.0.0.0"))
    subnets: dict[str, list[Subnet]] = {
        "apart": [ip_network(base + number) for number in range(size)],
        "all the same": [ip_network(base)] * size,
        "nested": [ip_network((base, 8 + number % 25)) for number in range(size)],
    }
    return [entry(number, subnet) for number, subnet in enumerate(subnets[kind], 1)]


@pytest.mark.parametrize("kind", ["apart", "all the same", "nested"])
def test_work_grows_with_the_configuration_and_not_with_its_square(kind: str) -> None:
    assert grows_no_faster(lambda size: partial(find_public_conflicts, many(kind, size)), 200)
    assert len(find_public_conflicts(many(kind, 2_000))) == (0 if kind == "apart" else MOST_CONFLICTS + 1)
