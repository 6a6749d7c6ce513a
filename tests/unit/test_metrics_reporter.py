"""Metrics as a part of the daemon: when they are written, and what becomes of them when something goes wrong."""

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from fwdaemon.config.model import Config, DaemonSettings, MetricsSettings
from fwdaemon.core.types import Endpoint
from fwdaemon.metrics.exposition import Reporter
from fwdaemon.status.model import Status
from fwdaemon.status.records import Feed
from tests.unit import statuses
from tests.unit.test_metrics_listener import GET, ended, free_endpoint, hang_up, until

NEVER = timedelta(hours=1)


class Bench:
    """A reporter with a file, and the status it reports."""

    def __init__(self, directory: Path, *, fresh: float = 1.0, times: int = 10) -> None:
        self.path = directory / "kvm_portfwd.prom"
        self.feed = Feed()
        self.status = statuses.status()
        self.failure: Exception | None = None
        self.made = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.reporter = Reporter(self._status, self.feed, fresh=fresh, times=times)

    async def _status(self) -> Status:
        self.made += 1
        known = self.status
        await self.may_answer.wait()
        if self.failure is not None:
            raise self.failure
        return known

    async def set_up(
        self, textfile: Path | None = None, listen: Endpoint | None = None, resync: timedelta = NEVER
    ) -> None:
        daemon = DaemonSettings(resync=resync)
        await self.reporter.set_up(Config(daemon, (), metrics=MetricsSettings(textfile, listen)))

    def holds(self, line: str, path: Path | None = None) -> bool:
        path = path or self.path
        return path.exists() and f"\n{line}\n" in path.read_text()

    def change(self, version: str) -> None:
        """Let the status say something else, and tell so."""
        self.status = replace(self.status, header=replace(self.status.header, version=version))
        self.feed.publish(datetime.now(UTC), ())


def on_bench(directory: Path, play: Callable[[Bench], Awaitable[None]], make: Callable[[Path], Bench] = Bench) -> None:
    async def scene() -> None:
        bench = make(directory)
        await play(bench)
        await bench.reporter.close()

    before = threading.enumerate()
    asyncio.run(scene())
    assert list(directory.iterdir()) == []
    for thread in threading.enumerate():
        if thread.name == "metrics" and thread not in before:
            thread.join(10)  # it has been asked to end, and does so by itself
            assert not thread.is_alive()


def build(version: str) -> str:
    return f'kvm_portfwd_build_info{{version="{version}"}} 1.0'


def test_the_file_is_written_when_something_changed_and_goes_at_the_end(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        await bench.set_up(bench.path)
        await until(lambda: bench.holds(build("0.1.0")))
        bench.change("0.1.1")
        await until(lambda: bench.holds(build("0.1.1")))
        bench.change("0.1.2")
        await until(lambda: bench.holds(build("0.1.2")))

    on_bench(tmp_path, play)


def test_the_file_is_written_at_each_resync(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        await bench.set_up(bench.path, resync=timedelta(seconds=0.01))
        await until(lambda: bench.made >= 3)

    on_bench(tmp_path, play, partial(Bench, fresh=0.01))


def test_nothing_is_made_where_nothing_is_asked_for(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        await bench.set_up()
        bench.change("0.1.1")
        bench.reporter.failed(1.0)
        await asyncio.sleep(0)
        assert bench.made == 0

    on_bench(tmp_path, play)


def test_another_configuration_moves_the_file_and_the_same_leaves_it(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        other = bench.path.with_name("other.prom")
        await bench.set_up(bench.path)
        await until(bench.path.exists)
        await bench.set_up(bench.path)
        assert bench.path.exists()
        await bench.set_up(other)
        assert not bench.path.exists()
        await until(other.exists)
        await bench.set_up()
        assert not other.exists()

    on_bench(tmp_path, play)


def test_a_mistake_is_told_and_not_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def play(bench: Bench) -> None:
        bench.failure = ValueError("nonsense")
        await bench.set_up(bench.path)
        await until(lambda: "this is a bug in kvm-portfwd" in caplog.text)
        bench.failure = None
        bench.change("0.1.1")
        await until(lambda: bench.holds(build("0.1.1")))

    on_bench(tmp_path, play)


def test_what_many_ask_for_is_made_once(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        endpoint = free_endpoint()
        await bench.set_up(listen=endpoint)
        answers = [await ask(endpoint) for _ in range(3)]
        assert len({re.sub(rb"Date: .*\r\n", b"", answer) for answer in answers}) == 1
        assert build("0.1.0").encode() in answers[0]
        assert bench.made == 1

    on_bench(tmp_path, play, partial(Bench, fresh=60))


def test_what_takes_long_to_make_is_good_for_longer(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        endpoint = free_endpoint()
        await bench.set_up(bench.path, endpoint)
        await until(bench.path.exists)
        bench.change("0.1.1")
        # Neither is it written again, nor do clients get another.
        assert build("0.1.0").encode() in await ask(endpoint)
        assert bench.made == 1

    on_bench(tmp_path, play, partial(Bench, fresh=0.0, times=1_000_000))


def test_a_text_from_before_a_change_is_not_written(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        endpoint = free_endpoint()
        await bench.set_up(bench.path, endpoint)
        await until(bench.path.exists)
        bench.may_answer.clear()
        asking = asyncio.create_task(ask(endpoint))
        await until(lambda: bench.made == 2)
        bench.change("0.1.1")
        await asyncio.sleep(0.05)
        # One at a time.
        assert bench.made == 2
        bench.may_answer.set()
        assert build("0.1.0").encode() in await asking
        await until(lambda: bench.holds(build("0.1.1")))

    on_bench(tmp_path, play, partial(Bench, fresh=0.0, times=0))


def test_reconciles_are_counted_from_the_start(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        bench.reporter.failed(0.5)
        await bench.set_up(bench.path)
        await until(lambda: bench.holds('kvm_portfwd_reconciles_total{result="failed"} 1.0'))

    on_bench(tmp_path, play)


async def ask(endpoint: Endpoint) -> bytes:
    reader, writer = await connected(endpoint)
    writer.write(GET)
    answer = await ended(reader)
    await hang_up(writer)
    return answer


async def connected(endpoint: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as soon as there is a listener."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await asyncio.open_connection(str(endpoint.address), endpoint.port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
