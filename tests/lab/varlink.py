"""Talks to the control socket as any program could: `varlink.py METHOD [HOW]`, one reply a line.

HOW is nothing for one call, `more` for a stream, or `deaf` for calls without end whose answers are not taken.
"""

import json
import socket
import sys
import time
from contextlib import suppress
from typing import BinaryIO

SOCKET = "/run/kvm-portfwd/control.sock"
INTERFACE = "kvm.portfwd.Manager"


def connected() -> socket.socket:
    """Connect."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(SOCKET)
    return connection


def call(method: str, *, more: bool = False) -> bytes:
    """Write a call."""
    return json.dumps({"method": f"{INTERFACE}.{method}", "more": more}).encode() + b"\0"


def be_deaf(method: str) -> None:
    """Call on many connections until nothing more can be said, and take no answer."""
    connections = [connected() for _ in range(20)]
    for connection in connections:
        connection.settimeout(0.2)
        with suppress(TimeoutError):
            connection.sendall(call(method) * 5000)
    print("deaf", flush=True)  # noqa: T201  the parent waits for the word
    time.sleep(3600)


def main() -> None:
    """Do what the words say."""
    method, how = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    if how == "deaf":
        be_deaf(method)
    with connected() as connection:
        connection.sendall(call(method, more=how == "more"))
        stream = connection.makefile("rb")
        while message := _message(stream):
            print(message.decode(), flush=True)  # noqa: T201  what it prints is its result
            if how != "more":
                return


def _message(stream: BinaryIO) -> bytes:
    parts = []
    while (byte := stream.read(1)) not in {b"\0", b""}:
        parts.append(byte)
    return b"".join(parts)


if __name__ == "__main__":
    main()
