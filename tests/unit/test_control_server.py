"""The control socket's server, on a real socket: what it answers, and what ends a client and nothing else."""

import asyncio
import json
import os
import socket
import sys
from asyncio import streams
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fwdaemon.control.listener import Listener, Peer
from fwdaemon.control.protocol import (
    MANAGER,
    SERVICE,
    Call,
    CallError,
    Method,
    Parameters,
    Send,
    Service,
    description_of,
    encoded,
)
from fwdaemon.control.server import ControlServer, Limits
from tests.unit.varlink_types import Interface

LARGE = 4 << 20
INFO = Call(f"{SERVICE}.GetInfo")
PING = Call("test.a.Ping")

pytestmark = pytest.mark.filterwarnings("error")


class Client:
    """One end of a connection, which says anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def say(self, message: bytes | Call) -> None:
        self.writer.write(message.encode() if isinstance(message, Call) else message)

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            message: dict[str, Any] = json.loads((await self._reader.readuntil(b"\0"))[:-1])
        return message

    async def ask(self, call: Call) -> dict[str, Any]:
        self.say(call)
        return await self.hear()

    async def ended(self) -> bytes:
        """Wait until the server has hung up, and give what it had said."""
        async with asyncio.timeout(10):
            with suppress(ConnectionResetError):
                return await self._reader.read()
        return b""

    def close(self) -> None:
        self.writer.close()


@dataclass
class Bench:
    """A server with three methods of its own, and what became of its stream."""

    path: Path
    server: ControlServer = field(init=False)
    streaming: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    clients: list[Client] = field(default_factory=list)

    async def client(self) -> Client:
        self.clients.append(Client(*await asyncio.open_unix_connection(self.path, limit=1 << 24)))
        return self.clients[-1]

    async def stream(self, send: Send) -> None:
        self.streaming.set()
        try:
            for number in range(3):
                await send(encoded(number=number))
            await asyncio.Event().wait()
        finally:
            self.left.set()


async def ping(_parameters: Parameters) -> bytes:
    return encoded(pong=True)


async def large(_parameters: Parameters) -> bytes:
    return encoded(much="x" * LARGE)


async def fail(parameters: Parameters) -> bytes:
    raise CallError("test.a.Failed", {"why": parameters["why"]})


@asynccontextmanager
async def bench(directory: Path, serve: Callable[[Service], ControlServer]) -> AsyncIterator[Bench]:
    listener = Listener(directory / "control.sock")
    listener.lock()
    there = Bench(directory / "control.sock")
    methods = {
        "Ping": Method(ping),
        "Large": Method(large),
        "Fail": Method(fail, takes=("why",)),
        "Stream": Method(stream=there.stream),
    }
    there.server = serve(Service({"test.a": methods}))
    there.server.group = os.getgid()
    await there.server.start(listener.listen())
    try:
        yield there
    finally:
        for client in there.clients:
            client.close()
        await there.server.close()
        listener.close()


def on_bench(
    directory: Path,
    play: Callable[[Bench], Awaitable[None]],
    serve: Callable[[Service], ControlServer] = ControlServer,
) -> None:
    async def scene() -> None:
        async with bench(directory, serve) as there:
            await play(there)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (PING, {"parameters": {"pong": True}}),
        (Call("test.a.Fail", {"why": "so"}), {"error": "test.a.Failed", "parameters": {"why": "so"}}),
        (Call("test.b.X"), {"error": f"{SERVICE}.InterfaceNotFound", "parameters": {"interface": "test.b"}}),
        (Call("Ping"), {"error": f"{SERVICE}.InterfaceNotFound", "parameters": {"interface": ""}}),
        (Call("test.a.X"), {"error": f"{SERVICE}.MethodNotFound", "parameters": {"method": "test.a.X"}}),
        (Call("test.a.Ping", {"x": 1}), {"error": f"{SERVICE}.InvalidParameter", "parameters": {"parameter": "x"}}),
        (Call("test.a.Fail"), {"error": f"{SERVICE}.InvalidParameter", "parameters": {"parameter": "why"}}),
        (
            Call("test.a.Fail", {"why": 1}),
            {"error": f"{SERVICE}.InvalidParameter", "parameters": {"parameter": "why"}},
        ),
        (Call("test.a.Stream"), {"error": f"{SERVICE}.ExpectedMore", "parameters": {}}),
    ],
    ids=lambda value: value.method if isinstance(value, Call) else "",
)
def test_a_call_and_its_answer(tmp_path: Path, call: Call, answer: Mapping[str, Any]) -> None:
    async def play(there: Bench) -> None:
        client = await there.client()
        assert await client.ask(call) == answer
        assert await client.ask(PING) == {"parameters": {"pong": True}}

    on_bench(tmp_path, play)


def test_the_service_describes_itself(tmp_path: Path) -> None:
    async def play(there: Bench) -> None:
        client = await there.client()
        info = await client.ask(INFO)
        assert info["parameters"]["interfaces"] == [SERVICE, "test.a"]
        shape = Interface(SERVICE)
        assert list(shape.faults(shape.replies["GetInfo"], info["parameters"])) == []
        described = await client.ask(Call(f"{SERVICE}.GetInterfaceDescription", {"interface": SERVICE}))
        assert described["parameters"]["description"] == description_of(SERVICE)

    on_bench(tmp_path, play)


def test_our_own_interface_is_described() -> None:
    assert set(Interface(MANAGER).replies) == {"Status", "Metrics", "Reload", "Watch"}
    assert set(Interface(MANAGER).errors) == {"ConfigurationRefused", "MetricsUnavailable"}


def test_calls_may_come_in_pieces_and_together(tmp_path: Path) -> None:
    async def play(there: Bench) -> None:
        client = await there.client()
        whole = PING.encode() + Call("test.a.Ping", oneway=True).encode() + INFO.encode()
        for start in range(0, len(whole), 7):
            client.say(whole[start : start + 7])
            await client.writer.drain()
        assert "pong" in (await client.hear())["parameters"]
        assert "interfaces" in (await client.hear())["parameters"]

    on_bench(tmp_path, play)


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


def test_a_large_answer_arrives_whole(tmp_path: Path) -> None:
    async def play(there: Bench) -> None:
        client = await there.client()
        assert len((await client.ask(Call("test.a.Large")))["parameters"]["much"]) == LARGE

    on_bench(tmp_path, play)


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


def test_closing_cancels_no_task_that_asyncio_made(tmp_path: Path) -> None:
    """Late releases of Python 3.11 log a traceback for one."""
    made: list[str] = []

    def make(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:
        made.append(sys._getframe(2).f_code.co_filename)  # noqa: SLF001 - whoever called `create_task`
        return asyncio.Task(work, loop=loop, **more)

    async def play(there: Bench) -> None:
        asyncio.get_running_loop().set_task_factory(make)  # type: ignore[arg-type]  # typeshed's factory is stricter than the loop
        clients = [await there.client() for _ in range(3)]
        for client in clients:
            assert await client.ask(PING) == {"parameters": {"pong": True}}
        await there.server.close()
        assert [await client.ended() for client in clients] == [b""] * 3

    on_bench(tmp_path, play)
    assert len(made) >= 3
    assert streams.__file__ not in made


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


def test_a_stream_goes_on_until_its_client_leaves(tmp_path: Path) -> None:
    async def play(there: Bench) -> None:
        client = await there.client()
        client.say(Call("test.a.Stream", more=True))
        for number in range(3):
            assert await client.hear() == {"parameters": {"number": number}, "continues": True}
        client.close()
        async with asyncio.timeout(10):
            await there.left.wait()

    on_bench(tmp_path, play)


def test_who_speaks_while_being_answered_is_cut_off(tmp_path: Path) -> None:
    async def play(there: Bench) -> None:
        client = await there.client()
        client.say(Call("test.a.Stream", more=True))
        await client.hear()
        client.say(b"x")
        await client.ended()
        assert there.left.is_set()

    on_bench(tmp_path, play)


def test_the_end_of_the_server_ends_its_clients(tmp_path: Path) -> None:
    async def play(there: Bench) -> None:
        idle, streaming = await there.client(), await there.client()
        streaming.say(Call("test.a.Stream", more=True))
        assert await idle.ask(PING)
        await there.streaming.wait()
        await there.server.close()
        await idle.ended()
        await streaming.ended()
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
