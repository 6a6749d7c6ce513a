"""The metrics by HTTP, on a real socket: what is answered, and what ends a client and nothing else."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fwdaemon.core.types import Endpoint
from fwdaemon.metrics.listener import Limits, Listener

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 8 << 20
USUAL = Limits()
# Time never ends a client.
PATIENT = Limits(ask=None, take=None)

pytestmark = pytest.mark.filterwarnings("error")


def free_endpoint(address: str = "127.0.0.1") -> Endpoint:
    """Give a port on which no process listens."""
    found = ip_address(address)
    with socket.socket(socket.AF_INET6 if found.version == 6 else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return Endpoint(found, probe.getsockname()[1])


class Bench:
    """A listener, what it gives, and clients."""

    def __init__(self, address: str = "127.0.0.1", limits: Limits = USUAL) -> None:
        self.endpoint = free_endpoint(address)
        self.body = b"x 1.0\n"
        self.requests: list[bytes] = []
        self.listener = Listener(self.endpoint, self._answered, limits)

    @property
    def asked(self) -> int:
        return len(self.requests)

    async def _answered(self, request: bytes) -> list[bytes]:
        self.requests.append(request)
        return [b"HTTP/1.1 200 OK\r\n\r\n", self.body]

    async def is_asked_beyond(self, asked: int) -> None:
        await until(lambda: self.asked > asked)

    async def connect(self, address: str | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(address or str(self.endpoint.address), self.endpoint.port)

    async def ask(self, request: bytes, address: str | None = None) -> tuple[str, bytes]:
        """Give the first line of the answer, and what follows its head."""
        reader, writer = await self.connect(address)
        writer.write(request)
        head, _, body = (await ended(reader)).partition(b"\r\n\r\n")
        await hang_up(writer)
        return head.split(b"\r\n")[0].decode(), body


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Wait until the listener has hung up, and give what it had said."""
    async with asyncio.timeout(20):
        with suppress(ConnectionResetError):
            return await reader.read()
    return b""


def taking_nothing(bench: Bench) -> socket.socket:
    """Ask, and read none of the answer."""
    client = socket.create_connection((str(bench.endpoint.address), bench.endpoint.port))
    client.send(GET)
    return client


def is_cut_off(client: socket.socket) -> bool:
    """Whether the listener has closed the connection: nothing more can be sent."""
    with suppress(BlockingIOError):
        try:
            client.send(b"x", socket.MSG_DONTWAIT)
        except ConnectionError:
            return True
    return False


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@asynccontextmanager
async def opened(bench: Bench) -> AsyncIterator[Bench]:
    bench.listener.open()
    try:
        yield bench
    finally:
        await bench.listener.close()


def on_bench(play: Callable[[Bench], Awaitable[None]], address: str = "127.0.0.1", limits: Limits = USUAL) -> None:
    async def scene() -> None:
        async with opened(Bench(address, limits)) as bench:
            await play(bench)
            assert await bench.ask(GET) == ("HTTP/1.1 200 OK", bench.body)

    asyncio.run(scene())


@pytest.mark.parametrize("request_", [GET, b"GET /\r\n\r\n", b"\x16\x03\x01\0\xff\r\n\r\n", GET + GET])
def test_what_is_asked_is_answered_in_one_breath(request_: bytes) -> None:
    async def play(bench: Bench) -> None:
        assert await bench.ask(request_) == ("HTTP/1.1 200 OK", bench.body)
        assert bench.requests == [request_]

    on_bench(play)


def test_what_is_longer_than_a_request_may_be_is_not_answered() -> None:
    async def play(bench: Bench) -> None:
        reader, writer = await bench.connect()
        writer.write(b"GET /metrics HTTP/1.1\r\nX: ".ljust(1 << 13, b"x"))
        assert await ended(reader) == b""
        assert bench.requests == []
        await hang_up(writer)

    on_bench(play)


def test_a_request_may_come_in_pieces() -> None:
    async def play(bench: Bench) -> None:
        reader, writer = await bench.connect()
        for piece in (GET[:5], GET[5:-2], GET[-2:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        assert (await ended(reader)).endswith(bench.body)
        await hang_up(writer)

    on_bench(play)


def test_who_says_nothing_is_let_go() -> None:
    async def play(bench: Bench) -> None:
        for said in (b"", GET[:5]):
            reader, writer = await bench.connect()
            writer.write(said)
            assert await ended(reader) == b""
            await hang_up(writer)

    on_bench(play, limits=Limits(ask=0.1))


def test_who_takes_nothing_is_let_go() -> None:
    async def play(bench: Bench) -> None:
        bench.body = b"x" * LARGE
        with taking_nothing(bench) as client:
            await until(lambda: is_cut_off(client))
        bench.body = b"x 2.0\n"

    on_bench(play, limits=Limits(take=0.1))


@pytest.mark.parametrize("said", [b"", GET[:5]])
def test_a_crowd_that_does_not_ask_keeps_nobody_out(said: bytes) -> None:
    async def play(bench: Bench) -> None:
        crowd = [await bench.connect() for _ in range(100)]
        for _, writer in crowd:
            writer.write(said)
        assert await bench.ask(GET) == ("HTTP/1.1 200 OK", bench.body)
        # They came first, so they are the slowest.
        assert await ended(crowd[0][0]) == b""
        for _, writer in crowd:
            await hang_up(writer)

    on_bench(play, limits=PATIENT)


def test_a_crowd_that_takes_nothing_keeps_nobody_out() -> None:
    async def play(bench: Bench) -> None:
        bench.body = b"x" * LARGE
        with ExitStack() as crowd:
            clients = []
            for _ in range(100):
                asked = bench.asked
                clients.append(crowd.enter_context(taking_nothing(bench)))
                await bench.is_asked_beyond(asked)
            bench.body = b"x 2.0\n"
            assert await bench.ask(GET) == ("HTTP/1.1 200 OK", bench.body)
            await until(lambda: is_cut_off(clients[0]))
            assert not is_cut_off(clients[-1])

    on_bench(play, limits=PATIENT)


def test_those_that_take_nothing_are_not_cut_off_for_those_that_do_not_ask() -> None:
    async def play(bench: Bench) -> None:
        body = bench.body = b"x" * LARGE
        reader, writer = await bench.connect()
        writer.write(GET)
        await until(lambda: bench.asked == 1)
        crowd = [await bench.connect() for _ in range(4)]
        assert await ended(crowd[1][0]) == b""
        assert (await ended(reader)).endswith(b"\r\n\r\n" + body)
        for _, each in [*crowd, (reader, writer)]:
            await hang_up(each)

    on_bench(play, limits=replace(PATIENT, asking=2))


def test_an_end_lets_go_of_everybody() -> None:
    async def scene() -> None:
        bench = Bench()
        async with opened(bench):
            reader, writer = await bench.connect()
            # They are taken in order.
            await bench.ask(GET)
        assert await ended(reader) == b""
        await hang_up(writer)
        with pytest.raises(ConnectionRefusedError):
            await bench.connect()

    asyncio.run(scene())


def test_ipv6_and_every_address_of_both_families() -> None:
    async def play(bench: Bench) -> None:
        assert await bench.ask(GET, "::1") == ("HTTP/1.1 200 OK", bench.body)
        if bench.endpoint.address.is_unspecified:
            assert await bench.ask(GET, "127.0.0.1") == ("HTTP/1.1 200 OK", bench.body)
        else:
            with pytest.raises(ConnectionRefusedError):
                await bench.connect("127.0.0.1")

    on_bench(play, "::1")
    on_bench(play, "::")


def test_a_port_that_is_taken_is_told_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        bench = Bench()
        with socket.create_server((str(bench.endpoint.address), bench.endpoint.port)):
            bench.listener.open()
            bench.listener.open()
        async with opened(bench):
            assert await bench.ask(GET) == ("HTTP/1.1 200 OK", bench.body)
        (record,) = caplog.records
        assert record.message.startswith(f"metrics are not served on {bench.endpoint}, trying again: ")
        assert "Address already in use" in record.message

    asyncio.run(scene())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  what is waited for sends no signal
            await asyncio.sleep(0.01)
