"""Draws a loaded log: six charts, and one picture of all six.

Every function takes a frame as `load` returns it and returns a `matplotlib.figure.Figure` of its
own; pyplot, and with it a display, is not involved. Charts stay readable and small at any length
of a log: up to `MAX_POINTS` batches are drawn one by one, more are drawn as bands or densities.
An axis is logarithmic where a long tail would flatten everything else, and its label says so.
The colours are those of Okabe and Ito, which all kinds of colour vision tell apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from sched_profiler.analysis.columns import numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

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
MAX_SCATTER_POINTS = 5_000
"""Most batches that a scatter plot draws one by one."""
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


def plot_step_times(df: pd.DataFrame) -> Figure:
    """Draw the schedule time and the model-run time of the batches over time, in ms."""
    return _figure(_draw_step_times, df)


def plot_requests(df: pd.DataFrame) -> Figure:
    """Draw how many requests of the batches are in prefill and how many decode, over time."""
    return _figure(_draw_requests, df)


def plot_tokens(df: pd.DataFrame) -> Figure:
    """Draw the tokens scheduled in the batches over time, and the token budget if recorded."""
    return _figure(_draw_tokens, df)


def plot_schedule_histogram(df: pd.DataFrame) -> Figure:
    """Draw how the schedule times of the batches are distributed, in ms."""
    return _figure(_draw_schedule_histogram, df)


def plot_model_run_histogram(df: pd.DataFrame) -> Figure:
    """Draw how the model-run times of the batches are distributed, in ms."""
    return _figure(_draw_model_run_histogram, df)


def plot_schedule_against_model_run(df: pd.DataFrame) -> Figure:
    """Draw the schedule time of the batches against their model-run time, both in ms.

    The title has their correlation: Pearson's r of the times and Spearman's rho of their ranks.
    """
    return _figure(_draw_schedule_against_model_run, df)


def plot_overview(df: pd.DataFrame) -> Figure:
    """Draw all six charts in one picture."""
    figure = Figure(figsize=(20, 11), layout="constrained")
    num_runs = df["run"].nunique() if "run" in df else 1
    runs = "" if num_runs == 1 else f" of {num_runs:,} runs"
    figure.suptitle(f"{len(df):,} batches{runs}", fontsize="x-large")
    for axes, draw in zip(figure.subplots(2, 3).flat, _CHARTS, strict=True):
        _draw(draw, axes, df)
    return figure


def _figure(draw: Callable[[Axes, pd.DataFrame], None], df: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(10, 6), layout="constrained")
    _draw(draw, figure.subplots(), df)
    return figure


def _draw(draw: Callable[[Axes, pd.DataFrame], None], axes: Axes, df: pd.DataFrame) -> None:
    draw(axes, df)
    axes.grid(visible=True, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_step_times(axes: Axes, df: pd.DataFrame) -> None:
    axes.set_title("Schedule and model-run time of each batch")
    series = [
        _Series(_SCHEDULE_LABEL, _BLUE, numbers(df, "schedule_duration_ms")),
        _Series(_MODEL_RUN_LABEL, _VERMILION, numbers(df, "model_run_duration_ms")),
    ]
    _draw_trend(axes, df, series, "time (ms)", centre="median", floor=_RESOLUTION_MS)


def _draw_requests(axes: Axes, df: pd.DataFrame) -> None:
    axes.set_title("Prefill and decode requests in each batch")
    series = [
        _Series("decode", _SKY, numbers(df, "num_decode_reqs")),
        _Series("prefill", _ORANGE, numbers(df, "num_prefill_reqs")),
    ]
    _draw_trend(axes, df, series, "requests", centre="mean")


def _draw_tokens(axes: Axes, df: pd.DataFrame) -> None:
    axes.set_title("Tokens scheduled in each batch")
    series = [_Series("scheduled tokens", _GREEN, numbers(df, "total_scheduled_tokens"))]
    budgets = np.unique(numbers(df, "token_budget"))
    # Runs with budgets of their own would each need a line; one is a limit, several are a mesh.
    limit = ("token budget", budgets[0]) if len(budgets) == 1 and budgets[0] > 0 else None
    _draw_trend(axes, df, series, "tokens", centre="mean", floor=1.0, limit=limit)


def _draw_schedule_histogram(axes: Axes, df: pd.DataFrame) -> None:
    axes.set_title("Distribution of schedule time")
    _draw_histogram(axes, numbers(df, "schedule_duration_ms"), _SCHEDULE_LABEL, _BLUE)


def _draw_model_run_histogram(axes: Axes, df: pd.DataFrame) -> None:
    axes.set_title("Distribution of model-run time")
    _draw_histogram(axes, numbers(df, "model_run_duration_ms"), _MODEL_RUN_LABEL, _VERMILION)


def _draw_schedule_against_model_run(axes: Axes, df: pd.DataFrame) -> None:
    title = "Schedule time against model-run time"
    schedule = numbers(df, "schedule_duration_ms")
    model_run = numbers(df, "model_run_duration_ms")
    known = ~np.isnan(schedule) & ~np.isnan(model_run)
    if not known.any():
        axes.set_title(title)
        _say(axes, f"{_MODEL_RUN_LABEL}: not recorded")
        return
    x, y = model_run[known], schedule[known]
    axes.set_title(f"{title}\n{_correlation(x, y)}")
    x = _scale(axes, "x", x, f"{_MODEL_RUN_LABEL} (ms)")
    y = _scale(axes, "y", y, f"{_SCHEDULE_LABEL} (ms)")
    if len(x) > MAX_SCATTER_POINTS:
        _draw_density(axes, x, y)
    else:
        _draw_points(axes, x, y, numbers(df, "num_prefill_reqs")[known] > 0)


_CHARTS: tuple[Callable[[Axes, pd.DataFrame], None], ...] = (
    _draw_step_times,
    _draw_requests,
    _draw_tokens,
    _draw_schedule_histogram,
    _draw_model_run_histogram,
    _draw_schedule_against_model_run,
)


@attrs.frozen(eq=False)
class _Series:
    """One quantity of a trend: its heights are the values of the rows, NaN where unknown."""

    label: str
    colour: str
    heights: Floats


def _draw_trend(
    axes: Axes,
    df: pd.DataFrame,
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
        df: a loaded log.
        series: what to draw.
        label: of the vertical axis.
        centre: what the line of a band is: the median for times, whose tail would pull a mean
            away; the mean for counts, whose median jumps between a few whole numbers.
        floor: smallest value on a logarithmic axis; without it the axis is always linear.
        limit: name and height of a horizontal line.
    """
    recorded = [one for one in series if not np.isnan(one.heights).all()]
    if not recorded:
        _say(axes, "no batches" if df.empty else "not recorded")
        return
    handles: list[Artist] = [Line2D([], [], color=one.colour, label=one.label) for one in recorded]
    handles += [
        Line2D([], [], linestyle="", label=f"{one.label}: not recorded")
        for one in series
        if one not in recorded
    ]
    is_log = floor is not None and _is_long_tailed(recorded)
    if floor is not None and is_log:
        recorded = [attrs.evolve(one, heights=np.maximum(one.heights, floor)) for one in recorded]
    time = _Time.of(df)
    for one in recorded:
        if len(df) <= MAX_POINTS:
            _draw_each(axes, time.of_row, one)
        else:
            _draw_bands(axes, time.of_row, one, centre)
    if limit is not None:
        name, height = limit
        line = axes.axhline(height, color="black", linestyle="--", linewidth=1)
        line.set_label(f"{name} ({height:,.0f})")
        handles.append(line)
    if len(df) > MAX_POINTS:
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


def _is_long_tailed(series: list[_Series]) -> bool:
    """Tell whether one axis from 0 to the largest value would flatten the median of a series."""
    largest = max(np.nanmax(one.heights) for one in series)
    smallest = min(np.nanmedian(one.heights) for one in series)
    return bool(largest > _LONG_TAIL * smallest)


_LONG_TAIL = 20
"""What is less than a twentieth of an axis high cannot be read off it."""


def _draw_each(axes: Axes, x: Floats, series: _Series) -> None:
    axes.plot(
        x,
        series.heights,
        color=series.colour,
        marker="o",
        markersize=4,
        linewidth=0.8,
        label=series.label,
    )


def _draw_bands(axes: Axes, x: Floats, series: _Series, centre: Literal["mean", "median"]) -> None:
    known = ~np.isnan(series.heights)
    bands = _Bands.of(x[known], series.heights[known])
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


@attrs.frozen(eq=False)
class _Bands:
    """A quantity in equal intervals of x: one number each, NaN in an empty interval.

    There are at most `MAX_BANDS` intervals, and on average at least 10 values in each.
    """

    x: Floats
    """Middles of the intervals."""
    mean: Floats
    p5: Floats
    median: Floats
    p95: Floats
    largest: Floats

    @classmethod
    def of(cls, x: Floats, y: Floats) -> _Bands:
        num_bands = int(np.clip(len(x) // 10, 1, MAX_BANDS))
        width = float(np.ptp(x)) / num_bands or 1.0
        band = np.minimum((x - x.min()) // width, num_bands - 1).astype(np.int64)
        counts = np.bincount(band, minlength=num_bands)
        sums = np.bincount(band, weights=y, minlength=num_bands)
        ordered = y[np.lexsort((y, band))]

        def quantile(share: float) -> Floats:
            position = np.cumsum(counts) - counts + share * (counts - 1)
            below, above = (
                ordered[np.clip(rounded(position), 0, len(y) - 1).astype(np.int64)]
                for rounded in (np.floor, np.ceil)
            )
            return np.where(counts > 0, below + (above - below) * (position % 1), np.nan)

        return cls(
            x=x.min() + width * (np.arange(num_bands) + 0.5),
            mean=np.where(counts > 0, sums / np.maximum(counts, 1), np.nan),
            p5=quantile(0.05),
            median=quantile(0.50),
            p95=quantile(0.95),
            largest=quantile(1.0),
        )


def _draw_run_starts(axes: Axes, starts: Floats) -> Artist:
    lines = [axes.axvline(start, color=_GREY, linestyle=":", linewidth=1) for start in starts]
    lines[0].set_label("a run starts")
    return lines[0]


_MAX_RUN_STARTS = 20
"""With more lines than this, a chart shows nothing else."""


@attrs.frozen(eq=False)
class _Time:
    """The time axis of a log: when the engines ran, without the time between runs."""

    of_row: Floats
    label: str
    run_starts: Floats
    """Where the runs start that begin after the first one; empty if they are too many to show."""

    @classmethod
    def of(cls, df: pd.DataFrame) -> _Time:
        timestamp = numbers(df, "timestamp")
        run = df["run"].to_numpy() if "run" in df else np.zeros(len(df), dtype=np.int64)
        spans = pd.Series(timestamp).groupby(run).agg(["min", "max"]).sort_values("min")
        covered_until = spans["max"].cummax().shift(fill_value=spans["min"].iloc[0])
        pauses = (spans["min"] - covered_until).clip(lower=0).cumsum()
        start = spans["min"].iloc[0]
        seconds = timestamp - start - pauses.to_numpy()[spans.index.get_indexer(pd.Index(run))]
        unit, length = "s", 1.0
        for longer, its_length in (("min", 60.0), ("h", 3600.0)):
            if np.ptp(seconds) > _ENOUGH_OF_A_UNIT * its_length:
                unit, length = longer, its_length
        starts = (spans["min"] - start - pauses).to_numpy()[1:] / length
        without = ", without the time between runs" if pauses.iloc[-1] > 0 else ""
        return cls(
            of_row=seconds / length,
            label=f"time since the first batch ({unit}{without})",
            run_starts=starts if len(starts) <= _MAX_RUN_STARTS else starts[:0],
        )


_ENOUGH_OF_A_UNIT = 5


def _draw_histogram(axes: Axes, values: Floats, label: str, colour: str) -> None:
    values = values[~np.isnan(values)]
    if not len(values):
        _say(axes, f"{label}: not recorded")
        return
    p50, p95, p99 = np.quantile(values, [0.50, 0.95, 0.99])
    values = _scale(axes, "x", values, f"{label} (ms)")
    counts, edges = np.histogram(values, _edges(values, logarithmic=axes.get_xscale() == "log"))
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
    largest = Line2D([], [], linestyle="", label=f"maximum {values.max():,.3f} ms")
    _legend_below(axes, [*axes.get_lines(), largest])


_RARE = 1_000
"""A bar that is a thousandth as high as the highest cannot be seen beside it."""


def _edges(values: Floats, *, logarithmic: bool) -> Floats:
    """Return the edges of bars of equal width, about as many as the root of the values."""
    num_bars = int(np.clip(np.sqrt(len(values)), 10, 80))
    low, high = float(values.min()), float(values.max())
    if low == high:
        # All the same: one bar in the middle says so.
        return np.array([low - 0.5, low + 0.5]) if not logarithmic else np.array([low / 2, low * 2])
    return (np.geomspace if logarithmic else np.linspace)(low, high, num_bars + 1)


def _scale(axes: Axes, which: Literal["x", "y"], values: Floats, label: str) -> Floats:
    """Label an axis and make it logarithmic for a long tail; return the values to draw on it."""
    if values.max() > _LONG_TAIL * max(float(np.median(values)), _RESOLUTION_MS):
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


def _draw_density(axes: Axes, x: Floats, y: Floats) -> None:
    is_log_x, is_log_y = axes.get_xscale() == "log", axes.get_yscale() == "log"
    cells = axes.hexbin(
        x,
        y,
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


def _correlation(x: Floats, y: Floats) -> str:
    count = f"{len(x):,} batches"
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:  # noqa: PLR2004 - two points always agree
        return f"no correlation defined, {count}"
    pearson = np.corrcoef(x, y)[0, 1]
    ranks = np.corrcoef(pd.Series(x).rank().to_numpy(), pd.Series(y).rank().to_numpy())[0, 1]
    return f"Pearson r = {pearson:.2f}, Spearman rho = {ranks:.2f}, {count}"


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
