"""What clients of the control socket that are hostile, greedy or many can do to others."""

import asyncio
import os
import socket
from functools import partial
from pathlib import Path

import pytest

from fwdaemon.control.listener import Peer
from fwdaemon.control.protocol import SERVICE, Call
from fwdaemon.control.server import ControlServer, Limits
from tests.unit.varlink_bench import INFO, LARGE, PING, Bench, on_bench

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    "message",
    [
        b"\0",
        b"\0" * 100000,
        b"x\0",
        b"[" * 60000 + b"\0",
        b'{"a":' * 10000 + b"\0",
        b"x" * (1 << 20),
        b'{"method": "test.a.Ping", "upgrade": true}\0',
        b"\xff\xfe\0",
    ],
    ids=lambda message: repr(message[:30]),
)
def test_what_is_no_call_ends_its_client_and_nothing_else(tmp_path: Path, message: bytes) -> None:
    async def play(there: Bench) -> None:
        good, bad = await there.client(), await there.client()
        bad.say(message)
        assert await bad.ended() == b""
        assert await good.ask(PING) == {"parameters": {"pong": True}}

    on_bench(tmp_path, play)


def test_a_silent_client_is_cut_off(tmp_path: Path) -> None:
    async def play(there: Bench) -> None:
        client = await there.client()
        client.say(b'{"method": "te')
        assert await client.ended() == b""

    on_bench(tmp_path, play, partial(ControlServer, limits=Limits(idle=0.05)))


def test_a_client_that_takes_no_answer_is_cut_off(tmp_path: Path) -> None:
    async def play(there: Bench) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as deaf:
            deaf.connect(str(there.path))
            deaf.sendall(Call("test.a.Large").encode())
            good = await there.client()
            assert await good.ask(PING) == {"parameters": {"pong": True}}
            received = 0
            async with asyncio.timeout(10):
                while part := await asyncio.get_running_loop().sock_recv(deaf, 1 << 20):
                    received += len(part)
                    await asyncio.sleep(0.06)
            assert received < LARGE

    on_bench(tmp_path, play, partial(ControlServer, limits=Limits(take=0.05)))


def test_who_calls_without_end_is_not_served_before_others(tmp_path: Path) -> None:
    calls = 200

    async def play(there: Bench) -> None:
        greedy, modest = await there.client(), await there.client()
        greedy.say(PING.encode() * calls)
        await greedy.hear()
        assert await modest.ask(PING) == {"parameters": {"pong": True}}
        await there.server.close()
        assert (await greedy.ended()).count(b"\0") < calls - 1

    on_bench(tmp_path, play)


@pytest.mark.parametrize(
    ("first", "seconds"), [([PING] * 10, 10 * 0.02), ([Call("test.a.Large")], LARGE / 20_000_000)], ids=["many", "much"]
)
def test_who_asks_for_much_waits_before_the_next_call(tmp_path: Path, first: list[Call], seconds: float) -> None:
    """50 answers a second, and 20 megabytes."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def play(there: Bench) -> None:
        client = await there.client()
        for call in (*first, PING):
            client.say(call)
        for _ in (*first, PING):
            await client.hear()
        assert sum(pauses[: len(first)]) == pytest.approx(seconds, rel=0.01)

    on_bench(tmp_path, play, partial(ControlServer, sleep=pause))


def test_there_are_never_too_many_clients(tmp_path: Path) -> None:
    async def play(there: Bench) -> None:
        first, second = await there.client(), await there.client()
        assert await first.ask(PING) == await second.ask(PING)
        assert not await is_served(there)
        first.close()
        async with asyncio.timeout(10):
            while not await is_served(there):
                pass

    on_bench(tmp_path, play, partial(ControlServer, limits=Limits(clients=2)))


def test_one_user_takes_its_share_of_the_places_and_no_more(tmp_path: Path) -> None:
    """Root is not bounded so, or the others could keep it out."""
    member, other, root = 1000, 1001, 0
    users = iter([*[member] * 9, other, *[root] * 9, member])

    def peer(_connection: socket.socket) -> Peer:
        return Peer(1, next(users), frozenset({os.getgid()}))

    async def play(there: Bench) -> None:
        for _ in range(8):
            assert await (await there.client()).ask(PING) == {"parameters": {"pong": True}}
        assert not await is_served(there)
        assert await is_served(there), "another user"
        for _ in range(9):
            assert await (await there.client()).ask(PING) == {"parameters": {"pong": True}}
        assert not await is_served(there)

    on_bench(tmp_path, play, partial(ControlServer, peer=peer))


async def is_served(there: Bench) -> bool:
    client = await there.client()
    try:
        return "parameters" in await client.ask(PING)
    except (ConnectionError, asyncio.IncompleteReadError):
        return False
    finally:
        client.close()


def test_who_speaks_while_being_answered_is_cut_off(tmp_path: Path) -> None:
    async def play(there: Bench) -> None:
        client = await there.client()
        client.say(Call("test.a.Stream", more=True))
        await client.hear()
        client.say(b"x")
        await client.ended()
        assert there.left.is_set()

    on_bench(tmp_path, play)


def test_who_may_not_read_is_told_so(tmp_path: Path) -> None:
    def peer(_connection: socket.socket) -> Peer:
        return Peer(1, 1000, frozenset({os.getgid() + 1}))

    async def play(there: Bench) -> None:
        client = await there.client()
        assert await client.ask(PING) == {"error": f"{SERVICE}.PermissionDenied", "parameters": {}}
        assert await client.ask(INFO) == {"error": f"{SERVICE}.PermissionDenied", "parameters": {}}

    on_bench(tmp_path, play, partial(ControlServer, peer=peer))
