"""How the daemon ends, what it leaves behind, and what it does not begin."""

import asyncio
import threading
from pathlib import Path

import pytest

from fwdaemon.config import parse
from fwdaemon.core.inventory import Inventory
from fwdaemon.daemon import Daemon
from fwdaemon.errors import KernelError, PortfwdError
from fwdaemon.status.reloads import Start
from tests.unit.daemon_scene import MAIN, REMOVE, RULE, WEB, Scene, play, prepared


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    return prepared(tmp_path, monkeypatch, caplog)


@pytest.mark.parametrize("upgrade", [False, True])
def test_rules_go_at_the_end_where_that_is_wished_but_for_an_upgrade(scene: Scene, *, upgrade: bool) -> None:
    scene.text = REMOVE + WEB
    if upgrade:
        (scene.place / "run").mkdir()
        (scene.place / "run" / "upgrade").touch()

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
        assert scene.written == ({RULE} if upgrade else set())

    play(act())


def test_what_cannot_be_done_at_the_end_is_told_and_the_rest_is_done(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close() -> None:
        raise KernelError("the helper does not end")

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            monkeypatch.setattr(scene.host, "close", close)

    play(act())
    assert "the helper does not end" in caplog.messages


def test_who_is_told_to_end_while_beginning_ends(scene: Scene) -> None:
    async def act() -> None:
        scene.libvirt.starting = asyncio.Event()
        async with scene.running_daemon():
            pass
        assert (scene.written, scene.libvirt.closed) == (set(), 1)

    play(act())


def test_an_inventory_that_is_being_taken_keeps_nobody_from_ending(scene: Scene) -> None:
    async def forever() -> Inventory | None:
        begun.set()
        await asyncio.Event().wait()
        return None

    begun = threading.Event()
    scene.libvirt.refresh = forever  # type: ignore[method-assign]  # a libvirt that never answers

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(begun.is_set)

    play(act())


def test_a_second_daemon_does_not_begin(scene: Scene, tmp_path: Path) -> None:
    other = Scene(place=tmp_path)

    async def act() -> None:
        async with scene.running_daemon():
            second = Daemon(MAIN, Start(parse({MAIN: WEB}), {}), other.parts())
            with pytest.raises(PortfwdError, match="already running"):
                await second.run()
            assert not other.libvirt.begun
            second._pulse.end()  # noqa: SLF001  else its socket to systemd goes with the program, which ends here

    play(act())
