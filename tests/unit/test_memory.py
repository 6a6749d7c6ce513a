"""What Python keeps for later is given back, now and then."""

import gc
from collections.abc import Iterator

import pytest

from fwdaemon.kernel import memory


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time that the module is told; the collector is left as it was."""
    now = [0.0]
    monkeypatch.setattr("fwdaemon.kernel.memory.time.monotonic", lambda: now[0])
    monkeypatch.setattr(memory._Collection, "at", None)  # noqa: SLF001  as in a program that has just begun
    yield now
    gc.unfreeze()


def full_collections() -> int:
    collections: int = gc.get_stats()[2]["collections"]
    return collections


def test_all_objects_are_looked_through_once_a_minute_at_most(clock: list[float]) -> None:
    before = full_collections()
    memory.give_back()
    memory.give_back()
    clock[0] = 59.0
    memory.give_back()
    assert full_collections() == before + 1
    clock[0] = 60.0
    memory.give_back()
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


def test_what_is_there_from_the_start_is_looked_through_once(clock: list[float]) -> None:
    memory.give_back()
    frozen = gc.get_freeze_count()
    assert frozen > 0
    later = [[number] for number in range(10)]
    clock[0] = 60.0
    memory.give_back()
    assert gc.get_freeze_count() <= frozen
    assert later in gc.get_objects()
