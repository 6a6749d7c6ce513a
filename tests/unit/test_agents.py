"""Guest agents are asked in the background, and only as often as makes sense."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import Any
from uuid import UUID

import pytest

from fwdaemon import agents
from fwdaemon.agents import AgentRounds
from fwdaemon.errors import LibvirtUnavailableError
from fwdaemon.hypervisor.agent import agent_claims
from fwdaemon.inventory import AddressSource, Domain, LearnedAddress
from fwdaemon.observation import MacClaim, ObservedDomain

MAC = "52:54:00:00:00:01"
WEB1 = ObservedDomain(Domain("web1", UUID(int=1), running=True), instance=7, agent_connected=True)
WEB2 = ObservedDomain(Domain("web2", UUID(int=2), running=True), instance=8, agent_connected=True)


def claims(address: str) -> tuple[MacClaim, ...]:
    return (MacClaim(MAC, LearnedAddress(ip_address(address), AddressSource.AGENT)),)


class Guests:
    """Agents whose answers a test decides; `None` is no answer."""

    def __init__(self) -> None:
        self.answer: dict[UUID, tuple[MacClaim, ...] | None] = {}
        self.asked: list[UUID] = []
        self.closed = False

    def addresses(self, domain: UUID) -> tuple[MacClaim, ...]:
        self.asked.append(domain)
        answer = self.answer.get(domain)
        if answer is None:
            raise LibvirtUnavailableError("the guest agent did not answer")
        return answer

    def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def asking(guests: Guests) -> AsyncIterator[tuple[AgentRounds, "asyncio.Queue[str]"]]:
    reasons: asyncio.Queue[str] = asyncio.Queue()
    threads = set(threading.enumerate())
    rounds = AgentRounds("test:///default", guests, reasons.put_nowait)
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
            assert await asyncio.wait_for(reasons.get(), 5) == "guest agent of domain web1 told its addresses"
            assert rounds.answers()[WEB1.domain.uuid] == claims("192.168.122.50")
            rounds.update([replace(WEB1, agent_connected=False)])
            assert rounds.answers()[WEB1.domain.uuid] == claims("192.168.122.50"), "an agent may be updated"
            rounds.want([WEB1])
            await asyncio.sleep(0.05)
            assert guests.asked == [WEB1.domain.uuid]
        assert guests.closed

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


def test_a_silent_agent_is_asked_again_and_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "FIRST_RETRY_S", 0.02)

    async def scenario() -> None:
        guests = Guests()
        guests.answer[WEB2.domain.uuid] = claims("192.168.122.51")
        async with asking(guests) as (rounds, reasons):
            rounds.update([WEB1, WEB2])
            rounds.want([WEB1, WEB2])
            assert await asyncio.wait_for(reasons.get(), 5) == "guest agent of domain web2 told its addresses"
            await asyncio.sleep(0.3)
            assert guests.asked.count(WEB2.domain.uuid) == 1
            assert 3 <= guests.asked.count(WEB1.domain.uuid) <= 6, "the pauses double"

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
