"""A configuration that waits to be confirmed, and comes back to the one before where it is not; and what is in force.

What was in force before is kept on the disk with the time at which it comes back, so that it does after a crash too.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any, Final, TypeAlias

from fwdaemon import config as configuration
from fwdaemon.audit import causes, lines
from fwdaemon.config.loader import Loaded
from fwdaemon.config.model import Config
from fwdaemon.core.inventory import Inventory
from fwdaemon.core.report import Fault, FaultKind, ReasonKind, ReconcileReport
from fwdaemon.core.text import printable
from fwdaemon.core.types import Job
from fwdaemon.errors import STRANGE, ConfigError, Problem
from fwdaemon.events import Inventories
from fwdaemon.kernel.process import Worker
from fwdaemon.resolve.claims import Sockets
from fwdaemon.resolve.expansion import Assignments
from fwdaemon.resolve.wishes import Unavailable
from fwdaemon.status.records import Records, Shared
from fwdaemon.status.reloads import MOST_KEPT, STATE, Reloads, Start, Written, lists_in, replace_whole, with_lists
from fwdaemon.status.temporary import LOOK_S, Clocks, Deadline, Openings, now, record_in
from fwdaemon.triggers import TriggerQueue

_log = logging.getLogger(__name__)

# How long may be left for a confirmation, in seconds.
CONFIRM_S: Final = (2, 3600)


Texts: TypeAlias = tuple[Mapping[Path, bytes], Mapping[Path, bytes]]
"""Those of a configuration, and those of the files of its sets."""


def digest(sources: Mapping[Path, bytes]) -> str:
    """Name the texts of a configuration."""
    parts = (part for file, text in sources.items() for part in (str(file).encode(), text))
    return sha256(b"".join(sha256(part).digest() for part in parts)).hexdigest()


@dataclass(frozen=True, slots=True)
class _Pending:
    """The texts that come `back` unless the newer ones, of this digest, are confirmed by then; `over` says they did.

    Of what comes back, `lists` are the texts of the files of its sets.
    """

    back: Mapping[Path, bytes]
    lists: Mapping[Path, bytes]
    newer: str
    deadline: Deadline
    over: bool = False


class Confirmation:
    """The configuration that waits to be confirmed, if any, of one main file."""

    def __init__(self, main: Path, state: Path = STATE, clocks: Clocks = now) -> None:
        self._main, self._path, self._clocks = main.absolute(), state / "unconfirmed.json", clocks
        self._pending: _Pending | None = None

    def read(self) -> None:
        """Read what an earlier run left."""
        try:
            self._pending = self._known(record_in(self._path, MOST_KEPT))
            if self._pending is not None:
                self._keep(self._pending)  # in terms of this run of the host
        except (OSError, *STRANGE) as error:
            _log.warning(
                "which configuration is to be confirmed is not known: %s: %s", self._path, printable(str(error))
            )

    @property
    def until(self) -> datetime | None:
        """When the configuration before comes back; `None` where nothing is to be confirmed."""
        return datetime.fromtimestamp(self._pending.deadline.until.wall, UTC) if self.waits and self._pending else None

    def seconds_left(self) -> int | None:
        """For how many seconds it waits; `None` where nothing is to be confirmed."""
        return max(0, ceil(self._pending.deadline.left(self._clocks()))) if self.waits and self._pending else None

    @property
    def waits(self) -> bool:
        """Whether something is to be confirmed."""
        return self._pending is not None and not self._pending.over

    @property
    def is_over(self) -> bool:
        """Whether something was not confirmed, and the configuration before came back."""
        return self._pending is not None and self._pending.over

    @property
    def is_due(self) -> bool:
        """Whether the configuration before has to come back now."""
        return self._pending is not None and self.waits and self._pending.deadline.left(self._clocks()) <= 0

    def look_in(self) -> float | None:
        """Say when to look again whether it has."""
        if self._pending is None or self._pending.over:
            return None
        return max(0.0, min(self._pending.deadline.left(self._clocks()), LOOK_S))

    def begin(self, before: Texts, newer: Mapping[Path, bytes], seconds: int) -> None:
        """Have newer texts confirmed; what comes back is what was last in force without that. Raises OSError."""
        waiting = self._pending if self.waits else None
        back, lists = (waiting.back, waiting.lists) if waiting is not None else before
        deadline = Deadline.after(seconds, self._clocks())
        self._keep(_Pending(back, lists, digest(newer), deadline))

    def follow(self, newer: Mapping[Path, bytes]) -> None:
        """Note that others are in force meanwhile: they are to be confirmed too. Raises OSError."""
        if self._pending is None:
            return
        if self._pending.over or digest(newer) == digest(self._pending.back):
            self.drop()
        else:
            self._keep(replace(self._pending, newer=digest(newer)))

    def drop(self) -> None:
        """Forget it: the texts in force stay. Raises OSError."""
        self._pending = None
        with suppress(FileNotFoundError):
            self._path.unlink()

    def prepare(self, before: Texts, newer: Mapping[Path, bytes], seconds: int | None) -> Fault | None:
        """Note that newer texts are to be in force, and whether they are to be confirmed; return why they cannot be."""
        try:
            if seconds is not None:
                self.begin(before, newer, seconds)
            else:
                self.follow(newer)
        except OSError as error:
            return Fault(FaultKind.BEFORE_NOT_KEPT, detail=f"{self._path}: {error.strerror}")
        return None

    def roll_back(self) -> Loaded | None:
        """Give the configuration that comes back, and remember that it did."""
        pending = self._pending
        if pending is None:
            return None
        self._pending = replace(pending, over=True)
        try:
            self._keep(self._pending)
        except OSError as error:
            _log.warning("a restart may load the unconfirmed configuration: %s: %s", self._path, error.strerror)
        return Loaded(configuration.parse(pending.back, pending.lists), pending.back, pending.lists)

    def at_start(self, loaded: Loaded) -> Loaded | None:
        """Give what comes back in place of texts that were not confirmed in time; forget it where others are there."""
        self.read()
        if self._pending is not None and self._pending.newer != digest(loaded.sources):
            with suppress(OSError):
                self.drop()
        return self.roll_back() if self.is_over or self.is_due else None

    def _keep(self, pending: _Pending) -> None:
        record = {
            "main": str(self._main),
            "back": {str(file): text.decode() for file, text in pending.back.items()},
            "newer": pending.newer,
            "over": pending.over,
        }
        replace_whole(self._path, json.dumps(record | with_lists(pending.lists) | pending.deadline.as_json()))
        self._pending = pending

    def _known(self, record: Any) -> _Pending | None:
        if record is None or record["main"] != str(self._main):
            return None
        back = {Path(file): str(text).encode() for file, text in record["back"].items()}
        deadline = Deadline.read(record, self._clocks())
        return _Pending(back, lists_in(record), str(record["newer"]), deadline, record["over"] is True)


class Standing:
    """What is in force: the configuration of files and its texts, and `all` of it.

    That is with what is open for a while, and with the table that many hosts share. On the loop's thread only.
    """

    def __init__(self, main: Path, start: Start, written: Written, openings: Openings, shared: Shared) -> None:
        self._main, self._written, self._shared = main, written, shared
        self.config, self._sources, self._lists = start.config, start.sources, start.lists
        self.openings = openings
        self.confirmation = Confirmation(main, openings.state, openings.clocks)
        self.all = openings.merged(shared.merged(start.config))

    def log_start(self, start: Start, records: Records) -> None:
        """Say how it began."""
        lines.drop_ins_ignored(start.config.ignored)
        self.confirmation.read()
        records.left = self.confirmation.seconds_left
        records.to_confirm(self.confirmation.until, is_back=self.confirmation.is_over)
        if start.is_rolled_back:
            lines.rolled_back(self._main)
        if start.kept_at is None:
            self.keep()
        else:
            lines.last_good_in_force(start.problems, start.kept_at)
            records.last_good_in_force(start.problems, start.kept_at)

    async def refusal(self, loaded: Loaded, confirm: int | None) -> Fault | None:
        """Get ready for another configuration, to be confirmed in so many seconds; return why it is not possible."""
        if confirm is None and not (self.confirmation.waits or self.confirmation.is_over):
            return None
        before = self._sources, self._lists
        return await self._written.done(lambda: self.confirmation.prepare(before, loaded.sources, confirm))

    def put(self, loaded: Loaded) -> None:
        """Put another configuration in force."""
        self.config, self._sources, self._lists = loaded.config, loaded.sources, loaded.lists
        self._shared.configure(loaded.config)
        self.all = self._merged()
        self.keep()

    def _merged(self) -> Config:
        return self.openings.merged(self._shared.merged(self.config))

    def put_on_record(self, records: Records) -> None:
        """Have the status show it."""
        lines.drop_ins_ignored(self.config.ignored)
        records.configuration_loaded(self.all)
        records.to_confirm(self.confirmation.until, is_back=self.confirmation.is_over)
        if (until := self.confirmation.until) is not None:
            lines.to_confirm(until)

    def keep(self) -> None:
        """Keep the texts in force for a start with wrong ones, unless they are yet to be confirmed."""
        if self._sources and not self.confirmation.waits:
            self._written.keep(self._sources, self._lists)

    def keep_list(self, file: Path, text: bytes) -> None:
        """Keep what is in the file of a set now."""
        self._lists = {**self._lists, file: text}
        self.keep()

    def follow(self, records: Records, reloads: Reloads, queue: TriggerQueue, inventories: Inventories) -> None:
        """Put in force what was opened or closed, or has ended, and another table; look again when the next ends."""
        of_fleet = self._shared.take_reasons()
        for reason in of_fleet:
            queue.configuration_changed(reason)
        is_new = any(reason.kind is ReasonKind.TABLE for reason in of_fleet)
        reasons = self.openings.take_reasons()
        if reasons or is_new or reloads.is_awaited:
            self.all = self._merged()
            inventories.sources.configure(self.all)
            records.entries_changed(self.all)
            reloads.changed()
            if inventories.latest is None:
                reloads.pass_ended(causes.UNANSWERED)
            for reason in reasons:
                queue.configuration_changed(reason)
            queue.time_passed(full=False)
        ends = (self.openings.look_in(), self.confirmation.look_in())
        queue.wake_in(min((seconds for seconds in ends if seconds is not None), default=None))

    def unavailable(
        self,
        report: ReconcileReport | None,
        inventory: Inventory | None,
        ports: Assignments,
        occupied: Callable[[], Sockets | None],
    ) -> Unavailable:
        """Say what may not be opened, as far as it is known."""
        hosts = inventory.host_addresses if inventory is not None else ()
        assigned = frozenset((item.protocol, held.port) for item, held in ports.items())
        live = report.desired.exposures if report is not None else frozenset()
        return Unavailable(self.all, live, frozenset(host.address for host in hosts), assigned, occupied)


# Reads the configuration beside everything else, in a thread of its own: the file system that it is on may hang.
LATE: Final = Fault(FaultKind.CONFIGURATION_LATE)


class ConfigReader:
    """Calls `read` in a thread of its own, and `done` once that has ended.

    Where it takes longer than `patience`, in seconds, `late` is called with a fault, and without one when it has ended.
    """

    def __init__(
        self,
        read: Callable[[], Loaded],
        done: Callable[[], None],
        late: Callable[[Fault | None], None],
        patience: float,
    ) -> None:
        self._read, self._done, self._late, self._patience = read, done, late, patience
        self._worker = Worker("configuration", Job.CONFIGURATION)
        self._under_way: asyncio.Future[Loaded] | None = None
        self._late_at: asyncio.TimerHandle | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether a reading was begun whose result was not taken yet."""
        return self._under_way is not None

    def begin(self) -> None:
        """Begin to read."""
        self._late_at = asyncio.get_running_loop().call_later(self._patience, self._is_late)
        self._under_way = self._worker.submit(self._read)
        self._under_way.add_done_callback(self._ended)

    def disown(self, main: Path) -> None:
        """Refuse what is being read: it was asked for before the configuration before came back."""
        if self.is_under_way:
            error = ConfigError([Problem(main, 1, "was not confirmed in time; if it is meant, reload it once more")])
            self._under_way = asyncio.get_running_loop().create_future()
            self._under_way.set_exception(error)

    def take(self) -> "asyncio.Future[Loaded] | None":
        """Give what was read, once it has been."""
        if self._under_way is None or not self._under_way.done():
            return None
        taken, self._under_way = self._under_way, None
        return taken

    async def close(self, patience: float) -> None:
        """End the thread; while it reads, it is not waited for: it may hang, and leaves nothing unfinished."""
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
        self._late(None)
        self._done()
