"""Domains that come and go: `python -m tests.turnover [--domains N] [--stay S] [--side …] [--page FILE]`, as root.

Gives 0 if each was reached in time, nothing is left, and the daemon is as small as before.
"""

import argparse
import sys
from pathlib import Path

from tests.lab.host import SOURCE
from tests.lab.release import SIDES
from tests.robustness.page import store
from tests.robustness.record import Record, Stamp
from tests.turnover.figures import section
from tests.turnover.run import Length, turned_over


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  telling is what a command is for


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.turnover", description=__doc__)
    parser.add_argument("--domains", type=int, default=500, help="how many come and go (default: 500)")
    parser.add_argument("--a-minute", type=float, default=50.0, help="how many start a minute (default: 50)")
    parser.add_argument("--stay", type=float, default=20.0, help="for how many seconds each is there (default: 20)")
    parser.add_argument("--side", choices=list(SIDES), default="nftables", help="where libvirt writes its rules")
    parser.add_argument("--page", type=Path, help="write the figures into this page: docs/robustness.md")
    return parser.parse_args()


def main() -> int:
    """Run, and say what came of it."""
    options, stamp = _options(), Stamp.now()
    _say(f"{SIDES[options.side]}, commit {stamp.commit}")
    result = turned_over(SIDES[options.side], Length(options.domains, options.a_minute, options.stay), _say)
    figures = result.figures
    if figures.is_whole:
        record = Record("turnover", options.side, stamp, result.versions, figures.record())
        _say("\n".join(section(record.figures)))
        if options.page:
            store(SOURCE / options.page, record)
    faults = figures.faults()
    _say("\n".join([*faults, f"{len(faults)} failures"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
