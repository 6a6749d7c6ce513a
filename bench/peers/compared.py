"""What was measured of the peers, side by side. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from bench.figure import Series, Unit, Versus, Want, ratios
from bench.table import number

Samples = Mapping[int, Sequence[float]]
# The others may be so much better before we are behind: that much the same way differs from itself.
_EVEN: Final = 0.95


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that is measured of each peer. With `even`, small differences are those of any two hosts."""

    name: str
    unit: Unit
    more_is_better: bool = False
    even: bool = False

    def times_better(self, ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
        """Say how many times better ours is in each turn that both took part in, from the first on."""
        turns = min(len(ours), len(theirs))
        first, second = (ours, theirs) if self.more_is_better else (theirs, ours)
        return ratios(first[:turns], second[:turns])

    @property
    def limit(self) -> float:
        """From how many times on we are not behind."""
        return _EVEN if self.even else 1.0


APPLY: Final = Measure("N ports from nothing", Unit.SECONDS)
ADD: Final = Measure("one more", Unit.SECONDS)
REMOVE: Final = Measure("one less", Unit.SECONDS)
RELOAD: Final = Measure("one more by a reload", Unit.SECONDS)
HEAL: Final = Measure("wiped to healed", Unit.SECONDS)
RATE: Final = Measure("connections", Unit.PER_SECOND, more_is_better=True, even=True)
P99: Final = Measure("connect, p99", Unit.SECONDS, even=True)
MEMORY: Final = Measure("memory", Unit.BYTES)
MEASURES: Final = (APPLY, ADD, REMOVE, RELOAD, HEAL, RATE, P99, MEMORY)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a reconcile took alone, in seconds by its parts and by the number of ports: of all, and of one more."""

    every: Mapping[int, Mapping[str, Sequence[float]]]
    one: Mapping[int, Mapping[str, Sequence[float]]]

    def because(self, measure: Measure, size: int) -> str:
        """Say what it is that takes longer than a peer's way."""
        if measure in _CHANGES:
            return f"{self._reconcile(self.one[size], size)} {_CHANGES[measure]}"
        if measure is APPLY:
            return (
                f"{self._reconcile(self.every[size], size)} Before it, the file is read and checked; after it, the"
                " audit has a line for each port."
            )
        return _STANDING.get(measure, "")

    def _reconcile(self, parts: Mapping[str, Sequence[float]], size: int) -> str:
        whole, committed, programs = (number(1000 * median(parts[key])) for key in ("whole", "committed", "programs"))
        return (
            f"With {size:,} ports, the reconcile alone takes {whole} ms: {committed} ms until the rules are in the"
            f" kernel, of which `nft` takes {programs} ms, and the rest to look at the rules of others, and to tell."
        )


_ASKED: Final = (
    "Besides, the daemon looks whether the port is free, writes down until when it is open, so that a restart keeps it,"
    " and answers once it is in force. A hook script runs four programs; what firewalld adds ends at its next start."
)
_CHANGES: Final = {ADD: _ASKED, REMOVE: _ASKED, RELOAD: "Before it, the file is read and checked as a whole."}
_MORE_LOOKUPS: Final = (
    "A new connection is looked up more often than in one map: whether it comes from a guest, whether the address is"
    " the host's, whether the port had another guest before; and it is labelled and counted."
)
_STANDING: Final = {
    RATE: _MORE_LOOKUPS,
    P99: _MORE_LOOKUPS,
    MEMORY: (
        "The daemon holds libvirt's library, what it knows of guests, each port with its reason for the status, and"
        " what it compares the kernel with; firewalld, in Python too, knows zones alone and heals nothing."
    ),
}


@dataclass(frozen=True, slots=True)
class Told:
    """Samples by what was measured, of whom, and with how many ports; `ours` and `limits` are some of these."""

    ours: str
    limits: frozenset[str]
    samples: dict[Measure, dict[str, dict[int, list[float]]]] = field(default_factory=dict)

    def add(self, measure: Measure, who: str, size: int, sample: float) -> None:
        """Take a sample."""
        self.samples.setdefault(measure, {}).setdefault(who, {}).setdefault(size, []).append(sample)

    def series(self) -> Iterator[Series]:
        """Give a series of each thing of each peer."""
        for measure in MEASURES:
            for who, samples in self.samples.get(measure, {}).items():
                yield Series(f"{measure.name}, {who}", measure.unit, samples)

    def versus(self) -> Iterator[Versus]:
        """Say how many times better we are, in each thing, than each peer; not where it takes nothing at all."""
        for measure in MEASURES:
            everyone = self.samples.get(measure, {})
            ours = everyone.get(self.ours, {})
            for who, theirs in everyone.items():
                for size in sorted(ours.keys() & theirs.keys()):
                    if who != self.ours and all(theirs[size]):
                        yield Versus(measure.name, size, who, measure.times_better(ours[size], theirs[size]))

    def wants(self, parts: Parts | None = None) -> Iterator[Want]:
        """Want to be ahead of the best of the peers in each thing, whatever the limit is."""
        limits = {measure.name: measure for measure in MEASURES}
        best: dict[tuple[str, int], Versus] = {}
        for each in self.versus():
            if each.who not in self.limits:
                key = each.what, each.size
                best[key] = min(best.get(key, each), each, key=lambda versus: median(versus.times_better))
        for (name, size), versus in best.items():
            measure = limits[name]
            text = f"{name}, at {size:,}: at least {measure.limit:g} times as good as the best peer, {versus.who}"
            reason = parts.because(measure, size) if parts else ""
            yield Want(text, versus.times_better, measure.limit, " times", at_least=True, because=reason)
