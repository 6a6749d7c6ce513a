"""What the daemon makes of the last good table of its fleet while etcd does not answer."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from fwdaemon.fleet.table import Item, KeptTable, Table, entry_key
from tests.unit.daemon_scene import RULE, SSH, SSH_RULE, WEB, Scene, play, prepared

# Nothing listens there.
FLEET = '[fleet]\netcd = "http://127.0.0.1:1"\n'
PREFIX = "/portfwd/v1"
MAIL = '[[nat]]\ndomain = "web1"\npublic = "198.51.100.8"\nassign = "eth0"\n'


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    tmp_path.chmod(0o700)
    return prepared(tmp_path, monkeypatch, caplog)


def keep(scene: Scene, **texts: str) -> None:
    items = [Item(entry_key(PREFIX, name), text.encode(), 812) for name, text in texts.items()]
    KeptTable(scene.place / "state").keep(Table.of(PREFIX, items))


async def status(scene: Scene) -> dict[str, Any]:
    """Ask it once a pass has ended."""
    await scene.until(scene.daemon._first_pass.is_set)  # noqa: SLF001  what systemd gets
    return await scene.ask("Status")


def test_it_is_in_force_until_the_host_belongs_to_no_fleet(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    keep(scene, ssh=SSH)
    scene.text = FLEET + WEB

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})
            told = await status(scene)
            assert {row["origin"] for row in told["openings"]} == {"/etc/portfwd.toml:5", "etcd:ssh:3"}
            assert told["fleet"]["revision"] == 812
            assert (told["fleet"]["answering"], told["fleet"]["members"]) == (0, 1)
            await scene.until(lambda: any("etcd: " in problem for problem in scene.problems))
            scene.text = WEB
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: scene.written == {RULE})
            assert (await status(scene))["fleet"] is None

    play(act())
    assert sum("Connection refused" in message for message in caplog.messages) == 1


def test_what_a_file_claims_goes_before_it(scene: Scene) -> None:
    keep(scene, web=WEB.replace("web1", "web2"), ssh=SSH)
    scene.text = FLEET + WEB

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})
            said = "etcd:web:1 is left out on this host: /etc/portfwd.toml:5 claims the same"
            assert any(problem.startswith(said) for problem in scene.problems)

    play(act())


def test_one_that_is_wrong_is_told_and_left_out(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    keep(scene, ssh=SSH, more=SSH.replace("web1", "web2"))
    scene.text = FLEET + WEB

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})

    play(act())
    assert "configuration refused; the table that was kept is not used" in caplog.messages


def test_an_address_that_takes_a_claim_waits_for_etcd(scene: Scene) -> None:
    keep(scene, mail=MAIL)
    scene.text = FLEET + WEB

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written != set())
            (row,) = [row for row in (await status(scene))["openings"] if row["kind"] == "nat"]
            assert (row["state"], row["reason_kinds"]) == ("waiting", ["no-claim"])
            assert row["reason"] == "etcd has not given 198.51.100.8 to this host"

    play(act())


def test_an_address_that_was_claimed_before_a_restart_is_held_on(scene: Scene) -> None:
    keep(scene, mail=MAIL)
    scene.text = FLEET
    (scene.place / "run").mkdir()
    record = [
        {"run": "7", "lease": 1, "until": "1e12"},
        {"address": "198.51.100.8", "until": "1e12"},
    ]
    (scene.place / "run" / "fleet.json").write_text(json.dumps(record))

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written != set())
            told = await status(scene)
            assert [row["leads_to"] for row in told["openings"]] == ["192.168.122.50"]
            assert told["fleet"]["held"] == ["198.51.100.8"]

    play(act())
