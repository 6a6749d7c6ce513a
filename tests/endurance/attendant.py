"""Takes what the daemon says, counts it by its first word, and keeps the last of it only: an hour of it is much."""

import threading
from collections import Counter, deque
from typing import Self

from tests.lab.daemon import Daemon

_EVERY_S = 0.2
_KEPT = 80
_MISTAKE = "bug in kvm-portfwd"


class Attendant:
    """A thread beside the run. The daemon would wait until its notifications are read."""

    def __init__(self, daemon: Daemon, every: float = _EVERY_S) -> None:
        self._daemon = daemon
        self._every = every
        self._last: deque[str] = deque(maxlen=_KEPT)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._attend, name="attendant")
        self.said: Counter[str] = Counter()
        self.mistakes = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def last(self) -> str:
        """What it said last."""
        return "\n".join(self._last)

    def _attend(self) -> None:
        while not self._over.wait(self._every):
            for line in self._daemon.take():
                self.take_note(line.text)

    def take_note(self, text: str) -> None:
        """Count a line, and keep it if it is one of the last."""
        self.said[text.partition(" ")[0]] += 1
        self._last.append(text)
        if _MISTAKE in text:
            self.mistakes = self.mistakes or text
