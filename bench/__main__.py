"""Runs the benchmark; `scripts/bench` starts this."""

import argparse
import compileall
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from bench import (
    admission,
    apply,
    daemon_start,
    data_path,
    disturbed,
    domain_start,
    filling,
    healing,
    idle,
    plot,
    tracked,
)
from bench.figure import Earlier, Figure
from bench.machine import Steal, facts, loads
from bench.peers import side_by_side
from bench.setting import Setting
from bench.table import document, section
from bench.traffic import compiled
from tests.lab.host import SOURCE
from tests.lab.release import FLAVOURS, Flavour, LibvirtFirewall, own_flavour

_DOCS = SOURCE / "docs"
_PAGE = "benchmark.md"


@dataclass(frozen=True, slots=True)
class Kind:
    """How a figure is measured; `legacy` says whether the legacy tables are worth it, unless asked for."""

    measure: Callable[[Setting], Figure]
    legacy: bool = False


_KINDS = {
    "apply": Kind(apply.measure, legacy=True),
    "domain-start": Kind(domain_start.measure),
    "healing": Kind(healing.measure, legacy=True),
    "disturbed": Kind(disturbed.measure, legacy=True),
    "connections": Kind(tracked.measure),
    "data-path": Kind(data_path.measure),
    "admission": Kind(admission.measure),
    "filling": Kind(filling.measure),
    "idle": Kind(idle.measure),
    "start": Kind(daemon_start.measure),
    "peers": Kind(side_by_side.measure),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures how fast the daemon is.")
    parser.add_argument("--figure", action="append", choices=_KINDS, help="only this one; may be given again")
    parser.add_argument("--flavour", action="append", choices=list(map(str, FLAVOURS)), help="on such hosts")
    parser.add_argument("--quick", action="store_true", help="few forwards and few runs: does it work?")
    parser.add_argument("--runs", type=int, metavar="NUMBER", help="no more runs than that; it is not written to docs")
    parser.add_argument("--json", action="store_true", help="print every sample as JSON instead of tables")
    parser.add_argument(
        "--output", type=Path, metavar="DIRECTORY", help="write the page and the plots there; docs if all is measured"
    )
    parser.add_argument(
        "--before", type=Path, metavar="FILE", help="what --json printed of an earlier version, to be compared with"
    )
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  what goes on, beside the result


def _flavours(options: argparse.Namespace) -> list[Flavour]:
    if options.flavour:
        return [flavour for flavour in FLAVOURS if str(flavour) in options.flavour]
    own = own_flavour()
    return [own, Flavour(own.release, LibvirtFirewall.LEGACY)]


def _chosen(options: argparse.Namespace) -> Iterator[tuple[str, Flavour]]:
    for name in options.figure or _KINDS:
        for flavour in _flavours(options):
            if options.flavour or _KINDS[name].legacy or flavour.firewall is not LibvirtFirewall.LEGACY:
                yield name, flavour


def _measure(options: argparse.Namespace) -> Iterator[Figure]:
    with compiled() as program:
        for name, flavour in _chosen(options):
            begun = time.monotonic()
            figure = _KINDS[name].measure(Setting(flavour, program, options.quick, options.runs))
            _say(f"{section(figure)}\n\n({name}, {flavour}: {time.monotonic() - begun:.0f} s)\n")
            yield figure


def _directory(options: argparse.Namespace) -> Path | None:
    """Where to write: the documents hold only what was measured whole."""
    part = options.quick or options.figure or options.flavour or options.runs
    output: Path | None = options.output
    return output or (None if part else _DOCS)


def _write(directory: Path, figures: Sequence[Figure], machine: dict[str, str], before: Earlier | None = None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    plots = {figure.full_name: f"benchmark-{figure.full_name}.svg" for figure in filter(plot.is_worth_it, figures)}
    for figure in figures:
        if figure.full_name in plots:
            plot.draw(figure, directory / plots[figure.full_name])
    (directory / _PAGE).write_text(document(figures, machine, plots, before), encoding="utf-8")


def _print(figures: Sequence[Figure], machine: dict[str, str], before: Earlier | None, *, as_json: bool) -> None:
    text = json.dumps({"machine": machine, "figures": list(map(asdict, figures))}, indent=2) if as_json else ""
    print(text or document(figures, machine, {}, before))  # noqa: T201  the result


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Measure, and write or print what came out; 0 if everything could be measured."""
    options = _parser().parse_args()
    if os.geteuid() != 0:
        _say("scripts/bench: run it as root; it touches nothing outside its own namespaces")
        return 2
    before = Earlier.of(options.before.read_text(encoding="utf-8")) if options.before else None
    # Also where the parent ignores interrupts, as shells do in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    # As an installed program has it; hosts cannot write here.
    compileall.compile_dir(SOURCE / "fwdaemon", quiet=2)
    machine, steal = facts(_flavours(options)), Steal()
    figures: list[Figure] = []
    try:
        for figure in _measure(options):
            figures.append(figure)  # noqa: PERF402  what was measured is printed also where the next one fails
    except KeyboardInterrupt:
        _say("interrupted; everything is taken down")
        return 130
    finally:
        machine["load at the end"] = loads()
        machine["taken by other machines meanwhile"] = steal.share()
        _print(figures, machine, before, as_json=options.json)
    if directory := _directory(options):
        _write(directory, figures, machine, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
