"""Does the steps that come as JSON on its standard input, on the host it runs on; prints how many seconds they took."""

import json
import socket
import subprocess
import sys
import time
from functools import singledispatch
from http.client import HTTPConnection
from typing import Final

from bench.peers.steps import Method, Program, Request, Step, read
from fwdaemon.control import protocol

DOCKER: Final = "/run/docker.sock"
_PATIENCE_S: Final = 600.0


class FailedError(Exception):
    """A step did not do what it should."""


class UnixConnection(HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask_docker(verb: str, path: str, body: bytes, kind: str = "application/json", at: str = DOCKER) -> bytes:
    """Ask Docker's daemon, and give its answer.

    Raises:
        FailedError: it refuses.

    """
    connection = UnixConnection(at)
    try:
        connection.request(verb, path, body, {"Content-Type": kind})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status >= 400:  # noqa: PLR2004  errors begin there (RFC 9110)
        raise FailedError(f"{verb} {path}: {answer.decode(errors='replace')}")
    return answer


@singledispatch
def do(step: Step) -> None:
    """Do one step."""
    raise NotImplementedError(step)


@do.register
def _run(step: Program) -> None:
    done = subprocess.run(step.argv, input=step.stdin, text=True, capture_output=True, check=False)  # noqa: S603  ours
    if done.returncode:
        raise FailedError(f"{' '.join(step.argv)}: {done.stderr or done.stdout}")


@do.register
def _call(step: Method) -> None:
    result = protocol.call(step.name, _PATIENCE_S, parameters=step.parameters)
    if failure := result.get("failure"):
        raise FailedError(f"{step.name}: {failure}")


@do.register
def _request(step: Request) -> None:
    ask_docker(step.verb, step.path, json.dumps(step.body).encode() if step.body else b"")


def main() -> None:
    """Do them all."""
    steps = read(sys.stdin.read())
    begun = time.monotonic()
    for step in steps:
        do(step)
    print(f"{time.monotonic() - begun:.6f}")  # noqa: T201  the parent reads it


if __name__ == "__main__":
    main()
