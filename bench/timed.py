"""Times programs on the host they run on: `timed.py RUNS PROGRAM WORD…`; the seconds of each run, a line each.

The time is from the start of the program to its end, without that of entering the host.
"""

import subprocess
import sys
import time
from collections.abc import Sequence


def seconds_of(argv: Sequence[str]) -> float:
    """Run a program to its end.

    Raises:
        CalledProcessError: it failed.

    """
    begun = time.monotonic()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603  words of ours
    return time.monotonic() - begun


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        print(f"{seconds_of(sys.argv[2:]):.6f}", flush=True)  # noqa: T201  the parent reads it
