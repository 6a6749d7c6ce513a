"""A configuration that is to be confirmed: without that, the one before comes back, whatever becomes of the daemon."""

import asyncio
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from fwdaemon.commands import run
from fwdaemon.control.protocol import CONFIGURATION_REFUSED, REFUSED, CallError
from fwdaemon.errors import ConfigError, Problem
from fwdaemon.status.confirming import Confirmation
from fwdaemon.status.reloads import LastGood
from fwdaemon.status.temporary import Now
from tests.unit.daemon_scene import MAIN, RULE, SSH, SSH_RULE, WEB, Scene, play, prepared
from tests.unit.test_config_support import forward

ROLLED_BACK = "configuration /etc/portfwd.toml was not confirmed; the one before is in force again"
OTHER = WEB.replace("80:8080", "81:8080")
DENYING = WEB + 'deny = ["set:bad"]\n[[set]]\nname = "bad"\nfile = "{}"\n'
OTHER_RULE = RULE.replace("*:80", "*:81")


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    return prepared(tmp_path, monkeypatch, caplog)


async def loaded(scene: Scene, text: str, confirm_seconds: int | None = None) -> object:
    """Reload another text, and give until when it is to be confirmed."""
    scene.text = text
    return (await scene.ask("Reload", confirm_seconds=confirm_seconds))["confirm_by"]


def kept(scene: Scene) -> list[str]:
    found: dict[str, dict[str, str]] = json.loads((scene.place / "state/last-good.json").read_text())
    return list(found["files"].values())


def test_without_confirmation_the_configuration_before_comes_back(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            assert await loaded(scene, SSH, 60)
            assert scene.written == {SSH_RULE}
            found = (await scene.ask("Status"))["configuration"]
            assert found["confirm_by"]
            assert found["remaining_seconds"] == 60
            scene.pass_by(59)
            await asyncio.sleep(0.05)
            assert scene.written == {SSH_RULE}
            scene.pass_by(1)
            await scene.until(lambda: scene.written == {RULE})
            found = (await scene.ask("Status"))["configuration"]
            assert (found["confirm_by"], found["remaining_seconds"], found["unconfirmed"]) == (None, None, True)
            with pytest.raises(CallError, match="not confirmed in time"):
                await scene.ask("Confirm")
        assert kept(scene) == [WEB]

    play(act())
    assert ROLLED_BACK in caplog.messages
    assert f"removed {SSH_RULE} ({ROLLED_BACK})" in caplog.messages


def test_with_the_one_before_its_sets_come_back_and_what_is_in_their_files_now(scene: Scene) -> None:
    file = scene.place / "list.txt"
    file.write_text("192.0.2.1\n")

    def denied() -> list[str]:
        """Give what is denied by the sets in force."""
        config = scene.daemon._sets.applied(scene.daemon._standing.all)  # noqa: SLF001  what the next pass goes by
        return [str(network) for item in config.sets for network in item.networks]

    async def act() -> None:
        async with scene.running_daemon():
            scene.files = (file,)
            await loaded(scene, DENYING.format(file))
            scene.files = ()
            await loaded(scene, WEB, 60)
            file.write_text("nonsense\n")
            scene.pass_by(60)
            await scene.until(lambda: denied() == ["192.0.2.1/32"])
            await scene.until(lambda: f"{file}:1: " in "".join(scene.problems))
            assert denied() == ["192.0.2.1/32"]
            file.write_text("192.0.2.2\n")
            await scene.until(lambda: denied() == ["192.0.2.2/32"])
            assert not scene.problems

    play(act())


def test_one_that_is_confirmed_stays(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await loaded(scene, SSH, 60)
            await scene.ask("Confirm")
            with pytest.raises(CallError, match="no configuration waits"):
                await scene.ask("Confirm")
            scene.pass_by(3600)
            await asyncio.sleep(0.05)
            assert scene.written == {SSH_RULE}
        assert kept(scene) == [SSH]
        assert not (scene.place / "state/unconfirmed.json").exists()

    play(act())
    assert any(line.startswith("configuration /etc/portfwd.toml confirmed by uid 0") for line in caplog.messages)


@pytest.mark.parametrize("again", [None, 30])
def test_another_reload_confirms_nothing(scene: Scene, again: int | None) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            first = await loaded(scene, SSH, 60)
            assert (await loaded(scene, OTHER, again) == first) is (again is None)
            scene.pass_by(again or 60)
            await scene.until(lambda: scene.written == {RULE})
            # Asked for once more, it is loaded, and stays.
            assert await loaded(scene, SSH) is None
            scene.pass_by(3600)
            await asyncio.sleep(0.05)
            assert scene.written == {SSH_RULE}
            assert not (await scene.ask("Status"))["configuration"]["unconfirmed"]

    play(act())


def test_a_hangup_confirms_nothing_and_files_as_before_need_no_confirmation(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            await loaded(scene, SSH, 60)
            scene.text = WEB + SSH
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})
            assert (await scene.ask("Status"))["configuration"]["confirm_by"]
            assert await loaded(scene, WEB) is None

    play(act())


def test_a_wrong_file_waits_for_nothing(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.unreadable.append(ConfigError([Problem(MAIN, 3, "is wrong")]))
            with pytest.raises(CallError, match=CONFIGURATION_REFUSED):
                await scene.ask("Reload", confirm_seconds=60)
            assert (await scene.ask("Status"))["configuration"]["confirm_by"] is None
            # It does not ask for the next one to be confirmed either.
            assert await loaded(scene, SSH) is None

    play(act())


def test_what_is_being_read_when_the_time_is_over_is_not_put_in_force(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            await loaded(scene, SSH, 60)
            scene.readable = readable = threading.Event()
            scene.reading.clear()
            asked = asyncio.create_task(loaded(scene, OTHER))
            await scene.until(scene.reading.is_set)
            scene.pass_by(60)
            await scene.until(lambda: scene.written == {RULE})
            readable.set()
            with pytest.raises(CallError, match="was not confirmed in time"):
                await asked
            assert scene.written == {RULE}
            assert await loaded(scene, OTHER) is None
            assert scene.written == {OTHER_RULE}

    play(act())


def test_where_the_one_before_cannot_be_kept_the_new_one_is_not_loaded(scene: Scene) -> None:
    (scene.place / "state").write_text("no directory")

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            with pytest.raises(CallError, match=REFUSED):
                await loaded(scene, SSH, 60)
            assert scene.written == {RULE}

    play(act())


@pytest.mark.skipif(os.geteuid() != 0, reason="the daemon is root")
class TestStart:
    """What a daemon begins with that comes after one which was killed."""

    @pytest.fixture
    def main(self, tmp_path: Path) -> Path:
        path = tmp_path / "portfwd.toml"
        path.write_text(forward(ports='["2"]'))
        path.chmod(0o644)
        return path

    def begun(self, main: Path, at: Now) -> tuple[str, bool]:
        state = main.parent / "state"
        start = run.first_configuration(LastGood(main, state), main, Confirmation(main, state, lambda: at))
        return str(start.config.forwards[0].mappings[0].host), start.is_rolled_back

    def test_it_goes_on_until_the_time_is_over(self, main: Path) -> None:
        at = Now(1_772_000_000.0, 5_000.0, "first")
        before = {main: forward(ports='["1"]').encode()}
        Confirmation(main, main.parent / "state", lambda: at).begin((before, {}), {main: main.read_bytes()}, 60)
        assert self.begun(main, Now(at.wall + 59, at.boottime + 59, "first")) == ("2", False)
        for _ in range(2):
            assert self.begun(main, Now(at.wall + 60, at.boottime + 60, "first")) == ("1", True)
        assert self.begun(main, Now(at.wall - 3600, 10.0, "second")) == ("1", True)
        main.write_text(forward(ports='["3"]'))
        assert self.begun(main, Now(at.wall + 60, 10.0, "second")) == ("3", False)
        assert not (main.parent / "state/unconfirmed.json").exists()

    def test_one_that_is_loaded_over_the_last_good_one_gives_way_to_that_again(self, main: Path, scene: Scene) -> None:
        state = scene.place / "state"
        LastGood(MAIN, state).keep({MAIN: WEB.encode()})
        main.write_text("wrong")
        start = run.first_configuration(LastGood(MAIN, state), main, Confirmation(MAIN, state))
        scene.start = start

        async def act() -> None:
            async with scene.running_daemon():
                await scene.until(lambda: scene.written == {RULE})
                await loaded(scene, SSH, 60)
                scene.pass_by(60)
                await scene.until(lambda: scene.written == {RULE})

        play(act())
