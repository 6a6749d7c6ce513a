"""Figures as plots in SVG; the only module that needs matplotlib."""

from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from bench.figure import NONE, Figure, Series, Spread, Unit

_INCHES = 9.0, 3.2
# Of parts side by side.
_COLUMNS = 4
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
    canvas = _side_by_side(figure) if figure.sides else _by_unit(figure)
    canvas.suptitle(f"{figure.title}, {figure.host}")
    canvas.savefig(path, metadata={"Date": None})


def _by_unit(figure: Figure) -> Canvas:
    units = list(dict.fromkeys(series.unit for series in figure.series))
    canvas = Canvas(figsize=(_INCHES[0], _INCHES[1] * len(units)), layout="constrained")
    for axes, unit in zip(canvas.subplots(len(units), squeeze=False)[:, 0], units, strict=True):
        _draw_unit(axes, [series for series in figure.series if series.unit is unit], unit, figure.counted)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    return canvas


def _side_by_side(figure: Figure) -> Canvas:
    """Draw each measurement in its own panel; a program has the same colour in all of them."""
    colours = {side: f"C{index}" for index, side in enumerate(figure.sides)}
    things: dict[str, list[tuple[Series, str]]] = {}
    for series in figure.series:
        thing, _, side = series.label.rpartition(", ")
        things.setdefault(thing, []).append((replace(series, label=side), colours[side]))
    drawn = {thing: every for thing, every in things.items() if len(every) > 1}
    rows = -(-len(drawn) // _COLUMNS)
    canvas = Canvas(figsize=(_INCHES[0] * 1.5, _INCHES[1] * rows), layout="constrained")
    parts = canvas.subplots(rows, _COLUMNS, squeeze=False).flat
    for axes in parts[len(drawn) :]:
        axes.set_axis_off()
    for axes, (thing, every) in zip(parts, drawn.items(), strict=False):
        _draw_unit(axes, [series for series, _ in every], every[0][0].unit, figure.counted, [each for _, each in every])
        axes.set_title(thing, fontsize="medium")
    handles = [
        Line2D([], [], color=colour, marker="o", label=side.replace("`", "")) for side, colour in colours.items()
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize="small")
    return canvas


def _draw_unit(axes: Axes, every: list[Series], unit: Unit, counted: str, colours: list[str] | None = None) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.set(xlabel=counted, ylabel=_NAMES[unit])
    axes.grid(visible=True, which="major", alpha=0.3)
    for index, series in enumerate(every):
        _draw_series(axes, series, colours[index] if colours else None)
    if unit is Unit.SECONDS:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])


def _draw_series(axes: Axes, series: Series, colour: str | None = None) -> None:
    label = series.label.replace("`", "")
    if NONE in series.samples:
        axes.axhline(series.median(NONE), linestyle="--", color="grey", label=label)
        return
    sizes = sorted(series.samples)
    spreads = [Spread.of(series.samples[size]) for size in sizes]
    below = [spread.median - spread.low for spread in spreads]
    above = [spread.high - spread.median for spread in spreads]
    axes.errorbar(
        sizes, [spread.median for spread in spreads], [below, above], marker="o", capsize=3, label=label, color=colour
    )
