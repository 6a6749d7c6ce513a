"""All figures of docs/robustness.md, run after run: `sudo scripts/robustness [--quick] [--only …] [--side …]`.

Each run that ends writes its figures at once. `--quick` is a try of some minutes, and writes nothing.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tests.lab.host import SOURCE

_PAGE: Final = "docs/robustness.md"
_WHAT: Final = ("chaos", "endurance", "turnover", "referee", "packets", "fuzz")
_SIDES: Final = ("nftables", "iptables", "legacy")
_LONG_RUN_ON: Final = "nftables"
# The rule systems, of which iptables-nft is none of its own.
_SYSTEMS: Final = ("nftables", "legacy")


@dataclass(frozen=True, slots=True)
class Length:
    """How much of each."""

    rounds: int
    events: int
    wipes: int
    domains: int
    faults: int
    configurations: int
    fuzz_seconds: int


_FULL: Final = Length(
    rounds=300, events=100_000, wipes=10_000, domains=500, faults=200, configurations=1000, fuzz_seconds=3600
)
_QUICK: Final = Length(rounds=10, events=300, wipes=40, domains=20, faults=4, configurations=5, fuzz_seconds=81)


def commands(what: list[str], sides: list[str], length: Length) -> Iterator[list[str]]:
    """Give what is to be run, in this order; the long run is for one side unless others are asked for."""
    systems, one = [side for side in _SYSTEMS if side in (sides or _SYSTEMS)], sides or [_LONG_RUN_ON]
    runs: Mapping[str, tuple[Iterable[str], Iterable[str]]] = {
        "chaos": (sides or _SIDES, [f"--rounds={length.rounds}"]),
        "endurance": (one, [f"--events={length.events}", f"--wipes={length.wipes}"]),
        "turnover": (systems, [f"--domains={length.domains}"]),
        "referee": (one, [f"--rounds={length.faults}"]),
        "packets": (systems, [f"--rounds={length.configurations}"]),
    }
    for name, (where, counts) in runs.items():
        for side in where if name in what else ():
            yield [sys.executable, "-m", f"tests.{name}", *counts, f"--side={side}"]
    if "fuzz" in what:
        yield [str(SOURCE / "scripts/fuzz"), f"--seconds={length.fuzz_seconds}"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/robustness", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little of each: does it work?")
    parser.add_argument("--only", action="append", choices=_WHAT, help="only this; may be given again")
    parser.add_argument("--side", action="append", choices=_SIDES, help="only there; may be given again")
    return parser.parse_args()


def main() -> int:
    """Run all; 0 if all was right."""
    options = _options()
    page = [] if options.quick else [f"--page={_PAGE}"]
    failed = []
    for command in commands(options.only or list(_WHAT), options.side or [], _QUICK if options.quick else _FULL):
        _say(f"== {' '.join(command[-3:])}")
        if subprocess.run([*command, *page], cwd=SOURCE, check=False).returncode != 0:  # noqa: S603  the words are ours
            failed.append(" ".join(command))
    _say("\n".join([*(f"failed: {command}" for command in failed), f"{len(failed)} runs failed"]))
    return 1 if failed else 0


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  telling is what a command is for


if __name__ == "__main__":
    sys.exit(main())
