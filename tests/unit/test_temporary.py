"""Forwards that are open for a while: when they end, and what ends them."""

import asyncio
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest

from fwdaemon.control.protocol import CallError
from fwdaemon.core.report import ApplyResult, Fault, FaultKind, joined
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Protocol
from fwdaemon.resolve.flows import Flow
from tests.unit.daemon_scene import RULE, SSH, SSH_RULE, WEB, Scene, play, prepared
from tests.unit.memory_backend import MemoryBackend
from tests.unit.temporary import HOUR, OTHER, refusal, wish


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    return prepared(tmp_path, monkeypatch, caplog)


def test_it_is_open_until_its_time_is_over(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            (opening,) = (await scene.ask("Open", **wish("8022:22", seconds=HOUR)))["openings"]
            assert (opening["state"], opening["remaining_seconds"], opening["origin"]) == (
                "active",
                HOUR,
                "temporary:1",
            )
            assert opening["opened_by"].startswith("uid 0, pid ")
            assert opening["opened_ports"] == "8022:22"
            assert scene.written == {RULE, OTHER}
            scene.pass_by(HOUR - 1)
            (row,) = [row for row in (await scene.ask("Status"))["openings"] if row["until"]]
            assert row["remaining_seconds"] == 1
            scene.pass_by(1)
            await scene.until(lambda: scene.written == {RULE})

    play(act())
    assert f"removed {OTHER} (its time is over)" in caplog.messages
    assert any(line.startswith("opened 8022:22 to web1 until ") for line in caplog.messages)
    assert "closed 8022:22 to web1: its time is over" in caplog.messages


@pytest.mark.parametrize(("passed", "by_wall"), [(10, HOUR), (HOUR, -HOUR)], ids=["set ahead", "put back"])
def test_it_ends_by_either_clock(scene: Scene, passed: float, by_wall: float) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22", seconds=HOUR))
            assert OTHER in scene.written
            scene.pass_by(passed, by_wall=by_wall)
            await scene.until(lambda: scene.written == {RULE})

    play(act())


def test_where_one_clock_alone_ends_it_the_reply_says_so(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = MemoryBackend.apply

    def on_one_clock(backend: MemoryBackend, desired: Desired, *, full: bool) -> ApplyResult:
        lasting = any(item.until is not None for item in desired.forwards)
        faults = (Fault(FaultKind.ONE_CLOCK),) if lasting else ()
        return joined(apply(backend, desired, full=full), ApplyResult(faults=faults))

    async def act() -> None:
        async with scene.running_daemon():
            assert not (await scene.ask("Open", **wish("8022:22")))["warnings"]
            monkeypatch.setattr(MemoryBackend, "apply", on_one_clock)
            (warning,) = (await scene.ask("Open", **wish("8023:22")))["warnings"]
            assert "the package ipset" in warning
            assert (await scene.ask("Status"))["problems"] == [warning]

    play(act())


def test_it_is_closed_before_its_time(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22", "8023:23/tcp"))
            assert await scene.ask("Close", domain="web1", ports=["8023:23"]) == {"closed": ["8023:23/tcp"]}
            assert scene.written == {RULE, OTHER}
            assert await scene.ask("Close", domain="web1", ports=[]) == {"closed": ["8022:22"]}
            assert scene.written == {RULE}
            with pytest.raises(CallError, match="no such temporary forward"):
                await scene.ask("Close", domain="web1", ports=[])

    play(act())
    assert any(line.startswith(f"removed {OTHER} (closed by uid 0, pid ") for line in caplog.messages)


def test_what_a_new_configuration_claims_is_closed(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("22:2222"))
            scene.text = WEB + SSH
            await scene.ask("Reload")
            assert scene.written == {RULE, SSH_RULE}

    play(act())
    assert "closed 22:2222 to web1: /etc/portfwd.toml:6 claims it" in caplog.messages


def test_it_is_open_to_a_set_of_the_configuration_until_there_is_no_such_set(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.text = WEB + '[[set]]\nname = "office"\naddresses = ["203.0.113.0/24"]\n'

    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Reload")
            said = await refusal(scene, **wish("8022:22") | {"sources": ["set:offce"]})
            assert 'did you mean "set:office"?' in said
            (opening,) = (await scene.ask("Open", **wish("8022:22") | {"sources": ["set:office"]}))["openings"]
            assert opening["sources"] == ["203.0.113.0/24"]
            scene.text = WEB
            await scene.ask("Reload")
            assert scene.written == {RULE}

    play(act())
    assert any(line.startswith("closed 8022:22 to web1: the configuration has no") for line in caplog.messages)


def test_who_closes_is_answered_though_a_pass_has_followed_before_it_is_written(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22"))
            writing, written = threading.Event(), threading.Event()
            openings = scene.daemon._standing.openings  # noqa: SLF001  a disk that takes its time

            def stall() -> bool:
                writing.set()
                return written.wait(60)

            openings._worker.submit(stall)  # noqa: SLF001  see above
            closing = asyncio.create_task(scene.ask("Close", domain="web1", ports=[]))
            await scene.until(writing.is_set)
            await asyncio.sleep(0)
            scene.pass_by(0)
            await scene.until(lambda: scene.written == {RULE})
            written.set()
            assert await asyncio.wait_for(closing, 60) == {"closed": ["8022:22"]}

    play(act())


def test_what_it_carries_goes_on_with_another_end_and_ends_with_it(scene: Scene) -> None:
    guest, client, host = map(ip_address, ("192.168.122.50", "203.0.113.9", "198.51.100.1"))
    flow = Flow(Protocol.TCP, client, host, 8022, guest, 22, client, 40000)

    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22", seconds=HOUR))
            scene.connections.flows = [flow]
            await scene.ask("Open", **wish("8022:22", seconds=2 * HOUR))
            await scene.ask("Open", **wish("8023:23", seconds=HOUR))
            assert scene.connections.flows == [flow]
            scene.pass_by(2 * HOUR)
            await scene.until(lambda: not scene.connections.flows)

    play(act())
