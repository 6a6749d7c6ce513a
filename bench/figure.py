"""What a figure of the benchmark is: series of samples, and what we want of them. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median, quantiles

# Where a series does not depend on how many forwards there are.
NONE = 0


class Unit(StrEnum):
    """What a sample counts; the value is how it is written behind a number."""

    SECONDS = "s"
    PER_SECOND = "/s"
    BITS_PER_SECOND = "bit/s"
    BYTES = "B"
    PERCENT_OF_A_CORE = "% of a core"


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of samples, and the quartiles below and above it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """Of one sample or more; quartiles as Python's `statistics` has them for a whole population."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, _, high = quantiles(samples, n=4, method="inclusive")
        return cls(median(samples), low, high)


@dataclass(frozen=True, slots=True)
class Series:
    """Samples of one thing by the number of forwards, `NONE` where none are involved; `worst` has the worst shown."""

    label: str
    unit: Unit
    samples: Mapping[int, Sequence[float]]
    worst: bool = False

    def median(self, size: int) -> float:
        """The median at one number of forwards."""
        return median(self.samples[size])


@dataclass(frozen=True, slots=True)
class Want:
    """What we want: that the median of `samples` is at most `limit`, or at least; both in what is printed as `unit`.

    `because` is what the measurement says of the reason, for the reader who finds the want missed.
    """

    text: str
    samples: Sequence[float]
    limit: float
    unit: str = ""
    at_least: bool = False
    because: str = ""

    @property
    def measured(self) -> Spread:
        """What came of it."""
        return Spread.of(self.samples)

    @property
    def met(self) -> bool:
        """Whether it came true."""
        found = self.measured.median
        return found >= self.limit if self.at_least else found <= self.limit


@dataclass(frozen=True, slots=True)
class Versus:
    """How many times better we were than `who` in each turn, in `what`, at one number of `Figure.counted`."""

    what: str
    size: int
    who: str
    times_better: Sequence[float]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the benchmark. `notes` say how it was measured and what limits it; sizes are those of `counted`.

    With `sides`, those stand side by side: the label of each series is what it is of, a comma, and one of them.
    """

    name: str
    title: str
    host: str
    notes: str
    series: tuple[Series, ...]
    wants: tuple[Want, ...] = ()
    counted: str = "forwards"
    sides: tuple[str, ...] = ()
    versus: tuple[Versus, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """Every number in it, in order."""
        return sorted({size for series in self.series for size in series.samples})

    @property
    def full_name(self) -> str:
        """Its name, with that of the host."""
        return f"{self.name}-{self.host}"


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier run: which version, when, and its samples by the figure's full name, the series' label and size."""

    version: str
    when: str
    samples: Mapping[tuple[str, str, int], Sequence[float]]

    @classmethod
    def of(cls, text: str) -> "Earlier":
        """Read what `scripts/bench --json` printed."""
        run = json.loads(text)
        return cls(
            run["machine"]["kvm-portfwd"],
            run["machine"]["when"],
            {
                (f"{figure['name']}-{figure['host']}", series["label"], int(size)): samples
                for figure in run["figures"]
                for series in figure["series"]
                for size, samples in series["samples"].items()
            },
        )


def ratios(series: Sequence[float], base: Sequence[float], times: float = 1) -> list[float]:
    """Compare samples that were taken in the same turn, whatever else slowed the machine; multiplied by `times`.

    Raises:
        ValueError: not every sample has its partner.

    """
    return [times * sample / partner for sample, partner in zip(series, base, strict=True)]
