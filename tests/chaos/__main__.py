"""The chaos test for long: `sudo scripts/chaos [--rounds N] [--seed S] [--side nftables|iptables|legacy]`."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos import run
from tests.chaos.actions import Action
from tests.chaos.figures import section
from tests.lab.host import SOURCE
from tests.lab.release import SIDES, Flavour
from tests.robustness.page import store
from tests.robustness.record import Record, Stamp


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  telling is what a command is for


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000, help="how many faults (default: 1000)")
    parser.add_argument("--seed", type=int, default=None, help="what is drawn; the same seed draws the same")
    parser.add_argument("--side", choices=list(SIDES), default="nftables", help="where libvirt writes its rules")
    parser.add_argument("--replay", type=Path, help="play the actions in this file, one in a line, and draw none")
    parser.add_argument("--shorten", type=float, default=600.0, help="seconds for shortening what failed; 0 for none")
    parser.add_argument("--page", type=Path, help="write the figures into this page: docs/robustness.md")
    return parser.parse_args()


def _fail(flavour: Flavour, side: str, seed: int, result: run.Result, seconds: float) -> None:
    _say(f"\nFAILED in round {result.figures.rounds}, seed {seed}:\n{result.failure}\n")
    actions = run.shortened(flavour, seed, result.played, seconds, _say) if seconds else result.played
    file = Path(tempfile.gettempdir()) / f"chaos-{side}-{seed}.txt"
    file.write_text("".join(f"{action}\n" for action in actions), encoding="utf-8")
    _say(f"{len(actions)} actions that fail: sudo scripts/chaos --side {side} --seed {seed} --replay {file}")
    _say("\n".join(f"    {action}" for action in actions))


def main() -> int:
    """Run; 0 if all was right."""
    options = _options()
    side: str = options.side
    flavour, seed = SIDES[side], options.seed if options.seed is not None else random.randrange(10**6)  # noqa: S311
    stamp = Stamp.now()
    _say(f"{flavour}, seed {seed}; commit {stamp.commit}")
    if options.replay:
        actions = [Action.parse(line) for line in options.replay.read_text(encoding="utf-8").splitlines()]
        result = run.replayed(flavour, seed, actions, _say)
    else:
        result = run.drawn(flavour, options.rounds, seed, _say)
    record = Record("chaos", side, stamp, result.versions, result.figures.record(seed))
    _say("\n".join(section(record.figures)))
    if options.page:
        store(SOURCE / options.page, record)
    if result.failure:
        _fail(flavour, side, seed, result, options.shorten)
    return 1 if result.failure else 0


if __name__ == "__main__":
    sys.exit(main())
