"""Who asks for a reload is told what came of the one that began after that."""

import asyncio
from pathlib import Path

from fwdaemon.errors import Problem
from fwdaemon.reloads import Reloaded, Reloads

PROBLEM = Problem(Path("/etc/portfwd.toml"), 1, "unknown key")


def test_a_reload_is_asked_for_and_answered() -> None:
    async def scene() -> None:
        woken: list[bool] = []
        reloads = Reloads(lambda: woken.append(True))
        asking = [asyncio.ensure_future(reloads.ask()) for _ in range(2)]
        await asyncio.sleep(0)
        assert woken == [True, True]
        reloads.begin()
        reloads.looked()
        assert await asyncio.gather(*asking) == [Reloaded(), Reloaded()]

    asyncio.run(scene())


def test_who_asks_in_the_middle_waits_for_the_next_one() -> None:
    async def scene() -> None:
        reloads = Reloads(lambda: None)
        first = asyncio.ensure_future(reloads.ask())
        await asyncio.sleep(0)
        reloads.begin()
        second = asyncio.ensure_future(reloads.ask())
        await asyncio.sleep(0)
        reloads.refused([PROBLEM])
        assert await first == Reloaded(problems=(PROBLEM,))
        reloads.looked()
        await asyncio.sleep(0)
        assert not second.done()
        reloads.begin()
        reloads.looked("nft failed")
        assert await second == Reloaded(failure="nft failed")

    asyncio.run(scene())


def test_who_has_left_is_not_answered() -> None:
    async def scene() -> None:
        reloads = Reloads(lambda: None)
        asking = asyncio.ensure_future(reloads.ask())
        await asyncio.sleep(0)
        reloads.begin()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        reloads.looked()

    asyncio.run(scene())
