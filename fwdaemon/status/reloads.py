"""Reloads and their answers, and the last configuration that was right."""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fwdaemon import config as configuration
from fwdaemon.audit import lines
from fwdaemon.config import Loaded
from fwdaemon.config.files import read_regular, weak_points
from fwdaemon.config.model import Config
from fwdaemon.core.text import printable
from fwdaemon.errors import ConfigError, Problem
from fwdaemon.hostnet.owned_state import LedTo
from fwdaemon.kernel.process import Worker
from fwdaemon.resolve.guests import Chosen

# The last configuration that was right, kept on the disk for a start with one that is not.
#
# Without it such a start would leave the rules of before to stand, with no one to follow the guests they lead to. Kept
# are the texts, so that a later release reads them by its own grammar. Only root may read or write them.
_log = logging.getLogger(__name__)

# StateDirectory= of the unit.
STATE: Final = Path("/var/lib/kvm-portfwd")


@dataclass(frozen=True, slots=True)
class Kept:
    """A configuration that was right, and when it was loaded last."""

    config: Config
    at: datetime


@dataclass(frozen=True, slots=True)
class Start:
    """The configuration to begin with and its texts; or the last good one, with what is wrong with the newer."""

    config: Config
    sources: Mapping[Path, bytes]
    problems: tuple[Problem, ...] = ()
    kept_at: datetime | None = None


class LastGood:
    """The one of a main file; another main file's is none of ours."""

    def __init__(self, main: Path, directory: Path = STATE) -> None:
        self._main = main.absolute()
        self._path = directory / "last-good.json"
        self._is_kept = True

    def keep(self, sources: Mapping[Path, bytes]) -> bool:
        """Write texts that were right, and tell whether that was done. That it cannot be is a warning, once."""
        try:
            self._write(json.dumps(self._record(sources)))
        except OSError as error:
            if self._is_kept:
                _log.warning("the last good configuration is not kept: %s: %s", self._path, error.strerror)
            self._is_kept = False
        else:
            self._is_kept = True
        return self._is_kept

    def kept(self) -> Kept | None:
        """Read what was kept; `None` where there is nothing, or where others than root could have written it."""
        try:
            for weak in weak_points(self._path):
                _log.warning("the last good configuration cannot be used: %s", weak)
                return None
            record = json.loads(read_regular(self._path))
            if record["main"] != str(self._main):
                return None
            sources = {Path(file): str(text) for file, text in record["files"].items()}
            return Kept(configuration.parse(sources), datetime.fromisoformat(record["at"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            _log.warning("the last good configuration cannot be used: %s: %s", self._path, printable(str(error)))
            return None

    def _record(self, sources: Mapping[Path, bytes]) -> dict[str, object]:
        texts = {str(file): source.decode() for file, source in sources.items()}
        return {"main": str(self._main), "at": datetime.now(UTC).isoformat(), "files": texts}

    def _write(self, text: str) -> None:
        """Replace the file whole, so that a crash leaves the one before."""
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        new = self._path.with_name(f"{self._path.name}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


class Written:
    """What the next start reads: texts that were right, and which interfaces entries lead to. On the loop's thread.

    A thread of its own writes it, so that nothing waits for the disk. `choice` is the last one.
    """

    def __init__(self, main: Path, state: Path, directory: Path, again_after: float) -> None:
        """Try again after so many seconds what could not be written."""
        self._last_good, self._led_to = LastGood(main, state), LedTo(directory)
        self.choice = self._led_to.chosen
        self._again_after = again_after
        self._worker = Worker("last good configuration")
        self._newest: dict[str, Callable[[], bool]] = {}
        self._closed = False

    def keep(self, sources: Mapping[Path, bytes]) -> None:
        """Keep texts that were right."""
        self._write("configuration", lambda: self._last_good.keep(sources))

    def keep_choice(self, chosen: Chosen) -> None:
        """Keep which interfaces entries lead to, where that is another choice."""
        if chosen != self.choice:
            kept = self.choice = dict(chosen)
            self._write("choice", lambda: self._led_to.keep(kept))

    def renew(self) -> None:
        """Write the choice again: its file may have gone."""
        chosen = self.choice
        self._write("choice", lambda: self._led_to.keep(chosen))

    async def close(self, patience: float) -> None:
        """Wait for what is being written, and try nothing again."""
        self._closed = True
        await self._worker.close(patience)

    def _write(self, what: str, write: Callable[[], bool]) -> None:
        """Write now, and again later where that cannot be done, unless there is something newer by then."""

        def done(writing: asyncio.Future[bool]) -> None:
            failed = not writing.cancelled() and (writing.exception() is not None or not writing.result())
            if failed and not self._closed:
                asyncio.get_running_loop().call_later(self._again_after, again)

        def again() -> None:
            if self._newest.get(what) is write and not self._closed:
                self._write(what, write)

        self._newest[what] = write
        self._worker.submit(write).add_done_callback(done)


# Reads the configuration beside everything else, in a thread of its own: the file system that it is on may hang.
LATE: Final = (
    "the configuration cannot be read yet, as where a file system hangs; the one before stays in force until then"
)


class Reading:
    """Calls `read` in its thread when asked to, and `done` once that has ended.

    `late` is told when it takes longer than `patience`, in seconds, and with no text when that is over.
    """

    def __init__(
        self, read: Callable[[], Loaded], done: Callable[[], None], late: Callable[[str], None], patience: float
    ) -> None:
        self._read, self._done, self._late, self._patience = read, done, late, patience
        self._worker = Worker("configuration")
        self._under_way: asyncio.Future[Loaded] | None = None
        self._late_at: asyncio.TimerHandle | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether something was begun and not taken."""
        return self._under_way is not None

    def begin(self) -> None:
        """Begin to read."""
        self._late_at = asyncio.get_running_loop().call_later(self._patience, self._is_late)
        self._under_way = self._worker.submit(self._read)
        self._under_way.add_done_callback(self._ended)

    def take(self) -> "asyncio.Future[Loaded] | None":
        """Give what was read, once it has been."""
        if self._under_way is None or not self._under_way.done():
            return None
        taken, self._under_way = self._under_way, None
        return taken

    async def close(self, patience: float) -> None:
        """End the thread, but for one that reads: that may hang, and has nothing to bring to an end."""
        if self._under_way is not None and not self._under_way.done():
            self._under_way.cancel()
            patience = 0
        await self._worker.close(patience)

    def _is_late(self) -> None:
        lines.problems([LATE])
        self._late(LATE)

    def _ended(self, _: object) -> None:
        if self._late_at is not None:
            self._late_at.cancel()
        self._late("")
        self._done()


# Who asked for the configuration to be read again, and waits to hear what came of it. On the loop's thread only.
#
# Whoever asks while it is being read is answered by the next time. A configuration that is right is only worth telling
# once the kernel was brought to it; looks go on while it is read, and are about the one before.


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What came of it: `problems` of a configuration that was refused, or why the kernel does not hold it yet."""

    problems: tuple[Problem, ...] = ()
    failure: str = ""


class Reloads:
    """Asks for a reload by calling `wake`, and answers those who asked."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._asked: list[asyncio.Future[Reloaded]] = []
        self._begun: list[asyncio.Future[Reloaded]] = []
        self._read: list[asyncio.Future[Reloaded]] = []

    async def ask(self) -> Reloaded:
        """Have the configuration read again, and wait for what comes of it."""
        answer = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        self._wake()
        result: Reloaded = await answer
        return result

    def begin(self) -> None:
        """Say that the configuration is read now."""
        self._begun += self._asked
        self._asked = []

    def read(self) -> None:
        """Note that the file has been read; the next look answers those who wait."""
        self._read += self._begun
        self._begun = []

    def refused(self, problems: Iterable[Problem]) -> None:
        """Say that it is wrong, and the old one stays."""
        self._answer(Reloaded(problems=tuple(problems)))

    def pass_ended(self, failure: str = "") -> None:
        """Say that the kernel was brought to it, or why not."""
        self._answer(Reloaded(failure=failure))

    def _answer(self, result: Reloaded) -> None:
        read, self._read = self._read, []
        for answer in read:
            if not answer.done():  # who asked may have gone
                answer.set_result(result)
