"""The control socket's server, on a real socket: what it answers, and what ends a client and nothing else."""

import asyncio
import sys
from asyncio import streams
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from fwdaemon.control.protocol import MANAGER, SERVICE, Call, description_of
from tests.unit.varlink_bench import INFO, LARGE, PING, Bench, on_bench
from tests.unit.varlink_types import Interface

pytestmark = pytest.mark.filterwarnings("error")


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
    methods = {
        "Status",
        "Metrics",
        "Reload",
        "Watch",
        "Confirm",
        "Open",
        "Close",
        "Explain",
        "Check",
        "Plan",
        "Inventory",
    }
    assert set(Interface(MANAGER).replies) == methods
    assert set(Interface(MANAGER).errors) == {"ConfigurationRefused", "MetricsUnavailable", "Refused"}


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


def test_a_large_answer_arrives_whole(tmp_path: Path) -> None:
    async def play(there: Bench) -> None:
        client = await there.client()
        assert len((await client.ask(Call("test.a.Large")))["parameters"]["much"]) == LARGE

    on_bench(tmp_path, play)


def test_closing_cancels_no_task_that_asyncio_made(tmp_path: Path) -> None:
    """Late releases of Python 3.11 log a traceback for one."""
    made: list[str] = []

    def make(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:
        made.append(sys._getframe(2).f_code.co_filename)  # noqa: SLF001 - what called `create_task`
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
