"""Commands of this project's program on a host, run without a start of Python for each.

What they import takes a third of a second of a processor, and the tests run thousands of them. So one process on the
host has imported it, and forks for each command, which then runs as `python -m fwdaemon` would. It takes connections at
a socket in the host's /run, one for each command; `Commands` is the side of the tests.
"""

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess

from tests.lab.command import Completed, LabError
from tests.lab.place import Place, Process

_SOCKET = "/run/lab-commands"
_LOADED = ("check", "plan", "status")


class Commands:
    """The side of the tests, for the host whose PID 1 is `init`; the process is started for the first command."""

    def __init__(self, place: Place, init: int) -> None:
        self._place = place
        self._path = f"/proc/{init}/root{_SOCKET}"
        self._process: Process | None = None

    def run(self, *words: str, stdin: str = "", check: bool = True, timeout: float = 60) -> Completed:
        """Run a command to its end."""
        if self._process is None:
            self._process = self._place.popen([self._place.python, str(Path(__file__).resolve())])
            self._process.wait_line("^ready$")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(self._path)
            connection.sendall(json.dumps([words, stdin]).encode())
            connection.shutdown(socket.SHUT_WR)
            answer = _read(connection)
        if not answer:
            raise LabError(f"{' '.join(words)} ended without a status:\n{self._process.text()}")
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
    """Run the command, and send its status, output and errors."""
    words, stdin = json.loads(_read(connection))
    files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    os.pwrite(files[0], stdin.encode(), 0)
    for number, file in enumerate(files):
        os.dup2(file, number)
    code = _run(words)
    sys.stdout.flush()
    told = [os.pread(file, os.fstat(file).st_size, 0).decode() for file in files[1:]]
    with contextlib.suppress(BrokenPipeError):  # who asked may have given up
        connection.sendall(json.dumps([code, *told]).encode())


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
