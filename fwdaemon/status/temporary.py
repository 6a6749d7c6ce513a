"""Forwards that were opened for a while.

They are kept on the disk with the time at which they end, so that they end on time whatever becomes of the daemon. Two
clocks give that time: the one on the wall, which may be set, and the one that counts since the host started, which may
not. Whichever is first counts. After a restart of the host only the former is left.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from fwdaemon.audit import lines
from fwdaemon.audit.causes import why
from fwdaemon.audit.lines import format_fault
from fwdaemon.config.files import MOST_BYTES, read_regular, weak_points
from fwdaemon.config.metadata import read_opening
from fwdaemon.config.model import Config, ForwardEntry, PortMapping
from fwdaemon.config.overlap import find_conflicts
from fwdaemon.config.ports import parse_ports
from fwdaemon.config.sets import settled, unknown_set
from fwdaemon.core.inventory import Hindrance, HindranceKind
from fwdaemon.core.report import Closing, Fault, FaultKind, Reason, ReasonKind
from fwdaemon.core.text import GrammarError, printable
from fwdaemon.core.types import Job, Origin, Until, show_endpoint
from fwdaemon.errors import STRANGE, ConfigError, PortfwdError
from fwdaemon.kernel import sysctl
from fwdaemon.kernel.process import Worker
from fwdaemon.resolve.wishes import Unavailable, opened
from fwdaemon.status.model import OpenFor
from fwdaemon.status.reloads import STATE, replace_whole

_log = logging.getLogger(__name__)


# How long something may be open, in seconds, and is by default; what is to last longer belongs in the file.
OPEN_S, DEFAULT_S = (1, 7 * 24 * 3600), 3600
MOST: Final = 256
# What an opened forward has in place of the name of a file.
FILE: Final = Path("temporary")
# So often it is looked whether the clock on the wall was set, in seconds; the rules in the kernel do not wait for that.
LOOK_S: Final = 5.0


class DeclinedError(PortfwdError):
    """What a client asked for is not done."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__(*map(format_fault, faults))


class Now(NamedTuple):
    """The time by the clock of the wall, in seconds since 1970, and by that of this run of the host, called `boot`."""

    wall: float
    boottime: float
    boot: str


def now() -> Now:
    """Look at the clocks."""
    return Now(time.time(), boottime(), sysctl.read("kernel.random.boot_id"))


def boottime() -> float:
    """Give the seconds since the host started, sleep and all: this clock cannot be set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Deadline(NamedTuple):
    """When something ends that is in force for so many `seconds`; `boot` is the run of the host that counts them."""

    until: Until
    boot: str
    seconds: int

    @classmethod
    def after(cls, seconds: int, at: Now) -> "Deadline":
        """Give the end of what begins `at` a time."""
        return cls(Until(ceil(at.wall + seconds), at.boottime + seconds), at.boot, seconds)

    def left(self, at: Now) -> float:
        """Say how many seconds are left."""
        return min(self.until.wall - at.wall, self.until.boottime - at.boottime)

    def resumed(self, at: Now) -> "Deadline":
        """Give the same end in another run of the host; a clock that is behind its beginning cannot be believed."""
        if self.boot == at.boot:
            return self
        left = self.until.wall - at.wall
        left = left if left <= self.seconds + 1 else 0.0
        return Deadline(Until(self.until.wall, at.boottime + left), at.boot, self.seconds)

    def as_json(self) -> dict[str, Any]:
        """Give the JSON form."""
        wall, boottime = self.until
        return {"until": wall, "boottime": boottime, "boot": self.boot, "seconds": self.seconds}

    @classmethod
    def read(cls, record: Mapping[str, Any], at: Now) -> "Deadline":
        """Read the JSON form. Raises KeyError, TypeError or ValueError where it is none of ours."""
        until = Until(int(record["until"]), float(record["boottime"]))
        datetime.fromtimestamp(until.wall, UTC)  # raises where that is no time
        return cls(until, str(record["boot"]), int(record["seconds"])).resumed(at)


Clocks: TypeAlias = Callable[[], Now]


def record_in(path: Path, most: int = MOST_BYTES) -> Any:
    """Read a record that only root could have written; `None` where there is none."""
    try:
        for weak in weak_points(path):
            raise ValueError(str(weak))
        return json.loads(read_regular(path, most))
    except FileNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Temporary:
    """A forward that was opened: one port string for a domain, as written, and its sources; `by` is who did it."""

    number: int
    domain: str
    ports: str
    sources: tuple[str, ...]
    deadline: Deadline
    by: str

    @property
    def origin(self) -> Origin:
        """Where it is said to be asked for."""
        return Origin(FILE, self.number)

    @property
    def entry(self) -> ForwardEntry:
        """What it is in a configuration. Raises ConfigError."""
        return read_opening(self.domain, [self.ports], self.sources, self.origin, self.deadline.until)

    def is_same(self, other: "Temporary") -> bool:
        """Whether it is the same but for its time."""
        mine, its = ((item.domain, item.ports, sorted(item.sources)) for item in (self, other))
        return mine == its

    def as_json(self) -> dict[str, Any]:
        """Give the JSON form."""
        what = {"number": self.number, "domain": self.domain, "ports": self.ports, "sources": [*self.sources]}
        return what | {"by": self.by} | self.deadline.as_json()

    @classmethod
    def read(cls, record: Mapping[str, Any], at: Now) -> "Temporary":
        """Read the JSON form. Raises KeyError, TypeError, ValueError or ConfigError where it is none of ours."""
        domain, ports = str(record["domain"]), str(record["ports"])
        sources = tuple(str(source) for source in record["sources"])
        item = cls(int(record["number"]), domain, ports, sources, Deadline.read(record, at), str(record["by"]))
        item.entry  # noqa: B018  it is to be read once more, by the grammar of this release
        return item


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be opened; `by` is who asks."""

    domain: str
    ports: tuple[str, ...]
    sources: tuple[str, ...] = ()
    seconds: int = DEFAULT_S
    by: str = ""


def known(state: Path = STATE, clocks: Clocks = now) -> tuple[Temporary, ...]:
    """Read what was opened and has not ended."""
    return tuple(item for item in _known(state, clocks) if item.deadline.left(clocks()) > 0)


def _known(state: Path, clocks: Clocks) -> tuple[Temporary, ...]:
    path = state / "temporary.json"
    try:
        return tuple(Temporary.read(record, clocks()) for record in record_in(path) or ())
    except PermissionError:  # a command of a user's
        return ()
    except (OSError, *STRANGE, ConfigError) as error:
        _log.warning("what was opened for a while is closed: %s: %s", path, printable(str(error)))
        return ()


def with_temporary(config: Config, state: Path = STATE) -> Config:
    """Add what is open for a while, as the daemon does."""
    return opened(config, [item.entry for item in known(state)])[0]


def remaining(items: Iterable[Temporary], at: Now) -> Mapping[Origin, OpenFor]:
    """Say for how long each is open."""
    return {
        item.origin: OpenFor(
            datetime.fromtimestamp(item.deadline.until.wall, UTC),
            max(0, ceil(item.deadline.left(at))),
            item.by,
            item.ports,
        )
        for item in items
    }


class Openings:
    """What is open for a while. On the loop's thread; another one writes it down."""

    def __init__(self, state: Path = STATE, clocks: Clocks = now) -> None:
        self._path, self.state, self.clocks = state / "temporary.json", state, clocks
        self.current = _known(state, clocks)
        self._last = max((item.number for item in self.current), default=0)
        self._worker = Worker("what is open for a while", Job.TEMPORARY)
        self._turn = asyncio.Lock()
        self._reasons: list[Reason] = []
        if self.current:
            self._end_those_over()
            self._keep()  # in terms of this run of the host

    def merged(self, config: Config) -> Config:
        """Add what is open; what a file claims from now on is closed."""
        if not self.current:  # to index what files claim takes a while where that is much
            return config
        merged, claimed = opened(config, [item.entry for item in self.current])
        gone = [item for item in self.current if item.origin in claimed]
        self._end(gone)
        for item in gone:
            taker = claimed[item.origin]
            cause = Closing.LACKING if taker is None else Closing.CLAIMED
            lines.closed(item.domain, item.ports, cause, str(taker))
        return merged

    def remaining(self) -> Mapping[Origin, OpenFor]:
        """Say for how long each is open."""
        return remaining(self.current, self.clocks())

    def take_reasons(self) -> list[Reason]:
        """Give what was opened, closed or has ended since the last call."""
        self._end_those_over()
        taken, self._reasons = self._reasons, []
        return taken

    def look_in(self) -> float | None:
        """Say when to look again whether something has ended."""
        left = [item.deadline.left(self.clocks()) for item in self.current]
        return max(0.0, min(*left, LOOK_S)) if left else None

    async def open(self, wish: Wish, unavailable: Unavailable) -> tuple[Origin, ...]:
        """Open something once it is written down; return where it is said to be asked for.

        Raises:
            DeclinedError: it cannot be opened.

        """
        async with self._turn:
            deadline = Deadline.after(wish.seconds, self.clocks())
            added = [
                Temporary(number, wish.domain, ports, wish.sources, deadline, wish.by)
                for number, ports in enumerate(dict.fromkeys(wish.ports), self._last + 1)
            ]
            await self._checked(added, unavailable)
            kept = [item for item in self.current if not any(item.is_same(other) for other in added)]
            await self._write((*kept, *added))
            ended = set(kept) - set(self.current)  # meanwhile
            self.current = (*(item for item in kept if item not in ended), *added)
            self._last = added[-1].number
        self._reasons.append(Reason(ReasonKind.OPENED, wish.domain, wish.by))
        for item in added:
            lines.opened(
                item.domain, item.ports, item.sources, datetime.fromtimestamp(deadline.until.wall, UTC), wish.by
            )
        return tuple(item.origin for item in added)

    async def shut(self, domain: str, ports: Collection[str], by: str) -> tuple[str, ...]:
        """Close what is open to a domain, or of that these ports, and return which.

        Raises:
            DeclinedError: nothing of the kind is open, or it may be open again after a restart.

        """
        async with self._turn:
            wanted = {str(_parsed(text)) for text in ports}
            closed = [
                item
                for item in self.current
                if item.domain == domain and (not wanted or str(_parsed(item.ports)) in wanted)
            ]
            if not closed:
                raise DeclinedError(Fault(FaultKind.NOTHING_OPEN))
            self.current = tuple(item for item in self.current if item not in closed)
            self._reasons.append(Reason(ReasonKind.CLOSED, domain, by))
            for item in closed:
                lines.closed(item.domain, item.ports, Closing.ASKED, by)
            await self._write(self.current)  # it is closed even where that fails
        return tuple(item.ports for item in closed)

    async def close(self, patience: float) -> None:
        """End the thread."""
        await self._worker.close(patience)

    def _end_those_over(self) -> None:
        ended = [item for item in self.current if item.deadline.left(self.clocks()) <= 0]
        self._end(ended)
        for item in ended:
            self._reasons.append(Reason(ReasonKind.ENDED, item.domain))
            lines.closed(item.domain, item.ports, Closing.OVER)

    def _end(self, items: Iterable[Temporary]) -> None:
        if gone := set(items):
            self.current = tuple(item for item in self.current if item not in gone)
            self._keep()

    def _keep(self) -> None:
        left = self.current
        self._worker.submit(lambda: self._written(left)).add_done_callback(_told)

    async def _checked(self, added: Sequence[Temporary], unavailable: Unavailable) -> None:
        if len(self.current) + len(added) > MOST:
            raise DeclinedError(Fault(FaultKind.TOO_MANY_OPEN, (str(MOST),)))
        replaced = frozenset(item.origin for item in self.current if any(item.is_same(other) for other in added))
        faults = await self._worker.submit(lambda: [*_faults(added, replace(unavailable, replaced=replaced))])
        if faults:
            raise DeclinedError(*faults)

    async def _write(self, items: Sequence[Temporary]) -> None:
        try:
            await self._worker.submit(lambda: self._written(items))
        except OSError as error:
            raise DeclinedError(Fault(FaultKind.NOT_KEPT, (str(self._path),), error.strerror or "")) from error

    def _written(self, items: Sequence[Temporary]) -> None:
        replace_whole(self._path, json.dumps([item.as_json() for item in items]))


def _told(writing: "asyncio.Future[None]") -> None:
    if not writing.cancelled() and (error := writing.exception()) is not None:
        _log.warning("what is open for a while is not kept: %s", error)


def _parsed(text: str) -> object:
    """Read a port string, so that those which say the same are equal."""
    try:
        return parse_ports(text)
    except GrammarError as error:
        raise DeclinedError(Fault(FaultKind.ERROR, detail=str(error))) from error


def _faults(added: Sequence[Temporary], unavailable: Unavailable) -> Iterator[Fault]:
    """Give why something cannot be opened."""
    config, entries = unavailable.config, list[ForwardEntry]()
    for item in added:
        try:
            entry = item.entry
        except ConfigError as error:
            yield from _wrong(problem.text for problem in error.problems)
            continue
        if (known := settled(entry, config.sets)) is not None:
            entries.append(known)
        names = [found.name for found in config.sets]
        yield from _wrong(unknown_set(name, names) for name, _ in entry.named if name not in names)
    yield from _wrong(problem.text for problem in find_conflicts(entries))
    for entry in entries:
        if entry.auto and config.daemon.auto_ports is None:
            yield Fault(FaultKind.NO_AUTO_PORTS)
        for mapping, hindrance in unavailable.hindrances(entry):
            yield _refusal(entry, mapping, hindrance)


def _wrong(texts: Iterable[str]) -> Iterator[Fault]:
    """Give each text about what was asked for, which the configuration's own reader writes, once."""
    return (Fault(FaultKind.ERROR, detail=text) for text in dict.fromkeys(texts))


def _refusal(entry: ForwardEntry, mapping: PortMapping, hindrance: Hindrance | None) -> Fault:
    places = (f"{show_endpoint(at, mapping.host)}/{mapping.protocol}" for at in entry.listens_on(mapping))
    where = ", ".join(places)
    if hindrance is None:
        return Fault(FaultKind.PORT_ASSIGNED, (where,))
    is_known = hindrance.kind is not HindranceKind.SOCKETS_UNKNOWN
    return Fault(FaultKind.PORT_TAKEN if is_known else FaultKind.PORT_UNKNOWN, (where,), why(hindrance))
