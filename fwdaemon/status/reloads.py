"""Reloads and their answers, and what is kept for the next start: the last good configuration, and assigned ports."""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from fwdaemon import config as configuration
from fwdaemon.config.files import read_regular, weak_points
from fwdaemon.config.model import Config
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.text import printable
from fwdaemon.core.types import Job, Protocol
from fwdaemon.errors import STRANGE, ConfigError, KernelError, Problem
from fwdaemon.hostnet.owned_state import DIRECTORY, LedTo, OwnedStateFile
from fwdaemon.kernel.process import Worker
from fwdaemon.resolve.claims import AllTurns, Sockets, Turn, no_sockets
from fwdaemon.resolve.expansion import Assignments, AutoPort, Before, Held
from fwdaemon.resolve.guests import Chosen

# The last configuration that was right, kept on the disk for a start with one that is not.
#
# Without it the rules would stay after such a start, and would not follow the guests they lead to. The texts are kept,
# so that a later release reads them by its own grammar. Only root may read or write them.
_log = logging.getLogger(__name__)

# StateDirectory= of the unit.
STATE: Final = Path("/var/lib/kvm-portfwd")
_PORTS: Final = range(1, 65536)
_HOUR_S: Final = 3600
MOST_KEPT: Final = 128 << 20
_PATIENCE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A configuration that was right, when it was loaded last, and its texts; `lists` are those of its sets' files."""

    config: Config
    at: datetime
    sources: Mapping[Path, bytes]
    lists: Mapping[Path, bytes]


@dataclass(frozen=True, slots=True)
class Start:
    """The configuration to begin with, and its texts; or the last good one, with what is wrong with the newer.

    `lists` are the texts of the files of its sets. One `is_rolled_back` where the newer was not confirmed in time.
    """

    config: Config
    sources: Mapping[Path, bytes]
    problems: tuple[Problem, ...] = ()
    kept_at: datetime | None = None
    is_rolled_back: bool = False
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
            record = json.loads(read_regular(self._path, MOST_KEPT))
            if record["main"] != str(self._main):
                return None
            sources = {Path(file): str(text) for file, text in record["files"].items()}
            lists = lists_in(record)
            texts = {file: text.encode() for file, text in sources.items()}
            config = configuration.parse(sources, lists)
            return Kept(config, datetime.fromisoformat(record["at"]), texts, lists)
        except FileNotFoundError:
            return None
        except (OSError, *STRANGE, ConfigError) as error:
            _log.warning("the last good configuration cannot be used: %s: %s", self._path, printable(str(error)))
            return None

    def _record(self, sources: Mapping[Path, bytes], lists: Mapping[Path, bytes]) -> dict[str, object]:
        texts = {str(file): source.decode() for file, source in sources.items()}
        return {"main": str(self._main), "at": datetime.now(UTC).isoformat(), "files": texts, **with_lists(lists)}


def with_lists(lists: Mapping[Path, bytes]) -> dict[str, object]:
    """Give the JSON form of the texts of the files of sets, which is nothing where there are none."""
    return {"lists": {str(file): text.decode(errors="replace") for file, text in lists.items()}} if lists else {}


def lists_in(record: Mapping[str, Any]) -> dict[Path, bytes]:
    """Read it. Raises KeyError, TypeError or AttributeError where it is none of ours."""
    return {Path(file): str(text).encode() for file, text in record.get("lists", {}).items()}


def replace_whole(path: Path, text: str) -> None:
    """Replace a file whole, so that a crash leaves the one before."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


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
        except STRANGE:
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
            except (OSError, *STRANGE) as error:
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
        if guest not in _PORTS or port not in _PORTS or gone < 0 or item in found:
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
        self._looked_at: Assignments | None = None
        self.turns = self._records.turns
        self._again_after = again_after
        self._worker = Worker("last good configuration", Job.LAST_GOOD)
        self._newest: dict[str, Callable[[], bool]] = {}
        self._closed = False

    def keep(self, sources: Mapping[Path, bytes], lists: Mapping[Path, bytes] = MappingProxyType({})) -> None:
        """Keep texts that were right, and those of the files of sets."""
        self._write("configuration", lambda: self._last_good.keep(sources, lists))

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
        is_same, self._looked_at = ports is self._looked_at, ports
        if not is_same and (hourly := _hourly(ports)) != self._kept_ports:
            self._kept_ports, self.ports = hourly, ports
            self._write("ports", lambda: self._records.keep(ports))

    async def done(self, write: Callable[[], Fault | None]) -> Fault | None:
        """Write something, and return why it could not be, or has not been for long."""
        try:
            return await asyncio.wait_for(self._worker.submit(write), _PATIENCE_S)
        except TimeoutError:
            return Fault(FaultKind.BEFORE_NOT_KEPT_IN_TIME)
        except KernelError as error:
            return Fault(FaultKind.BEFORE_NOT_KEPT, detail=str(error))

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


# Requests to read the configuration again, and their answers. On the loop's thread only.
#
# A request that arrives while the configuration is being read is answered by the next reading. A valid configuration is
# answered once the kernel holds it; passes that run while it is read are about the one before.


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The answer: `problems` of a configuration that was refused, or why the kernel does not hold it yet."""

    problems: tuple[Problem, ...] = ()
    failure: str = ""
    refusal: Fault | None = None


class Reloads:
    """Asks for a reload by calling `wake`, and answers the requests for it.

    What is read now is to be confirmed within `confirm` seconds, if that was asked for. Who changed what is in force in
    another way waits for `applied`.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.confirm: int | None = None
        self._wanted: int | None = None
        self._changed: list[asyncio.Future[Reloaded]] = []
        self._asked: list[asyncio.Future[Reloaded]] = []
        self._begun: list[asyncio.Future[Reloaded]] = []
        self._read: list[asyncio.Future[Reloaded]] = []

    async def ask(self, confirm: int | None = None) -> Reloaded:
        """Have the configuration read again, to be confirmed within so many seconds, and wait for the answer."""
        if confirm is not None:
            self._wanted = min(confirm, self._wanted or confirm)
        answer = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        self._wake()
        result: Reloaded = await answer
        return result

    async def applied(self) -> Reloaded:
        """Wait until the kernel holds what was changed."""
        answer = asyncio.get_running_loop().create_future()
        self._changed.append(answer)
        result: Reloaded = await answer
        return result

    @property
    def is_awaited(self) -> bool:
        """Whether a client waits for that which has not been noted yet."""
        return bool(self._changed)

    def changed(self) -> None:
        """Note that such changes are in force; the next pass answers."""
        self._read += self._changed
        self._changed = []

    def begin(self) -> None:
        """Say that the configuration is read now."""
        self._begun += self._asked
        self._asked = []
        self.confirm, self._wanted = self._wanted, None

    def read(self) -> None:
        """Note that the file has been read; the next pass answers the requests."""
        self._read += self._begun
        self._begun = []

    def refused(self, problems: Iterable[Problem]) -> None:
        """Say that it is wrong, and the old one stays."""
        self._answer(Reloaded(problems=tuple(problems)))

    def kept_out(self, refusal: Fault) -> None:
        """Say why it is not in force though it is right."""
        self._answer(Reloaded(refusal=refusal))

    def pass_ended(self, failure: str = "") -> None:
        """Say that the kernel was brought to it, or why not."""
        self._answer(Reloaded(failure=failure))

    def _answer(self, result: Reloaded) -> None:
        read, self._read = self._read, []
        for answer in read:
            if not answer.done():  # the client may have gone
                answer.set_result(result)
