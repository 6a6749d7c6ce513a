"""One of many programs that write rules of their own: `crowd.py PROGRAM NUMBER SECONDS`.

For so many seconds it adds a rule to the legacy FORWARD chain and takes one away, and leaves exactly the last three.
PROGRAM is `iptables`, or `iptc` for python-iptables under iptables' lock, as a well-behaved program of that library
would.
"""

import fcntl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

KEPT = 3
_CHAIN = "FORWARD"


def source(number: int, turn: int) -> str:
    """The address that distinguishes one rule of one program from all others."""
    return f"10.{number}.{turn // 250}.{turn % 250 + 1}"


def _iptables(verb: str, address: str) -> None:
    argv = ["/usr/sbin/iptables-legacy", "-w", verb, _CHAIN, "-s", address, "-j", "RETURN"]
    subprocess.run(argv, check=True)  # noqa: S603  every word is ours


def _iptc(verb: str, address: str) -> None:
    import iptc  # noqa: PLC0415  only this kind has it

    with Path("/run/xtables.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        table = iptc.Table(iptc.Table.FILTER)
        table.autocommit = False
        table.refresh()
        chain, rule = iptc.Chain(table, _CHAIN), iptc.Rule()
        rule.src = address
        rule.create_target("RETURN")
        (chain.append_rule if verb == "-A" else chain.delete_rule)(rule)
        table.commit()


def work(change: Callable[[str, str], None], number: int, seconds: float) -> int:
    """Add and delete until the time is over; the number of the last turn."""
    turn, end = 0, time.monotonic() + seconds
    while time.monotonic() < end or turn < KEPT:
        change("-A", source(number, turn))
        if turn >= KEPT:
            change("-D", source(number, turn - KEPT))
        turn += 1
    return turn


if __name__ == "__main__":
    done = work({"iptables": _iptables, "iptc": _iptc}[sys.argv[1]], int(sys.argv[2]), float(sys.argv[3]))
    print(f"done {done}", flush=True)  # noqa: T201  the parent reads it
