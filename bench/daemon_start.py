"""Figure: the program starts."""

import time
from typing import Final

from bench.figure import NONE, Figure, Series, Unit, Want
from bench.forwards import config
from bench.processes import wait_quiet
from bench.scene import Scene
from bench.setting import Setting, inside

_RUNS: Final = {10: 7, 10000: 7}
_QUICK_RUNS: Final = {10: 3, 100: 3}
_HELP_RUNS = 20
_PATIENCE_S = 120.0
_MANY, _READY_S, _HELP_MS = 10000, 0.7, 40
_NOTES = """\
From the start of the process until it reports that it is ready, with its rules for N forwards in the kernel from an
earlier run, which it compares and adopts. And how long `--help` takes, beside an empty program of that Python."""


def measure(setting: Setting) -> Figure:
    """Measure on one host."""
    with setting.scene() as scene:
        runs = setting.runs(_RUNS, _QUICK_RUNS)
        ready = {size: _starts(scene, size, count) for size, count in runs.items()}
        answer, empty = _timed(scene, "-m", "fwdaemon", "--help"), _timed(scene, "-c", "pass")
    series = (
        Series("start to ready", Unit.SECONDS, ready),
        Series("`kvm-portfwd --help`", Unit.SECONDS, {NONE: answer}),
        Series("`python3 -c pass`", Unit.SECONDS, {NONE: empty}),
    )
    beyond = [1000 * (one - other) for one, other in zip(answer, empty, strict=True)]
    wants = [Want(f"`--help` within {_HELP_MS} ms of an empty Python", beyond, _HELP_MS, " ms")]
    if _MANY in ready:
        wants.insert(0, Want(f"at {_MANY:,}, ready within {_READY_S} s", ready[_MANY], _READY_S, " s"))
    return Figure("start", "Start", str(setting.flavour), _NOTES, series, tuple(wants))


def _starts(scene: Scene, size: int, count: int) -> list[float]:
    """The first start writes the rules and does not count."""
    return [_start(scene, size, adopting=run > 0) for run in range(count + 1)][1:]


def _start(scene: Scene, size: int, *, adopting: bool) -> float:
    begun = time.monotonic()
    daemon = scene.host.daemon(config(size), wait=False)
    daemon.wait_ready(_PATIENCE_S)
    seconds = time.monotonic() - begun
    if adopting:
        daemon.wait_log(f"^adopted {size} ", _PATIENCE_S)
    wait_quiet(daemon.pid)
    daemon.terminate()
    daemon.close()
    return seconds


def _timed(scene: Scene, *words: str) -> list[float]:
    """The first time warms up."""
    told = inside(scene.host, "timed", str(_HELP_RUNS + 1), scene.host.python, *words)
    return [float(line) for line in told.split()][1:]
