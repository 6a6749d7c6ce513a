"""What the daemon makes of a configuration that is new, wrong, or cannot be read."""

import asyncio
import json
import signal
import threading
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from fwdaemon.audit.lines import format_fault
from fwdaemon.config import parse
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.types import Protocol
from fwdaemon.errors import ConfigError, KernelError, Problem
from fwdaemon.resolve.flows import Flow
from fwdaemon.status.reloads import Start
from tests.unit.daemon_scene import FAST, MAIN, REMOVE, RULE, SSH, SSH_RULE, WEB, Scene, play, prepared

LATE = format_fault(Fault(FaultKind.CONFIGURATION_LATE))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    return prepared(tmp_path, monkeypatch, caplog)


def test_a_new_configuration_is_in_force_after_a_hangup(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.text = WEB + SSH
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})
            assert scene.libvirt.configured[-1].forwards[1].domain == "web1"
        kept = json.loads((scene.place / "state" / "last-good.json").read_text())
        assert list(kept["files"].values()) == [WEB + SSH]

    play(act())
    assert "configuration /etc/portfwd.toml loaded" in caplog.messages
    assert len(scene.made) == 1


def test_what_a_guest_opened_ends_where_a_new_configuration_names_fewer_uplinks(scene: Scene) -> None:
    guest, public, far = map(ip_address, ("192.168.122.50", "198.51.100.8", "203.0.113.9"))
    one_to_one = '[[nat]]\ndomain = "web1"\npublic = "198.51.100.8"\n'
    scene.text = f'[daemon]\nuplinks = ["eth0", "wg0"]\n{one_to_one}'

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: bool(scene.written))
            scene.connections.flows = [Flow(Protocol.TCP, guest, far, 443, far, 443, public, 40000)]
            scene.text = f'[daemon]\nuplinks = ["eth0"]\n{one_to_one}'
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: not scene.connections.flows)

    play(act())


def test_a_wrong_configuration_changes_nothing(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.unreadable.append(ConfigError([Problem(MAIN, 3, "is wrong")]))
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: "configuration refused; the old one stays in force" in caplog.messages)
            assert scene.written == {RULE}

    play(act())


def test_a_configuration_that_cannot_be_read_now_is_read_later(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.text, scene.unreadable = WEB + SSH, [KernelError("no thread")] * 2
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})

    play(act())
    assert caplog.messages.count("the configuration is not read yet: no thread; trying again") == 1


def test_a_wipe_is_mended_while_the_configuration_cannot_be_read_to_its_end(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.readable = readable = threading.Event()
    restored = f"restored {RULE} (changed by another, pid 7)"

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.text = WEB + SSH
            asked = asyncio.create_task(scene.daemon._reloads.ask())  # noqa: SLF001  what the control socket calls
            await scene.until(scene.reading.is_set)
            for _ in range(2):
                told = caplog.messages.count(restored)
                scene.kernel.wipe()
                await scene.until(partial(lambda told: caplog.messages.count(restored) > told, told))
                assert scene.written == {RULE}
            assert not asked.done()
            # What changes while it is read is read after it.
            scene.text = SSH
            signal.raise_signal(signal.SIGHUP)
            readable.set()
            await scene.until(lambda: scene.written == {SSH_RULE})
            assert (await asked).failure == ""

    play(act())


def test_a_configuration_that_cannot_be_read_to_its_end_is_told_and_holds_up_no_end(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system that it is on may hang for good: nothing waits for the thread that reads."""
    scene.pauses = replace(FAST, reading=0.05, patience=1000.0)
    monkeypatch.setattr(scene, "readable", threading.Event())

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: LATE in caplog.messages)
            assert LATE in scene.problems
            signal.raise_signal(signal.SIGHUP)
            scene.kernel.wipe()
            await scene.until(lambda: scene.written == {RULE})
            assert LATE in scene.problems

    play(act())
    assert scene.readable is not None
    scene.readable.set()


def test_what_was_late_is_forgotten_once_it_is_there(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.pauses = replace(FAST, reading=0.05)
    scene.readable = readable = threading.Event()

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.text = WEB + SSH
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: LATE in caplog.messages)
            readable.set()
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})
            assert LATE not in scene.problems

    play(act())
    assert caplog.messages.count(LATE) == 1


def test_who_is_told_to_end_while_the_configuration_is_read_ends(scene: Scene) -> None:
    scene.pauses = replace(FAST, patience=0.0)
    scene.readable = readable = threading.Event()
    scene.text = REMOVE + WEB

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            signal.raise_signal(signal.SIGHUP)
            await scene.until(scene.reading.is_set)
        assert not scene.written
        readable.set()

    play(act())


def test_other_connections_to_libvirt_are_made_where_the_configuration_names_others(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.text = f'[daemon]\nlibvirt = ["lxc:///system"]\n{WEB}'
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: scene.libvirt.begun == 2)
            assert (scene.libvirt.closed, scene.made[-1].daemon.libvirt) == (1, ("lxc:///system",))

    play(act())


def test_a_reload_before_the_first_answer_is_answered(scene: Scene) -> None:
    scene.libvirt.there = None

    async def act() -> None:
        async with scene.running_daemon():
            scene.text = WEB + SSH
            asked = asyncio.create_task(scene.daemon._reloads.ask())  # noqa: SLF001  what the control socket calls
            assert (await asyncio.wait_for(asked, 60)).failure == "libvirt has not answered yet"
            assert not scene.written

    play(act())


def test_the_last_good_configuration_is_in_force_at_a_start_with_a_wrong_one(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    problem = Problem(MAIN, 3, "is wrong")
    scene.start = Start(parse({MAIN: WEB}), {}, (problem,), datetime(2026, 3, 1, tzinfo=UTC))

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
        assert not (scene.place / "state").exists()

    play(act())
    assert "the last good one stays in force, of 2026-0" in caplog.text
