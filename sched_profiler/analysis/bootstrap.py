"""Confidence intervals for series whose values depend on those before them.

A block bootstrap: a series is cut into blocks that are long enough to be nearly independent of each
other, and blocks are drawn instead of values. What a statistic needs of a block is summed up once,
so that drawing costs the same for a log of any length.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = [
    "NUM_DRAWS",
    "block_length",
    "blocks",
    "correlation_time",
    "draw",
    "interval",
    "quantiles",
    "student",
]

NUM_DRAWS = 1_000
"""How often blocks are drawn anew; more would not change what an interval tells."""
_MOST_BLOCKS = 500
_FEWEST_BLOCKS = 16
_WINDOW = 5.0
"""A correlation counts up to so many correlation times; beyond is noise (after Sokal)."""


def correlation_time(series: Floats) -> float:
    """Return for how many values the memory of a series lasts: 1 if it has none.

    That is the sum of its autocorrelations over positive and negative lags. The mean of `n` values
    is as uncertain as that of `n / correlation_time` independent ones.
    """
    centred = series - series.mean()
    if len(series) < 2 or not centred.any():  # noqa: PLR2004 - one value has no past
        return 1.0
    size = 1 << (2 * len(series) - 1).bit_length()
    power = np.abs(np.fft.rfft(centred, size)) ** 2
    correlation = np.fft.irfft(power, size)[: len(series)]
    time = 2.0 * np.cumsum(correlation / correlation[0]) - 1.0
    within = np.arange(len(series)) >= _WINDOW * time
    last = int(np.argmax(within)) if within.any() else len(series) - 1
    return max(1.0, float(time[last]))


def block_length(series: Sequence[Floats]) -> int:
    """Return how many values make a block, for the series with the longest memory.

    It is Carlstein's length for a first-order autoregression with that correlation time: longer
    for a longer memory, and growing with the third root of the length. There are at least 16
    blocks, however long the memory is, and at most 500, because more would not help.
    """
    length = len(series[0])
    time = max(1.0, *(correlation_time(one) for one in series))
    rho = (time - 1.0) / (time + 1.0)
    best: float = (math.sqrt(6.0) * rho / (1.0 - rho**2)) ** (2 / 3) * length ** (1 / 3)
    each = max(math.ceil(best), length // _MOST_BLOCKS)
    return max(1, min(each, length // _FEWEST_BLOCKS))


def blocks(length: int, each: int) -> Ints:
    """Return the number of the block of each value, from 0; the last one may be up to twice long.

    Args:
        length: of the series.
        each: values in a block.
    """
    return np.asarray(np.minimum(np.arange(length) // each, max(length // each, 1) - 1))


def draw(num_blocks: int, seed: int) -> Floats:
    """Return how often each block is drawn, a row for each of `NUM_DRAWS` draws."""
    drawn = np.random.default_rng(seed).multinomial(
        num_blocks, np.full(num_blocks, 1 / num_blocks), size=NUM_DRAWS
    )
    return drawn.astype(np.float64)


def quantiles(counts: Floats, edges: Floats, share: float) -> Floats:
    """Return a quantile of each row of a histogram, placed within its bin by proportion.

    Args:
        counts: a row for each histogram, a column for each bin.
        edges: of the bins.
        share: which quantile, from 0 to 1.
    """
    summed = np.cumsum(counts, axis=1)
    wanted = share * summed[:, -1:]
    index = np.argmax(summed >= wanted, axis=1)
    rows = np.arange(len(counts))
    inside = counts[rows, index]
    before = summed[rows, index] - inside
    part = np.where(inside > 0, (wanted[:, 0] - before) / np.maximum(inside, 1e-300), 0.0)
    return np.asarray(edges[index] + part * (edges[index + 1] - edges[index]))


def interval(
    drawn: Floats, value: float, num_blocks: int, confidence: float
) -> tuple[float, float]:
    """Return the interval around a value in which the truth is with this confidence.

    It spans the middle of what was drawn, widened as Student's t is against a normal distribution,
    because few blocks make draws look more certain than they are.

    Args:
        drawn: the statistic of each draw.
        value: the statistic of the series itself.
        num_blocks: of the series.
        confidence: such as 0.95.
    """
    known = drawn[np.isfinite(drawn)]
    if not len(known) or not math.isfinite(value):
        return math.nan, math.nan
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(known, [tail, 1.0 - tail])
    wider = student(num_blocks - 1, 1.0 - tail) / student(10**9, 1.0 - tail)
    wider *= math.sqrt(num_blocks / max(1, num_blocks - 1))
    return (
        value + wider * min(0.0, float(low) - value),
        value + wider * max(0.0, float(high) - value),
    )


def student(freedom: int, share: float) -> float:
    """Return a quantile of Student's t, by Hill's expansion from that of a normal distribution."""
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))
