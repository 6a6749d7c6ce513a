"""Wipes rules on this host, has `nft` alone put our table back, and prints how many seconds that took, each time.

Run it as `… -m bench.putting_back NUMBER GUEST WIPE…`, with our table as standard input. Where the guest is not empty,
what it answers is listed at the same time, as the daemon does whose forwards to that guest went.
"""

import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from threading import Thread

from fwdaemon.kernel.conntrack import outdated
from fwdaemon.resolve.flows import Judge


def main() -> None:
    """Do so as often as asked."""
    number, guest, *wipe = sys.argv[1:]
    table = sys.stdin.read()
    for _ in range(int(number)):
        with _listed(guest):
            print(_put_back(table, wipe))  # noqa: T201  the result


def _put_back(table: str, wipe: Sequence[str]) -> float:
    subprocess.run(wipe, check=True)  # noqa: S603  the benchmark chose the words
    begun = time.monotonic()
    subprocess.run(["nft", "-f", "-"], input=table, text=True, check=True)  # noqa: S607  found as by everybody there
    return time.monotonic() - begun


@contextmanager
def _listed(guest: str) -> Iterator[None]:
    """Have connections listed from now on, and wait for that in the end; with no label, as none is to be ended."""
    if not guest:
        yield
        return
    listing = Thread(target=lambda: deque(outdated(Judge((), ()), 0, [ip_address(guest)]), 0))
    listing.start()
    yield
    listing.join()


if __name__ == "__main__":
    main()
