"""What a run of the referee is counted as, and the section of the page that is made of it."""

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

INTRODUCTION = """\
Three hosts with libvirtd, a daemon each and one guest that migrates between them; three members of etcd with TLS, each
in a network of its own, with one table and a claim of the guest's public address; a client. Every 20 ms the referee
asks the kernel of each host whether it has the address, and asks by ARP who answers for it.

In each round a fault is drawn by lot, and begins before the migration, while memory is being copied, or after it; some
migrations are cancelled. Once it has ended, the guest has to be reached at its address again, which only the host may
have that the guest runs on, and all hosts have to have the table. Never may two hosts have the address, or answer for
it. The clock on the wall is one for all hosts of a lab and is not moved; nothing here reads it. A kernel cannot be
stopped here either: a host that is stopped is one whose programs are.

Repeat it with `sudo scripts/robustness --only referee`.
"""


@dataclass(frozen=True, slots=True)
class Round:
    """One round: what went wrong and when, whether the guest moved, and seconds until it was reached after that."""

    fault: str
    phase: str
    moved: bool
    back: float
    without: float
    went_on: bool


@dataclass(slots=True)
class Figures:
    """The figures of one run."""

    asked: int = 0
    looks: int = 0
    held_twice: int = 0
    answered_twice: int = 0
    seconds: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Say what is not as wanted."""
        found = list(self.failures)
        if self.held_twice:
            found.append(f"two hosts had the address {self.held_twice} times")
        if self.answered_twice:
            found.append(f"two hosts answered for the address {self.answered_twice} times")
        if len(self.rounds) != self.asked:
            found.append(f"{len(self.rounds)} of {self.asked} rounds came to their end")
        return found

    def record(self) -> dict[str, Any]:
        """All of it for JSON."""
        by_fault = {
            fault: {
                "rounds": number,
                "moved": sum(item.moved for item in self.rounds if item.fault == fault),
                "went_on": sum(item.went_on for item in self.rounds if item.fault == fault),
                "back": _spread([item.back for item in self.rounds if item.fault == fault]),
                "without": _spread([item.without for item in self.rounds if item.fault == fault]),
            }
            for fault, number in sorted(Counter(item.fault for item in self.rounds).items())
        }
        return {
            "rounds": len(self.rounds),
            "looks": self.looks,
            "held_twice": self.held_twice,
            "answered_twice": self.answered_twice,
            "seconds": round(self.seconds, 1),
            "by_fault": by_fault,
            "faults": self.faults(),
        }


def _spread(times: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(times), 2), "worst": round(max(times), 2)}


def row(figures: dict[str, Any]) -> tuple[str, str, str, str]:
    """Give the summary: what was pressed, probes, failures, worst time."""
    worst = max((found["back"]["worst"] for found in figures["by_fault"].values()), default=0.0)
    return f"{figures['rounds']} rounds", f"{figures['looks']:,} looks", f"{len(figures['faults'])}", f"{worst:.1f} s"


def section(record: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown below the heading."""
    yield (
        f"{record['rounds']} rounds in {record['seconds']:.0f} s; {record['looks']:,} looks, of which"
        f" {record['held_twice']} saw two holders and {record['answered_twice']} two that answered."
    )
    yield ""
    yield "| fault | rounds | moved | stream went on | seconds until reached: median | worst | unheld: worst |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for fault, found in record["by_fault"].items():
        numbers = (found["rounds"], found["moved"], found["went_on"], found["back"]["median"], found["back"]["worst"])
        yield f"| {fault} | {' | '.join(map(str, numbers))} | {found['without']['worst']} |"
    if record["faults"]:
        yield ""
        yield "Not as wanted:"
        yield from (f"- {fault}" for fault in record["faults"])
