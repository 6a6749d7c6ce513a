"""What takes too long beside the passes holds nothing up, so it is shown: in the status and in the metrics."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fwdaemon import config as configuration
from fwdaemon.audit.journal import ARREARS, LATE_JOBS, Arrears
from fwdaemon.commands.status import as_text
from fwdaemon.conflicts.watch import BackgroundConflictWatch, ConflictWatch
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Job, Late
from fwdaemon.kernel.process import Worker
from fwdaemon.status.records import Records
from tests.lab.place import wait_until
from tests.unit.daemon_scene import FAST, MAIN, RULE, STARTED, Scene, inventory, play, prepared
from tests.unit.memory_backend import NoProgram

PROGRAM = Path(__file__).parents[2] / "fwdaemon"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    return prepared(tmp_path, monkeypatch, caplog)


@contextmanager
def hanging() -> Iterator[Callable[..., Any]]:
    """Give what waits until the block ends, and then gives nothing."""
    over = threading.Event()
    try:
        yield lambda *_, **__: over.wait(600) and ()
    finally:
        over.set()


def is_late(job: Job, about: str = "") -> bool:
    return any((late.job, late.about) == (job, about) for late in ARREARS.late(0.0))


def test_a_job_is_late_once_it_has_gone_on_for_too_long_until_it_is_done() -> None:
    now = [100.0]
    arrears = Arrears(lambda: now[0])
    sweep = arrears.begin(Job.CONNECTIONS)
    now[0] = 104.0
    with arrears.during(Job.LIBVIRT, "qemu:///system"):
        other = arrears.begin(Job.LIBVIRT, "qemu:///system")
        now[0] = 112.0
        assert arrears.late(10.0) == (Late(Job.CONNECTIONS, "", 12.0),)
        assert arrears.late(8.0) == (Late(Job.CONNECTIONS, "", 12.0), Late(Job.LIBVIRT, "qemu:///system", 8.0))
        sweep()
        sweep()
    assert arrears.late(0.0) == (Late(Job.LIBVIRT, "qemu:///system", 8.0),)
    other()
    assert arrears.late(0.0) == ()


def test_a_job_that_failed_is_done() -> None:
    arrears = Arrears()
    with pytest.raises(ValueError, match="no"), arrears.during(Job.SETS):
        raise ValueError("no")
    assert arrears.late(0.0) == ()


def test_each_kind_of_job_is_used_and_has_words() -> None:
    assert set(LATE_JOBS) == set(Job)
    text = "".join(file.read_text(encoding="utf-8") for file in PROGRAM.rglob("*.py"))
    assert set(re.findall(r"\bJob\.([A-Z_]+)(?![A-Z_:])", text)) == {job.name for job in Job}


def test_every_thread_for_calls_that_may_hang_says_what_it_does() -> None:
    async def act() -> None:
        worker = Worker("libvirt test:///late", Job.LIBVIRT, "test:///late")
        with hanging() as hang:
            call = worker.submit(hang)
            await asyncio.to_thread(wait_until, lambda: is_late(Job.LIBVIRT, "test:///late"), "the call is late")
        await call
        await worker.close(10)
        assert not is_late(Job.LIBVIRT, "test:///late")

    asyncio.run(act())


def test_so_does_the_look_at_rules_of_others() -> None:
    class Hanging(ConflictWatch):
        def find(self, *_: object, **__: object) -> tuple[()]:
            hang()
            return ()

    with hanging() as hang:
        watch = BackgroundConflictWatch(Hanging(NoProgram()), lambda _: None)
        watch.find(Desired(), (), full=True)
        wait_until(lambda: is_late(Job.CONFLICTS), "the look is late")
    assert watch.wait(10)


def test_the_status_and_the_metrics_tell_of_a_sweep_that_takes_too_long(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.pauses = replace(FAST, reading=0.05)

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            with hanging() as hang:
                monkeypatch.setattr(scene.connections, "end_resumed", hang)
                scene.libvirt.there = inventory(running=False)
                scene.libvirt.trigger(STARTED)
                await scene.until(lambda: Job.CONNECTIONS in scene.late)
                status = await scene.ask("Status")
                (sweep,) = (item for item in status["late"] if item["job"] == "connections")
                assert sweep["about"] is None
                assert sweep["seconds"] >= 0.05
                assert re.search(r"^late {11}the sweep of connections, \d+ s so far$", as_text(status), re.MULTILINE)
                metrics = (await scene.ask("Metrics"))["text"]
                (seconds,) = re.findall(r'^kvm_portfwd_late_seconds\{job="connections"\} (\S+)$', metrics, re.MULTILINE)
                assert float(seconds) >= 0.05
                assert re.search(r"^kvm_portfwd_log_lines_lost_total \d", metrics, re.MULTILINE)
                assert "1 job late" in scene.daemon._summary()  # noqa: SLF001  what systemctl shows
            await scene.until(lambda: Job.CONNECTIONS not in scene.late)

    play(act())


def test_who_watches_learns_what_is_late_and_what_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    news: list[object] = []
    records = Records(MAIN, configuration.parse({MAIN: ""}), lambda *what: news.append(what))
    records.late_s = 0.0
    records.check()
    news.clear()
    done = ARREARS.begin(Job.LAST_GOOD, "of this test")
    records.check()
    records.check()
    assert len(news) == 1
    done()
    records.check()
    assert len(news) == 2
    monkeypatch.setattr(ARREARS, "lost_lines", ARREARS.lost_lines + 3)
    records.check()
    assert len(news) == 3
    records.unlogged = lambda: 4
    records.check()
    assert len(news) == 4
    header = records.header(())
    assert (header.lost_lines, header.unlogged) == (ARREARS.lost_lines, 4)
