"""Which lines are news: what is wrong is said once, and what flaps is counted. And which work is late."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from fwdaemon.core.exposures import Exposure, Owner
from fwdaemon.core.report import AnyFault, Cause, GateChange, Setting, SettingKind
from fwdaemon.core.state import Waiting
from fwdaemon.core.types import Gate, Job, Late

# Which of the things that are wrong now are news. Pure; the time is given.
#
# What waits, and why, is said once. A fault is said once it has lasted for a moment: while libvirt takes a network
# down, the kernel tells that a bridge went before libvirt tells that the network did.
LASTING_S = 1.0


class NewProblems:
    """Remembers what has been said."""

    def __init__(self, lasting_s: float = LASTING_S) -> None:
        self._lasting_s = lasting_s
        self._waiting: frozenset[Waiting] = frozenset()
        self._faults: dict[AnyFault, float] = {}
        self._said: frozenset[AnyFault] = frozenset()

    def of_waiting(self, entries: Iterable[Waiting], live: Collection[Owner], *, everything: bool) -> list[Waiting]:
        """Give the new entries; `live` are those who had exposures just before.

        That one of these stopped is said with its exposures.
        """
        present = dict.fromkeys(entry for entry in entries if not entry.is_idle)
        unsaid = [entry for entry in present if entry not in self._waiting]
        new = [entry for entry in unsaid if everything or not (entry.stopped and entry.owner in live)]
        self._waiting = frozenset(present)
        return new

    def of_faults(self, faults: Iterable[AnyFault], now: float, *, everything: bool) -> list[AnyFault]:
        """Give the faults that have lasted and were not said yet; with `everything`, those of this moment too."""
        self._faults = {fault: self._faults.get(fault, now) for fault in faults}
        lasting = [fault for fault, since in self._faults.items() if everything or now >= since + self._lasting_s]
        new = [fault for fault in lasting if fault not in self._said]
        self._said = frozenset(fault for fault in self._faults if fault in self._said or fault in lasting)
        return new

    @property
    def ends(self) -> float | None:
        """When the next fault will have lasted; `None` when all have been said."""
        unsaid = (since + self._lasting_s for fault, since in self._faults.items() if fault not in self._said)
        return min(unsaid, default=None)


class Rations:
    """Limits the lines about what one domain asks for and is refused: its metadata may ask for much at once."""

    def __init__(self, lines: int = 6, window_s: float = 60.0) -> None:
        self._lines, self._window_s = lines, window_s
        self._said: dict[Owner, list[float]] = {}

    def admitted(self, entries: Iterable[Waiting], now: float) -> list[Waiting]:
        """Give those that are to be written; the status shows all."""
        recent = {owner: [at for at in said if now < at + self._window_s] for owner, said in self._said.items()}
        self._said = {owner: said for owner, said in recent.items() if said}
        return [entry for entry in entries if not entry.declined or self._admit(entry.owner, now)]

    def _admit(self, owner: Owner, now: float) -> bool:
        said = self._said.setdefault(owner, [])
        if len(said) >= self._lines:
            return False
        said.append(now)
        return True


# Warnings about what is tried again and again.
_log = logging.getLogger(__name__)


class WarnOnce:
    """Says what is wrong when it is new, and not again until it was well in between."""

    def __init__(self) -> None:
        self._said = ""

    def warn(self, text: str) -> None:
        """Say what is wrong."""
        if text != self._said:
            _log.warning("%s", text)
            self._said = text

    def settle(self, over: str = "") -> None:
        """Note that it is well, and say that it is again, where there is a text for that."""
        if self._said and over:
            _log.info("%s", over)
        self._said = ""


# Keeps the audit readable when something flaps: after some lines about one thing, it counts them.
#
# Pure; the time is given.
Subject: TypeAlias = Exposure | GateChange | Setting
"""What a line is about."""
_Key: TypeAlias = tuple[Owner | SettingKind, str] | Gate

# So many lines about one subject within so many seconds are news; what comes after is counted.
LINES = 6
WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Flapped:
    """Something changed `number` more times in `seconds`; the last of them was `action`, for `cause`."""

    subject: Subject
    number: int
    seconds: float
    action: str
    cause: Cause


@dataclass(slots=True)
class _Window:
    since: float
    lines: int = 0
    counted: int = 0
    last: tuple[Subject, str, Cause] | None = None


class FlapDamping:
    """Counts the lines about each gate and setting, and each exposure, told apart by owner and where it listens."""

    def __init__(self, lines: int = LINES, window_s: float = WINDOW_S) -> None:
        self._lines = lines
        self._window_s = window_s
        self._windows: dict[_Key, _Window] = {}

    def admit(self, subject: Subject, action: str, cause: Cause, now: float) -> bool:
        """Tell whether a line is to be written; otherwise it is counted. Ask for `due` first."""
        window = self._windows.setdefault(_key(subject), _Window(now))
        if window.lines < self._lines:
            window.lines += 1
            return True
        window.counted += 1
        window.last = (subject, action, cause)
        return False

    def due(self, now: float) -> list[Flapped]:
        """Give what was counted in windows that are over, and forget these."""
        over = [key for key, window in self._windows.items() if now >= window.since + self._window_s]
        closed = [self._windows.pop(key) for key in over]
        return [
            Flapped(window.last[0], window.counted, now - window.since, *window.last[1:])
            for window in closed
            if window.last is not None
        ]

    @property
    def ends(self) -> float | None:
        """When a line about something counted is due; `None` where none is."""
        counting = (window.since + self._window_s for window in self._windows.values() if window.counted)
        return min(counting, default=None)


def _key(subject: Subject) -> _Key:
    match subject:
        case GateChange():
            return subject.gate
        case Setting():
            return subject.kind, subject.what
    return subject.owner, subject.listens_at()


# What this program is behind with. Nothing waits for such work, so that no one would notice but for the status.
LATE_S: Final = 10.0

LATE_JOBS: Final[Mapping[str, str]] = {
    Job.AGENTS: "an answer of a guest's agent, asked through {}",
    Job.ANSWERS: "an answer to plan, check or explain",
    Job.CONFIGURATION: "the reading of the configuration",
    Job.CONFLICTS: "the look at rules and sockets of others",
    Job.CONNECTIONS: "the sweep of connections",
    Job.COUNTERS: "the counting of connections",
    Job.EXTERNAL_SETS: "the writing of what external sets hold",
    Job.GROUPS: "an answer of the group database",
    Job.INVENTORY: "the kernel's answer about links, addresses and neighbours",
    Job.LAST_GOOD: "the writing of the last good configuration",
    Job.LIBVIRT: "an answer of libvirt at {}",
    Job.LOG: "the writing of log lines",
    Job.LOOPBACK: "a change of what answers on 127.0.0.1 and ::1",
    Job.METRICS: "the making of metrics",
    Job.PROBES: "a search for silent guests",
    Job.RECONCILE: "a comparison with the kernel",
    Job.SETS: "the reading of files of sets",
    Job.STATUS: "the making of a status",
    Job.SYSTEMD: "what systemd is to be notified of",
    Job.TEMPORARY: "the writing of what is open for a while",
}
"""What `status` calls each."""


class Arrears:
    """Which jobs have begun and are not done, and how much was lost as nothing took it. From any thread.

    `clock` gives a monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: dict[object, tuple[Job, str, float]] = {}
        self.lost_lines = 0

    def begin(self, job: Job, about: str = "") -> Callable[[], object]:
        """Note that a job begins; what is given is to be called once it is done."""
        key = object()
        self._begun[key] = job, about, self._clock()
        return lambda: self._begun.pop(key, None)

    @contextmanager
    def during(self, job: Job, about: str = "") -> Iterator[None]:
        """Note that this block is a job."""
        done = self.begin(job, about)
        try:
            yield
        finally:
            done()

    def late(self, after: float = LATE_S) -> tuple[Late, ...]:
        """Give those that have gone on for at least so many seconds; of several alike, the one that began first."""
        now, first = self._clock(), dict[tuple[Job, str], float]()
        for job, about, since in list(self._begun.values()):
            first[job, about] = min(since, first.get((job, about), since))
        return tuple(Late(*what, now - since) for what, since in sorted(first.items()) if now - since >= after)


ARREARS: Final = Arrears()
"""Those of this program."""
