"""Statistics of values of which each comes with how often it occurs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sched_profiler.analysis.sketch import Sketch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["bar_edges", "correlation", "has_long_tail", "median"]

_LONG_TAIL = 20
"""What is less than a twentieth of an axis high cannot be read off it."""


def median(values: Floats, counts: Ints) -> float:
    """Return the median; NaN does not count."""
    known = ~np.isnan(values)
    sketch = Sketch()
    sketch.add(values[known], counts[known])
    return sketch.quantiles([0.5])[0]


def has_long_tail(largest: float, middle: float) -> bool:
    """Tell whether an axis from 0 to the largest value would flatten the middle."""
    return largest > _LONG_TAIL * middle


def bar_edges(values: Floats, count: int, *, logarithmic: bool) -> Floats:
    """Return the edges of a histogram's bars, of equal width and about the root of all values."""
    num_bars = int(np.clip(np.sqrt(count), 10, 80))
    low, high = float(values.min()), float(values.max())
    if low == high:
        # All the same: one bar in the middle says so.
        return np.array([low - 0.5, low + 0.5]) if not logarithmic else np.array([low / 2, low * 2])
    return (np.geomspace if logarithmic else np.linspace)(low, high, num_bars + 1)


def correlation(x: Floats, y: Floats, counts: Ints) -> str:
    """Return how pairs of values correlate, as a text."""
    count = f"{counts.sum():,} batches"
    if counts.sum() < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:  # noqa: PLR2004 - two points always agree
        return f"no correlation defined, {count}"
    pearson = _pearson(x, y, counts)
    ranks = _pearson(_ranks(x, counts), _ranks(y, counts), counts)
    return f"Pearson r = {pearson:.2f}, Spearman rho = {ranks:.2f}, {count}"


def _pearson(x: Floats, y: Floats, counts: Ints) -> float:
    covariance = np.cov(x, y, fweights=counts)
    return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


def _ranks(values: Floats, counts: Ints) -> Floats:
    """Return the rank of each value, the mean of theirs for equal ones."""
    different, which = np.unique(values, return_inverse=True)
    num_each = np.bincount(which, weights=counts, minlength=len(different))
    ranks: Floats = (np.cumsum(num_each) - (num_each - 1) / 2)[which]
    return ranks
