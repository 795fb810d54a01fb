"""A quantity over time, in intervals."""

from __future__ import annotations

import numpy as np
import pytest

from sched_profiler.analysis.bands import Bands


def test_bands_are_the_quantiles_of_equal_intervals() -> None:
    """Computed a second time with numpy, an interval after the other."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 70, 500), rng.lognormal(size=500)
    x = np.concatenate((x[(x < 30) | (x > 40)], [0.0, 70.0]))
    y = y[: len(x)]
    bands = Bands.of(x, y, np.ones(len(x), dtype=np.int64), 7)
    assert bands.x.tolist() == [5, 15, 25, 35, 45, 55, 65]
    for number, middle in enumerate(bands.x):
        inside = y[(x >= middle - 5) & ((x < middle + 5) | (middle == 65))]
        if number == 3:
            assert np.isnan([bands.mean[3], bands.p5[3], bands.median[3], bands.largest[3]]).all()
            continue
        assert bands.mean[number] == pytest.approx(inside.mean())
        assert bands.p5[number] == pytest.approx(np.quantile(inside, 0.05))
        assert bands.median[number] == pytest.approx(np.median(inside))
        assert bands.p95[number] == pytest.approx(np.quantile(inside, 0.95))
        assert bands.largest[number] == inside.max()
