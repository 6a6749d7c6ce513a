"""What a run of the referee is counted as, and the section of the page that is made of it."""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

PHASES: Final = ("before", "copying", "switching", "after", "cancelled")
ELSEWHERE: Final = "started elsewhere"
RESTORED: Final = "older state restored"
# Names of faults that are drawn no more, as each was made two.
_FORMER: Final = frozenset({"host stopped", "link for copies cut"})

INTRODUCTION = """\
Three hosts with libvirtd, a daemon and BIRD each; three members of etcd with TLS, each in a network of its own, with
one table and a claim of each of two public addresses; a router that is the client, too. One guest migrates between the
hosts, and its address is on their link; the other one is started anew elsewhere, as if its host were dead, and its
address is a route that BIRD announces as `etc/examples/bird.conf` says. Again and again the referee asks the kernel of
each host whether it has the addresses, the router who announces them, and by ARP who answers for them, for which it
waits 20 ms. How often it looked, and the longest time from one look to the next, stands with each run: what lasted less
than that may have been missed.

Faults and phases are drawn by lot, each fault in each phase before any comes again; a run of fewer rounds than that has
only some. A fault begins before a migration, while memory is being copied, when the guest's processors have stopped on
the one host, after the migration, or while that is being cancelled, and lasts 0, 1, 4 or 14 s, by lot. It strikes the
host that the guest leaves or the one that it comes to, by lot too; a source that is stopped is the former, and each is
stopped for 30 s. Or the other guest is started elsewhere, which is drawn as one more phase: the fault strikes the host
that had it, which is found alive after 20 s. Links are cut one way or both by lot where that is what the fault is
called. Each round changes an entry of the table. Once the fault has ended, both guests have to be reached at their
addresses again, which only the hosts may have that they run on, and all hosts have to have the table as it was written.
Never may two hosts have an address, answer for it or announce it, and no daemon may lose the table. A TCP stream to the
guest that migrates has to go on afterwards, but where an older state of etcd was restored: then no host may claim
anything for 15 s, and the guest has no public address meanwhile.

The figures below a heading may be those of several runs of one commit. After a round that failed, a run goes on with
new hosts. A run of the last phase alone has the second guest only.

*Well again* counts from the end of the fault, or of the migration where that ends later; *unheld* is the longest time
for which no host had the address; *taken over* counts from the fault until another host has it. A host that is dead is
heard of no more, and all that would let go of the address there is dead or stopped; its kernel is not, as a lab's
cannot be. The clock on the wall is moved for the daemon alone. Where the disks of etcd are slow, its calls take 0.4 s.
Times are in seconds.

Repeat it with `sudo scripts/robustness --only referee`.
"""


class Looked(Protocol):
    """What the referee has seen of an address."""

    held_twice: int
    answered_twice: int
    announced_twice: int


@dataclass(frozen=True, slots=True)
class Round:
    """One round: what went wrong, when and for how long, and whether the guest moved.

    `back` are the seconds from the end of that until all was well, `unheld` the longest time without a holder, `taken`
    those until another host had taken over, `lost` how many daemons did not have the table at the end of the fault.
    """

    fault: str
    phase: str
    lasts: float
    moved: bool
    back: float
    unheld: float
    taken: float | None
    went_on: bool | None
    lost: int = 0


@dataclass(slots=True)
class Figures:
    """The figures of one run, or of several.

    The referee was at it for `watched` seconds, and `gap` is the longest time from one look to the next.
    """

    asked: int = 0
    looks: int = 0
    runs: int = 1
    watched: float = 0.0
    gap: float = 0.0
    held_twice: int = 0
    answered_twice: int = 0
    announced_twice: int = 0
    seconds: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def count(self, looks: int, seen: Iterable[Looked]) -> None:
        """Take over what the referee has counted."""
        self.looks += looks
        for each in seen:
            self.held_twice += each.held_twice
            self.answered_twice += each.answered_twice
            self.announced_twice += each.announced_twice

    def faults(self) -> list[str]:
        """Say what is not as wanted."""
        found = list(self.failures)
        for number, what in (
            (self.held_twice, "had"),
            (self.answered_twice, "answered for"),
            (self.announced_twice, "announced"),
        ):
            if number:
                found.append(f"two hosts {what} an address {number} times")
        if lost := sum(item.lost for item in self.rounds):
            found.append(f"daemons had lost the table {lost} times")
        ended = [item.fault for item in self.rounds if item.went_on is False and item.fault != RESTORED]
        if ended:
            found.append(f"streams had ended {len(ended)} times: {', '.join(ended)}")
        if len(self.rounds) != self.asked:
            found.append(f"{len(self.rounds)} of {self.asked} rounds came to their end")
        return found

    def record(self) -> dict[str, Any]:
        """All of it for JSON."""
        rounds = [
            {key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(item).items()}
            for item in self.rounds
        ]
        times = {"seconds": round(self.seconds, 1), "watched": round(self.watched, 1), "gap": round(self.gap, 3)}
        return asdict(self) | times | {"rounds": rounds, "faults": self.faults()}


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Add up what two runs came to."""
    return {key: max(one[key], other[key]) if key == "gap" else one[key] + other[key] for key in one}


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} | {max(times):.1f}" if times else " | "


def row(figures: dict[str, Any]) -> tuple[str, str, str, str]:
    """Give the summary: what was pressed, probes, failures, worst time."""
    worst = max((item["back"] for item in figures["rounds"]), default=0.0)
    return (
        f"{len(figures['rounds'])} rounds",
        f"{figures['looks']:,} looks",
        f"{len(figures['faults'])}",
        f"{worst:.1f} s",
    )


def section(record: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown below the heading."""
    rounds = record["rounds"]
    twice = ", ".join(f"{record[f'{what}_twice']} two that {what} it" for what in ("held", "answered", "announced"))
    runs = f" of {record['runs']} runs" if record.get("runs", 1) > 1 else ""
    lasted = f"{len(rounds)} rounds{runs} in {record['seconds']:.0f} s"
    yield f"{lasted}; {record['looks']:,} looks at both addresses saw {twice}."
    yield _how_often(record)
    if _FORMER & {item["fault"] for item in rounds}:
        yield ""
        yield _OF_FORMER
    yield ""
    columns = ("rounds", "moved", "stream went on", "well again: median", "worst", "unheld: worst")
    yield f"| fault | {' | '.join(columns)} | taken over: median | worst |"
    yield f"| --- |{' ---: |' * 8}"
    for fault in sorted({item["fault"] for item in rounds}):
        yield _line(fault, [item for item in rounds if item["fault"] == fault])
    yield ""
    phases = Counter(item["phase"] for item in rounds)
    yield f"Rounds by phase: {', '.join(f'{phase} {phases[phase]}' for phase in (*PHASES, ELSEWHERE))}."
    if record["faults"]:
        yield ""
        yield "Not as wanted:"
        yield from (f"- {fault}" for fault in record["faults"])


_OF_FORMER: Final = """\
This run is of an earlier commit, with other faults: *host stopped* was either of the two hosts, for 30 s or as long as
other faults, the link for copies was cut both ways, and no member of etcd but the leader was cut off."""


def _how_often(record: dict[str, Any]) -> str:
    """Say how far looks were apart; earlier runs kept only how long they took, the start of their hosts included."""
    if "gap" not in record:
        apart = record["seconds"] / max(record["looks"], 1)
        return f"From one look to the next it took {apart * 1000:.0f} ms on average, the start of the hosts included."
    apart = record["watched"] / max(record["looks"], 1)
    return f"From one look to the next it took {apart * 1000:.0f} ms on average, and {record['gap']:.2f} s at most."


def _line(fault: str, rounds: list[dict[str, Any]]) -> str:
    streams = [item["went_on"] for item in rounds if item["went_on"] is not None]
    moved = sum(item["moved"] for item in rounds)
    back, taken = ([item[key] for item in rounds if item[key] is not None] for key in ("back", "taken"))
    unheld = max(item["unheld"] for item in rounds)
    counts = f"{len(rounds)} | {moved} | {sum(streams)} of {len(streams)}"
    return f"| {fault} | {counts} | {_spread(back)} | {unheld:.1f} | {_spread(taken)} |"
