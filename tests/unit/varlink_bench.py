"""A control server on a socket of its own, and a client that speaks with it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fwdaemon.control.listener import Listener
from fwdaemon.control.protocol import SERVICE, Call, CallError, Method, Parameters, Send, Service, encoded
from fwdaemon.control.server import ControlServer

LARGE = 4 << 20
INFO = Call(f"{SERVICE}.GetInfo")
PING = Call("test.a.Ping")


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
