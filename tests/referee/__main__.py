"""Faults in a fleet: `python -m tests.referee [--rounds N] [--only FAULT] [--page FILE] …`; `--help` has the rest.

Gives 0 if no two hosts had the address at one time, and all was well again after each round.
"""

import argparse
import random
import sys
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Final

from tests.lab.host import SOURCE
from tests.lab.release import SIDES
from tests.referee.faults import FAULTS
from tests.referee.figures import ELSEWHERE, PHASES, added, section
from tests.referee.run import Length, refereed
from tests.robustness import record as records
from tests.robustness.page import store
from tests.robustness.record import Record, Stamp

_PHASES: Final = (*PHASES, ELSEWHERE)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  telling is what a command is for


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.referee", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--seconds", type=float, default=inf, help="begin none after that time (default: no limit)")
    parser.add_argument("--seed", type=int, help="what the lots come from (default: another each time)")
    parser.add_argument("--only", choices=list(FAULTS), default="", help="this fault in each round")
    parser.add_argument("--phase", choices=_PHASES, action="append", help="this phase alone, or these (default: all)")
    parser.add_argument("--side", choices=list(SIDES), default="nftables", help="where libvirt writes its rules")
    parser.add_argument("--page", type=Path, help="write the figures into this page: docs/robustness.md")
    parser.add_argument("--add", action="store_true", help="to those on the page, where they are of the same commit")
    return parser.parse_args()


def _length(options: argparse.Namespace) -> Length:
    return Length(options.rounds, options.seconds, options.only, tuple(options.phase or _PHASES))


def main() -> int:
    """Run, and say what came of it."""
    options, stamp = _options(), Stamp.now()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed  # noqa: S311  no secret
    _say(f"{SIDES[options.side]}, commit {stamp.commit}, seed {seed}")
    result = refereed(SIDES[options.side], _length(options), seed, _say)
    if result.figures.rounds:
        record = Record("referee", options.side, stamp, result.versions, result.figures.record())
        _say("\n".join(section(record.figures)))
        if options.page:
            page = SOURCE / options.page
            store(page, _with_earlier(page, record) if options.add else record)
    faults = result.figures.faults()
    _say("\n".join([*faults, f"{len(faults)} failures"]))
    return 1 if faults else 0


def _with_earlier(page: Path, record: Record) -> Record:
    """Add what earlier runs of the same commit came to, on the same kind of host and machine."""
    same = [
        found
        for found in records.read(page.with_suffix(""))
        if (found.file, found.stamp.commit, found.on) == (record.file, record.stamp.commit, record.on)
    ]
    return replace(record, figures=added(same[0].figures, record.figures)) if same else record


if __name__ == "__main__":
    sys.exit(main())
