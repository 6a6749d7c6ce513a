"""Asks the daemon of this host for its status once, as `kvm-portfwd status` does.

Prints that it asks, and then how many seconds the answer took, and how many connections through the first forward it
says are open.
"""

import time
from typing import Final

from bench.forwards import FIRST_PORT
from fwdaemon.control import protocol

_PATIENCE_S: Final = 120.0


def main() -> None:
    """Ask."""
    print("asking", flush=True)  # noqa: T201  for who waits until it does
    begun = time.monotonic()
    status = protocol.call("Status", _PATIENCE_S)
    seconds = time.monotonic() - begun
    found = [row["open_connections"] for row in status["openings"] if row["ports"] == str(FIRST_PORT)]
    print(seconds, *found)  # noqa: T201  the result


if __name__ == "__main__":
    main()
