"""What the long runs have in common as commands: where they run, and how they say what came of it."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.lab.host import SOURCE
from tests.lab.release import SIDES
from tests.robustness.page import store
from tests.robustness.record import Figures, Record


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201  telling is what a command is for


def with_place(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add where it runs, and where its figures go."""
    parser.add_argument("--side", choices=list(SIDES), default="nftables", help="where libvirt writes its rules")
    parser.add_argument("--page", type=Path, help="write the figures into this page: docs/robustness.md")
    return parser


def told(
    record: Record | None, section: Callable[[Figures], Iterable[str]], faults: Sequence[str], page: Path | None
) -> int:
    """Say what came of a run, keep the figures of a whole one, and give the exit code."""
    if record is not None:
        say("\n".join(section(record.figures)))
        if page:
            store(SOURCE / page, record)
    say("\n".join([*faults, f"{len(faults)} failures"]))
    return 1 if faults else 0
