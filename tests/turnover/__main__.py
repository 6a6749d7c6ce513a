"""Domains that come and go: `python -m tests.turnover [--domains N] [--stay S] [--side …] [--page FILE]`, as root.

Gives 0 if each was reached in time, nothing is left, and the daemon is as small as before.
"""

import argparse
import sys

from tests.lab.release import SIDES
from tests.robustness.record import Record, Stamp
from tests.robustness.telling import say, told, with_place
from tests.turnover.figures import section
from tests.turnover.run import Length, turned_over


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.turnover", description=__doc__)
    parser.add_argument("--domains", type=int, default=500, help="how many come and go (default: 500)")
    parser.add_argument("--a-minute", type=float, default=50.0, help="how many start a minute (default: 50)")
    parser.add_argument("--stay", type=float, default=20.0, help="for how many seconds each is there (default: 20)")
    return with_place(parser).parse_args()


def main() -> int:
    """Run, and say what came of it."""
    options, stamp = _options(), Stamp.now()
    say(f"{SIDES[options.side]}, commit {stamp.commit}")
    result = turned_over(SIDES[options.side], Length(options.domains, options.a_minute, options.stay), say)
    figures, faults = result.figures, result.figures.faults()
    record = Record("turnover", options.side, stamp, result.versions, figures.record()) if figures.is_whole else None
    return told(record, section, faults, options.page)


if __name__ == "__main__":
    sys.exit(main())
