"""The long run: `python -m tests.endurance [--events N] [--wipes N] [--seconds S] [--side …] [--page FILE]`, as root.

Gives 0 if all events and wipes were pressed, and the daemon is as small and as fast as before.
"""

import argparse
import random
import sys

from tests.endurance.figures import section
from tests.endurance.run import Length, endured
from tests.lab.release import SIDES
from tests.robustness.record import Record, Stamp
from tests.robustness.telling import say, told, with_place


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.endurance", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="lifecycle events of libvirt (default: 100,000)")
    parser.add_argument("--wipes", type=int, default=10_000, help="wipes of rules (default: 10,000)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="the end, also if not all was pressed by then")
    parser.add_argument("--seed", type=int, default=None, help="what is drawn; the same seed draws the same")
    return with_place(parser).parse_args()


def main() -> int:
    """Run, and say what came of it."""
    options, stamp = _options(), Stamp.now()
    seed = options.seed if options.seed is not None else random.randrange(10**6)  # noqa: S311
    say(f"{SIDES[options.side]}, seed {seed}, commit {stamp.commit}")
    length = Length(options.events, options.wipes, options.seconds)
    result = endured(SIDES[options.side], length, seed, say)
    figures, faults = result.figures, result.figures.faults()
    record = (
        Record("endurance", options.side, stamp, result.versions, figures.record(seed)) if figures.is_whole else None
    )
    return told(record, section, faults, options.page)


if __name__ == "__main__":
    sys.exit(main())
