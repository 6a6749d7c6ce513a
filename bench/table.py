"""Figures as Markdown. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from bench.figure import NONE, Earlier, Figure, Series, Spread, Unit, Want

_PREFACE = """\
Written by `sudo scripts/bench`. A cell is the median of several runs, with the lower and the upper quartile in
parentheses. What is compared was measured in turn, on real hosts in namespaces; a ratio is the median, with quartiles,
of the ratios of samples that were taken in the same turn: a machine that is slower now and then moves it less
than the ratio of two medians."""
_BINARY = 1024
_SMALL = {Unit.SECONDS: ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))}
_LARGE = {
    Unit.PER_SECOND: ((1.0, "/s"),),
    Unit.BITS_PER_SECOND: ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1.0, "bit/s")),
    Unit.BYTES: ((_BINARY**2, "MiB"), (_BINARY, "KiB"), (1.0, "B")),
    Unit.PERCENT_OF_A_CORE: ((1.0, "% of a core"),),
}
_SCALES = {**_SMALL, **_LARGE}


def document(
    figures: Iterable[Figure], machine: Mapping[str, str], plots: Mapping[str, str], before: Earlier | None = None
) -> str:
    """The whole page; `plots` are the names of the image files by the figures' full names, `before` an earlier run."""
    figures = list(figures)
    parts = [
        "# Benchmark",
        _PREFACE,
        rows(["machine", ""], machine.items()),
        "## What was wanted",
        summary(figures),
        *(comparison(figures, before) if before is not None else ()),
        *(section(figure, plots.get(figure.full_name)) for figure in figures),
    ]
    return "\n\n".join(parts) + "\n"


def summary(figures: Iterable[Figure]) -> str:
    """What was wanted of all figures, and what came of it, in one table."""
    wanted = ((f"{figure.title}, {figure.host}", *_want(want)) for figure in figures for want in figure.wants)
    return rows(["figure", "wanted", "measured", ""], wanted)


def comparison(figures: Iterable[Figure], before: Earlier) -> Iterator[str]:
    """What an earlier run on the same machine measured, beside what this one did."""
    yield "## Before and after"
    yield f"Version {before.version}, measured on the same machine at {before.when}, beside this one; medians."
    compared = (line for figure in figures for line in _compared(figure, before))
    yield rows(["figure", "", "before", "now", "now, in parts of before"], compared)


def _compared(figure: Figure, before: Earlier) -> Iterator[tuple[str, ...]]:
    for series in figure.series:
        for size, samples in sorted(series.samples.items()):
            earlier = before.samples.get((figure.full_name, series.label, size))
            if earlier and samples:
                old, now = Spread.of(earlier), Spread.of(samples)
                at = "" if size == NONE else f", {size:,} {figure.counted}"
                part = number(now.median / old.median) if old.median else ""
                yield f"{figure.full_name}{at}", series.label, cell(old, series.unit), cell(now, series.unit), part


def section(figure: Figure, plot: str | None = None) -> str:
    """One figure with its title."""
    parts = [f"## {figure.title}, {figure.host}", figure.notes]
    parts += _side_by_side(figure) if figure.sides else [_table(figure)]
    if plot:
        parts.append(f"![{figure.title}]({plot})")
    if figure.wants:
        parts.append(rows(["wanted", "measured", ""], map(_want, figure.wants)))
    parts += _reasons(figure.wants)
    return "\n\n".join(parts)


def _table(figure: Figure) -> str:
    head = [figure.counted, *("none" if size == NONE else f"{size:,}" for size in figure.sizes)]
    return rows(head, ([series.label, *_cells(series, figure.sizes)] for series in figure.series))


def _side_by_side(figure: Figure) -> Iterator[str]:
    """A column for each side, a row for each thing at each number; and how many times better the first one is."""
    labelled = {series.label: series for series in figure.series}
    names = dict.fromkeys(label.rpartition(", ")[0] for label in labelled)
    found = [(name, [labelled.get(f"{name}, {side}") for side in figure.sides]) for name in names]
    body = (
        [name, f"{size:,}", *(_cell(series, size) for series in every)]
        for name, every in found
        for size in figure.sizes
    )
    yield rows(["", figure.counted, *figure.sides], body)
    first, *others = figure.sides
    yield f"How many times better {first} is:"
    times = {(versus.what, versus.size, versus.who): Spread.of(versus.times_better) for versus in figure.versus}
    compared = dict.fromkeys((versus.what, versus.size) for versus in figure.versus)
    cells = ([what, f"{size:,}", *(_times(times.get((what, size, who))) for who in others)] for what, size in compared)
    yield rows(["", figure.counted, *others], cells)


def _cell(series: Series | None, size: int) -> str:
    samples = series.samples.get(size) if series else None
    return cell(Spread.of(samples), series.unit) if series and samples else ""


def _times(spread: Spread | None) -> str:
    return f"{number(spread.median)} ({number(spread.low)} to {number(spread.high)})" if spread else ""


def _cells(series: Series, sizes: Sequence[int]) -> Iterator[str]:
    for size in sizes:
        samples = series.samples.get(size)
        worst = max(samples) if samples and series.worst else None
        yield cell(Spread.of(samples), series.unit, worst) if samples else ""


def _want(want: Want) -> tuple[str, str, str]:
    found = want.measured
    spread = "" if len(want.samples) == 1 else f" ({number(found.low)} to {number(found.high)})"
    return want.text, f"{number(found.median)}{want.unit}{spread}", "met" if want.met else "**missed**"


def _reasons(wants: Iterable[Want]) -> Iterator[str]:
    """Why wants were missed, each reason once."""
    missed: dict[str, list[str]] = {}
    for want in wants:
        if want.because and not want.met:
            missed.setdefault(want.because, []).append(want.text)
    for because, texts in missed.items():
        yield f"Missed: {'; '.join(texts)}. {because}"


def rows(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; a vertical line in a cell stays one."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(word.replace('|', '&#124;') for word in line)} |" for line in lines)


def cell(spread: Spread, unit: Unit, worst: float | None = None) -> str:
    """`12.3 ms (11.9 to 13.0)`, in the unit that suits the median; `, at worst 17.0` where that is given."""
    factor, name = _scale(spread.median, unit)
    middle, low, high = (number(value / factor) for value in (spread.median, spread.low, spread.high))
    gap = "" if name.startswith(("/", "%")) else " "
    behind = "" if worst is None else f", at worst {number(worst / factor)}"
    return f"{middle}{gap}{name} ({low} to {high}{behind})"


def _scale(value: float, unit: Unit) -> tuple[float, str]:
    scales = _SCALES[unit]
    return next((scale for scale in scales if abs(value) >= scale[0]), scales[-1])


def number(value: float) -> str:
    """With three figures that count: `0.0123`, `1.23`, `12.3`, `12,345`."""
    if round(abs(value), 1) >= 100:  # noqa: PLR2004  from here on, three figures are before the point
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:#.3g}"
