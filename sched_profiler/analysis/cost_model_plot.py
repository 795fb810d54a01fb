"""Draws how far a step-time model is off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sched_profiler.analysis.chart import Chart
from sched_profiler.analysis.columns import numbers

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from sched_profiler.analysis.cost_model import StepTimeModel

    Floats = NDArray[np.float64]

__all__ = ["plot_residuals"]

_BLUE, _VERMILION = "#0072B2", "#D55E00"
_MOST_POINTS = 5_000
_SHOWN = (0.005, 0.995)
"""A few wild batches would flatten all others; so many are beyond the edges."""


def plot_residuals(df: pd.DataFrame, model: StepTimeModel) -> Figure:
    """Draw measured against predicted times, and the errors by time, by size and as a histogram.

    Args:
        df: a loaded log, which need not be the one that the model was fitted to.
        model: what to look at.
    """
    measured, predicted = numbers(df, "model_run_duration_ms"), model.predict_batches(df)
    known = (measured > 0) & (predicted > 0)
    measured, predicted = measured[known], predicted[known]
    errors = 100 * (measured / predicted - 1)
    # Every so many, in their order: a picture of a long log is that of a sample.
    some = np.arange(0, len(measured), max(1, len(measured) // _MOST_POINTS))
    figure = Chart(figsize=(14, 10), layout="constrained")
    (upper_left, upper_right), (lower_left, lower_right) = figure.subplots(2, 2)
    figure.suptitle(f"Step-time model of {model.num_batches:,} batches")
    low, high = np.quantile(np.concatenate((measured, predicted)), _SHOWN)
    _points(upper_left, predicted[some], measured[some], "predicted (ms)", "measured (ms)")
    upper_left.plot([low, high], [low, high], color=_VERMILION, linewidth=1)
    upper_left.set_xlim(low, high)
    upper_left.set_ylim(low, high)
    upper_left.set_title("Measured against predicted")
    label = "measured against predicted (%)"
    tokens = numbers(df, "total_scheduled_tokens")[known]
    for axes, x, x_label, title in (
        (upper_right, np.flatnonzero(known), "batch", "Error over the run"),
        (lower_left, tokens, "scheduled tokens", "Error by size"),
    ):
        _points(axes, x[some], errors[some], x_label, label)
        axes.axhline(0, color=_VERMILION, linewidth=1)
        axes.set_ylim(*np.quantile(errors, _SHOWN))
        axes.set_title(title)
    lower_right.hist(np.clip(errors, *np.quantile(errors, _SHOWN)), bins=100, color=_BLUE)
    lower_right.set_title("Distribution of the error")
    lower_right.set_xlabel(label)
    lower_right.set_ylabel("batches")
    return figure


def _points(axes: Axes, x: Floats, y: Floats, x_label: str, y_label: str) -> None:
    axes.plot(x, y, color=_BLUE, linestyle="", marker=".", markersize=3, alpha=0.4)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
