"""What a run in which domains come and go is counted as, and the section of the page that is made of it."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.endurance.figures import MEMORY_WITHIN_MIB, MIB, Rest

# Seconds from the first answer on a domain's own address to the first through all its ports.
LATE_AT_MOST_S = 0.1
_BEFORE_AND_AFTER, _TENTHS = 2, 10

INTRODUCTION = """\
Transient domains come at an even pace, as those of a hoster or of CI runners do. Each asks for two automatic ports in
its own definition, which an `[[allow]]` covers, and takes its address from libvirt's DHCP server, which gives those of
domains that are gone to others. As soon as the guest answers on its own address, asked from inside it, a client outside
asks at the ports of the host that the journal says are its own. The time between the two, that of the page included, is
how late it is. Later the domain stops, and the client has to be refused at both ports.

libvirt has a part in that: a container can answer before libvirt tells that it runs, and while it ends one whose
controller it lost it answers nothing at all. So every 10 ms beside the run it is asked for its domains and for the
definition of one that stays, as the daemon asks it, and where that takes longer than 20 ms, the time since the answer
before counts as its part. What is left of a time without both is the daemon's own, and the machine's. How busy that is,
the same page shows when it is asked for through a forward that has long been there: guests, their starts and all that
asks run on one machine. The record tells all of this of each domain that was late.

No port may be assigned twice, no page may be that of another guest, and in the end no rule, domain or line of the
status may be left. Memory, descriptors, threads and children are measured at rest, after a tenth of as many domains and
at the end. Repeat it with `sudo scripts/robustness --only turnover`, which takes a quarter of an hour for each rule
system.
"""


@dataclass(frozen=True, slots=True)
class Stay:
    """Seconds from the start of a domain to its first own answer, from there to the first through the host, and so on.

    `told` is from its first own answer until libvirt told that it runs, negative where that was before; `own` is what
    is left of `late` without that, and without the time in which libvirt answered nothing; `closed` is from its stop
    until its ports were refused.
    """

    start: float
    told: float
    late: float
    own: float
    closed: float


@dataclass(frozen=True, slots=True)
class Late:
    """A domain that was reached late, and what there was from its first own answer until then.

    So many seconds the slowest answer of the `page` took, and libvirt `ended` so many containers that it had lost. From
    when libvirt had told of the domain, too, it was `silent` for so many seconds, and the daemon `used` so many of a
    processor: where that is little, it waited for something, for libvirt or for a budget of its own.
    """

    name: str
    stay: Stay
    silent: float
    page: float
    used: float
    ended: int


@dataclass(slots=True)
class Figures:
    """The figures of one run. CPU is the daemon's, in seconds.

    `rss` and `private` are its memory in bytes, all the time; `beside` are the seconds that answers to other questions
    took, and `lost` says from when to when each container was there that libvirt lost.
    """

    asked: int = 0
    a_minute: float = 0.0
    stay: float = 0.0
    seconds: float = 0.0
    cpu: float = 0.0
    rss: list[int] = field(default_factory=list)
    private: list[int] = field(default_factory=list)
    beside: dict[str, list[float]] = field(default_factory=dict)
    lost: tuple[tuple[float, float], ...] = ()
    assigned: int = 0
    twice: int = 0
    stays: list[Stay] = field(default_factory=list)
    each_late: list[Late] = field(default_factory=list)
    rest: list[Rest] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether the run came to its end, so that there is something to compare."""
        return len(self.rest) == _BEFORE_AND_AFTER and bool(self.stays)

    def faults(self) -> list[str]:
        """Say what is not as wanted."""
        return [*self.wrong(), *self._late()]

    def wrong(self) -> list[str]:
        """Say what is not as wanted however busy the machine was."""
        return [*self.failures, *(self._compared() if self.is_whole else ["the run did not come to its end"])]

    def _compared(self) -> Iterator[str]:
        before, after = self.rest
        yield from (f"left over: {item}" for item in self.left)
        if len(self.stays) != self.asked:
            yield f"{len(self.stays)} domains came and went, not {self.asked}"
        if self.twice:
            yield f"{self.twice} ports were assigned twice"
        for kind in sorted(before.held.keys() | after.held.keys()):
            if before.held.get(kind, 0) != after.held.get(kind, 0):
                yield f"{kind}: {before.held.get(kind, 0)} before, {after.held.get(kind, 0)} after"

    def _late(self) -> Iterator[str]:
        if late := self._later("late"):
            than = f"{1000 * LATE_AT_MOST_S:.0f} ms, {self._later('own')} of them without libvirt's part in it"
            yield f"{late} of {len(self.stays)} domains were reached later than {than}"
        if self.is_whole and (grown := (self.rest[1].rss - self.rest[0].rss) / MIB) > MEMORY_WITHIN_MIB:
            yield f"memory: {grown:+.1f} MiB, not within {MEMORY_WITHIN_MIB:g} MiB"

    def _later(self, kind: str) -> int:
        return sum(getattr(stay, kind) > LATE_AT_MOST_S for stay in self.stays)

    def said(self) -> str:
        """Say in a line how it goes."""
        late = [stay.late for stay in self.stays]
        counted = f"{self._later('late')} late, {self._later('own')} without libvirt's part"
        spread = f"median {statistics.median(late):.3f} s, worst {max(late):.3f} s"
        return f"{counted}, {spread}; {len(self.failures)} failures"

    def record(self) -> dict[str, Any]:
        """All of it for JSON; of the times of each domain, how they are spread."""
        kinds = ("start", "told", "late", "own", "closed")
        return {
            "domains": len(self.stays),
            "a_minute": self.a_minute,
            "stay": self.stay,
            "seconds": round(self.seconds, 1),
            "cpu": round(self.cpu, 2),
            "most": max(self.rss, default=0),
            "rss": [round(statistics.median(part)) for part in _tenths(self.rss)],
            "private": [round(statistics.median(part)) for part in _tenths(self.private)],
            "assigned": self.assigned,
            "late": self._later("late"),
            "late_without_libvirt": self._later("own"),
            "told_late": self._later("told"),
            "lost": len(self.lost),
            "each_late": [_row(late) for late in self.each_late],
            "beside": {what: _spread(seconds) for what, seconds in self.beside.items() if seconds},
            "times": {kind: _spread([getattr(stay, kind) for stay in self.stays]) for kind in kinds},
            "loads": [round(load, 2) for load in (min(self.loads), statistics.mean(self.loads), max(self.loads))],
            "rest": [asdict(rest) for rest in self.rest],
            "faults": self.faults(),
        }


def _spread(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    spread = {"median": statistics.median(ordered), "p99": ordered[len(ordered) * 99 // 100], "worst": ordered[-1]}
    return {name: round(seconds, 4) for name, seconds in spread.items()}


def _row(late: Late) -> dict[str, Any]:
    seconds = asdict(late.stay) | {"silent": late.silent, "page": late.page, "used": late.used}
    return {"name": late.name, "ended": late.ended} | {what: round(taken, 4) for what, taken in seconds.items()}


def _tenths(samples: list[int]) -> Iterator[list[int]]:
    """Cut what was sampled into ten parts, or as many as there are samples."""
    parts = min(_TENTHS, len(samples))
    for part in range(parts):
        yield samples[len(samples) * part // parts : len(samples) * (part + 1) // parts]


def row(figures: dict[str, Any]) -> tuple[str, str, str, str]:
    """Give the summary: what was pressed, probes, failures, worst time."""
    pressed = f"{figures['domains']:,} domains, {figures['a_minute']:g} a minute"
    probes = f"{figures['assigned']:,} ports"
    return pressed, probes, f"{len(figures['faults'])}", f"{figures['times']['late']['worst']:.2f} s"


def section(record: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown below the heading."""
    low, mean, high = record["loads"]
    yield (
        f"{record['domains']:,} domains in {record['seconds']:.0f} s, each there for {record['stay']:g} s after it was"
        f" reached; {record['assigned']:,} ports assigned. The machine's load was {mean:g}, from {low:g} to {high:g}."
    )
    yield ""
    yield "| seconds | median | 99 of 100 within | worst |"
    yield "| --- | ---: | ---: | ---: |"
    for what, kind in _TIMES:
        if spread := record["times"].get(kind) or record.get("beside", {}).get(kind):
            yield f"| {what} | {' | '.join(f'{spread[key]:.3f}' for key in ('median', 'p99', 'worst'))} |"
    yield ""
    yield from _of_libvirt(record)
    yield from _cost(record)
    if record["faults"]:
        yield ""
        yield "Not as wanted:"
        yield from (f"- {fault}" for fault in record["faults"])


_TIMES = (
    ("start of the domain to its first answer on its own address", "start"),
    ("from there until libvirt told that it runs", "told"),
    ("from its first answer to the first ones through the host", "late"),
    ("the same without libvirt's part", "own"),
    ("stop to refused", "closed"),
    ("beside: libvirt tells its version", "libvirt"),  # in records of before
    ("beside: libvirt tells its domains and the definition of one", "locked"),
    ("beside: a page through a forward that has long been there", "page"),
)


def _of_libvirt(record: dict[str, Any]) -> Iterator[str]:
    if "told_late" not in record:
        return
    if "locked" not in record.get("beside", {}):
        yield "In this run libvirt was asked for nothing but its version, and every 50 ms."
        yield ""
    yield (
        f"Of {record['late']} domains that were reached later than {1000 * LATE_AT_MOST_S:.0f} ms,"
        f" {record['late_without_libvirt']} were that without libvirt's part. It told of {record['told_late']} later"
        f" than that after their first answer, and lost the controllers of {record['lost']} containers, which it ended."
    )
    yield ""


def _cost(record: dict[str, Any]) -> Iterator[str]:
    before, after = record["rest"]
    share, each = record["cpu"] / record["seconds"], record["cpu"] / record["domains"]
    yield f"The daemon took {100 * share:.1f} % of a processor, {1000 * each:.0f} ms for each domain."
    if parts := record.get("rss"):
        yield f"Its RSS was, tenth by tenth, {_in_mib(parts)} MiB."
    if parts := record.get("private"):
        yield f"Of that, it shared with no other program and had written itself {_in_mib(parts)} MiB."
    yield ""
    yield "| at rest | before | after | wanted |"
    yield "| --- | ---: | ---: | --- |"
    at_most = f"{MEMORY_WITHIN_MIB:g} MiB more at most; {record['most'] / MIB:.1f} MiB meanwhile"
    resident = (f"{rest['rss'] / MIB:.1f} MiB" for rest in (before, after))
    yield f"| RSS of the daemon and its helpers | {' | '.join(resident)} | {at_most} |"
    if "private" in before:
        written = (f"{rest['private'] / MIB:.1f} MiB" for rest in (before, after))
        yield f"| of that written and not shared | {' | '.join(written)} | |"
    for kind in sorted(before["held"].keys() | after["held"].keys()):
        yield f"| {kind} | {before['held'].get(kind, 0)} | {after['held'].get(kind, 0)} | equal |"


def _in_mib(parts: list[int]) -> str:
    return ", ".join(f"{part / MIB:.1f}" for part in parts)
