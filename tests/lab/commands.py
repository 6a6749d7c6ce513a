"""Commands of this project's program on a host, run without a start of Python for each.

What they import takes a third of a second of a processor, and the tests run thousands of them. So one process on the
host has imported it, and forks for each command, which then runs as `python -m fwdaemon` would, the daemon as well. It
takes connections at a socket in the host's /run, one for each command; `Commands` is the side of the tests.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import IO, NoReturn

from tests.lab.command import Completed, LabError
from tests.lab.place import Place, Process

_SOCKET = "/run/lab-commands"
_LOADED = ("check", "run", "status")
# Room for the words of a command that stays.
_ROOM = "-" * 400
# The words begin and end in memory where these fields of proc_pid_stat(5), number 48 and 49, say; the third comes first
# behind the name.
_WORDS_BEGIN, _WORDS_END = 48 - 3, 49 - 3
_CREDENTIALS = struct.Struct("iII")  # ucred, unix(7)


class Forked:
    """A command that keeps running; a `place.Program`."""

    def __init__(self, connection: socket.socket, output: IO[bytes]) -> None:
        """Take its number from its first word: the kernel gives the sender's as this process knows it (unix(7))."""
        self.output = output
        self._connection = connection
        self._status: int | None = None
        _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        self.pid: int | None = _CREDENTIALS.unpack(ancillary[0][2])[0] if ancillary else None

    def poll(self) -> int | None:
        """Its exit status once it ended."""
        self._listen(0)
        return self._status

    def wait(self, timeout: float) -> int:
        """Wait for that."""
        self._listen(timeout)
        if self._status is None:
            raise TimeoutExpired("fwdaemon", timeout)
        return self._status

    def awake(self) -> None:
        """Nothing is to be done for one that was stopped."""

    def _listen(self, timeout: float) -> None:
        if self._status is not None:
            return
        told = select.poll()
        told.register(self._connection, select.POLLIN)
        if told.poll(timeout * 1000):
            # The process that waits for it ended with the host.
            self._status = int(_read(self._connection) or -signal.SIGKILL)
            self._connection.close()


class Commands:
    """The side of the tests, for the host whose PID 1 is `init`; the process is started for the first command."""

    def __init__(self, place: Place, init: int) -> None:
        self._place = place
        self._path = f"/proc/{init}/root{_SOCKET}"
        self._process: Process | None = None

    def _connected(self) -> socket.socket:
        if self._process is None:
            # Without the directory of this file in the way to modules.
            program = ["-P", str(Path(__file__).resolve()), _ROOM]
            self._process = self._place.popen([self._place.python, *program])
            self._process.wait_line("^ready$")
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._path)
        return connection

    def start(self, words: Sequence[str], environment: Mapping[str, str]) -> Process:
        """Start a command that keeps running, as `python -m fwdaemon` would with nothing else in its environment."""
        connection = self._connected()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        source, sink = os.pipe()
        socket.send_fds(connection, [json.dumps([words, dict(environment)]).encode()], [sink])
        os.close(sink)
        connection.shutdown(socket.SHUT_WR)
        return Process(Forked(connection, os.fdopen(source, "rb")), words[0])

    def run(self, *words: str, stdin: str = "", check: bool = True, timeout: float = 60) -> Completed:
        """Run a command to its end."""
        with self._connected() as connection:
            connection.settimeout(timeout)
            connection.sendall(json.dumps([words, stdin]).encode())
            connection.shutdown(socket.SHUT_WR)
            answer = _read(connection)
        if not answer:
            said = "" if self._process is None else self._process.text()
            raise LabError(f"{' '.join(words)} ended without a status:\n{said}")
        done = CompletedProcess(words, *json.loads(answer))
        if check and done.returncode != 0:
            raise LabError(f"{' '.join(words)} failed with status {done.returncode}:\n{done.stderr}{done.stdout}")
        return done


def _read(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def _serve() -> None:
    """Fork for each connection."""
    for name in _LOADED:
        import_module(f"fwdaemon.commands.{name}")
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(_SOCKET)
        listener.listen(16)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        print("ready", flush=True)  # noqa: T201  the tests wait for the word
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                _answer(connection)
                os._exit(0)
            connection.close()


def _answer(connection: socket.socket) -> None:
    """Run the command, and send its status, output and errors, or its status alone where it has its own output."""
    begun, outputs, _, _ = socket.recv_fds(connection, 1 << 16, 1)
    words, stdin = json.loads(begun + _read(connection))
    if outputs:
        _attend(connection, words, stdin, outputs[0])
        return
    files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    os.pwrite(files[0], stdin.encode(), 0)
    for number, file in enumerate(files):
        os.dup2(file, number)
    code = _run(words)
    sys.stdout.flush()
    told = [os.pread(file, os.fstat(file).st_size, 0).decode() for file in files[1:]]
    with contextlib.suppress(BrokenPipeError):  # who asked may have given up
        connection.sendall(json.dumps([code, *told]).encode())


def _attend(connection: socket.socket, words: Sequence[str], environment: Mapping[str, str], output: int) -> None:
    """Fork a command that stays, and send its status when it ends, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        _stay(connection, words, environment, output)
    os.close(output)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(str(status).encode())


def _stay(connection: socket.socket, words: Sequence[str], environment: Mapping[str, str], output: int) -> NoReturn:
    """Become what `python -m fwdaemon` would be, also by what is seen of it from outside; ends as that does."""
    os.environ.clear()
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, output, output)):
        os.dup2(file, number)
    os.close(nothing)
    os.close(output)
    _be_seen_as([sys.executable, "-m", "fwdaemon", *words])
    connection.send(b"\0")
    connection.close()
    sys.exit(_run(words))


def _be_seen_as(words: Sequence[str]) -> None:
    """Have other programs see these words in /proc/PID/cmdline."""
    told = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    begin, end = int(told[_WORDS_BEGIN]), int(told[_WORDS_END])
    shown = "".join(f"{word}\0" for word in words).encode()
    assert len(shown) < end - begin
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(begin)
        memory.write(shown.ljust(end - begin, b"\0"))


def _run(words: Sequence[str]) -> int:
    """Give the status that Python would end with."""
    try:
        code: int = import_module("fwdaemon.cli").main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  as Python does with whatever nothing caught
        traceback.print_exc()
        return 1
    return code


if __name__ == "__main__":
    _serve()
