"""What fuzzing is counted as, and the table that is made of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

INTRODUCTION = """\
[libFuzzer](https://llvm.org/docs/LibFuzzer.html), by way of [Atheris](https://github.com/google/atheris), makes up
inputs for whatever reads what others wrote, guided by which code they reach. Each target says what must hold for any
input; a finding is one for which it does not, or that takes more than ten seconds or 1 GiB.
"""


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """One target: how long, how many inputs it was given, and whether one broke it, which ends it."""

    target: str
    seconds: int
    inputs: int
    broken: bool

    @classmethod
    def of(cls, target: str, seconds: int, status: int, inputs: int) -> "Fuzzed":
        """Judge by the exit status of the engine; one that ran no input shows nothing, whatever it says."""
        return cls(target, seconds, inputs, broken=status != 0 or inputs == 0)


def record(all_of_them: list[Fuzzed]) -> dict[str, Any]:
    """All of it for JSON."""
    return {
        "targets": {one.target: {"seconds": one.seconds, "inputs": one.inputs} for one in all_of_them},
        "broken": [one.target for one in all_of_them if one.broken],
    }


def row(figures: dict[str, Any]) -> tuple[str, str, str, str]:
    """Give the summary: what was pressed, probes, failures, worst time."""
    inputs = sum(target["inputs"] for target in figures["targets"].values())
    pressed = f"{inputs:,} inputs in {_seconds(figures) / 60:.0f} min"
    return pressed, f"{len(figures['targets'])} targets", f"{len(figures['broken'])}", ""


def section(figures: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown below the heading."""
    yield f"{len(figures['targets'])} targets in {_seconds(figures)} s, {len(figures['broken'])} findings."
    yield ""
    yield "| target | takes | inputs | findings |"
    yield "| --- | ---: | ---: | ---: |"
    for name, target in figures["targets"].items():
        yield f"| {name} | {target['seconds']} s | {target['inputs']:,} | {figures['broken'].count(name)} |"


def _seconds(figures: dict[str, Any]) -> int:
    return sum(target["seconds"] for target in figures["targets"].values())
