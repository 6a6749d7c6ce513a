"""Fuzzes each target for its share of the time: `scripts/fuzz [--seconds N] [--keep] [TARGET…]`.

The inputs that libFuzzer finds worth keeping go to `.fuzz`, and serve the next run; `--keep` adds the fewest of them
that reach what the reviewed ones in tests/fuzz/corpus do not. What breaks a target is left in `.fuzz/findings`, with
its traceback in the output; copied to the corpus, it becomes a regression test.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tests.fuzz.figures import Fuzzed, record, section
from tests.fuzz.targets import CORPUS, TARGETS
from tests.lab.computer import SOURCE
from tests.robustness.page import store
from tests.robustness.record import Record, Stamp, machine

_WORK: Final = SOURCE / ".fuzz"
# libFuzzer's -print_final_stats
_INPUTS: Final = re.compile(rb"stat::number_of_executed_units:\s*(\d+)")
_HOUR_S: Final = 3600
# For one input, and for the whole process: a reader that needs more has gone wrong.
_TIMEOUT_S: Final = 10
_MEMORY_MB: Final = 1024
# A reader that goes wrong does so on short inputs, and a corpus is to be read by people.
_LONGEST: Final = 2048
_NICE: Final = 10


def main() -> int:
    """Give 1 if anything was found."""
    options = read_options()
    names = options.targets or list(TARGETS)
    _WORK.mkdir(exist_ok=True)
    (_WORK / ".gitignore").write_text("*\n", encoding="ascii")
    (_WORK / "findings").mkdir(exist_ok=True)
    stamp = Stamp.now()
    fuzzed = [_fuzzed(name, max(1, options.seconds // len(names))) for name in names]
    broken = [one for one in fuzzed if one.broken]
    if options.keep:
        for name in names:
            _keep(name)
    for one in broken:
        _say(f"{one.target}: broken after {one.inputs} inputs; see {_WORK / 'findings'}")
    figures = record(fuzzed)
    _say("\n".join(section(figures)))
    if options.page:
        store(SOURCE / options.page, Record("fuzz", "all", stamp, _versions(), figures))
    return 1 if broken else 0


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzzes everything that reads what others wrote.")
    parser.add_argument("--seconds", type=int, default=_HOUR_S, help="for all targets together (default: an hour)")
    parser.add_argument("--keep", action="store_true", help="add what reaches more to the reviewed corpus")
    parser.add_argument("--page", type=Path, help="write the figures into this page: docs/robustness.md")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no target: {', '.join(sorted(unknown))}")
    if options.page and options.targets:
        parser.error("a page holds the figures of all targets, so none can be named")
    return options


def _fuzzed(name: str, seconds: int) -> Fuzzed:
    """Fuzz one target."""
    work = _WORK / name
    work.mkdir(exist_ok=True)
    _say(f"{name}: {seconds} s")
    limits = [f"-max_total_time={seconds}", f"-timeout={_TIMEOUT_S}", f"-rss_limit_mb={_MEMORY_MB}"]
    more = [f"-max_len={_LONGEST}", f"-artifact_prefix={_WORK / 'findings' / name}-", "-print_final_stats=1"]
    status, inputs = _engine(name, [*limits, *more, "-verbosity=0", str(work), *_reviewed(name)])
    return Fuzzed.of(name, seconds, status, inputs)


def _keep(name: str) -> None:
    """Merge what was found into the corpus: libFuzzer adds the smallest inputs that reach anything new."""
    CORPUS.joinpath(name).mkdir(parents=True, exist_ok=True)
    _engine(name, ["-merge=1", f"-max_len={_LONGEST}", "-verbosity=0", str(CORPUS / name), str(_WORK / name)])


def _reviewed(name: str) -> list[str]:
    return [str(CORPUS / name)] if (CORPUS / name).is_dir() else []


def _engine(name: str, arguments: Sequence[str]) -> tuple[int, int]:
    """Give its exit status, and how many inputs it says it has run."""
    command = [sys.executable, "-m", "tests.fuzz.engine", name, *arguments]
    inputs = 0
    with tempfile.TemporaryDirectory(prefix="kvm-portfwd-fuzz-") as own:
        environment = {**os.environ, "TMPDIR": own}
        engine = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)  # noqa: S603  the words are ours
        os.setpriority(os.PRIO_PROCESS, engine.pid, _NICE)
        assert engine.stderr is not None
        for line in engine.stderr:
            sys.stderr.buffer.write(line)
            if told := _INPUTS.match(line):
                inputs = int(told[1])
        status = engine.wait()
    sys.stderr.flush()
    return status, inputs


def _versions() -> str:
    """Name what it ran on."""
    return f"{machine()}; Python {platform.python_version()}; Atheris {version('atheris')}"


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  what it prints is its result


if __name__ == "__main__":
    sys.exit(main())
