"""Statistics that a few wild values cannot move."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import numpy as np
import polars as pl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = [
    "Change",
    "Period",
    "chance_of_as_many",
    "change_point",
    "period",
    "rolling_median",
    "spread",
]

_FEWEST_PERIODS = 5
_RARE = 1e-4

_NORMAL = 1.4826
"""The standard deviation of a normal distribution is so many times its MAD."""


def spread(values: Floats) -> float:
    """Return the median absolute deviation, scaled so that it estimates a standard deviation."""
    return _NORMAL * float(np.median(np.abs(values - np.median(values))))


def rolling_median(values: Floats, window: int) -> Floats:
    """Return the median of the values around each one, itself included; NaN counts for nothing."""
    series = pl.Series(values, nan_to_null=True)
    return series.rolling_median(window, center=True, min_samples=1).to_numpy()


def chance_of_as_many(count: int, expected: float) -> float:
    """Return how likely a Poisson process that is expected to bring so many brings `count`."""
    term = total = math.exp(-expected)
    for number in range(1, count):
        term *= expected / number
        total += term
    return max(0.0, 1.0 - total) if count else 1.0


@attrs.frozen(kw_only=True)
class Period:
    """A distance that comes again and again."""

    length: int
    count: int
    """How many of the numbers keep to it."""


def period(numbers: Ints) -> Period | None:
    """Return the distance at which most of some numbers follow each other, None if there is none.

    More than half of the numbers leave the same remainder when divided by it, most of these follow
    each other at exactly this distance, at least five times, and it is more than chance. Others may
    be in between, and some may be missing.

    Args:
        numbers: whole numbers in ascending order, none twice.
    """
    best = None
    # What is in between parts two neighbours; two such are rare where most keep to the distance.
    lengths = np.unique(np.concatenate([numbers[1:] - numbers[:-1], numbers[2:] - numbers[:-2]]))
    for length in lengths[lengths > 1]:
        remainders, counts = np.unique(numbers % length, return_counts=True)
        count = int(counts.max())
        if count <= max(len(numbers) / 2, 0 if best is None else best.count):
            continue
        kept = numbers[numbers % length == remainders[counts.argmax()]]
        exact = int((np.diff(kept) == length).sum())
        # The two numbers that the distance was taken from keep to it in any case.
        chance = _binomial_tail(count - 2, len(numbers) - 2, 1 / int(length)) * len(lengths)
        if exact >= max(_FEWEST_PERIODS, (count - 1) / 2) and chance <= _RARE:
            best = Period(length=int(length), count=count)
    return best


def _binomial_tail(least: int, trials: int, share: float) -> float:
    """Return how likely so many of some independent trials succeed, or more."""
    return math.fsum(
        math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(number + 1)
            - math.lgamma(trials - number + 1)
            + number * math.log(share)
            + (trials - number) * math.log1p(-share)
        )
        for number in range(least, trials + 1)
    )


@attrs.frozen(kw_only=True)
class Change:
    """The one place in a series where its level changes most."""

    index: int
    """Of the first value after the change."""
    before: float
    after: float
    noise: float
    """Standard deviation from one value to the next, whatever the level does in the long run."""
    is_step: bool
    """Whether one step describes the series better than a straight line does."""


_LEAST_ON_A_SIDE = 4


def change_point(values: Floats) -> Change:
    """Return where a series changes: the split with the smallest sum of distances to medians.

    Args:
        values: at least 8, in their order in time; 4 are on either side.
    """
    splits = range(_LEAST_ON_A_SIDE, len(values) - _LEAST_ON_A_SIDE + 1)
    costs = [_cost(values[:k]) + _cost(values[k:]) for k in splits]
    best = int(np.argmin(costs))
    index = splits[best]
    return Change(
        index=index,
        before=float(np.median(values[:index])),
        after=float(np.median(values[index:])),
        noise=spread(np.diff(values)) / math.sqrt(2),
        is_step=costs[best] <= _cost_of_line(values),
    )


def _cost(values: Floats) -> float:
    return float(np.abs(values - np.median(values)).sum())


def _cost_of_line(values: Floats) -> float:
    """Return what is left after the line through the median of all slopes (Theil and Sen)."""
    x = np.arange(len(values), dtype=np.float64)
    first, second = np.triu_indices(len(values), 1)
    slope = float(np.median((values[second] - values[first]) / (x[second] - x[first])))
    return _cost(values - slope * x)
