"""Draws a comparison: the distributions of its sides over each other, and what has changed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sched_profiler.analysis.chart import Chart
from sched_profiler.analysis.columns import numbers
from sched_profiler.analysis.run_metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sched_profiler.analysis.comparison import Comparison, Difference

__all__ = ["plot_comparison"]

# Okabe and Ito, as in the other charts; sides beyond begin anew with dashes.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_VERDICTS = {
    "better": "#009E73",
    "worse": "#D55E00",
    "higher": "#0072B2",
    "lower": "#0072B2",
}
_GREY = "#595959"
_CURVE_POINTS = 512
_FEW = 2
"""With more sides, a row of the changes says by a number whose it is, and so does the legend."""
_TIMES = (
    ("total_step_duration_ms", "Total step"),
    ("model_run_duration_ms", "Model run"),
    ("schedule_duration_ms", "Schedule"),
)


def plot_comparison(sides: Mapping[str, pd.DataFrame], comparison: Comparison) -> Figure:
    """Draw the times of all sides over each other, and the changes with their intervals.

    Args:
        sides: the frames, by their labels, as they were given to `compare`.
        comparison: what it returned.
    """
    figure = Chart(figsize=(16, 11), layout="constrained")
    (upper_left, upper_right), (lower_left, lower_right) = figure.subplots(2, 2)
    for axes, (column, title) in zip((upper_left, upper_right, lower_left), _TIMES, strict=True):
        _draw_times(axes, sides, column, title)
    _draw_changes(lower_right, comparison)
    handles, labels = upper_left.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(handles)))
    return figure


def _draw_times(axes: Axes, sides: Mapping[str, pd.DataFrame], column: str, title: str) -> None:
    axes.set_title(f"{title}: share of the batches that took no longer")
    for number, (label, df) in enumerate(sides.items()):
        times = numbers(df, column)
        times = np.sort(times[~np.isnan(times)])
        if not len(times):
            continue
        # A curve is no smoother for more points than it has pixels.
        share = np.linspace(0, 1, min(len(times), _CURVE_POINTS))
        axes.plot(
            np.maximum(np.quantile(times, share), 1e-3),
            share,
            label=f"[{number + 1}] {_plain(label)}" if len(sides) > _FEW else _plain(label),
            color=_COLOURS[number % len(_COLOURS)],
            linestyle="-" if number < len(_COLOURS) else "--",
        )
    axes.set_xscale("log")
    axes.set_xlabel("time (ms), log scale")
    axes.set_ylim(0, 1)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_changes(axes: Axes, comparison: Comparison) -> None:
    axes.set_title(
        f"Change against {_plain(comparison.sides[0].label)}, "
        f"with {comparison.confidence:.0%} intervals"
    )
    known = {metric.name: metric for metric in METRICS}
    rows = [
        difference
        for difference in comparison.differences
        if known[difference.metric].kind != "count" and math.isfinite(difference.change.low)
    ]
    for row, difference in enumerate(rows):
        change = difference.change
        axes.plot(
            [100 * change.low, 100 * change.high],
            [row, row],
            color=_VERDICTS.get(difference.verdict, _GREY),
            linewidth=2,
        )
        axes.plot(
            100 * change.value, row, marker="o", color=_VERDICTS.get(difference.verdict, _GREY)
        )
    axes.axvline(0, color="black", linewidth=0.8)
    many = len(comparison.sides) > _FEW
    axes.set_yticks(range(len(rows)), [_name(d, comparison, many=many) for d in rows])
    axes.invert_yaxis()
    axes.set_xlabel("change (%; percentage points for shares); grey is no verdict")
    axes.grid(visible=True, axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _name(difference: Difference, comparison: Comparison, *, many: bool) -> str:
    label = next(metric.label for metric in METRICS if metric.name == difference.metric)
    if not many:
        return label
    number = next(i for i, s in enumerate(comparison.sides) if s.label == difference.side)
    return f"{label} [{number + 1}]"


def _plain(label: str) -> str:
    """Return a label that matplotlib shows as it is: no formula, and not left out of a legend."""
    return label.replace("$", r"\$").replace("_", " _", 1 if label.startswith("_") else 0)
