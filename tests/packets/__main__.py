"""The packet model for long: `python -m tests.packets [--rounds N] [--seed S] [--side nftables|legacy]`, as root."""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.lab.computer import SOURCE
from tests.packets.figures import Figures, section
from tests.packets.run import Side, entries_of, play, side
from tests.packets.taken_away import THEFTS, Theft
from tests.packets.world import world
from tests.robustness.page import store
from tests.robustness.record import Record, Stamp, machine

_PACKETS: Final = 300
# Packets show within so many rounds that a guard is missing, whichever it is.
_ROUNDS_AT_MOST: Final = 40


def main() -> int:
    """Run; 0 if all agreed."""
    options, stamp = _options(), Stamp.now()
    seed = options.seed if options.seed is not None else random.randrange(10**6)  # noqa: S311  any will do
    _say(f"{options.side}, seed {seed}; commit {stamp.commit}")
    figures, began = Figures(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kvm-portfwd-packets-") as own:
        # Not the machine's own lock.
        os.environ["XTABLES_LOCKFILE"] = f"{own}/xtables.lock"
        with world() as machines, side(machines, legacy=options.side == "legacy") as on:
            for number in range(seed, seed + options.rounds):
                _play(on, number, figures)
            _say("guards are taken away")
            figures.missed = {guard: _missed(on, seed, theft) for guard, theft in THEFTS.items()}
    figures.seconds = time.monotonic() - began
    record = Record("packets", options.side, stamp, machine(), figures.record(seed))
    _say("\n".join(section(record.figures)))
    if options.page:
        store(SOURCE / options.page, record)
    return 1 if figures.differences or None in figures.missed.values() else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.packets", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="how many configurations (default: 100)")
    parser.add_argument("--seed", type=int, default=None, help="that of the first round; each has the next one")
    parser.add_argument("--side", choices=["nftables", "legacy"], default="nftables", help="the rule system")
    parser.add_argument("--page", type=Path, help="write the figures into this page: docs/robustness.md")
    return parser.parse_args()


def _play(on: Side, seed: int, figures: Figures) -> None:
    result = play(on, seed, _PACKETS)
    figures.add(result)
    if result.differences:
        drawn = entries_of(seed)
        _say(f"\nseed {seed}: {len(result.differences)} differences\n{drawn}\n{result.differences[0]}\n")


def _missed(on: Side, seed: int, theft: Theft) -> int | None:
    """Play until packets show that a guard is missing; give in which round they did."""
    rounds = range(1, _ROUNDS_AT_MOST + 1)
    return next((number for number in rounds if play(on, seed + number, _PACKETS, theft=theft).differences), None)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  telling is what a command is for


if __name__ == "__main__":
    sys.exit(main())
