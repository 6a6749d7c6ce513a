"""Datagrams that the proxy on 127.0.0.1 relays: a guest's flood costs no more than all that guests cause may."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from fwdaemon.core.types import Family, Protocol
from fwdaemon.hostnet.local_relays import Allowance, Duty, Endpoint, TcpRelay, UdpRelay, Want
from fwdaemon.triggers import STOCK_S, Budget
from tests.lab.command import run
from tests.lab.limits import no_descriptors
from tests.lab.place import PATIENCE
from tests.unit.forwards import forward

PORT, AT_GUEST = 5300, 53
FORWARD = forward("udp *:5300", "127.0.0.1:53")
DUTY = Duty("127.0.0.1", AT_GUEST, FORWARD)
FLOOD = 150


@dataclass
class Talk:
    """A client and a guest, with a clock that stands; `where` is what the guest sees of the client."""

    client: socket.socket
    guest: socket.socket
    budget: Budget
    now: list[float]
    where: Any = None

    async def ask(self) -> None:
        self.client.send(b"question")
        await settled()
        _, self.where = self.guest.recvfrom(100)

    async def flood(self) -> int:
        """Have the guest send many datagrams, and count what the client gets."""
        for _ in range(FLOOD):
            self.guest.sendto(b"x", self.where)
        return await self.arrived()

    async def arrived(self) -> int:
        await settled()
        got = 0
        while True:
            try:
                self.client.recv(100)
            except BlockingIOError:
                return got
            got += 1


async def settled() -> None:
    """Have the loop do all that there is to do now; on loopback, what was sent has come."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def talk() -> AsyncIterator[Talk]:
    now = [1000.0]
    asyncio.get_running_loop().time = lambda: now[0]  # type: ignore[method-assign]
    budget = Budget(lambda: now[0])
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        for opened in (guest, client):
            opened.setblocking(False)  # noqa: FBT003  the method takes no keyword
        guest.bind(("127.0.0.1", AT_GUEST))
        endpoint = UdpRelay(Endpoint(Protocol.UDP, Family.IPV4, PORT), DUTY, Allowance(10), budget, Want(""))
        client.connect(("127.0.0.1", PORT))
        yield Talk(client, guest, budget, now)
        endpoint.close()


@pytest.fixture(autouse=True)
def loopback(namespace: None) -> None:
    """Have 127.0.0.1 in the test's namespace."""
    del namespace
    run(["ip", "link", "set", "lo", "up"])


def test_where_no_descriptor_is_left_clients_wait_with_growing_pauses_and_that_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    pauses = list[float]()

    async def check() -> None:
        loop = asyncio.get_running_loop()
        later = loop.call_later

        def at_once(pause: float, *what: Any) -> asyncio.TimerHandle:
            pauses.append(pause)
            return later(0, *what)

        loop.call_later = at_once  # type: ignore[assignment,method-assign]
        with socket.create_server(("127.0.0.1", AT_GUEST)) as guest, socket.socket() as client:
            endpoint = TcpRelay(Endpoint(Protocol.TCP, Family.IPV4, PORT), DUTY, Allowance(10), Want("they wait"))
            client.connect(("127.0.0.1", PORT))
            with no_descriptors():
                async with asyncio.timeout(PATIENCE):
                    while len(pauses) < 6:  # noqa: ASYNC110  there is no event
                        await asyncio.sleep(0)
            guest.settimeout(PATIENCE)
            served, _ = await asyncio.to_thread(guest.accept)
            client.settimeout(PATIENCE)
            served.sendall(b"hello")
            assert await asyncio.to_thread(client.recv, 5) == b"hello"
            served.close()
            await asyncio.gather(*endpoint.close(), return_exceptions=True)

    asyncio.run(check())
    assert pauses[:6] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert caplog.messages == ["they wait: Too many open files", "over: they wait"]


def test_what_a_client_asked_for_comes_whole_whatever_guests_cost() -> None:
    async def check() -> None:
        async with talk() as talking:
            talking.budget.spent(STOCK_S + 1)
            await talking.ask()
            assert await talking.flood() == FLOOD
            talking.now[0] += 1.9
            assert await talking.flood() == FLOOD

    asyncio.run(check())


def test_what_nobody_asked_for_takes_from_the_budget_of_guests() -> None:
    async def check() -> None:
        async with talk() as talking:
            await talking.ask()
            talking.now[0] += 3
            before = talking.budget.wait()
            talking.budget.spent(STOCK_S)
            some = await talking.flood()
            assert 0 < some < FLOOD
            assert talking.budget.wait() > before
            assert await talking.arrived() == 0
            await talking.ask()
            assert await talking.arrived() == FLOOD - some

    asyncio.run(check())


def test_a_guest_does_not_keep_a_conversation_whose_client_is_silent() -> None:
    async def check() -> None:
        async with talk() as talking:
            await talking.ask()
            talking.now[0] += 119
            assert await talking.flood() > 0
            talking.now[0] += 2
            await talking.arrived()
            with pytest.raises(ConnectionRefusedError):
                await refused(talking)

    async def refused(talking: Talk) -> None:
        talking.guest.connect(talking.where)
        talking.guest.send(b"x")
        await settled()
        talking.guest.recv(100)

    asyncio.run(check())
