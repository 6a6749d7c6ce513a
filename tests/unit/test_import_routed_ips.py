"""`routed-ips`: each line is a route, also those the old hook passed over without a word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.importing.routed_ips import parse
from tests.unit.imports import FILE, accepted, warnings

SAMPLE = """\
# IP address     libvirt network

203.0.113.66     public
  203.0.113.72/29\tpublic\r
2001:db8:1::/64  public
2001:db8:2::7    public_2
"""


def routes(text: str) -> list[str]:
    return [f"{route.subnet} {route.network} at {route.origin.line}" for route in parse(FILE, text).routes]


def test_either_family_with_or_without_a_prefix_length() -> None:
    assert routes(SAMPLE) == [
        "203.0.113.66/32 public at 3",
        "203.0.113.72/29 public at 4",
        "2001:db8:1::/64 public at 5",
        "2001:db8:2::7/128 public_2 at 6",
    ]
    assert warnings(parse(FILE, SAMPLE)) == []


@pytest.mark.parametrize(
    ("line", "route"),
    [
        ("203.0.113.66 public-net", "203.0.113.66/32 public-net at 1"),
        ("203.0.113.66 public.net", "203.0.113.66/32 public.net at 1"),
        ("203.0.113.66 public # mail", "203.0.113.66/32 public at 1"),
    ],
)
def test_what_the_old_hook_passed_over_is_imported_and_remarked(line: str, route: str) -> None:
    assert routes(line) == [route]
    assert warnings(parse(FILE, line)) == [
        f'1: "{line}" is imported, though the old hook passed over lines of this form'
    ]


@pytest.mark.parametrize(
    "line", ["203.0.113.66", "203.0.113.66 a b", "host public", "203.0.113.66/24 public", "0.0.0.0/0 public"]
)
def test_what_cannot_be_a_route_is_left_out_with_a_warning(line: str) -> None:
    assert routes(line) == []
    assert len(warnings(parse(FILE, line))) == 1


def test_one_address_for_two_networks_goes_to_the_first() -> None:
    config = accepted([parse(FILE, "203.0.113.66 one\n203.0.113.64/29 two\n203.0.113.66 one\n")])
    assert [(str(route.subnet), route.network) for route in config.routes] == [("203.0.113.66/32", "one")]


LINE = st.text(alphabet="0123456789.:/# abx\r\"'\x00\x1b", max_size=30)


@given(st.lists(LINE | st.text(max_size=30) | st.just("203.0.113.66 x"), max_size=6).map("\n".join))
def test_any_text_gives_a_configuration_that_is_accepted(text: str) -> None:
    accepted([parse(FILE, text)])
