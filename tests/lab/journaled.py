"""Runs a program as systemd would: with its standard error connected to the journal, as its environment says.

Executed inside a lab host: `journaled.py PROGRAM ARGUMENT…`.
"""

import os
import socket
import sys

# What the first lines of such a connection mean: https://systemd.io/JOURNAL_NATIVE_PROTOCOL and journald-stream.c:
# identifier, unit, priority, whether levels are prefixed, and where to forward to.
_HEADER = b"lab\n\n6\n0\n0\n0\n0\n"

stream = socket.socket(socket.AF_UNIX)
stream.connect("/run/systemd/journal/stdout")
stream.sendall(_HEADER)
os.dup2(stream.fileno(), 2)
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  no shell is the point
