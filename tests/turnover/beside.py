"""What is asked beside a run, so that it can be said what of its times is whose: the machine's, libvirt's, ours."""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import libvirt

from tests.lab.host import PUBLIC4
from tests.turnover.scene import STAYING, STAYING_PORT, Scene

_LIBVIRT_EVERY_S, _PAGE_EVERY_S = 0.01, 0.05
# What took longer than this was not answered meanwhile; the threads here take turns, and that takes some time, too.
_SILENT_S = 0.02
_PATIENCE_S = 10.0


class Question(NamedTuple):
    """When it was asked and when it was answered; `before` is when there was the last answer before that."""

    before: float
    asked: float
    answered: float


class Asked:
    """One question that a thread asks again and again."""

    def __init__(self, question: Callable[[], object], every: float) -> None:
        self._question, self._every = question, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="asked beside")
        self._waits: Question | None = None
        self._told: list[Question] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def silence(self, begin: float, end: float) -> float:
        """Give the seconds between two times in which no answer came.

        An answer that took long may have been held up by what began before it was asked for. So a silence begins with
        the answer before that: it is too long by the pause between two questions at most, and never too short by it.
        """
        silent = [question for question in self._within(begin, end) if question.answered - question.asked > _SILENT_S]
        return sum(max(0.0, min(end, item.answered) - max(begin, item.before)) for item in silent)

    def longest(self, begin: float, end: float) -> float:
        """Give the seconds that the slowest answer took of those for which something waited between two times."""
        return max((item.answered - item.asked for item in self._within(begin, end)), default=0.0)

    def seconds(self, begin: float) -> list[float]:
        """Give how long each answer since then took."""
        return [item.answered - item.asked for item in self._told if item.asked >= begin]

    def note(self, question: Question) -> None:
        """Note an answer; they come one after the other."""
        self._told.append(question)

    def _within(self, begin: float, end: float) -> Iterator[Question]:
        """The questions that were asked before the end and answered after the beginning, if at all."""
        waits = self._waits  # it may be answered meanwhile
        for index in range(bisect_left(self._told, begin, key=lambda item: item.answered), len(self._told)):
            if self._told[index].before >= end:
                return
            yield self._told[index]
        if waits is not None and waits.before < end and not (self._told and self._told[-1].asked >= waits.asked):
            yield waits._replace(answered=end)

    def _ask(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self._every):
            asked = time.monotonic()
            self._waits = Question(before, asked, asked)
            self._question()
            answered = time.monotonic()
            self.note(Question(before, asked, answered))
            self._waits, before = None, answered


@dataclass(frozen=True, slots=True)
class Beside:
    """What is asked: libvirt for all domains and one of them, as the daemon does, and a page that has long been there.

    What libvirt is asked takes the locks of its driver, of the list of domains and, one after the other, of each.
    """

    libvirt: Asked
    page: Asked


@contextmanager
def asked_beside(scene: Scene) -> Iterator[Beside]:
    """Ask until the end of the block."""
    url, fetch = f"http://{PUBLIC4}:{STAYING_PORT}/", scene.host.outside.fetch
    with (
        scene.host.libvirt.connection() as connection,
        Asked(lambda: _listed(connection), _LIBVIRT_EVERY_S) as told,
        Asked(lambda: fetch(url, timeout=_PATIENCE_S), _PAGE_EVERY_S) as page,
    ):
        yield Beside(told, page)


def _listed(connection: libvirt.virConnect) -> None:
    connection.listAllDomains()
    connection.lookupByName(STAYING).XMLDesc()
