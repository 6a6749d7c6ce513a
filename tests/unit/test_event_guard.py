"""Where libvirt sends more events than may be received, it sends none, and domains are listed meanwhile."""

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from fwdaemon.triggers import STOCK_OF_EVENTS_S, Budgets
from tests.unit.event_bench import URI, Bench, asked, bench, holds, lists
from tests.unit.test_events_testdriver import WEB1

LISTED = "domains and networks were listed"


@dataclass
class Clock:
    """Of the budget."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def driver() -> Iterator[libvirt.virConnect]:
    """Another client of the driver; while it is open, the driver keeps its state."""
    connection = libvirt.open(URI)
    yield connection
    connection.close()


def start(driver: libvirt.virConnect, number: int) -> libvirt.virDomain:
    return driver.createXML(WEB1.replace("web1", f"web{number}").replace(":01", f":{number:02x}"))


async def flood(keeping: Bench, driver: libvirt.virConnect, budgets: Budgets) -> None:
    """Have more been received than may be, and libvirt send no more."""
    budgets.events.spent(STOCK_OF_EVENTS_S + 1.0)
    start(driver, 1)
    await keeping.until(LISTED)
    assert await keeping.running() == {"test", "web1"}
    keeping.reasons.clear()


async def listed_again(keeping: Bench) -> None:
    keeping.reasons.clear()
    await keeping.until(LISTED)


def test_domains_are_listed_in_a_flood_and_events_received_after_it(tmp_path: Path, driver: libvirt.virConnect) -> None:
    clock = Clock()
    budgets = Budgets.new(clock, nullcontext)

    async def scenario() -> None:
        async with bench(tmp_path, budgets=budgets) as keeping:
            await keeping.until("answers")
            assert await keeping.running() == {"test"}
            await flood(keeping, driver, budgets)
            web2 = start(driver, 2)
            await holds(lambda: len(keeping.reasons) > 1)
            assert all(LISTED in reason for reason in keeping.reasons)
            assert await keeping.running() == {"test", "web1", "web2"}
            web2.destroy()
            await listed_again(keeping)
            assert await keeping.running() == {"test", "web1"}
            clock.now += 60.0
            await holds(lambda: keeping.keeper.listens)
            assert await keeping.running() == {"test", "web1"}
            keeping.reasons.clear()
            start(driver, 3)
            await keeping.until("domain web3 started")

    asyncio.run(scenario())


def test_a_domain_that_runs_on_is_not_asked_again_until_events_are_received(
    tmp_path: Path, driver: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    budgets = Budgets.new(clock, nullcontext)

    async def scenario() -> None:
        async with bench(tmp_path, budgets=budgets) as keeping:
            await keeping.until("answers")
            assert await keeping.running() == {"test"}
            await flood(keeping, driver, budgets)
            names = asked(monkeypatch)
            web2 = start(driver, 2)
            await listed_again(keeping)
            assert await keeping.running() == {"test", "web1", "web2"}
            assert names == ["web2"]
            web2.destroy()
            start(driver, 2)
            await listed_again(keeping)
            assert await keeping.running() == {"test", "web1", "web2"}
            assert names == ["web2", "web2"], "this is another run of it"
            clock.now += 60.0
            await holds(lambda: keeping.keeper.listens)
            assert await keeping.running() == {"test", "web1", "web2"}
            assert sorted(names) == ["test", "web1", "web2", "web2", "web2"]

    asyncio.run(scenario())


def test_very_many_new_domains_are_listed_and_not_asked_for_one_by_one(
    tmp_path: Path, driver: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as keeping:
            await keeping.until("answers")
            assert await keeping.running() == {"test"}
            listings = lists(monkeypatch)
            for number in range(1, 102):
                start(driver, number)
            await keeping.until("domain web101 started")
            assert len(await keeping.running()) == 102
            assert listings

    asyncio.run(scenario())
