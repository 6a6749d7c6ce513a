"""A client that asks for a reload gets the outcome of the one that began after that."""

import asyncio
from pathlib import Path
from uuid import UUID

from fwdaemon.core.types import Family
from fwdaemon.errors import Problem
from fwdaemon.resolve.guests import Chosen
from fwdaemon.status.reloads import Reloaded, Reloads, Written

PROBLEM = Problem(Path("/etc/portfwd.toml"), 1, "unknown key")


def test_a_reload_is_asked_for_and_answered() -> None:
    async def scene() -> None:
        woken: list[bool] = []
        reloads = Reloads(lambda: woken.append(True))
        asking = [asyncio.ensure_future(reloads.ask()) for _ in range(2)]
        await asyncio.sleep(0)
        assert woken == [True, True]
        reloads.begin()
        reloads.read()
        reloads.pass_ended()
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
        reloads.pass_ended()
        await asyncio.sleep(0)
        assert not first.done()
        reloads.read()
        reloads.refused([PROBLEM])
        assert await first == Reloaded(problems=(PROBLEM,))
        reloads.pass_ended()
        await asyncio.sleep(0)
        assert not second.done()
        reloads.begin()
        reloads.read()
        reloads.pass_ended("nft failed")
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
        reloads.read()
        reloads.pass_ended()

    asyncio.run(scene())


def test_what_cannot_be_written_is_written_later_unless_there_is_something_newer(tmp_path: Path) -> None:
    state = tmp_path / "state"

    async def scene() -> None:
        state.write_text("no directory")
        written = Written(tmp_path / "portfwd.toml", state, tmp_path / "run", 0.01)
        written.keep({tmp_path / "portfwd.toml": b"first"})
        written.keep({tmp_path / "portfwd.toml": b"second"})
        await asyncio.sleep(0.03)
        state.unlink()
        async with asyncio.timeout(60):
            while not (state / "last-good.json").exists():  # noqa: ASYNC110  a thread writes it
                await asyncio.sleep(0.01)
        await written.close(5.0)
        assert "second" in (state / "last-good.json").read_text()

    asyncio.run(scene())


def test_choices_are_kept_where_they_are_new(tmp_path: Path) -> None:
    chosen = {(UUID(int=1), Family.IPV4): "52:54:00:00:00:01"}

    async def scene(*choices: Chosen) -> Chosen:
        written = Written(tmp_path / "portfwd.toml", tmp_path / "state", tmp_path / "run", 0.01)
        before = written.choice
        for choice in choices:
            written.keep_choice(choice)
        await written.close(5.0)
        return before

    assert asyncio.run(scene({})) == {}
    assert not (tmp_path / "run").exists()
    assert asyncio.run(scene(chosen)) == {}
    assert asyncio.run(scene()) == chosen
