"""The long run: `python -m tests.endurance [--events N] [--wipes N] [--seconds S] [--side …] [--page FILE]`, as root.

Gives 0 if all events and wipes were pressed, and the daemon is as small and as fast as before.
"""

import argparse
import random
import sys
from pathlib import Path

from tests.endurance.figures import section
from tests.endurance.run import Length, endured
from tests.lab.host import SOURCE
from tests.lab.release import SIDES
from tests.robustness.page import store
from tests.robustness.record import Record, Stamp


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  telling is what a command is for


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.endurance", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="lifecycle events of libvirt (default: 100,000)")
    parser.add_argument("--wipes", type=int, default=10_000, help="wipes of rules (default: 10,000)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="the end, also if not all was pressed by then")
    parser.add_argument("--seed", type=int, default=None, help="what is drawn; the same seed draws the same")
    parser.add_argument("--side", choices=list(SIDES), default="nftables", help="where libvirt writes its rules")
    parser.add_argument("--page", type=Path, help="write the figures into this page: docs/robustness.md")
    return parser.parse_args()


def main() -> int:
    """Run, and say what came of it."""
    options, stamp = _options(), Stamp.now()
    seed = options.seed if options.seed is not None else random.randrange(10**6)  # noqa: S311
    _say(f"{SIDES[options.side]}, seed {seed}, commit {stamp.commit}")
    length = Length(options.events, options.wipes, options.seconds)
    result = endured(SIDES[options.side], length, seed, _say)
    figures = result.figures
    if figures.is_whole:
        record = Record("endurance", options.side, stamp, result.versions, figures.record(seed))
        _say("\n".join(section(record.figures)))
        if options.page:
            store(SOURCE / options.page, record)
    faults = figures.faults()
    _say("\n".join([*faults, f"{len(faults)} failures"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
