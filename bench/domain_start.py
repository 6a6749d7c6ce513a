"""Figure: one domain starts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Final

from bench.figure import Figure, Series, Unit, Want, ratios
from bench.forwards import LAST, PUBLIC, config, last_port
from bench.processes import wait_quiet
from bench.scene import Scene
from bench.setting import Setting, inside, take_turns
from bench.table import number
from tests.lab.daemon import Daemon
from tests.lab.place import Process

_RUNS: Final = {10: 15, 1000: 15, 10000: 15}
_QUICK_RUNS: Final = {10: 2, 100: 2}
_ALONE_RUNS, _QUICK_ALONE_RUNS = 7, 2
_FEW, _MANY = 10, 10000
_PATIENCE_S = 60.0
_NOTES = """\
A domain with one forward starts on a host where N - 1 other forwards lead to ten guests. The time is from libvirt's
event, as a program of its own that listens on the same host hears it, to the first connection answered to a client
outside, which tries again half a millisecond after each refusal. The forward leads to a server that already listens.
Each number of forwards has a host of its own, and the hosts take turns. Below that, the reconcile alone, without
libvirt and events, and the part of it that programs take which change rules, measured where no daemon runs."""


def measure(setting: Setting) -> Figure:
    """Measure on one host for each number of forwards."""
    runs = setting.runs(_RUNS, _QUICK_RUNS)
    alone_runs = _QUICK_ALONE_RUNS if setting.quick else _ALONE_RUNS
    with ExitStack() as at_end:
        scenes = {size: at_end.enter_context(setting.scene()) for size in runs}
        alone = {size: _alone(scene, size, alone_runs) for size, scene in scenes.items()}
        starting = {size: at_end.enter_context(_ready(scene, size)) for size, scene in scenes.items()}
        answered = Series(
            "event to first answer", Unit.SECONDS, take_turns(runs, lambda size: starting[size].start_once())
        )
    series = answered, *_alone_series(alone, setting)
    title = "One domain starts on a host with N forwards"
    return Figure("domain-start", title, str(setting.flavour), _NOTES, series, _wants(answered, alone))


def _alone_series(alone: Mapping[int, Mapping[str, Sequence[float]]], setting: Setting) -> Iterator[Series]:
    # The helpers that write to iptables-legacy are not among the programs, nor their CPU time among ours.
    labels = {"whole": "the reconcile alone", "committed": "of which until the rules are in the kernel"}
    if not setting.legacy:
        labels |= {"programs": "of which programs", "cpu": "CPU of the reconcile"}
    for key, label in labels.items():
        yield Series(label, Unit.SECONDS, {size: told[key] for size, told in alone.items()})


def _alone(scene: Scene, size: int, runs: int) -> dict[str, list[float]]:
    told: dict[str, list[float]] = json.loads(inside(scene.host, "reconciling", "change", str(size), str(runs)))
    return told


class Starting:
    """One host whose last domain stops and starts."""

    def __init__(self, scene: Scene, daemon: Daemon, listening: Process, port: int) -> None:
        self._scene = scene
        self._daemon = daemon
        self._listening = listening
        self._port = port

    def start_once(self) -> float:
        """Stop the domain, then start it; the seconds from its event to the first answer."""
        domain = self._scene.last
        with self._scene.traffic.knocking(PUBLIC, self._port) as knocking:
            domain.stop()
            knocking.wait("down", _PATIENCE_S)
        wait_quiet(self._daemon.pid)
        heard = len(self._listening.lines())
        with self._scene.traffic.knocking(PUBLIC, self._port) as knocking:
            with domain.domain() as started:
                started.create()
            _, at = knocking.wait("up", _PATIENCE_S)
        event = self._listening.wait_line(f"^started {LAST} ", start=heard)
        wait_quiet(self._daemon.pid)
        return at - float(event.text.split()[2])


@contextmanager
def _ready(scene: Scene, size: int) -> Iterator[Starting]:
    listening = scene.host.popen(scene.host.python, "-m", "bench.listening", "lxc:///system")
    try:
        listening.wait_line("^ready$")
        yield Starting(scene, scene.daemon(config(size, resync="1h")), listening, last_port(size))
    finally:
        listening.stop()


def _wants(answered: Series, alone: Mapping[int, Mapping[str, Sequence[float]]]) -> tuple[Want, ...]:
    if _MANY not in answered.samples:
        return ()
    few, many = answered.samples[_FEW], answered.samples[_MANY]
    because = _because(*(alone[size] for size in (_FEW, _MANY)))
    return (
        Want(f"at {_MANY:,}, at most 1.5 times the time at {_FEW}", ratios(many, few), 1.5, " times", because=because),
        Want(f"at {_MANY:,}, less than 30 ms", _ms(many), 30, " ms", because=because),
    )


def _ms(samples: Sequence[float]) -> list[float]:
    return [1000 * seconds for seconds in samples]


def _because(few: Mapping[str, Sequence[float]], many: Mapping[str, Sequence[float]]) -> str:
    few_ms, many_ms = ({key: 1000 * median(samples) for key, samples in each.items()} for each in (few, many))
    return (
        f"Until the rules are in the kernel, the reconcile alone takes {number(few_ms['committed'])} ms at {_FEW} and"
        f" {number(many_ms['committed'])} ms at {_MANY:,}, of which programs take {number(few_ms['programs'])} and"
        f" {number(many_ms['programs'])} ms."
    )
