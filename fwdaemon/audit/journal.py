"""Where log lines go: to the journal with their fields, or to standard error where the daemon is run by hand.

The only module that writes to the journal. It also knows what this program is behind with.
"""

import errno
import fcntl
import logging
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from socket import AF_UNIX, SCM_RIGHTS, SOCK_DGRAM, SOL_SOCKET, socket
from threading import Thread
from typing import Any, Final, Protocol, TextIO

from fwdaemon.core.types import Job, Late

_IDENTIFIER = "kvm-portfwd"
_JOURNAL = "/run/systemd/journal/socket"
# More lines than the largest configuration has exposures; a line takes about 500 bytes.
_QUEUED_LINES = 32768
_LOST = "%d log lines were lost: they could not be written in time"
# How long the last lines may take at the end.
_PATIENCE = 2.0
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
# By level: what syslog(3) calls it, and how a terminal shows it (ECMA-48, 8.3.117).
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_COLOURS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[31m"}
_ACTION_COLOURS = {"added": "\033[32m", "removed": "\033[35m", "restored": "\033[36m", "waiting": "\033[33m"}
_RESET = "\033[0m"

# Made once with uuid4 and never changed, as people search for them (sd_journal_print(3)).
MESSAGE_IDS: Final = {
    "added": "ca77a81aa3554599add0708efd079551",
    "removed": "5f6741e7993842329d5a0ceff56415bb",
    "restored": "cb5edc2f5ce24856ae3c8759d69ef7be",
    "waiting": "7d2f4c60768140a8b03280356192e5bb",
    "assigned": "dc953e92568c45debfe30f3380da4bb9",
    "declined": "21c85a8a3f094ce3add4cee1c48306c1",
    "adopted": "4d567da7df8f4466bbe096a3db8b9bba",
    "ended": "fef759c7ba8842fd8f3ec266c2456a74",
    "moved": "16db21cce5354404be20362ba5644dc9",
    "flapping": "aa4a0229053346a49ef5ae865bb34af3",
    "problem": "6907d2a132474a41893de37aaff2dd8e",
    "noted": "8a6e9577c64f4ea58a0d13c09fca611f",
    "loaded": "4332fb5b140f43c3b02a53f9aaf05eb9",
    "refused": "7e462be721144e0ca69bdf49dd7177dd",
    "opened": "728346edf9af42db860d669eba6768fe",
    "closed": "9243ca1455ba406bbf23e42d227ea305",
    "confirmed": "b2df49dc9cde49a29c7fe94f6b7aea5b",
    "unconfirmed": "657935906f5a464aa364818a03994e99",
    "connected": "f7561a4afc19432c8c47aa15a5ed0f0e",
    "disconnected": "5d4f0e4c45b34be1acd57aea1772279c",
    "unlogged": "986f695188454cf1b10512e25ee6e8c2",
}


# What this program is behind with. Nothing waits for such work, so that no one would notice but for the status.
LATE_S: Final = 10.0

LATE_JOBS: Final[Mapping[str, str]] = {
    Job.AGENTS: "an answer of a guest's agent, asked through {}",
    Job.ANSWERS: "an answer to plan, check or explain",
    Job.CONFIGURATION: "the reading of the configuration",
    Job.CONFLICTS: "the look at rules and sockets of others",
    Job.CONNECTIONS: "the sweep of connections",
    Job.COUNTERS: "the counting of connections",
    Job.EXTERNAL_SETS: "the writing of what external sets hold",
    Job.GROUPS: "an answer of the group database",
    Job.INVENTORY: "the kernel's answer about links, addresses and neighbours",
    Job.LAST_GOOD: "the writing of the last good configuration",
    Job.LIBVIRT: "an answer of libvirt at {}",
    Job.LOG: "the writing of log lines",
    Job.LOOPBACK: "a change of what answers on 127.0.0.1 and ::1",
    Job.METRICS: "the making of metrics",
    Job.PROBES: "a search for silent guests",
    Job.RECONCILE: "a comparison with the kernel",
    Job.SETS: "the reading of files of sets",
    Job.STATUS: "the making of a status",
    Job.SYSTEMD: "what systemd is to be notified of",
    Job.TEMPORARY: "the writing of what is open for a while",
}
"""What `status` calls each."""


class Arrears:
    """Which jobs have begun and are not done, and how much was lost as nothing took it. From any thread.

    `clock` gives a monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: dict[object, tuple[Job, str, float]] = {}
        self.lost_lines = 0

    def begin(self, job: Job, about: str = "") -> Callable[[], object]:
        """Note that a job begins; what is given is to be called once it is done."""
        key = object()
        self._begun[key] = job, about, self._clock()
        return lambda: self._begun.pop(key, None)

    @contextmanager
    def during(self, job: Job, about: str = "") -> Iterator[None]:
        """Note that this block is a job."""
        done = self.begin(job, about)
        try:
            yield
        finally:
            done()

    def late(self, after: float = LATE_S) -> tuple[Late, ...]:
        """Give those that have gone on for at least so many seconds; of several alike, the one that began first."""
        now, first = self._clock(), dict[tuple[Job, str], float]()
        for job, about, since in list(self._begun.values()):
            first[job, about] = min(since, first.get((job, about), since))
        return tuple(Late(*what, now - since) for what, since in sorted(first.items()) if now - since >= after)


ARREARS: Final = Arrears()
"""Those of this program."""


# The lines, and the thread that writes them.


@contextmanager
def lines_written() -> Iterator[None]:
    """Send all log lines of this program where its standard error leads, and wait a moment for the last of them."""
    _leave_out_what_nobody_reads()
    handler = QueueHandler(JournalOutlet() if _leads_to_journal(sys.stderr) else StreamOutlet(sys.stderr))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        handler.finish(_PATIENCE)


def _leave_out_what_nobody_reads() -> None:
    """Spare each line the search for the place that wrote it, and the like: a configuration may make thousands."""
    logging._srcfile = None  # noqa: SLF001  as "Optimization" in its HOWTO has it
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.setLogRecordFactory(_Record)


class _Record(logging.LogRecord):
    """A line without its time and its place in the code, for which `logging` takes paths apart each time."""

    pathname = filename = module = funcName = ""  # noqa: N815  so logging calls it
    lineno, created, msecs, relativeCreated = 0, 0.0, 0.0, 0.0  # noqa: N815  the same
    exc_text = stack_info = thread = threadName = process = processName = None  # noqa: N815  the same

    def __init__(self, name: str, level: int, _path: str, _line: int, *what: Any) -> None:
        self.name, self.levelno, self.levelname = name, level, logging.getLevelName(level)
        self.msg, self.args, self.exc_info, *_ = what


class Outlet(Protocol):
    """Where lines leave."""

    @property
    def together(self) -> int:
        """How many bytes of several lines may be given to one write."""
        ...

    def encoded(self, record: logging.LogRecord) -> bytes:
        """Give what is to be written of a record."""
        ...

    def write(self, line: bytes) -> None:
        """Write one line or several, however long that takes.

        Raises:
            OSError: it could not be written.

        """
        ...


class _FullError(Exception):
    """As many lines wait as may."""


class QueueHandler(logging.Handler):
    """Hands lines to a thread that writes them: logging never waits, whatever holds up the journal or a pipe.

    What does not fit in the queue is lost. How many lines that were is a line of its own, once writing works again.
    """

    def __init__(self, outlet: Outlet, size: int = _QUEUED_LINES, arrears: Arrears = ARREARS) -> None:
        super().__init__()
        self._outlet, self._arrears = outlet, arrears
        # Half the time of a queue that is bounded by itself.
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._size = size
        self.lost = 0  # lines that were not written, and not reported yet
        self._thread: Thread | None = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Queue one record; the queue takes those of all threads, so none waits for another here."""
        try:
            self._put(self._outlet.encoded(record))
        except Exception:  # noqa: BLE001  a line that is lost must not end what it reports (logging's own rule)
            self._count(1)
        if self._thread is None:
            self._begin()
        return True

    def finish(self, patience: float) -> None:
        """Wait for what is queued, at most `patience` seconds; the rest is lost."""
        if self._thread is None:
            self._begin()
        with suppress(_FullError):  # then it is stuck
            self._put(None)
            if self._thread is not None:
                self._thread.join(patience)

    def _put(self, line: bytes | None) -> None:
        if self._lines.qsize() >= self._size:
            raise _FullError
        self._lines.put(line)

    def _begin(self) -> None:
        # A daemon thread: a write that hangs must not keep this program from ending.
        thread = Thread(target=self._run, name="log", daemon=True)
        self.acquire()
        with suppress(RuntimeError):  # no thread is available now: the next line tries again
            if self._thread is None:
                thread.start()
                self._thread = thread
        self.release()

    def _run(self) -> None:
        with suppress(OSError):  # so that `top -H` shows which thread it is; proc_pid_comm(5)
            Path("/proc/thread-self/comm").write_text("log", encoding="ascii")
        for lines in self._batches():
            if not self._written(b"".join(lines)):
                self._count(len(lines))
            elif self.lost and self._lines.empty():
                self._write_lost()

    def _batches(self) -> Iterator[list[bytes]]:
        """Give the lines up to the last, as many at once as wait and may be written together."""
        line = self._lines.get()
        while line is not None:
            batch, size = [line], len(line)
            while is_more := self._lines.qsize() > 0:
                line = self._lines.get()
                size += len(line or b"")
                if line is None or size > self._outlet.together:
                    break
                batch.append(line)
            yield batch
            if not is_more:
                line = self._lines.get()

    def _written(self, line: bytes) -> bool:
        try:
            with self._arrears.during(Job.LOG):
                self._outlet.write(line)
        except OSError:
            return False
        return True

    def _write_lost(self) -> None:
        lost = self.lost
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, _LOST, (lost,), None)
        if self._written(self._outlet.encoded(record)):
            self._count(-lost)

    def _count(self, lost: int) -> None:
        self.acquire()  # nothing waits while holding it
        self.lost += lost
        self._arrears.lost_lines += max(lost, 0)
        self.release()


class JournalOutlet:
    """Writes lines through the journal's own protocol, with the fields of `record.journal`.

    See https://systemd.io/JOURNAL_NATIVE_PROTOCOL. The journal's own library holds Python's global lock while it
    waits for a journal that takes nothing, and with it every thread.
    """

    together: Final = 0

    def __init__(self, path: str = _JOURNAL) -> None:
        self._path = path
        self._format = logging.Formatter().format
        self._socket: socket | None = None

    def encoded(self, record: logging.LogRecord) -> bytes:
        """See `Outlet.encoded`."""
        fields = {
            "MESSAGE": self._format(record),
            "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": _IDENTIFIER,
            **getattr(record, "journal", {}),
        }
        return b"".join(_field(name, value) for name, value in fields.items())

    def write(self, line: bytes) -> None:
        """See `Outlet.write`."""
        if self._socket is None:
            self._socket = socket(AF_UNIX, SOCK_DGRAM)
        try:
            self._socket.sendto(line, self._path)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            self._hand_over(self._socket, line)

    def _hand_over(self, sender: socket, line: bytes) -> None:
        """Send what is too long for a datagram as a file in memory."""
        file = os.memfd_create("kvm-portfwd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(file, "wb", buffering=0) as content:
            content.write(line)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            # Not `socket.send_fds`, which leaves out the address.
            sender.sendmsg([], [(SOL_SOCKET, SCM_RIGHTS, file.to_bytes(4, sys.byteorder))], 0, self._path)


class StreamOutlet:
    """Writes lines to an open file, such as a terminal or a pipe."""

    together: Final = select.PIPE_BUF  # nothing of others who write to a pipe stands within such a piece (pipe(7))

    def __init__(self, stream: TextIO) -> None:
        # Not through the stream, whose own lock would be waited for at the end of the program.
        self._file = stream.fileno()
        # https://no-color.org: set to anything, it means no colours.
        colour = stream.isatty() and not os.environ.get("NO_COLOR")
        self._format = StreamFormatter(colour=colour).format

    def encoded(self, record: logging.LogRecord) -> bytes:
        """See `Outlet.encoded`."""
        return f"{self._format(record)}\n".encode(errors="backslashreplace")

    def write(self, line: bytes) -> None:
        """See `Outlet.write`."""
        while line:
            try:
                line = line[os.write(self._file, line) :]
            except BlockingIOError:  # a program that shares the file has made it so
                _wait_until_writable(self._file)


def _wait_until_writable(file: int) -> None:
    # Not select(2), which takes no file from number 1024 on.
    waiting = select.poll()
    waiting.register(file, select.POLLOUT)
    waiting.poll()


class StreamFormatter(logging.Formatter):
    """Writes audit lines as they are; what is wrong says so first. With `colour`, their beginning is coloured."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Write one record; `logging` writes what it knows of an exception below it."""
        return super().format(record) if record.exc_info else self.formatMessage(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  so logging calls it
        """Write its first line."""
        text = record.getMessage()
        line = text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
        if not self._colour:
            return line
        action = getattr(record, "journal", {}).get("PORTFWD_ACTION", "")
        if (colour := _COLOURS.get(record.levelno) or _ACTION_COLOURS.get(action)) is None:
            return line
        first, space, rest = line.partition(" ")
        return f"{colour}{first}{_RESET}{space}{rest}"


def _leads_to_journal(stream: TextIO) -> bool:
    """Whether systemd connected the stream to the journal: it names its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _field(name: str, value: str) -> bytes:
    """Write one field; a value of several lines has its length before it."""
    content = value.encode(errors="backslashreplace")
    if b"\n" not in content:
        return b"%s=%s\n" % (name.encode(), content)
    return b"%s\n%s%s\n" % (name.encode(), len(content).to_bytes(8, "little"), content)
