"""The places of a crowd: who moved last keeps its own."""

import asyncio
from collections.abc import Awaitable, Callable

from fwdaemon.metrics.listener import Crowd


async def stay(crowd: Crowd) -> None:
    task = asyncio.current_task()
    assert task is not None
    with crowd.joined_by(task):
        await asyncio.Event().wait()


async def joined(crowd: Crowd, count: int) -> list[asyncio.Task[None]]:
    """Let tasks join one after the other."""
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(stay(crowd)))
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


def with_crowd(most: int, play: Callable[[Crowd], Awaitable[list[asyncio.Task[None]]]]) -> list[bool]:
    """Give which of the tasks were cancelled."""

    async def scene() -> list[bool]:
        tasks = await play(Crowd(most))
        cancelled = [task.cancelled() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return cancelled

    return asyncio.run(scene())


def test_the_first_goes_when_all_are_still() -> None:
    assert with_crowd(2, lambda crowd: joined(crowd, 3)) == [True, False, False]


def test_one_that_moved_stays_and_a_slower_one_goes() -> None:
    async def play(crowd: Crowd) -> list[asyncio.Task[None]]:
        tasks = await joined(crowd, 2)
        crowd.moved(tasks[0])
        return [*tasks, *await joined(crowd, 1)]

    assert with_crowd(2, play) == [False, True, False]


def test_one_that_has_lost_its_place_takes_none() -> None:
    async def play(crowd: Crowd) -> list[asyncio.Task[None]]:
        tasks = await joined(crowd, 2)
        crowd.moved(tasks[0])
        return [*tasks, *await joined(crowd, 1)]

    assert with_crowd(1, play) == [True, True, False]


def test_one_that_left_makes_place() -> None:
    async def play(crowd: Crowd) -> list[asyncio.Task[None]]:
        (left,) = await joined(crowd, 1)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        return await joined(crowd, 2)

    assert with_crowd(2, play) == [False, False]
