"""The daemon's loop, with a rule system, a host, libvirt and a configuration in memory."""

import asyncio
import logging
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from fwdaemon.core.report import ApplyResult, Reason, ReasonKind
from fwdaemon.errors import HangingError, KernelError, LibvirtUnavailableError
from fwdaemon.triggers import Budgets, Origin
from tests.sentences import error
from tests.unit.daemon_scene import FAST, RULE, SSH, SSH_RULE, STARTED, WEB, Scene, inventory, play, prepared

MADE_AGAIN, NO_SOCKET = "the control socket was removed", "no control socket"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    return prepared(tmp_path, monkeypatch, caplog)


def test_what_the_configuration_and_libvirt_say_is_put_into_the_kernel_and_stays(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE} and scene.libvirt.searched > 0)
        assert scene.written == {RULE}
        assert (scene.libvirt.closed, scene.host.closed) == (1, 1)

    play(act())


def test_before_libvirt_has_answered_nothing_is_written_and_that_is_said(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.libvirt.there, scene.pauses = None, replace(FAST, ready=0.01)

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(
                lambda: (
                    "libvirt has not answered yet: what the kernel holds stays as it is until then" in caplog.messages
                )
            )
            assert (scene.written, scene.kernel.generation) == (set(), 0)
            scene.libvirt.there = inventory()
            scene.libvirt.trigger(STARTED)
            await scene.until(lambda: scene.written == {RULE})

    play(act())


def test_an_event_has_a_fresh_inventory_taken_and_is_the_cause(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.libvirt.there = inventory(running=False)

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: "waiting web1" in caplog.text)
            scene.libvirt.there = inventory()
            scene.libvirt.trigger(STARTED)
            await scene.until(lambda: f"added {RULE} (domain web1 started)" in caplog.messages)

    play(act())


def test_a_wipe_is_mended_while_libvirt_is_lost_between_two_calls(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    gone = "libvirt at qemu:///system does not answer"

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.libvirt.faults += [LibvirtUnavailableError(gone)] * 1000
            scene.libvirt.trigger(STARTED)
            await scene.until(lambda: f"no new inventory: {gone}; trying again, less and less often" in caplog.messages)
            scene.kernel.wipe()
            await scene.until(lambda: f"restored {RULE} (changed by another, pid 7)" in caplog.messages)
            assert scene.written == {RULE}
            # It is tried again by itself, and each failure is logged once.
            refreshed = scene.libvirt.refreshed
            await scene.until(lambda: scene.libvirt.refreshed > refreshed + 2)
            assert caplog.text.count(gone) == 1
            scene.libvirt.faults.clear()
            scene.libvirt.there = inventory(running=False)
            await scene.until(lambda: not scene.written)

    play(act())


@pytest.mark.parametrize("error", [KernelError("the kernel refused: no memory"), OSError(24, "Too many open files")])
def test_what_the_kernel_refuses_is_told_once_and_tried_again(
    scene: Scene, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    scene.faults += [error] * 3

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE} and not scene.faults)

    play(act())
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].endswith("trying again in 0 s, and less and less often")


def test_a_kernel_that_refuses_in_the_middle_keeps_what_was_and_what_changed_comes_later(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.text = WEB + SSH

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})
            scene.text, scene.kernel.refusals = WEB, 1
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: "the kernel refused: no memory" in caplog.text)
            await scene.until(lambda: scene.written == {RULE})

    play(act())
    assert f"removed {SSH_RULE} (configuration /etc/portfwd.toml loaded again)" in caplog.messages


def test_a_program_that_hangs_is_named_once_wherever_it_hangs(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.faults += [HangingError(("nft", step), "", -1, f"it hung at {step}") for step in ("list", "-f", "-j")]

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})

    play(act())
    assert [record.levelname for record in caplog.records if "trying again" in record.message] == ["ERROR"]


def test_a_mistake_of_ours_is_shown_with_its_place_and_outlived(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.faults.append(ZeroDivisionError("a mistake"))

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})

    play(act())
    assert any(record.exc_info and "this is a bug in kvm-portfwd" in record.message for record in caplog.records)


def test_what_others_took_from_us_is_told_as_soon_as_it_is_found(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            kept = len(scene.host.kept)
            scene.others.found = (error("a clash"),)
            await asyncio.to_thread(scene.asked, Origin.OTHERS)
            await scene.until(lambda: len(scene.host.kept) > kept)
        # After the end, a late answer goes nowhere.
        scene.asked(Origin.OTHERS)

    play(act())
    scene.asked(Origin.OTHERS)


def test_after_a_change_of_ours_all_is_compared_once_more(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            await scene.until(lambda: len([whole for _, whole in scene.host.kept if whole]) > 1)

    play(act())


def test_an_exposure_that_is_held_for_a_moment_goes_without_another_event(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.libvirt.there = inventory(running=False)
            scene.libvirt.trigger(Reason(ReasonKind.DOMAIN, "web1", "stopped"))
            await scene.until(lambda: not scene.written)

    play(act())


def test_a_directory_that_was_removed_is_made_again_with_all_that_was_in_it(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    directory = scene.place / "run"

    def nothing_there() -> None:
        shutil.rmtree(directory)
        scene.libvirt.trigger(STARTED)  # the files are looked for soon after each look

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE} and (directory / "interfaces.json").exists())
            await scene.until(lambda: sum(full for _, full in scene.host.kept) > 1)
            before, passes = {path.name for path in directory.iterdir()}, len(scene.host.kept)
            nothing_there()
            await scene.until(lambda: directory.exists() and {path.name for path in directory.iterdir()} == before)
            await scene.until(lambda: any(full for _, full in scene.host.kept[passes:]))
            nothing_there()
            directory.touch()
            await scene.until(lambda: NO_SOCKET in caplog.text)
            directory.unlink()
            await scene.until(lambda: directory.is_dir() and {path.name for path in directory.iterdir()} == before)
        told = [text.split(",")[0] for text in caplog.messages if "control socket" in text]
        assert told == [MADE_AGAIN, NO_SOCKET, MADE_AGAIN]

    play(act())


def test_what_the_host_side_lacks_for_want_of_a_thread_is_tried_again(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.host.result = ApplyResult(faults=(error("no thread"),), short=True)
            scene.libvirt.trigger(STARTED)
            await scene.until(lambda: scene.problems == ("no thread",))
            passes = len(scene.host.kept)
            await scene.until(lambda: len(scene.host.kept) > passes + 3)
            scene.host.result = ApplyResult()
            await scene.until(lambda: scene.problems == ())

    play(act())


def test_who_changed_rules_is_asked_once_more_and_not_for_ever(scene: Scene) -> None:
    scene.pauses = replace(FAST, patience=0.0)

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            # It is not known who it was.
            scene.kernel.changed = None
            scene.kernel.wipe()
            scene.asked(Origin.OTHERS)
            await scene.until(lambda: scene.written == {RULE})

    play(act())


class Seen(Budgets):
    """Budgets that remember what work was for."""

    work: list[Origin]

    def charged(self, cause: Origin, meter: Callable[[], float]) -> AbstractContextManager[None]:
        self.work.append(cause)
        return super().charged(cause, meter)


def test_the_comparison_after_what_a_user_did_is_charged_to_users_too(scene: Scene) -> None:
    scene.libvirt.there = inventory(running=False)
    scene.budgets = seen = Seen.new(lambda: 0.0, nullcontext)
    seen.work = []

    async def act() -> None:
        async with scene.running_daemon():
            # What the start itself takes has begun: an inventory, a pass, and a sweep.
            await scene.until(lambda: seen.work == [Origin.OTHERS] * 3)
            scene.libvirt.there = inventory()
            scene.libvirt.trigger(STARTED)
            await scene.until(lambda: scene.written == {RULE} and seen.work.count(Origin.USERS) >= 4)
        # An inventory, the pass that follows, a sweep, and the comparison with what was committed.
        assert seen.work[seen.work.index(Origin.USERS) :] == [Origin.USERS] * 4

    play(act())
