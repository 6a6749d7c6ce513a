"""Guest agents are asked in the background, and only as often as makes sense."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import Any
from uuid import UUID

import pytest

from fwdaemon.core.inventory import AddressSource, Domain, LearnedAddress, MacClaim, ObservedDomain
from fwdaemon.errors import LibvirtUnavailableError
from fwdaemon.hypervisor.guest_addresses import AgentRounds, Recall, agent_claims
from fwdaemon.kernel.process import budget_of_guests
from fwdaemon.triggers import SHARE, STOCK_S, Budget
from tests.unit.saying import said

MAC = "52:54:00:00:00:01"
WEB1 = ObservedDomain(Domain("web1", UUID(int=1), running=True), instance=7, agent_connected=True)
WEB2 = ObservedDomain(Domain("web2", UUID(int=2), running=True), instance=8, agent_connected=True)
WEB3 = ObservedDomain(Domain("web3", UUID(int=3), running=True), instance=9, agent_connected=True)


def claims(address: str) -> tuple[MacClaim, ...]:
    return (MacClaim(MAC, LearnedAddress(ip_address(address), AddressSource.AGENT)),)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  it is another thread that makes it true
            await asyncio.sleep(0.001)


class Guests:
    """Agents whose answers a test decides; `None` is no answer. One of `hanging` is waited for until its event."""

    def __init__(self) -> None:
        self.answer: dict[UUID, tuple[MacClaim, ...] | None] = {}
        self.hanging: dict[UUID, threading.Event] = {}
        self.asked: list[UUID] = []
        self.closed = False
        self.burns = 0.0  # processor time that each answer takes

    def hang(self, domain: ObservedDomain) -> threading.Event:
        return self.hanging.setdefault(domain.domain.uuid, threading.Event())

    async def wait_asked(self, *domains: ObservedDomain) -> None:
        """Wait until these, and no others, have been asked, in this order."""
        await until(lambda: self.asked == [seen.domain.uuid for seen in domains])

    def addresses(self, domain: UUID) -> tuple[MacClaim, ...]:
        self.asked.append(domain)
        began = time.thread_time()
        while time.thread_time() < began + self.burns:
            pass
        if domain in self.hanging:
            # A wait for it on the thread of the test never sees the event.
            assert self.hanging[domain].wait(10)
        answer = self.answer.get(domain)
        if answer is None:
            raise LibvirtUnavailableError("the guest agent did not answer")
        return answer

    def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def asking(
    guests: Guests, recall: Recall = lambda _seen: (), budget: Budget | None = None, first_retry: float = 2.0
) -> AsyncIterator[tuple[AgentRounds, "asyncio.Queue[str]"]]:
    reasons: asyncio.Queue[str] = asyncio.Queue()
    threads = set(threading.enumerate())
    rounds = AgentRounds(
        "test:///default",
        guests,
        lambda reason: reasons.put_nowait(said(reason)),
        budget or budget_of_guests(),
        recall,
        first_retry,
    )
    try:
        yield rounds, reasons
    finally:
        await rounds.close()
        assert set(threading.enumerate()) == threads
        assert asyncio.all_tasks() == {asyncio.current_task()}


def test_an_answer_is_told_and_kept() -> None:
    async def scenario() -> None:
        guests = Guests()
        guests.answer[WEB1.domain.uuid] = claims("192.168.122.50")
        async with asking(guests) as (rounds, reasons):
            rounds.update([WEB1, WEB2])
            rounds.want([WEB1])
            assert await asyncio.wait_for(reasons.get(), 5) == "guest agent of domain web1 reported its addresses"
            assert rounds.answers()[WEB1.domain.uuid] == claims("192.168.122.50")
            rounds.update([replace(WEB1, agent_connected=False)])
            assert rounds.answers()[WEB1.domain.uuid] == claims("192.168.122.50"), "an agent may be updated"
            rounds.want([WEB1])
            await asyncio.sleep(0.05)
            assert guests.asked == [WEB1.domain.uuid]
        assert guests.closed

    asyncio.run(scenario())


def test_what_the_daemon_before_heard_counts_until_the_agent_answers() -> None:
    async def scenario() -> None:
        guests, before = Guests(), {(WEB1.domain.uuid, WEB1.instance): claims("192.168.122.50")}
        async with asking(guests, lambda seen: before.get((seen.domain.uuid, seen.instance), ())) as (rounds, reasons):
            rounds.update([WEB1])
            rounds.want([WEB1])
            await guests.wait_asked(WEB1)
            assert rounds.answers() == {WEB1.domain.uuid: claims("192.168.122.50")}, "it hangs"
            guests.answer[WEB1.domain.uuid] = claims("192.168.122.51")
            rounds.update([replace(WEB1, agent_connected=False)])
            rounds.update([WEB1])
            rounds.want([WEB1])
            await asyncio.wait_for(reasons.get(), 5)
            assert rounds.answers() == {WEB1.domain.uuid: claims("192.168.122.51")}
            rounds.update([replace(WEB1, instance=9)])
            assert rounds.answers() == {WEB1.domain.uuid: ()}

    asyncio.run(scenario())


def test_what_was_known_first_stays_first() -> None:
    async def scenario() -> None:
        guests, old, new = Guests(), claims("2001:db8::9:9:9:9"), claims("2001:db8::1:1:1:1")
        guests.answer[WEB1.domain.uuid] = (*new, *old)
        async with asking(guests, lambda _seen: old) as (rounds, reasons):
            rounds.update([WEB1])
            rounds.want([WEB1])
            await asyncio.wait_for(reasons.get(), 5)
            assert rounds.answers() == {WEB1.domain.uuid: (*old, *new)}

    asyncio.run(scenario())


def test_another_run_of_the_domain_begins_anew() -> None:
    async def scenario() -> None:
        guests = Guests()
        guests.answer[WEB1.domain.uuid] = claims("192.168.122.50")
        async with asking(guests) as (rounds, reasons):
            rounds.update([WEB1])
            rounds.want([WEB1])
            await asyncio.wait_for(reasons.get(), 5)
            rounds.update([replace(WEB1, instance=9)])
            assert rounds.answers() == {WEB1.domain.uuid: ()}
            rounds.update([replace(WEB1, instance=-1)])
            assert rounds.answers() == {}

    asyncio.run(scenario())


def test_an_agent_that_returns_is_asked_at_once() -> None:
    async def scenario() -> None:
        guests = Guests()
        async with asking(guests) as (rounds, reasons):
            rounds.update([WEB1])
            rounds.want([WEB1])
            await asyncio.sleep(0.05)
            assert guests.asked == [WEB1.domain.uuid]
            guests.answer[WEB1.domain.uuid] = claims("192.168.122.50")
            rounds.update([replace(WEB1, agent_connected=False)])
            rounds.update([WEB1])
            rounds.want([WEB1])
            await asyncio.wait_for(reasons.get(), 5)

    asyncio.run(scenario())


def test_an_agent_that_hangs_delays_other_agents_and_nobody_else() -> None:
    """For how long is up to libvirt, which ends the wait."""

    async def scenario() -> None:
        guests = Guests()
        given_up = guests.hang(WEB1)
        guests.answer[WEB2.domain.uuid] = claims("192.168.122.51")
        async with asking(guests) as (rounds, reasons):
            rounds.update([WEB1, WEB2])
            rounds.want([WEB1, WEB2])
            await guests.wait_asked(WEB1)
            rounds.update([WEB1, WEB2, WEB3])
            rounds.want([WEB1, WEB2])
            assert set(rounds.answers().values()) == {()}
            assert reasons.empty()
            given_up.set()
            assert await asyncio.wait_for(reasons.get(), 5) == "guest agent of domain web2 reported its addresses"
            assert guests.asked == [WEB1.domain.uuid, WEB2.domain.uuid]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "again",
    [(replace(WEB1, agent_connected=False), WEB1), (replace(WEB1, instance=70),)],
    ids=["its agent", "the guest itself"],
)
def test_who_hangs_and_begins_anew_goes_behind_those_that_wait(again: tuple[ObservedDomain, ...]) -> None:
    """Or two guests that do so by turns would keep all others from being asked."""

    async def scenario() -> None:
        guests = Guests()
        first, second = guests.hang(WEB1), guests.hang(WEB2)
        guests.answer[WEB3.domain.uuid] = claims("192.168.122.52")
        async with asking(guests) as (rounds, reasons):
            rounds.update([WEB1, WEB2, WEB3])
            rounds.want([WEB1, WEB2, WEB3])
            await guests.wait_asked(WEB1)
            first.set()
            await guests.wait_asked(WEB1, WEB2)
            for seen in again:
                rounds.update([seen, WEB2, WEB3])
            rounds.want([WEB1, WEB2, WEB3])
            second.set()
            assert await asyncio.wait_for(reasons.get(), 5) == "guest agent of domain web3 reported its addresses"
            assert guests.asked[:3] == [WEB1.domain.uuid, WEB2.domain.uuid, WEB3.domain.uuid]

    asyncio.run(scenario())


def test_a_silent_agent_is_asked_again_and_ever_more_seldom() -> None:
    async def scenario() -> None:
        guests = Guests()
        guests.answer[WEB2.domain.uuid] = claims("192.168.122.51")
        async with asking(guests, first_retry=0.02) as (rounds, reasons):
            rounds.update([WEB1, WEB2])
            rounds.want([WEB1, WEB2])
            assert await asyncio.wait_for(reasons.get(), 5) == "guest agent of domain web2 reported its addresses"
            await until(lambda: guests.asked.count(WEB1.domain.uuid) >= 4)
            record = rounds._records[WEB1.domain.uuid]  # noqa: SLF001 - the pause itself, and no clock
            assert record.retries.pause >= 0.02 * 2**3, "the pauses double"
            assert guests.asked.count(WEB2.domain.uuid) == 1

    asyncio.run(scenario())


def test_nobody_is_asked_unless_wanted() -> None:
    async def scenario() -> None:
        guests = Guests()
        async with asking(guests) as (rounds, _reasons):
            rounds.update([WEB1])
            rounds.want([])
            await asyncio.sleep(0.02)
            assert guests.asked == []

    asyncio.run(scenario())


def test_what_an_agent_says_is_read_with_care() -> None:
    answer: dict[str, dict[str, Any]] = {
        "lo": {"hwaddr": None, "addrs": [{"addr": "127.0.0.1", "prefix": 8, "type": 0}]},
        "eth0": {
            "hwaddr": MAC.upper(),
            "addrs": [{"addr": "192.168.122.50", "prefix": 24, "type": 0}, {"addr": "not an address"}, {}],
        },
        "eth1": {"hwaddr": "nonsense", "addrs": [{"addr": "192.168.122.51"}]},
        "eth2": {"hwaddr": MAC, "addrs": None},
    }
    assert agent_claims(answer) == claims("192.168.122.50")


def test_an_agent_may_name_64_addresses() -> None:
    addresses = [{"addr": f"10.0.{number // 256}.{number % 256}"} for number in range(2000)]
    assert len(agent_claims({"eth0": {"hwaddr": MAC, "addrs": addresses}})) == 64


def test_no_agent_is_asked_while_guests_have_spent_their_budget() -> None:
    async def scenario() -> None:
        guests, now = Guests(), [0.0]
        budget = Budget(lambda: now[0])
        budget.spent(STOCK_S + SHARE)
        async with asking(guests, budget=budget) as (rounds, _):
            rounds.update([WEB1])
            rounds.want([WEB1])
            await asyncio.sleep(0.1)
            assert guests.asked == []
            now[0] = 60.0
            rounds.want([WEB1])
            await guests.wait_asked(WEB1)

    asyncio.run(scenario())


def test_what_an_agent_has_us_read_is_taken_from_the_budget_of_guests() -> None:
    async def scenario() -> None:
        guests, budget = Guests(), Budget(lambda: 0.0)
        guests.answer[WEB1.domain.uuid] = claims("192.168.122.50")
        guests.burns = STOCK_S + SHARE
        async with asking(guests, budget=budget) as (rounds, reasons):
            rounds.update([WEB1])
            rounds.want([WEB1])
            await reasons.get()
            assert budget.wait() >= 1.0

    asyncio.run(scenario())
