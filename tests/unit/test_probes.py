"""When bridges are asked: not at once, with growing pauses, only while a guest is wanted, and soon for a newcomer."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from ipaddress import ip_address, ip_network
from queue import SimpleQueue

from fwdaemon.core.inventory import HostAddress, Inventory
from fwdaemon.core.state import Silent
from fwdaemon.core.types import Family
from fwdaemon.kernel.probes import Probes, heard
from fwdaemon.kernel.process import budget_of_guests
from fwdaemon.resolve.neighbours import Answer, Question
from fwdaemon.triggers import SHARE, STOCK_S, Budget

WEB, DB = (Silent("virbr0", f"52:54:00:00:00:0{number}", Family.IPV4) for number in (1, 2))
HOST = HostAddress(ip_address("192.168.122.1"), ip_network("192.168.122.0/30"), "virbr0")
INVENTORY = Inventory(host_addresses=(HOST,))


class Asked:
    """Notes what is asked, on the worker's thread."""

    def __init__(self) -> None:
        self.questions: SimpleQueue[Question] = SimpleQueue()

    def __call__(self, question: Question) -> tuple[Answer, ...]:
        self.questions.put(question)
        return ()

    async def next(self) -> Question:
        return await asyncio.to_thread(self.questions.get, timeout=10)


@asynccontextmanager
async def searching(budget: Budget | None = None) -> AsyncIterator[tuple[Probes, Asked]]:
    asked = Asked()
    keeping = Probes(asked, budget or budget_of_guests(), first=0.01)
    try:
        yield keeping, asked
    finally:
        await keeping.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}


def run(scenario: Callable[[Probes, Asked], object]) -> None:
    async def go() -> None:
        async with searching() as (keeping, asked):
            await scenario(keeping, asked)  # type: ignore[misc]  # a coroutine function

    asyncio.run(go())


def test_who_is_wanted_is_asked_for_again_and_again() -> None:
    async def scenario(keeping: Probes, asked: Asked) -> None:
        keeping.want({WEB}, INVENTORY)
        for _ in range(3):
            assert (await asked.next()).macs == {WEB.mac}

    run(scenario)


def test_who_was_found_is_asked_for_no_more() -> None:
    async def scenario(keeping: Probes, asked: Asked) -> None:
        keeping.want({WEB}, INVENTORY)
        await asked.next()
        keeping.want((), INVENTORY)
        await asyncio.sleep(0.1)
        assert asked.questions.qsize() <= 1, "a question that was under way"

    run(scenario)


def test_a_newcomer_does_not_wait_for_the_end_of_a_long_pause() -> None:
    async def scenario(keeping: Probes, asked: Asked) -> None:
        keeping.want({WEB}, INVENTORY)
        await asked.next()
        for search in keeping._searches.values():  # noqa: SLF001  as after hours of silence
            search.pauses.pause = search.due = asyncio.get_running_loop().time() + 3600
        keeping.want({WEB, DB}, INVENTORY)
        while (await asked.next()).macs != {WEB.mac, DB.mac}:
            pass

    run(scenario)


def test_nobody_is_wanted_and_no_thread_is_begun() -> None:
    async def scenario(keeping: Probes, asked: Asked) -> None:
        keeping.want((), INVENTORY)
        assert asked.questions.empty()

    run(scenario)


def test_nobody_is_asked_for_while_guests_have_spent_their_budget() -> None:
    async def scenario() -> None:
        now = [0.0]
        budget = Budget(lambda: now[0])
        budget.spent(STOCK_S + SHARE)
        async with searching(budget) as (keeping, asked):
            keeping.want({WEB}, INVENTORY)
            await asyncio.sleep(0.1)
            assert asked.questions.empty()
            now[0] = 60.0
            keeping.want({WEB}, INVENTORY)
            assert (await asked.next()).macs == {WEB.mac}

    asyncio.run(scenario())


def received(link: socket.socket) -> Answer:
    return Answer(WEB.mac, ip_address(f"192.0.2.{link.recv(1)[0]}"))


def test_a_flood_of_answers_is_read_in_part() -> None:
    """The rest stays in the kernel, which drops what it has no room for."""
    budget = Budget(lambda: 0.0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with closing(ours), closing(theirs):
        for number in range(10):
            theirs.send(bytes([number]))
        budget.spent(STOCK_S)
        assert [str(answer.address) for answer in heard(budget, ours, 0.01, received)] == ["192.0.2.0"]
        assert ours.recv(1) == b"\1"
