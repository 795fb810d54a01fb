"""A quantity over time, in intervals: its middle, its band and its largest value in each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["Bands"]


@attrs.frozen(eq=False)
class Bands:
    """A quantity in equal intervals of x: one number each, NaN in an empty interval."""

    x: Floats
    """Middles of the intervals."""
    mean: Floats
    p5: Floats
    median: Floats
    p95: Floats
    largest: Floats

    @classmethod
    def of(cls, x: Floats, y: Floats, counts: Ints, max_bands: int) -> Bands:
        """Divide values that occur so often into intervals, on average at least 10 in each."""
        num_bands = int(np.clip(counts.sum() // 10, 1, max_bands))
        width = float(np.ptp(x)) / num_bands or 1.0
        band = np.minimum((x - x.min()) // width, num_bands - 1).astype(np.int64)
        order = np.lexsort((y, band))
        ordered, ends = y[order], np.cumsum(counts[order])
        num_values = np.bincount(band, weights=counts, minlength=num_bands)
        sums = np.bincount(band, weights=y * counts, minlength=num_bands)

        def quantile(share: float) -> Floats:
            position = np.cumsum(num_values) - num_values + share * (num_values - 1)
            below, above = (
                ordered[np.searchsorted(ends, rounded(position), side="right").clip(0, len(y) - 1)]
                for rounded in (np.floor, np.ceil)
            )
            return np.where(num_values > 0, below + (above - below) * (position % 1), np.nan)

        return cls(
            x=x.min() + width * (np.arange(num_bands) + 0.5),
            mean=np.where(num_values > 0, sums / np.maximum(num_values, 1), np.nan),
            p5=quantile(0.05),
            median=quantile(0.50),
            p95=quantile(0.95),
            largest=quantile(1.0),
        )
