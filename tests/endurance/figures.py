"""What a long run is counted as, and the section of the page that is made of it."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

MIB = 1 << 20
_BEFORE_AND_AFTER = 2
# Memory may be measured with that much more or less; everything else must be equal.
MEMORY_WITHIN_MIB = 2.0
# Of CPU time for a wipe, in yardsticks. What is not the daemon's doing is in there, too, such as how many events came
# between two wipes: medians of equal parts differ by some per cent.
SLOWER_AT_MOST = 1.1
# Of seconds from wipe to healed, at rest: they are also how busy the machine is.
_LONGER_AT_MOST = 1.5
# With fewer wipes in a part, chance decides.
_ENOUGH = 100


INTRODUCTION = """\
The daemon has a thousand forwards in its file and a hundred in the kernel. libvirt is made to report as many events
as a busy host has in months: domains are started and stopped, suspended and resumed, defined and undefined, and another
client of libvirt counts the events. At the same time rules are wiped, one wipe after the other: tables, chains, maps
and sets are emptied or deleted, the gate is taken out of libvirt's chain, and one wipe in fifty takes everybody's. The
next wipe comes when all rules, also everybody else's, have been seen to be as before. Connections through forwards that
stay may lose nothing.

Memory, descriptors, threads and children are measured at rest, after a warm-up and at the end, in the same way; so is
how fast wipes are healed while nothing else happens. The daemon is to be as small and as fast as before. CPU time is
also given in yardsticks, a piece of work that is done beside it: a machine with other work makes both slower.
"""


@dataclass(frozen=True, slots=True)
class Rest:
    """The daemon and its helpers at rest: bytes, and descriptors by kind, threads, children and processes.

    `private` are the bytes that they wrote and share with no other.
    """

    rss: int
    pss: int
    held: dict[str, int]
    private: int = 0


@dataclass(slots=True)
class Part:
    """Wipes one after the other: seconds from wipe to healed of each; block by block, CPU seconds for a wipe.

    `effort` is that CPU time as a multiple of what the yardstick took at the same time.
    """

    healed: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    effort: list[float] = field(default_factory=list)
    seconds: float = 0.0
    events: int = 0
    rss: int = 0

    @property
    def median(self) -> float:
        """Median seconds from wipe to healed."""
        return statistics.median(self.healed)

    @property
    def p99(self) -> float:
        """What 99 of 100 wipes stay below."""
        return sorted(self.healed)[len(self.healed) * 99 // 100]

    @property
    def cpu_median(self) -> float:
        """Median CPU seconds for a wipe."""
        return statistics.median(self.cpu)

    @property
    def effort_median(self) -> float:
        """The same in yardsticks."""
        return statistics.median(self.effort)


@dataclass(slots=True)
class Figures:
    """The figures of one run. `calm` are wipes without events, before and after it; times are in seconds."""

    seconds: float = 0.0
    events: dict[str, int] = field(default_factory=dict)
    wipes: dict[str, int] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    said: dict[str, int] = field(default_factory=dict)
    # How many rules and elements of guests that come and go were seen to be there anew, or to be gone.
    opened: int = 0
    closed: int = 0
    refused: int = 0
    bytes: int = 0
    datagrams: int = 0
    lost: bool = False
    failure: str = ""
    rest: list[Rest] = field(default_factory=list)
    calm: list[Part] = field(default_factory=list)
    tenths: list[Part] = field(default_factory=list)
    # Seconds since the run began, events, wipes and RSS, about every minute.
    series: list[tuple[int, int, int, int]] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether the run came to its end, so that there is something to compare."""
        return len(self.rest) == len(self.calm) == _BEFORE_AND_AFTER

    def faults(self) -> list[str]:
        """Say what is not as wanted."""
        found = [text for text in (self.failure, "a connection was broken" if self.lost else "") if text]
        return found + self._compared() if self.is_whole else [*found, "the run did not come to its end"]

    def _compared(self) -> list[str]:
        before, after = self.rest
        found = [
            f"{kind}: {before.held.get(kind, 0)} before, {after.held.get(kind, 0)} after"
            for kind in sorted(before.held.keys() | after.held.keys())
            if before.held.get(kind, 0) != after.held.get(kind, 0)
        ]
        for what, counted in (("events", self.events), ("wipes", self.wipes)):
            if (pressed := sum(counted.values())) < self.asked.get(what, 0):
                found.append(f"{pressed:,} {what} in the time there was, not {self.asked[what]:,}")
        grown = (after.rss - before.rss) / MIB
        if abs(grown) > MEMORY_WITHIN_MIB:
            found.append(f"memory: {grown:+.1f} MiB, not within {MEMORY_WITHIN_MIB:g} MiB")
        if not (self.opened and self.closed):
            found.append(f"of guests that come and go {self.opened} rules were seen to come and {self.closed} to go")
        return [*found, *self._slower()]

    def _slower(self) -> Iterator[str]:
        every = (("at rest", self.calm), ("under load", self.tenths))
        enough = [(what, parts) for what, parts in every if parts and all(len(it.healed) >= _ENOUGH for it in parts)]
        for what, parts in enough:
            if (more := _ratio(parts, "effort_median")) > SLOWER_AT_MOST:
                yield f"{what}: {more:.2f} times as much CPU for a wipe at the end, not {SLOWER_AT_MOST:g} at most"
            if parts is self.calm and (longer := _ratio(parts, "median")) > _LONGER_AT_MOST:
                yield f"{what}: {longer:.2f} times as long to heal at the end, not {_LONGER_AT_MOST:g} at most"

    def record(self, seed: int) -> dict[str, Any]:
        """All of it for JSON, each wipe left out."""
        return {
            **asdict(self),
            "worst": max((max(part.healed) for part in self.tenths), default=0.0),
            "seed": seed,
            "faults": self.faults(),
            "calm": [_told(part) for part in self.calm],
            "tenths": [_told(part) for part in self.tenths],
        }


def _ratio(parts: list[Part], figure: str) -> float:
    """How many times that of the first part a figure of the last is."""
    last, first = (float(getattr(part, figure)) for part in (parts[-1], parts[0]))
    return last / first


def _told(part: Part) -> dict[str, float]:
    return {
        "seconds": round(part.seconds, 1),
        "events": part.events,
        "wipes": len(part.healed),
        "median": round(part.median, 4),
        "p99": round(part.p99, 4),
        "worst": round(max(part.healed), 4),
        "cpu": round(part.cpu_median, 4),
        "effort": round(part.effort_median, 3),
        "rss": part.rss,
    }


def row(figures: dict[str, Any]) -> tuple[str, str, str, str]:
    """Give the summary: what was pressed, probes, failures, worst time."""
    wipes = sum(figures["wipes"].values())
    pressed = f"{sum(figures['events'].values()):,} events, {wipes:,} wipes"
    return pressed, f"{wipes:,} comparisons", f"{len(figures['faults'])}", f"{figures['worst']:.1f} s"


def section(record: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown below the heading."""
    events, wipes = record["events"], record["wipes"]
    told = ", ".join(f"{count:,} {kind}" for kind, count in sorted(events.items(), key=lambda item: -item[1]))
    yield (
        f"{sum(events.values()):,} lifecycle events ({told}) and {sum(wipes.values()):,} wipes (seed {record['seed']})"
        f" in {record['seconds']:.0f} s."
    )
    yield _streams(record)
    yield ""
    yield from _at_rest(record)
    yield ""
    yield from _speed(record)
    yield ""
    yield "| wipe | times |"
    yield "| --- | ---: |"
    yield from (f"| {kind} | {count:,} |" for kind, count in sorted(wipes.items()))
    if record["faults"]:
        yield ""
        yield "Not as wanted:"
        yield from (f"- {fault}" for fault in record["faults"])


def _streams(record: dict[str, Any]) -> str:
    carried = f"{record['bytes'] / 1e6:.0f} MB in streams and {record['datagrams']:,} datagrams"
    return (
        f"Meanwhile {carried} went through forwards, {'broken' if record['lost'] else 'nothing lost'}; of guests that"
        f" come and go, {record['opened']:,} rules and elements were seen to come and {record['closed']:,} to go."
        f" libvirt did not do {record['refused']:,} of what it was asked to."
    )


def _at_rest(record: dict[str, Any]) -> Iterator[str]:
    before, after = record["rest"]
    yield "| at rest | before | after | wanted |"
    yield "| --- | ---: | ---: | --- |"
    # How much of it is shared depends on what else runs on the machine.
    for what, key, wanted in (("RSS", "rss", f"within {MEMORY_WITHIN_MIB:g} MiB"), ("PSS", "pss", "")):
        figures = (f"{rest[key] / MIB:.1f} MiB" for rest in (before, after))
        yield f"| {what} of the daemon and its helpers | {' | '.join(figures)} | {wanted} |"
    for kind in sorted(before["held"].keys() | after["held"].keys()):
        yield f"| {kind} | {before['held'].get(kind, 0)} | {after['held'].get(kind, 0)} | equal |"
    yield from _calm(*record["calm"])


def _calm(before: dict[str, float], after: dict[str, float]) -> Iterator[str]:
    for what, key in (
        ("wiped to healed, median", "median"),
        ("wiped to healed, 99 of 100 within", "p99"),
        ("CPU for a wipe, median", "cpu"),
    ):
        yield f"| {what} | {1000 * before[key]:.0f} ms | {1000 * after[key]:.0f} ms | |"
    wanted = f"{SLOWER_AT_MOST:g} times as much at most"
    yield f"| CPU for a wipe, in yardsticks | {before['effort']:.2f} | {after['effort']:.2f} | {wanted} |"


def _speed(record: dict[str, Any]) -> Iterator[str]:
    yield "| tenth | takes | events | wipes | median | 99 of 100 | worst | CPU for each | in yardsticks | RSS |"
    yield f"|{' ---: |' * 10}"
    for number, tenth in enumerate(record["tenths"], start=1):
        times = (f"{1000 * tenth[key]:.0f} ms" for key in ("median", "p99", "worst", "cpu"))
        counts = f"{tenth['seconds']:.0f} s | {tenth['events']:,} | {tenth['wipes']:,}"
        yield f"| {number} | {counts} | {' | '.join(times)} | {tenth['effort']:.2f} | {tenth['rss'] / MIB:.1f} MiB |"
