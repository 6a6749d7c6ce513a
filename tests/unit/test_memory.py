"""What Python keeps for later is given back, now and then."""

import gc
from collections.abc import Iterator

import pytest

from fwdaemon.kernel import memory
from fwdaemon.kernel.memory import Thrift


class Clock:
    """A time that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    """Leave the collector as it was."""
    yield Clock()
    gc.unfreeze()


def full_collections() -> int:
    collections: int = gc.get_stats()[2]["collections"]
    return collections


def test_all_objects_are_looked_through_once_a_minute_at_most(clock: Clock) -> None:
    thrift, before = Thrift(clock), full_collections()
    thrift.give_back()
    thrift.give_back()
    clock.now = 59.0
    thrift.give_back()
    assert full_collections() == before + 1
    clock.now = 60.0
    thrift.give_back()
    assert full_collections() == before + 2


def test_new_objects_are_looked_through_once_at_the_end() -> None:
    def young() -> int:
        collections: int = gc.get_stats()[0]["collections"]
        return collections

    before = young()
    with memory.collecting_later():
        kept = [[number] for number in range(100_000)]
        assert young() == before
    assert young() == before + 1
    assert gc.isenabled()
    assert len(kept) == 100_000


def test_objects_are_looked_through_again_after_a_mistake() -> None:
    with pytest.raises(ZeroDivisionError), memory.collecting_later():
        _ = 1 / 0
    assert gc.isenabled()


def test_what_is_there_from_the_start_is_looked_through_once(clock: Clock) -> None:
    thrift = Thrift(clock)
    thrift.give_back()
    frozen = gc.get_freeze_count()
    assert frozen > 0
    later = [[number] for number in range(10)]
    clock.now = 60.0
    thrift.give_back()
    assert gc.get_freeze_count() <= frozen
    assert later in gc.get_objects()
