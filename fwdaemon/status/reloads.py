"""Reloads and their answers, and what is kept for the next start: the last good configuration, and assigned ports."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final
from uuid import UUID

from fwdaemon import config as configuration
from fwdaemon.audit import lines
from fwdaemon.config import Loaded
from fwdaemon.config.files import read_regular, weak_points
from fwdaemon.config.model import Config
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.text import printable
from fwdaemon.core.types import Protocol
from fwdaemon.errors import ConfigError, Problem
from fwdaemon.hostnet.owned_state import DIRECTORY, LedTo, OwnedStateFile
from fwdaemon.kernel.process import Worker
from fwdaemon.resolve.claims import AllTurns, Turn
from fwdaemon.resolve.expansion import Assignments, AutoPort, Before, Held, Sockets, no_sockets
from fwdaemon.resolve.guests import Chosen
from fwdaemon.status.sets import replace_whole

# The last configuration that was right, kept on the disk for a start with one that is not.
#
# Without it the rules would stay after such a start, and would not follow the guests they lead to. The texts are kept,
# so that a later release reads them by its own grammar. Only root may read or write them.
_log = logging.getLogger(__name__)

# StateDirectory= of the unit.
STATE: Final = Path("/var/lib/kvm-portfwd")
_PORTS: Final = frozenset(range(1, 65536))
_HOUR_S: Final = 3600
_MOST_KEPT: Final = 128 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """A configuration that was right, and when it was loaded last."""

    config: Config
    at: datetime


@dataclass(frozen=True, slots=True)
class Start:
    """The configuration to begin with, and its texts; or the last good one, with what is wrong with the newer.

    `lists` are the texts of the files of its sets.
    """

    config: Config
    sources: Mapping[Path, bytes]
    problems: tuple[Problem, ...] = ()
    kept_at: datetime | None = None
    lists: Mapping[Path, bytes] = field(default_factory=dict)


class LastGood:
    """The last good configuration of one main file; that of another main file is ignored."""

    def __init__(self, main: Path, directory: Path = STATE) -> None:
        self._main = main.absolute()
        self._path = directory / "last-good.json"
        self._is_kept = True

    def keep(self, sources: Mapping[Path, bytes], lists: Mapping[Path, bytes] = MappingProxyType({})) -> bool:
        """Write texts that were right, and return whether that was done. That it cannot be is a warning, once."""
        try:
            replace_whole(self._path, json.dumps(self._record(sources, lists)))
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
            record = json.loads(read_regular(self._path, _MOST_KEPT))
            if record["main"] != str(self._main):
                return None
            sources = {Path(file): str(text) for file, text in record["files"].items()}
            lists = {Path(file): str(text).encode() for file, text in record.get("lists", {}).items()}
            return Kept(configuration.parse(sources, lists), datetime.fromisoformat(record["at"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            _log.warning("the last good configuration cannot be used: %s: %s", self._path, printable(str(error)))
            return None

    def _record(self, sources: Mapping[Path, bytes], lists: Mapping[Path, bytes]) -> dict[str, object]:
        texts = {str(file): source.decode() for file, source in sources.items()}
        of_sets = {str(file): text.decode(errors="replace") for file, text in lists.items()}
        written = {"lists": of_sets} if of_sets else {}
        return {"main": str(self._main), "at": datetime.now(UTC).isoformat(), "files": texts, **written}


# The ports that were assigned to domains, kept over restarts of the host, with a copy that lasts as long as the rules.
#
# The copy is read where the first file is lost or damaged, so that the ports in the kernel's rules stay assigned.


class PortRecords:
    """The records of assigned ports, in two files; `is_intact` says that no file was found damaged."""

    def __init__(self, state: Path = STATE, directory: Path = DIRECTORY) -> None:
        self._paths = tuple(place / "auto-ports.json" for place in (state, directory))
        self.is_intact, self._is_kept = True, True
        self._claims = OwnedStateFile("claims", directory)

    @property
    def turns(self) -> AllTurns:
        """The claims of domains in order; none where the record is not one of ours."""
        try:
            records = sorted(self._claims.records, key=lambda each: int(each["number"]))
            known = [(each["by_file"], Turn.read(each)) for each in records]
        except (KeyError, ValueError):
            return (), ()
        return tuple(turn for by_file, turn in known if not by_file), tuple(turn for by_file, turn in known if by_file)

    def keep_turns(self, turns: AllTurns) -> bool:
        """Write them, and return whether that was done; a reboot forgets them together with the runs."""
        each = (turn.record() | {"by_file": by_file} for by_file, of_one in enumerate(turns) for turn in of_one)
        return self._claims.write({**record, "number": number} for number, record in enumerate(each))

    def known(self) -> Assignments:
        """Read them, where only root could have written them."""
        for path in self._paths:
            try:
                return _ports_in(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                self.is_intact = False
                _log.warning("the ports that were assigned cannot be read: %s: %s", path, printable(str(error)))
        return {}

    def before(self, occupied: Callable[[], Sockets | None] = no_sockets) -> Before:
        """Give what is known at a start."""
        return Before(self.known(), self.turns, occupied)

    def keep(self, ports: Assignments) -> bool:
        """Write them, and return whether that was done. That it cannot be is a warning, once; they hold even so."""
        records = [
            {"domain": str(item.domain), "guest": item.guest, "protocol": item.protocol, "port": held.port}
            | {"gone": int(held.gone)}
            for item, held in sorted(ports.items())
        ]
        failed = [error for path in self._paths if (error := _written(path, f"{json.dumps(records)}\n"))]
        if failed and self._is_kept:
            _log.warning("the ports that were assigned are not kept, and may be others later: %s", failed[0])
        self._is_kept = not failed
        return self._is_kept


def _ports_in(path: Path) -> Assignments:
    for weak in weak_points(path):
        raise ValueError(str(weak))
    return _assignments(json.loads(read_regular(path)))


def _written(path: Path, text: str) -> str:
    """Write a file, and return why it could not be written."""
    try:
        replace_whole(path, text)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _assignments(records: Iterable[Mapping[str, object]]) -> Assignments:
    """Read what was written.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it was not written by us.

    """
    found = dict[AutoPort, Held]()
    for record in records:
        guest, port, gone = (int(str(record[key])) for key in ("guest", "port", "gone"))
        item = AutoPort(UUID(str(record["domain"])), guest, Protocol(str(record["protocol"])))
        if not {guest, port} <= _PORTS or gone < 0 or item in found:
            raise ValueError(f"no port is {record}")
        found[item] = Held(port, float(gone))
    users = {(held.port, item[:2]) for item, held in found.items()}
    if len({port for port, _ in users}) < len(users):
        raise ValueError("a port is assigned to two domains")
    return found


class Written:
    """Keeps what the next start reads: texts that were right, interfaces that entries lead to, and assigned ports.

    Used on the loop's thread; another thread writes, so that nothing waits for the disk. `choice` are the interfaces.
    """

    def __init__(self, main: Path, state: Path, directory: Path, again_after: float) -> None:
        """Try again after `again_after` seconds where something could not be written."""
        self._last_good, self._led_to = LastGood(main, state), LedTo(directory)
        self._records = PortRecords(state, directory)
        self.choice, self.ports = self._led_to.chosen, self._records.known()
        self._kept_ports = _hourly(self.ports) if self._records.is_intact else None
        self.turns = self._records.turns
        self._again_after = again_after
        self._worker = Worker("last good configuration")
        self._newest: dict[str, Callable[[], bool]] = {}
        self._texts: tuple[Mapping[Path, bytes], Mapping[Path, bytes]] = ({}, {})
        self._closed = False

    def keep(self, sources: Mapping[Path, bytes], lists: Mapping[Path, bytes] = MappingProxyType({})) -> None:
        """Keep texts that were right, and those of the files of sets."""
        self._texts = (sources, lists)
        if sources:
            self._write("configuration", lambda: self._last_good.keep(sources, lists))

    def keep_list(self, file: Path, text: bytes) -> None:
        """Keep what is in the file of a set now."""
        sources, lists = self._texts
        self.keep(sources, {**lists, file: text})

    def keep_choice(self, chosen: Chosen) -> None:
        """Keep which interfaces entries lead to, where that is another choice."""
        if chosen != self.choice:
            kept = self.choice = dict(chosen)
            self._write("choice", lambda: self._led_to.keep(kept))

    def renew(self) -> None:
        """Write again what stands in /run: it may have gone."""
        chosen, turns, ports = self.choice, self.turns, self.ports
        self._write("choice", lambda: self._led_to.keep(chosen))
        if any(turns):
            self._write("claims", lambda: self._records.keep_turns(turns))
        if ports:
            self._write("ports", lambda: self._records.keep(ports))

    def keep_ports(self, ports: Assignments, turns: AllTurns) -> None:
        """Keep which ports are assigned, where they have changed, or their domains have been gone for another hour.

        Keep the order of claims, too, where that has changed.
        """
        if turns != self.turns:
            self.turns = turns
            self._write("claims", lambda: self._records.keep_turns(turns))
        if (hourly := _hourly(ports)) != self._kept_ports:
            self._kept_ports, self.ports = hourly, ports
            self._write("ports", lambda: self._records.keep(ports))

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


def _hourly(ports: Assignments) -> Mapping[AutoPort, tuple[int, int]]:
    return {item: (held.port, int(held.gone) // _HOUR_S) for item, held in ports.items()}


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
        self._worker = Worker("configuration")
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


# Requests to read the configuration again, and their answers. On the loop's thread only.
#
# A request that arrives while the configuration is being read is answered by the next reading. A valid configuration is
# answered once the kernel holds it; passes that run while it is read are about the one before.


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The answer: `problems` of a configuration that was refused, or why the kernel does not hold it yet."""

    problems: tuple[Problem, ...] = ()
    failure: str = ""


class Reloads:
    """Asks for a reload by calling `wake`, and answers the requests for it."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._asked: list[asyncio.Future[Reloaded]] = []
        self._begun: list[asyncio.Future[Reloaded]] = []
        self._read: list[asyncio.Future[Reloaded]] = []

    async def ask(self) -> Reloaded:
        """Have the configuration read again, and wait for the answer."""
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
        """Note that the file has been read; the next pass answers the requests."""
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
            if not answer.done():  # the client may have gone
                answer.set_result(result)
