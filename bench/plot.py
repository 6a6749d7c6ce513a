"""Figures as plots in SVG; the only module that needs matplotlib."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from bench.figure import NONE, Figure, Series, Spread, Unit

_INCHES = 9.0, 3.2
_NAMES = {
    Unit.SECONDS: "seconds",
    Unit.PER_SECOND: "per second",
    Unit.BITS_PER_SECOND: "bits per second",
    Unit.BYTES: "bytes",
    Unit.PERCENT_OF_A_CORE: "% of a core",
}


def is_worth_it(figure: Figure) -> bool:
    """Whether there is more than one number of forwards to compare."""
    return len([size for size in figure.sizes if size != NONE]) > 1


def draw(figure: Figure, path: Path) -> None:
    """Draw medians and quartiles over the number of forwards, a row for each unit; same samples, same file."""
    mpl.rcParams.update({"svg.hashsalt": figure.full_name, "svg.fonttype": "none"})
    units = list(dict.fromkeys(series.unit for series in figure.series))
    canvas = Canvas(figsize=(_INCHES[0], _INCHES[1] * len(units)), layout="constrained")
    for axes, unit in zip(canvas.subplots(len(units), squeeze=False)[:, 0], units, strict=True):
        _draw_unit(axes, [series for series in figure.series if series.unit is unit], unit, figure.counted)
    canvas.suptitle(f"{figure.title}, {figure.host}")
    canvas.savefig(path, metadata={"Date": None})


def _draw_unit(axes: Axes, every: list[Series], unit: Unit, counted: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.set(xlabel=counted, ylabel=_NAMES[unit])
    axes.grid(visible=True, which="major", alpha=0.3)
    for series in every:
        _draw_series(axes, series)
    if unit is Unit.SECONDS:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))


def _draw_series(axes: Axes, series: Series) -> None:
    label = series.label.replace("`", "")
    if NONE in series.samples:
        axes.axhline(series.median(NONE), linestyle="--", color="grey", label=label)
        return
    sizes = sorted(series.samples)
    spreads = [Spread.of(series.samples[size]) for size in sizes]
    below = [spread.median - spread.low for spread in spreads]
    above = [spread.high - spread.median for spread in spreads]
    axes.errorbar(sizes, [spread.median for spread in spreads], [below, above], marker="o", capsize=3, label=label)
