"""Draws a log: six charts, and one picture of all six.

Every function takes a log as `scan` or `load` return it, and returns a `matplotlib.figure.Figure`
of its own; pyplot, and with it a display, is not involved. Charts stay readable and small at any
length of a log: up to `MAX_POINTS` batches are drawn one by one, more as bands or densities.
An axis is logarithmic where a long tail would flatten everything else, and its label says so.
The colours are those of Okabe and Ito, which all kinds of colour vision tell apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from sched_profiler.analysis.bands import Bands
from sched_profiler.analysis.chart import Chart
from sched_profiler.analysis.digest import Digest
from sched_profiler.analysis.time_axis import TimeAxis
from sched_profiler.analysis.weighted import bar_edges, correlation, has_long_tail, median

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from sched_profiler.analysis.sketch import Sketch

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = [
    "plot_model_run_histogram",
    "plot_overview",
    "plot_requests",
    "plot_schedule_against_model_run",
    "plot_schedule_histogram",
    "plot_step_times",
    "plot_tokens",
]

MAX_POINTS = 500
"""Most batches that a trend draws one by one."""
MAX_BANDS = 200
"""Most intervals of time that a longer trend is divided into."""

_BLUE, _VERMILION, _ORANGE, _SKY, _GREEN, _GREY = (
    "#0072B2",
    "#D55E00",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#595959",
)
_SCHEDULE_LABEL = "schedule time"
_MODEL_RUN_LABEL = "model-run time"
_RESOLUTION_MS = 0.001
"""Logs hold times in steps of 1 µs; a logarithmic axis draws a time of 0 as this."""


def plot_step_times(log: pd.DataFrame | Digest) -> Figure:
    """Draw the schedule time and the model-run time of the batches over time, in ms."""
    return _figure(_draw_step_times, log)


def plot_requests(log: pd.DataFrame | Digest) -> Figure:
    """Draw how many requests of the batches are in prefill and how many decode, over time."""
    return _figure(_draw_requests, log)


def plot_tokens(log: pd.DataFrame | Digest) -> Figure:
    """Draw the tokens scheduled in the batches over time, and the token budget if recorded."""
    return _figure(_draw_tokens, log)


def plot_schedule_histogram(log: pd.DataFrame | Digest) -> Figure:
    """Draw how the schedule times of the batches are distributed, in ms."""
    return _figure(_draw_schedule_histogram, log)


def plot_model_run_histogram(log: pd.DataFrame | Digest) -> Figure:
    """Draw how the model-run times of the batches are distributed, in ms."""
    return _figure(_draw_model_run_histogram, log)


def plot_schedule_against_model_run(log: pd.DataFrame | Digest) -> Figure:
    """Draw the schedule time of the batches against their model-run time, both in ms.

    The title has their correlation: Pearson's r of the times and Spearman's rho of their ranks.
    """
    return _figure(_draw_schedule_against_model_run, log)


def plot_overview(log: pd.DataFrame | Digest) -> Figure:
    """Draw all six charts in one picture."""
    digest = _digest(log)
    figure = Chart(figsize=(20, 11), layout="constrained")
    num_runs = len(digest.runs)
    runs = f" of {num_runs:,} runs" if num_runs > 1 else ""
    figure.suptitle(f"{digest.num_batches:,} batches{runs}", fontsize="x-large")
    for axes, draw in zip(figure.subplots(2, 3).flat, _CHARTS, strict=True):
        _draw(draw, axes, digest)
    return figure


def _digest(log: pd.DataFrame | Digest) -> Digest:
    return log if isinstance(log, Digest) else Digest.of_frame(log)


def _figure(draw: Callable[[Axes, Digest], None], log: pd.DataFrame | Digest) -> Figure:
    figure = Chart(figsize=(10, 6), layout="constrained")
    _draw(draw, figure.subplots(), _digest(log))
    return figure


def _draw(draw: Callable[[Axes, Digest], None], axes: Axes, digest: Digest) -> None:
    draw(axes, digest)
    axes.grid(visible=True, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_step_times(axes: Axes, digest: Digest) -> None:
    axes.set_title("Schedule and model-run time of each batch")
    time = TimeAxis(digest)
    series = [
        _series(digest, time, _SCHEDULE_LABEL, _BLUE, "schedule_duration_ms"),
        _series(digest, time, _MODEL_RUN_LABEL, _VERMILION, "model_run_duration_ms"),
    ]
    _draw_trend(axes, time, series, "time (ms)", centre="median", floor=_RESOLUTION_MS)


def _draw_requests(axes: Axes, digest: Digest) -> None:
    axes.set_title("Prefill and decode requests in each batch")
    time = TimeAxis(digest)
    series = [
        _series(digest, time, "decode", _SKY, "num_decode_reqs"),
        _series(digest, time, "prefill", _ORANGE, "num_prefill_reqs"),
    ]
    _draw_trend(axes, time, series, "requests", centre="mean")


def _draw_tokens(axes: Axes, digest: Digest) -> None:
    axes.set_title("Tokens scheduled in each batch")
    time = TimeAxis(digest)
    series = [_series(digest, time, "scheduled tokens", _GREEN, "total_scheduled_tokens")]
    budgets = digest.token_budgets
    # Runs with budgets of their own would each need a line; one is a limit, several are a mesh.
    is_one = budgets.count == digest.num_batches and 0 < budgets.smallest == budgets.largest
    limit = ("token budget", budgets.largest) if is_one else None
    _draw_trend(axes, time, series, "tokens", centre="mean", floor=1.0, limit=limit)


def _draw_schedule_histogram(axes: Axes, digest: Digest) -> None:
    axes.set_title("Distribution of schedule time")
    _draw_histogram(axes, digest.durations["schedule"], _SCHEDULE_LABEL, _BLUE)


def _draw_model_run_histogram(axes: Axes, digest: Digest) -> None:
    axes.set_title("Distribution of model-run time")
    _draw_histogram(axes, digest.durations["model_run"], _MODEL_RUN_LABEL, _VERMILION)


def _draw_schedule_against_model_run(axes: Axes, digest: Digest) -> None:
    title = "Schedule time against model-run time"
    rows = digest.outline.rows
    x, y, counts = digest.outline.pairs()
    known = counts > 0
    x, y, counts = x[known], y[known], counts[known]
    if not len(x):
        axes.set_title(title)
        _say(axes, f"{_MODEL_RUN_LABEL}: not recorded")
        return
    axes.set_title(f"{title}\n{correlation(x, y, counts)}")
    x = _scale(axes, "x", x, counts, f"{_MODEL_RUN_LABEL} (ms)")
    y = _scale(axes, "y", y, counts, f"{_SCHEDULE_LABEL} (ms)")
    if rows is None:
        _draw_density(axes, x, y, counts)
    else:
        _draw_points(axes, x, y, rows["num_prefill_reqs"][known] > 0)


_CHARTS: tuple[Callable[[Axes, Digest], None], ...] = (
    _draw_step_times,
    _draw_requests,
    _draw_tokens,
    _draw_schedule_histogram,
    _draw_model_run_histogram,
    _draw_schedule_against_model_run,
)


@attrs.frozen(eq=False)
class _Series:
    """One quantity of a trend."""

    label: str
    colour: str
    x: Floats
    """When it had a height, on the axis of time."""
    heights: Floats
    """NaN where unknown."""
    counts: Ints
    """In how many batches."""


def _series(digest: Digest, time: TimeAxis, label: str, colour: str, name: str) -> _Series:
    timestamp, heights, counts = digest.outline.over_time(name)
    return _Series(label, colour, time.of(timestamp), heights, counts)


def _draw_trend(
    axes: Axes,
    time: TimeAxis,
    series: list[_Series],
    label: str,
    *,
    centre: Literal["mean", "median"],
    floor: float | None = None,
    limit: tuple[str, float] | None = None,
) -> None:
    """Draw quantities over time.

    Args:
        axes: where to draw.
        time: the horizontal axis.
        series: what to draw.
        label: of the vertical axis.
        centre: what the line of a band is: the median for times, whose tail would pull a mean
            away; the mean for counts, whose median jumps between a few whole numbers.
        floor: smallest value on a logarithmic axis; without it the axis is always linear.
        limit: name and height of a horizontal line.
    """
    recorded = [one for one in series if not np.isnan(one.heights).all()]
    if not recorded:
        _say(axes, "no batches" if not time.num_batches else "not recorded")
        return
    handles: list[Artist] = [Line2D([], [], color=one.colour, label=one.label) for one in recorded]
    handles += [
        Line2D([], [], linestyle="", label=f"{one.label}: not recorded")
        for one in series
        if one not in recorded
    ]
    is_log = floor is not None and has_long_tail(
        max(np.nanmax(one.heights) for one in recorded),
        min(median(one.heights, one.counts) for one in recorded),
    )
    if floor is not None and is_log:
        recorded = [attrs.evolve(one, heights=np.maximum(one.heights, floor)) for one in recorded]
    for one in recorded:
        if time.num_batches <= MAX_POINTS:
            _draw_each(axes, one)
        else:
            _draw_bands(axes, one, centre)
    if limit is not None:
        name, height = limit
        line = axes.axhline(height, color="black", linestyle="--", linewidth=1)
        line.set_label(f"{name} ({height:,.0f})")
        handles.append(line)
    if time.num_batches > MAX_POINTS:
        handles += [
            Line2D([], [], color=_GREY, label=f"{centre} of an interval"),
            Patch(color=_GREY, alpha=_BAND_ALPHA, label="P5 to P95"),
            Line2D([], [], color=_GREY, linestyle="", marker=".", markersize=3, label="maximum"),
        ]
    if len(time.run_starts):
        handles.append(_draw_run_starts(axes, time.run_starts))
    axes.set_xlabel(time.label)
    axes.set_ylabel(f"{label}, log scale" if is_log else label)
    if is_log:
        _make_log(axes, "y", np.concatenate([one.heights for one in recorded]))
    else:
        if not _has_fractions(recorded):
            axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        axes.set_ylim(bottom=0)
    _legend_below(axes, handles)


def _has_fractions(series: list[_Series]) -> bool:
    return any(np.any(one.heights % 1 > 0) for one in series)


_BAND_ALPHA = 0.3


def _draw_each(axes: Axes, series: _Series) -> None:
    axes.plot(
        series.x,
        series.heights,
        color=series.colour,
        marker="o",
        markersize=4,
        linewidth=0.8,
        label=series.label,
    )


def _draw_bands(axes: Axes, series: _Series, centre: Literal["mean", "median"]) -> None:
    known = ~np.isnan(series.heights)
    bands = Bands.of(series.x[known], series.heights[known], series.counts[known], MAX_BANDS)
    axes.fill_between(
        bands.x, bands.p5, bands.p95, color=series.colour, alpha=_BAND_ALPHA, linewidth=0
    )
    axes.plot(bands.x, bands.largest, color=series.colour, linestyle="", marker=".", markersize=2)
    middle = bands.mean if centre == "mean" else bands.median
    axes.plot(bands.x, middle, color=series.colour, linewidth=1.5, label=series.label)
    # Of an interval whose neighbours are empty, a line shows nothing.
    padded = np.concatenate(([np.nan], middle, [np.nan]))
    is_alone = ~np.isnan(middle) & np.isnan(padded[:-2]) & np.isnan(padded[2:])
    axes.plot(
        bands.x[is_alone],
        middle[is_alone],
        color=series.colour,
        linestyle="",
        marker="_",
        markersize=4,
    )


def _draw_run_starts(axes: Axes, starts: Floats) -> Artist:
    lines = [axes.axvline(start, color=_GREY, linestyle=":", linewidth=1) for start in starts]
    lines[0].set_label("a run starts")
    return lines[0]


def _draw_histogram(axes: Axes, sketch: Sketch, label: str, colour: str) -> None:
    if not sketch.count:
        _say(axes, f"{label}: not recorded")
        return
    p50, p95, p99 = sketch.quantiles([0.50, 0.95, 0.99])
    values, weights = sketch.values()
    values = _scale(axes, "x", values, weights, f"{label} (ms)")
    edges = bar_edges(values, sketch.count, logarithmic=axes.get_xscale() == "log")
    counts, edges = np.histogram(values, edges, weights=weights)
    axes.stairs(counts, edges, fill=True, color=colour, alpha=0.75)
    counted = "batches"
    if counts.max() > _RARE * counts[counts > 0].min():
        _make_log(axes, "y", counts)
        axes.set_ylim(bottom=0.5)
        counted += ", log scale"
    axes.set_ylabel(counted)
    for name, value, style in (("P50", p50, "-"), ("P95", p95, "--"), ("P99", p99, ":")):
        axes.axvline(
            max(value, edges[0]), color="black", linestyle=style, label=f"{name} {value:,.3f} ms"
        )
    largest = Line2D([], [], linestyle="", label=f"maximum {sketch.largest:,.3f} ms")
    _legend_below(axes, [*axes.get_lines(), largest])


_RARE = 1_000
"""A bar that is a thousandth as high as the highest cannot be seen beside it."""


def _scale(
    axes: Axes, which: Literal["x", "y"], values: Floats, counts: Ints, label: str
) -> Floats:
    """Label an axis and make it logarithmic for a long tail; return the values to draw on it."""
    if has_long_tail(values.max(), max(median(values, counts), _RESOLUTION_MS)):
        values = np.maximum(values, _RESOLUTION_MS)
        _make_log(axes, which, values)
        label += ", log scale"
    axes.set(**{f"{which}label": label})
    return values


def _make_log(axes: Axes, which: Literal["x", "y"], values: Floats) -> None:
    """Make an axis logarithmic, with plain numbers, and more of them on a short one."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    if np.nanmax(values) < _FEW_DECADES * np.nanmin(values[values > 0]):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_formatter("")


_FEW_DECADES = 300


def _draw_points(axes: Axes, x: Floats, y: Floats, has_prefill: NDArray[np.bool_]) -> None:
    size = 20 if len(x) <= MAX_POINTS else 6
    for rows, label, colour, marker in (
        (~has_prefill, "decode only", _SKY, "o"),
        (has_prefill, "with prefill", _ORANGE, "^"),
    ):
        if rows.any():
            axes.scatter(
                x[rows], y[rows], s=size, color=colour, marker=marker, alpha=0.7, label=label
            )
    _legend_below(axes, axes.get_legend_handles_labels()[0])


def _draw_density(axes: Axes, x: Floats, y: Floats, counts: Ints) -> None:
    is_log_x, is_log_y = axes.get_xscale() == "log", axes.get_yscale() == "log"
    cells = axes.hexbin(
        x,
        y,
        C=counts,
        reduce_C_function=np.sum,
        gridsize=60,
        bins="log",
        mincnt=1,
        cmap="cividis",
        xscale="log" if is_log_x else "linear",
        yscale="log" if is_log_y else "linear",
        linewidths=0.1,
    )
    # hexbin sets the scale anew and with it the tick labels.
    if is_log_x:
        _make_log(axes, "x", x)
    if is_log_y:
        _make_log(axes, "y", y)
    axes.figure.colorbar(cells, ax=axes, label="batches in a cell, log scale")


def _legend_below(axes: Axes, handles: list[Artist]) -> None:
    # Below, because inside it always covers something.
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.11),
        ncols=min(len(handles), 4),
        frameon=False,
        fontsize="small",
    )


def _say(axes: Axes, message: str) -> None:
    """Write a message where a chart would be."""
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes, fontsize="large"
    )
