"""Follows the files of sets, and keeps on the disk what others put into external sets.

A file is looked at each second, by its times and its number on the disk: so it does not matter how it was replaced,
nor on what file system it is. One that hangs holds up this alone. With anything wrong in one, what was read before
stays, as it does where one is blank.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from fwdaemon.audit import lines
from fwdaemon.config.files import read_regular, weak_points
from fwdaemon.config.loader import read_list_file
from fwdaemon.config.model import Config
from fwdaemon.config.sets import MOST_LIST_BYTES, read_list
from fwdaemon.core.admission import Element, Place, SourceSet
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.text import GrammarError, printable
from fwdaemon.core.types import Family, Job
from fwdaemon.errors import STRANGE, KernelError, PortfwdError, Problem
from fwdaemon.kernel.external_sets import Externals, now
from fwdaemon.kernel.process import Worker
from fwdaemon.status.reloads import replace_whole

_log = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0
# What others change in a moment is written, and acted on, together.
_BURST_S: Final = 0.3
# With many elements, so much later for each of them: all of them are written.
_MORE_S: Final = 1 / 20_000

Signature: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """One file that has changed: what is in it now, or what is wrong with it."""

    item: SourceSet
    text: bytes = b""
    problems: tuple[Problem, ...] = ()


class News(NamedTuple):
    """What is called on the loop's thread: with the file that `changed`, or without one if others changed a set.

    `keep` is called with the text of each file that changed, and `trouble` with what is wrong with some.
    """

    changed: Callable[[Path | None], None]
    keep: Callable[[Path, bytes], None]
    trouble: Callable[[tuple[Fault, ...]], None]


class SetKeeper:
    """Both of it. All is used on the loop's thread, but `applied`."""

    def __init__(self, news: News, externals: Externals, state: Path, period: float = _PERIOD_S) -> None:
        """Look at files each `period` seconds."""
        self._period = period
        self._changed, self._keep, self._trouble = news
        self._externals, self._elements = externals, KeptElements(state)
        self._config: Config | None = None
        self._newest: Mapping[str, SourceSet] = {}
        self._applied: tuple[Config, Mapping[str, SourceSet], Config] | None = None
        self._seen: dict[Path, Signature] = {}
        self._lists: dict[Path, bytes] = {}
        self._wrong: dict[Path, tuple[Fault, ...]] = {}
        self._worker = Worker("files of sets", Job.SETS)
        self._writer = Worker("external sets", Job.EXTERNAL_SETS)
        self._next: asyncio.TimerHandle | None = None
        self._bursting = False

    def begin(self, config: Config, lists: Mapping[Path, bytes]) -> None:
        """Take what an earlier run saw in external sets, and begin to follow files."""
        names = {item.name for item in config.sets if item.external}
        if names:
            known = self._elements.known()
            self._externals.remember({place: held for place, held in known.items() if place[1] in names})
        loop = asyncio.get_running_loop()
        self._externals.news = lambda: loop.call_soon_threadsafe(self._burst, loop)
        self.configure(config, lists)

    def configure(self, config: Config, lists: Mapping[Path, bytes]) -> None:
        """Follow the files of another configuration, which were read with it: `lists` is what was in them."""
        self._config = config
        self._newest, self._wrong, self._seen = {}, {}, {}
        self._lists = dict(lists)
        self._trouble(())
        if self._next is None and any(item.file is not None for item in config.sets):
            self._look_later()

    def applied(self, config: Config) -> Config:
        """Give a configuration with what is in the files of its sets now; any thread may ask.

        It may have more entries than the files say, but no other sets. What was given before is given again.
        """
        newest, known = self._newest, self._applied
        if not newest or self._config is None or config.sets is not self._config.sets:
            return config
        if known is None or known[0] is not config or known[1] is not newest:
            sets = tuple(newest.get(item.name, item) for item in config.sets)
            known = self._applied = config, newest, replace(config, sets=sets)
        return known[2]

    async def close(self, patience: float) -> None:
        """Stop, and write what is to be kept."""
        self._externals.news = lambda: None
        if self._next is not None:
            self._next.cancel()
        if self._externals.names:
            self._write()
        await asyncio.gather(self._worker.close(0), self._writer.close(patience))

    # --- files --------------------------------------------------------------------------------------------------------

    def _look_later(self) -> None:
        self._next = asyncio.get_running_loop().call_later(self._period, self._look)

    def _look(self) -> None:
        config = self._config
        followed = [item for item in config.sets if item.file is not None] if config is not None else []
        items = [self._newest.get(item.name, item) for item in followed]
        if not items:  # nothing wakes up for it
            self._next = None
            return
        seen, lists = self._seen, self._lists
        reading = self._worker.submit(lambda: _read_changed(items, seen, lists))
        reading.add_done_callback(lambda done: self._take(done, config))

    def _take(self, reading: "asyncio.Future[list[Read]]", config: Config | None) -> None:
        if reading.cancelled():
            return
        try:
            found = reading.result() if config is self._config else []
        except (PortfwdError, OSError) as error:  # no descriptor or thread is available
            _log.debug("files of sets are read later: %s", error)
            found = []
        for read in found:
            self._take_in(read)
        self._look_later()

    def _take_in(self, read: Read) -> None:
        file = read.item.file
        if self._config is None or file is None:
            return
        if read.problems:
            lines.set_refused(read.item.name, read.problems)
            self._wrong[file] = tuple(
                Fault(FaultKind.SET_REFUSED, (read.item.name,), printable(str(item))) for item in read.problems
            )
        else:
            self._wrong.pop(file, None)
            self._newest = {**self._newest, read.item.name: read.item}
            lines.set_loaded(read.item.name, file, read.item.number)
            self._keep(file, read.text)
            self._changed(file)
        self._trouble(tuple(fault for faults in self._wrong.values() for fault in faults))

    # --- what others put into sets ------------------------------------------------------------------------------------

    def _burst(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._bursting:
            self._bursting = True
            held = sum(map(len, self._externals.everything(now()).values()))
            loop.call_later(_BURST_S + held * _MORE_S, self._settle)

    def _settle(self) -> None:
        self._bursting = False
        self._write()
        self._changed(None)

    def _write(self) -> None:
        held = self._externals.everything(now())
        self._writer.submit(lambda: self._elements.keep(held))


def _signature(file: Path) -> Signature:
    try:
        status = file.stat()
    except OSError as error:
        return (error.errno or 0,)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read_changed(items: list[SourceSet], seen: dict[Path, Signature], lists: dict[Path, bytes]) -> list[Read]:
    """Read the files that are others than they were; called on a thread of its own."""
    found = []
    for item in items:
        if item.file is None or seen.get(item.file) == (signature := _signature(item.file)):
            continue
        try:
            read = _read(item, item.file, lists.get(item.file))
        except KernelError as error:  # the machine is short of what it takes: that is no fault of the file
            _log.debug("the file of a set is read later: %s", error)
            continue
        seen[item.file] = signature
        if read is not None:
            found.append(read)
            lists.pop(item.file, None)
        if read is not None and not read.problems:
            lists[item.file] = read.text
    return found


def _read(item: SourceSet, file: Path, before: bytes | None) -> Read | None:
    """Read a file; `None` where the same is in it as before."""
    try:
        text = read_list_file(file, guarded=True)
    except GrammarError as error:
        return Read(item, problems=(Problem(item.origin.file, item.origin.line, str(error)),))
    if text == before:
        return None
    parts, problems = read_list(file, text, item.number)
    return Read(item, problems=tuple(problems)) if problems else Read(replace(item, parts=parts), text)


class KeptElements:
    """What others had in external sets, in a file: so it outlives a wipe while no daemon runs."""

    def __init__(self, state: Path) -> None:
        self._path = state / "external-sets.json"
        self._is_kept = True

    def known(self) -> dict[Place, dict[Element, float | None]]:
        """Read it, where only root could have written it; each element with the time of its end, if it has one."""
        try:
            return dict(_places(json.loads(_read_own(self._path))))
        except FileNotFoundError:
            return {}
        except (OSError, *STRANGE) as error:
            _log.warning("what was in external sets cannot be read: %s: %s", self._path, printable(str(error)))
            return {}

    def keep(self, held: Mapping[Place, Mapping[Element, float | None]]) -> bool:
        """Write it, and return whether that was done. That it cannot be is a warning, once."""
        at = time.time()
        records = [_record(place, found, at) for place, found in held.items()]
        try:
            replace_whole(self._path, json.dumps(records))
        except OSError as error:
            if self._is_kept:
                _log.warning("what others put into sets is not kept: %s: %s", self._path, error.strerror)
            self._is_kept = False
        else:
            self._is_kept = True
        return self._is_kept


def _record(place: Place, found: Mapping[Element, float | None], at: float) -> dict[str, object]:
    """Write what is in a set, each element with the wall clock's time of its end."""
    elements = [[*element, None if left is None else at + left] for element, left in found.items()]
    return {"set": place[1], "family": int(place[0]), "elements": elements}


def _read_own(path: Path) -> bytes:
    for weak in weak_points(path):
        raise ValueError(str(weak))
    return read_regular(path, MOST_LIST_BYTES)


def _places(records: list[Mapping[str, object]]) -> list[tuple[Place, dict[Element, float | None]]]:
    """Read records; times of the wall clock become those of one that cannot be set, and what is over is left out."""
    found = []
    for record in records:
        place = Family(int(str(record["family"]))), str(record["set"])
        elements: dict[Element, float | None] = {}
        listed = record["elements"]
        for first, last, until in listed if isinstance(listed, list) else ():
            left = None if until is None else float(until) - time.time()
            element = Element(int(first), int(last))
            if not 0 <= element.first <= element.last < 1 << place[0].bits or not isfinite(left or 0.0):
                raise ValueError(f"no element of a set is {[first, last, until]}")
            if left is None or left > 0:
                elements[element] = None if left is None else now() + left
        found.append((place, elements))
    return found
