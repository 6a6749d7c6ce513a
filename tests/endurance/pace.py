"""Keeps events and wipes in step, so that each tenth of the wipes meets a tenth of the events."""

import threading
import time

# How far one may be ahead of the others, as a part of the whole.
_SLACK = 0.005


class Pace:
    """Several workers with so much to do each; those ahead wait for those behind. Thread-safe."""

    def __init__(self, work: dict[str, int], end: float) -> None:
        self._work = work
        self._end = end
        self._done = dict.fromkeys(work, 0)
        self._changed = threading.Condition()
        self._over = False

    def next(self, worker: str) -> bool:
        """Wait for this worker's turn; false when it has no more to do, or all is over."""
        with self._changed:
            while not self._is_over() and not self._is_turn(worker):
                self._changed.wait(1)
            return not self._over and self._done[worker] < self._work[worker]

    def done(self, worker: str, number: int = 1) -> None:
        """Count what a worker has done."""
        with self._changed:
            self._done[worker] += number
            self._changed.notify_all()

    def finish(self) -> None:
        """Return when everybody has done all, or all is over."""
        with self._changed:
            while not self._is_over() and any(self._done[worker] < work for worker, work in self._work.items()):
                self._changed.wait(1)

    def stop(self) -> None:
        """Let no one have another turn."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _is_over(self) -> bool:
        self._over = self._over or time.monotonic() > self._end
        return self._over

    def _is_turn(self, worker: str) -> bool:
        part = self._part(worker)
        return part == 1.0 or part <= min(map(self._part, self._work)) + _SLACK

    def _part(self, worker: str) -> float:
        return self._done[worker] / self._work[worker] if self._work[worker] else 1.0
