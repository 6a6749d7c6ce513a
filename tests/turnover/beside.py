"""What is asked beside a run, so that it can be said what of its times is whose: the machine's, libvirt's, ours."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.lab.host import PUBLIC4
from tests.turnover.scene import STAYING_PORT, Scene

_LIBVIRT_EVERY_S, _PAGE_EVERY_S = 0.05, 0.25
# What took longer than this was not answered meanwhile.
_SILENT_S = 0.02
_PATIENCE_S = 10.0


class Asked:
    """One question that a thread asks again and again; `seconds` are how long each answer took."""

    def __init__(self, question: Callable[[], object], every: float) -> None:
        self._question, self._every = question, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="asked beside")
        self._waits_since: float | None = None
        self._silences: list[tuple[float, float]] = []
        self.seconds: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def silence(self, begin: float, end: float) -> float:
        """Give the seconds between two times in which no answer came."""
        spans, waits = list(self._silences), self._waits_since
        if waits is not None and end - waits > _SILENT_S:
            spans.append((waits, end))
        return sum(max(0.0, min(end, until) - max(begin, since)) for since, until in spans)

    def _ask(self) -> None:
        while not self._over.wait(self._every):
            self._waits_since = began = time.monotonic()
            self._question()
            ended = time.monotonic()
            if ended - began > _SILENT_S:
                self._silences.append((began, ended))
            self._waits_since = None
            self.seconds.append(ended - began)


@dataclass(frozen=True, slots=True)
class Beside:
    """What is asked: libvirt for its own version, which concerns no domain, and a page that has long been there."""

    libvirt: Asked
    page: Asked


@contextmanager
def asked_beside(scene: Scene) -> Iterator[Beside]:
    """Ask until the end of the block."""
    url, fetch = f"http://{PUBLIC4}:{STAYING_PORT}/", scene.host.outside.fetch
    with (
        scene.host.libvirt.connection() as connection,
        Asked(connection.getLibVersion, _LIBVIRT_EVERY_S) as libvirt,
        Asked(lambda: fetch(url, timeout=_PATIENCE_S), _PAGE_EVERY_S) as page,
    ):
        yield Beside(libvirt, page)
