"""What is kept of forwards that are open for a while, and what they survive by it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fwdaemon.config import parse
from fwdaemon.status.reloads import Start
from fwdaemon.status.temporary import Deadline, Now, known, now, with_temporary
from tests.unit.daemon_scene import MAIN, RULE, SSH, SSH_RULE, WEB, Scene, play, prepared
from tests.unit.temporary import HOUR, OTHER, refusal, wish


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    return prepared(tmp_path, monkeypatch, caplog)


def test_where_it_cannot_be_kept_nothing_is_opened(scene: Scene) -> None:
    (scene.place / "state").write_text("no directory")

    async def act() -> None:
        async with scene.running_daemon():
            assert "cannot be kept" in await refusal(scene, **wish("8022:22"))

    play(act())


def test_commands_without_a_daemon_know_of_it(scene: Scene) -> None:
    scene.now = now()

    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22"))

    play(act())
    config = with_temporary(parse({MAIN: WEB}), scene.place / "state")
    assert [str(entry.origin) for entry in config.forwards] == ["/etc/portfwd.toml:1", "temporary:1"]


def test_a_damaged_record_closes_it(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    (scene.place / "state").mkdir()
    (scene.place / "state/temporary.json").write_text('[{"number": 1}]')
    scene.start = replace(Start(parse({MAIN: WEB}), {}))

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})

    play(act())
    assert any("what was opened for a while is closed" in line for line in caplog.messages)


@pytest.mark.parametrize("time", ["Infinity", "NaN", "1e300", "[]"])
def test_a_record_with_a_time_that_is_none_closes_it(tmp_path: Path, time: str) -> None:
    until = f'"until": {time}, "boottime": 1, "boot": "x", "seconds": 9'
    text = f'[{{"number": 1, "domain": "web", "ports": "80", "sources": [], "by": "uid 0", {until}}}]'
    (tmp_path / "temporary.json").write_text(text, encoding="utf-8")
    assert known(tmp_path, lambda: Now(0.0, 0.0, "x")) == ()


@pytest.mark.parametrize(
    ("wall", "left"),
    [(600, HOUR - 600), (HOUR, 0), (-60, 0), (0, HOUR)],
    ids=["in time", "too late", "a clock behind its beginning", "at once"],
)
def test_after_a_restart_of_the_host_the_clock_on_the_wall_is_left(wall: int, left: int) -> None:
    began = Now(1_772_000_000.0, 5_000.0, "first")
    again = Now(began.wall + wall, 10.0, "second")
    resumed = Deadline.after(HOUR, began).resumed(again)
    assert (max(0, resumed.left(again)), resumed.boot) == (left, "second")
    assert resumed.resumed(again) == resumed


def test_it_survives_a_reload_and_a_restart_and_ends_while_no_daemon_runs(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22", seconds=HOUR))
            scene.text = WEB + SSH
            await scene.ask("Reload")
            assert scene.written == {RULE, SSH_RULE, OTHER}
        scene.libvirt.begun = 0
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE, SSH_RULE, OTHER})
        scene.libvirt.begun = 0
        scene.now = Now(scene.now.wall + HOUR, scene.now.boottime + HOUR, "first")
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})
        assert json.loads((scene.place / "state/temporary.json").read_text()) == []

    play(act())
