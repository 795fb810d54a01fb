"""Least squares with coefficients that are not negative."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["solve"]


def solve(gram: Floats, moments: Floats) -> Floats:
    """Return the x >= 0 with the smallest x' G x - 2 m' x (Lawson and Hanson, active sets).

    Args:
        gram: G, the products of the columns with each other; a column of zeros gets a 0.
        moments: m, the products of the columns with the target.
    """
    size = len(moments)
    scale = np.sqrt(np.diag(gram))
    usable = scale > 0
    scale = np.where(usable, scale, 1.0)
    scaled, target = gram / np.outer(scale, scale), moments / scale
    free = np.zeros(size, dtype=np.bool_)
    x = np.zeros(size)
    tolerance = 1e-10 * max(1e-300, float(np.abs(target).max()))
    for _ in range(3 * size):
        gain = np.where(free | ~usable, -np.inf, target - scaled @ x)
        if gain.max() <= tolerance:
            break
        free[int(np.argmax(gain))] = True
        while free.any():
            trial = np.zeros(size)
            trial[free] = np.linalg.lstsq(scaled[np.ix_(free, free)], target[free], rcond=None)[0]
            if trial[free].min() > 0:
                x = trial
                break
            # As far as the first coefficient that would become negative.
            shrinking = free & (trial <= 0)
            step = float((x[shrinking] / np.maximum(x - trial, 1e-300)[shrinking]).min())
            x += step * (trial - x)
            free &= x > tolerance * 1e-3
            x[~free] = 0.0
    return np.asarray(x / scale)
