"""Work outside the loop: programs, and threads for calls that may hang."""

import asyncio
import os
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, ClassVar, Protocol, TypeVar
from weakref import WeakSet

from fwdaemon.audit.journal import ARREARS
from fwdaemon.core.types import Job
from fwdaemon.errors import HangingError, KernelError, ProcessError
from fwdaemon.triggers import Budget, Budgets

# Programs start here alone: without a shell, from the system's own directories, with a clean environment and a limit.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C"}
# A program that works may take this long, on a starving host too; one that uses no processor time only `_IDLE`.
_TIMEOUT = 30.0
_IDLE = 5.0
# States of one that waits for a processor, or in the kernel for what no signal interrupts, as for others that change
# rules: to kill it would end no wait.
_AT_WORK = ("R", "D")
# The same once this program is to end.
_IDLE_AT_THE_END = 2.0
_SLICE = 0.2
# How often it is looked whether one has ended that should.
_GLANCE = 0.005
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ended with status 0; `pid` was its process number."""

    stdout: str
    stderr: str
    pid: int


class Runner(Protocol):
    """What runs programs for us."""

    def run(self, *argv: str, stdin: str = "") -> Finished:
        """Run a program to its end.

        Raises:
            ProcessError: it is not installed, or ended with another status than 0.
            HangingError: it did nothing for five seconds, or took longer than 30, and was ended.

        """
        ...


class Haste:
    """How long to wait for programs: less once this program is to end."""

    def __init__(self) -> None:
        self.idle = _IDLE

    def hurry(self) -> None:
        """End programs sooner that do nothing, those that run now included."""
        self.idle = _IDLE_AT_THE_END


HASTE = Haste()


class Patience:
    """Notices when a program hangs: it has used no processor time for a while, or runs for far too long."""

    def __init__(self, pid: int) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self._began = self._moved = time.monotonic()
        # Not looked at yet: most programs have ended before they are, and while one begins, to look takes 2 ms.
        self._used: list[str] = []

    @property
    def fault(self) -> str:
        """What is wrong, or nothing."""
        now, (state, used) = time.monotonic(), self._seen()
        if used != self._used or state in _AT_WORK:
            self._used, self._moved = used, now
        if now - self._moved > HASTE.idle:
            return f"it did nothing for {HASTE.idle:.0f} seconds, and was killed"
        return f"it was still running after {_TIMEOUT:.0f} seconds" if now - self._began > _TIMEOUT else ""

    def _seen(self) -> tuple[str, list[str]]:
        """Give its state and its clock ticks, its own and the kernel's (proc_pid_stat(5)), which follow any name."""
        try:
            found = self._stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            return "", []
        return found[0], found[11:13]


class SystemRunner:
    """Runs programs of this machine, found in the directories of `path`. Safe to use from several threads."""

    def __init__(self, path: str = PATH) -> None:
        self._path = path

    def run(self, *argv: str, stdin: str = "") -> Finished:
        """See `Runner.run`."""
        with self._start(argv, stdin) as process:
            patience = Patience(process.pid)
            while True:
                try:
                    stdout, stderr = process.communicate(timeout=_SLICE)
                    break
                except subprocess.TimeoutExpired as error:
                    if fault := patience.fault:
                        _end_group(process.pid)
                        raise HangingError(argv, stdin, -1, fault) from error
        if process.returncode != 0:
            raise ProcessError(argv, stdin, process.returncode, stderr)
        return Finished(stdout, stderr, process.pid)

    def _start(self, argv: Sequence[str], stdin: str) -> "subprocess.Popen[str]":
        program = find_program(argv[0], self._path)
        if program is None:
            raise ProcessError(argv, stdin, 127, "the program is not installed")
        try:
            with _as_file(stdin) as given:
                return self._opened(program, argv, given)
        except OSError as error:  # no process or descriptor is available
            raise ProcessError(argv, stdin, 126, f"it cannot be started: {error.strerror}") from error

    def _opened(self, program: str, argv: Sequence[str], given: IO[bytes]) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        # Arguments are built from our own constants and validated names, and no shell reads them.
        return subprocess.Popen(  # noqa: S603
            [program, *argv[1:]],
            stdin=given,
            stdout=pipe,
            stderr=pipe,
            env=_ENVIRONMENT,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
            process_group=0,
        )


def _as_file(text: str) -> IO[bytes]:
    """Give a text as a file to read: with a pipe, `communicate` of Python 3.11 sends no more once a timeout is over."""
    file = os.fdopen(os.memfd_create("stdin"), "w+b")
    file.write(text.encode(errors="backslashreplace"))
    file.seek(0)
    return file


def _end_group(pid: int) -> None:
    """End a program with all that it started; others wait for what they hold."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


class Companion:
    """A module of this program that runs as a process of its own, and answers each line with a line.

    It finds the same modules as we do. It should end when its standard input does, so that it cannot outlive us.
    """

    present: ClassVar[WeakSet["Companion"]] = WeakSet()

    def __init__(self, module: str, argument: str, environment: Mapping[str, str], *, counted: bool = True) -> None:
        """Start it; `environment` is added to a clean one. Raises OSError when that is impossible.

        One that is not `counted` works for a client: `processor_time` leaves out what it uses.
        """
        modules = ":".join(path for path in sys.path if path)
        self._words = module, argument
        self._process = subprocess.Popen(  # noqa: S603  every word is ours
            [sys.executable, "-P", "-m", *self._words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**_ENVIRONMENT, "PYTHONPATH": modules, **environment},
            bufsize=0,
            process_group=0,
        )
        self._counted = counted
        if counted:
            self.present.add(self)

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    @property
    def processor_time(self) -> float:
        """What it has used so far, in seconds; nothing once it ended, as it counts among those that ended then."""
        try:
            return time.clock_gettime(~self.pid << 3 | _OF_PROCESS)
        except OSError:
            return 0.0

    def exchange(self, line: str) -> str:
        """Send a line and wait for one; empty when it ended.

        Raises:
            HangingError: it did nothing for too long, and was ended.

        """
        sink, source = self._process.stdin, self._process.stdout
        if sink is None or source is None:
            return ""
        patience, question, answer = Patience(self.pid), f"{line}\n".encode(), b""
        os.set_blocking(sink.fileno(), False)
        # Not select(2), which takes no file from number 1024 on: each client of the local proxy is two.
        with selectors.PollSelector() as pipes:
            pipes.register(source, selectors.EVENT_READ)
            pipes.register(sink, selectors.EVENT_WRITE)
            while not answer.endswith(b"\n"):
                ready = {key.fileobj for key, _ in pipes.select(_SLICE)}
                if not ready and (fault := patience.fault):
                    _end_group(self.pid)
                    raise HangingError(self._words, "", -1, fault)
                try:
                    question = question[os.write(sink.fileno(), question) if sink in ready else 0 :]
                    read = os.read(source.fileno(), _CHUNK) if source in ready else None
                except OSError:  # it does not listen any more
                    return ""
                if read == b"":
                    return ""
                if sink in ready and not question:
                    pipes.unregister(sink)
                answer += read or b""
        return answer.decode()

    def close(self) -> int:
        """End it, the hard way if it does not end, and give its status."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was not read any more is lost
                if pipe is not None:
                    pipe.close()
        if self._process.returncode is None:
            self._await_end()
            if not self._counted:
                self._process.returncode = _UNCOUNTED.reap(self.pid)
        return self._process.wait()

    def _await_end(self) -> None:
        """Wait until it has ended, and leave its status and what it used to be taken; see waitid(2)."""
        patient_until = time.monotonic() + HASTE.idle
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > patient_until:
                _end_group(self.pid)
                patient_until = float("inf")
            time.sleep(_GLANCE)


class _Uncounted:
    """What ended processes used that are not counted, with all that they ran, in seconds of processor time.

    The kernel adds it to what our other programs used when the status of such a process is taken.
    """

    def __init__(self) -> None:
        self._turn, self._seconds = threading.Lock(), 0.0

    def reap(self, pid: int) -> int:
        """Take the status of one that has ended."""
        with self._turn:
            _, status, used = os.wait4(pid, 0)
            self._seconds += used.ru_utime + used.ru_stime
        return os.waitstatus_to_exitcode(status)

    def of_others(self) -> float:
        """Give what all other programs used that ended."""
        with self._turn:
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            return ended.ru_utime + ended.ru_stime - self._seconds


_UNCOUNTED = _Uncounted()


# The clock of another process has a number made of its own, as clock_getcpuclockid(3) has it (linux/posix-timers.h).
_OF_PROCESS = 2


def processor_time() -> float:
    """Give the seconds of processor time that we have used so far, with all programs that we run but uncounted ones."""
    return time.process_time() + _of_programs()


def processor_time_here() -> float:
    """Give those that this thread has used, with the same programs."""
    return time.thread_time() + _of_programs()


def _of_programs() -> float:
    return _UNCOUNTED.of_others() + sum(beside.processor_time for beside in list(Companion.present))


def budget_of_guests() -> Budget:
    """Give a new budget for what guests cause, of which all that has to do with guests on this host takes."""
    return Budget(time.monotonic, threading.Lock())


def new_budgets() -> Budgets:
    """Give new budgets for what guests and users of libvirt cause."""
    return Budgets.new(time.monotonic, threading.Lock)


def find_program(name: str, path: str = PATH) -> str | None:
    """Give the absolute path of a system program, or `None` where it is not installed."""
    return shutil.which(name, path=path)


# A thread of its own for calls that may hang, so that nothing else has to wait for them.
#
# Calls run one after the other, which is what a libvirt connection needs: none of them ever runs beside its close. The
# thread is a daemon thread on purpose, unlike those of `concurrent.futures`: a libvirtd that is frozen in the middle of
# a call must not keep this program from ending.
T = TypeVar("T")


class Worker:
    """One thread, begun at the first call, that runs calls in the order they were given.

    `name` is the thread's, for those who list threads; `job` is what its calls are, and `about` what.
    """

    def __init__(self, name: str, job: Job, about: str = "") -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._name, self._job = name, (job, about)
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Queue a call; the future belongs to the running asyncio loop. Cancelling it drops a call not yet begun.

        Where no thread is available, the future raises `KernelError`, and the next call tries again.
        """
        try:
            self._begin()
        except RuntimeError as error:
            failure = KernelError(f"the thread {self._name!r} cannot be started: {error}")
            failure.__cause__ = error
            return _failed(failure)
        future: Future[T] = Future()
        self._calls.put(lambda: _settle(future, function))
        return asyncio.wrap_future(future)

    async def close(self, patience: float) -> bool:
        """End the thread after the calls already queued; whether it ended within `patience` seconds."""
        if self._thread is None:
            return True
        self._calls.put(None)
        clock = asyncio.get_running_loop().time
        deadline = clock() + patience
        while self._thread.is_alive() and clock() < deadline:  # noqa: ASYNC110 - see below
            await asyncio.sleep(0.01)  # nothing a thread could signal comes after its last instruction
        return not self._thread.is_alive()

    def _begin(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            with ARREARS.during(*self._job):
                call()
            del call  # or the last call's data stay alive until the next one


def _failed(error: KernelError) -> "asyncio.Future[T]":
    """Give a future that raises where it is awaited, and nowhere else."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    future.exception()  # or asyncio shows a traceback of one that is not awaited
    return future


def _settle(future: Future[T], function: Callable[[], T]) -> None:
    """Run the call; whatever it raises is raised where its result is awaited."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - handed on unchanged, like concurrent.futures does
        future.set_exception(error)
    else:
        future.set_result(result)
