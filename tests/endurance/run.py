"""One long run: warm up, measure at rest, press, measure at rest again."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from random import Random

import libvirt

from bench.processes import cpu_seconds, memory, wait_quiet
from tests.chaos.figures import versions
from tests.chaos.resources import held
from tests.chaos.rounds import WrongError
from tests.endurance import yardstick
from tests.endurance.attendant import Attendant
from tests.endurance.commits import Commits
from tests.endurance.events import Events, shares
from tests.endurance.figures import MIB, Figures, Part, Rest
from tests.endurance.pace import Pace
from tests.endurance.scene import Scene, set_up
from tests.endurance.wipes import Wiper
from tests.lab.command import LabError
from tests.lab.place import wait_until
from tests.lab.release import Flavour

Say = Callable[[str], None]
_TENTHS, _BLOCKS = 10, 10
# Before anything is measured, a part of all is done once: caches fill, and libraries are loaded.
_WARM_UP = 10
# How many wipes are measured without events, before and after, as a part of all.
_CALM = 100
_SAMPLED_EVERY_S, _SAMPLES = 60.0, 5
_WIPES = "wipes"
# The listener reports once a second; so many times the same say that no more comes.
_SILENT = 3


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run is: events and wipes to press, and the seconds after which no more are."""

    events: int
    wipes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run, and on what it ran."""

    figures: Figures
    versions: str


def endured(flavour: Flavour, length: Length, seed: int, say: Say) -> Result:
    """Set up a host and run."""
    with set_up(flavour) as scene, Commits(scene.host) as commits, Attendant(scene.daemon) as attendant:
        run = _Run(scene, Wiper(scene, commits, Random(seed)), attendant, say)  # noqa: S311  to be repeated, not to be secret
        on = versions(scene.host)
        try:
            run.all(length)
        except (WrongError, LabError, OSError, TimeoutError, libvirt.libvirtError) as error:
            run.figures.failure = f"{type(error).__name__}: {error}\nthe daemon said last:\n{attendant.last}"
        figures = run.figures
        scene.steady.go_on()
        figures.bytes, figures.datagrams = scene.steady.volume()
        figures.lost, figures.failure = bool(scene.steady.losses()), figures.failure or attendant.mistakes
        return Result(figures, on)


def _share(whole: int, number: int, parts: int) -> int:
    """Give the size of one of so many parts that are as equal as can be."""
    return whole * (number + 1) // parts - whole * number // parts


class _Run:
    def __init__(self, scene: Scene, wiper: Wiper, attendant: Attendant, say: Say) -> None:
        self._scene, self._wiper, self._attendant, self._say = scene, wiper, attendant, say
        self._before: Counter[str] = Counter()
        self._wipes: Counter[str] = Counter()
        self.figures = Figures()

    def all(self, length: Length) -> None:
        self.figures.asked = asdict(length)
        warm_up = Length(length.events // _WARM_UP, length.wipes // _WARM_UP, length.seconds)
        with self._pressed(warm_up) as pace:
            self._part(pace, warm_up.wipes)
        self._say("warm")
        self._measure_at_rest(length)
        said = Counter(self._attendant.said)
        self._press(length)
        self.figures.said = dict(self._attendant.said - said)
        self.figures.wipes = dict(self._wipes)
        self._measure_at_rest(length)

    def _measure_at_rest(self, length: Length) -> None:
        """Wipe for a while without events, then look at what the daemon holds when it does nothing."""
        wipes = max(length.wipes // _CALM, _BLOCKS)
        pace = Pace({_WIPES: wipes}, time.monotonic() + length.seconds)
        self.figures.calm.append(self._part(pace, wipes))
        pid = self._scene.daemon.pid
        wait_quiet(pid)
        taken = memory(pid)
        rest = Rest(taken.rss, taken.pss, dict(held(self._scene.host, pid)), taken.private)
        self.figures.rest.append(rest)
        self._say(f"at rest: RSS {rest.rss / MIB:.1f} MiB, PSS {rest.pss / MIB:.1f} MiB, {rest.held}")

    def _press(self, length: Length) -> None:
        self._wipes = Counter()
        self._wiper.opened = self._wiper.closed = 0
        began, self._before = time.monotonic(), self._all_heard()
        with self._pressed(length) as pace:
            for number in range(_TENTHS):
                part = self._part(pace, _share(length.wipes, number, _TENTHS), began)
                if part.healed:
                    self.figures.tenths.append(part)
                    self._tell(number, part)
        self.figures.seconds = time.monotonic() - began
        self.figures.events = dict(self._all_heard() - self._before)
        self.figures.opened, self.figures.closed = self._wiper.opened, self._wiper.closed

    def _tell(self, number: int, part: Part) -> None:
        self._say(
            f"tenth {number + 1}: {part.seconds:.0f} s, {part.events} events, {len(part.healed)} wipes,"
            f" median {part.median:.3f} s, worst {max(part.healed):.3f} s, {part.cpu_median:.3f} CPU s for a wipe,"
            f" RSS {part.rss / MIB:.1f} MiB, libvirt refused {self.figures.refused}"
        )

    @contextmanager
    def _pressed(self, length: Length) -> Iterator[Pace]:
        """Press events meanwhile; afterwards all guests are as they were, and so are the rules."""
        work = {**shares(length.events), _WIPES: length.wipes}
        pace = Pace(work, time.monotonic() + length.seconds)
        events = Events(self._scene, pace)
        with events.pressed():
            yield pace
            pace.finish()
        self.figures.refused += len(events.refused)
        events.settle()
        self._wiper.wait_whole()

    def _part(self, pace: Pace, wipes: int, began: float | None = None) -> Part:
        """Wipe so often, and measure."""
        part, start, before = Part(), time.monotonic(), self._heard()
        for block in range(_BLOCKS):
            self._block(pace, part, _share(wipes, block, _BLOCKS))
            if began is not None:
                self._sample(began)
        part.seconds, part.events = time.monotonic() - start, (self._heard() - before).total()
        part.rss = self._resident()
        return part

    def _block(self, pace: Pace, part: Part, wipes: int) -> None:
        yards, cpu, done = yardstick.cpu_seconds(), cpu_seconds(self._scene.daemon.pid), len(part.healed)
        for _ in range(wipes):
            if not pace.next(_WIPES):
                break
            healed = self._wiper.wipe()
            pace.done(_WIPES)
            part.healed.append(healed.seconds)
            self._wipes[healed.kind] += 1
        if done < len(part.healed):
            part.cpu.append((cpu_seconds(self._scene.daemon.pid) - cpu) / (len(part.healed) - done))
            part.effort.append(2 * part.cpu[-1] / (yards + yardstick.cpu_seconds()))
        if lost := self._scene.steady.losses():
            raise WrongError("\n".join(lost))

    def _sample(self, began: float) -> None:
        """Note the memory about every minute."""
        series, at = self.figures.series, time.monotonic() - began
        if not series or at >= series[-1][0] + _SAMPLED_EVERY_S:
            series.append((round(at), (self._heard() - self._before).total(), self._wipes.total(), self._resident()))

    def _resident(self) -> int:
        """Give the memory in bytes; a program that the daemon is just starting has as much as it for a moment."""
        return min(memory(self._scene.daemon.pid).rss for _ in range(_SAMPLES))

    def _heard(self) -> Counter[str]:
        """Give the events that have arrived, as the listener counted them."""
        return Counter(json.loads(self._scene.listener.lines()[-1].text))

    def _all_heard(self) -> Counter[str]:
        """Give the same, once no more arrive."""
        wait_until(lambda: len({line.text for line in self._scene.listener.lines()[-_SILENT:]}) == 1, "silence", 60)
        return self._heard()
