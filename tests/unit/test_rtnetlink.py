"""Messages of rtnetlink, taken apart and put together, and what becomes of listings that change meanwhile."""

import gc
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from fwdaemon.errors import KernelError
from fwdaemon.kernel.netlink import Message, attribute, attributes, messages, number, packed
from fwdaemon.kernel.rtnetlink import Entry, Kind, RefusedError, Rtnetlink


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.binary(max_size=40))))
def test_what_is_put_together_comes_apart(parts: list[tuple[int, int, bytes]]) -> None:
    datagram = b""
    for kind, sequence, body in parts:
        datagram += packed(kind, 5, sequence, body) + bytes(-len(body) % 4)
    assert list(messages(datagram)) == [Message(kind, 5, sequence, 0, body) for kind, sequence, body in parts]


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40)))
def test_attributes_come_apart(parts: dict[int, bytes]) -> None:
    assert attributes(b"".join(attribute(kind, value) for kind, value in parts.items())) == parts


def test_how_a_value_is_written_is_no_part_of_its_type() -> None:
    assert attributes(attribute(0x8000 | 12, b"nested")) == {12: b"nested"}


@given(st.binary(max_size=200))
def test_no_datagram_is_too_odd(datagram: bytes) -> None:
    for message in messages(datagram):
        attributes(message.body)
    attributes(datagram)


def test_a_number_that_is_not_there() -> None:
    assert number(None) is None
    assert number((7).to_bytes(4, sys.byteorder)) == 7


INTERRUPTED = 0x10


class Asked:
    """A socket that answers each question with the next of some listings: the flags of the end, and what is raised."""

    def __init__(self, *listings: tuple[int, Exception | None]) -> None:
        self._listings = list(listings)
        self.asked = 0

    def message(self, _kind: int) -> dict[str, Any]:
        return {}

    def ask(
        self, _message: object, _kind: int, _flags: int, noted: Callable[[Any], None]
    ) -> Iterable[dict[str, object]]:
        flags, error = self._listings[self.asked]
        self.asked += 1
        yield {"family": self.asked, "attrs": [("RTA_OIF", 3)]}
        noted({"header": {"flags": flags}})
        if error is not None:
            raise error

    def close(self) -> None:
        """Nothing is open."""


def listed(asked: Asked) -> list[Entry]:
    with Rtnetlink(lambda: asked) as kernel:
        return kernel.entries(Kind.ROUTE, {"family": 2})


@pytest.mark.parametrize("error", [None, NetlinkDumpInterrupted()])
def test_what_changed_while_it_was_listed_is_listed_again(error: Exception | None) -> None:
    asked = Asked((INTERRUPTED, error), (0, None))
    assert [entry.fields["family"] for entry in listed(asked)] == [2]
    assert asked.asked == 2


@pytest.mark.parametrize("error", [None, NetlinkDumpInterrupted()])
def test_of_what_changes_without_end_the_last_that_was_seen_has_to_do(error: Exception | None) -> None:
    asked = Asked(*[(INTERRUPTED, error)] * 3)
    (entry,) = listed(asked)
    assert (entry.fields["family"], entry.attributes, asked.asked) == (3, {"RTA_OIF": 3}, 3)


def test_a_table_that_nobody_made_is_empty_and_any_other_refusal_is_an_error() -> None:
    assert len(listed(Asked((0, NetlinkError(2))))) == 1
    with pytest.raises(RefusedError, match="not permitted") as refused:
        listed(Asked((0, NetlinkError(1))))
    assert refused.value.number == 1


@contextmanager
def left(number: int) -> Iterator[None]:
    """Leave so many more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_one = os.open("/", os.O_PATH)
    os.close(next_one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one + number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ask() -> None:
    """Ask for the loopback interface, which opens a socket of pyroute2."""
    with Rtnetlink() as kernel:
        assert kernel.entry(Kind.LINK, {"index": 1}, {})


def test_nothing_is_opened_before_the_first_question() -> None:
    before = opened()
    with Rtnetlink():
        assert opened() == before


def opened() -> list[str]:
    gc.collect()
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", range(6))
def test_where_descriptors_are_few_none_is_lost_and_nothing_is_written(
    number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    ask()  # the library is loaded before
    gc.freeze()  # what was there before need not be looked through each time
    before = opened()
    with left(number), suppress(KernelError):  # which number is enough depends on the release
        ask()
    assert opened() == before
    assert capfd.readouterr().err == ""
