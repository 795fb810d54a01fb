"""Intervals for series with a memory."""

from __future__ import annotations

import compare_coverage
import numpy as np
import pytest

from sched_profiler.analysis.bootstrap import (
    NUM_DRAWS,
    block_length,
    blocks,
    correlation_time,
    draw,
    interval,
    quantiles,
)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_correlation_time_of_an_autoregression_is_known(rho: float) -> None:
    """It is (1 + rho) / (1 - rho)."""
    rng = np.random.default_rng(1)
    series = np.log(compare_coverage.autoregression(rng, 20_000, rho))
    assert correlation_time(series) == pytest.approx((1 + rho) / (1 - rho), rel=0.25)
    assert correlation_time(np.ones(50)) == 1.0


def test_a_longer_memory_makes_longer_blocks() -> None:
    """Between the limits of 16 and 500 blocks."""
    rng = np.random.default_rng(2)
    lengths = [
        block_length([compare_coverage.autoregression(rng, 4000, rho)]) for rho in (0.0, 0.9, 0.99)
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] <= 12
    assert lengths[2] <= 250
    assert block_length([np.ones(3)]) == 1


def test_blocks_have_no_short_last_one() -> None:
    """It would weigh as much as the others."""
    assert blocks(10, 4).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert blocks(3, 4).tolist() == [0, 0, 0]


def test_draws_are_as_many_as_there_are_blocks() -> None:
    """And the same for the same seed."""
    counts = draw(7, seed=3)
    assert counts.shape == (NUM_DRAWS, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert (counts == draw(7, seed=3)).all()


def test_quantiles_of_histograms_are_those_of_the_values() -> None:
    """To a hundredth of a bin's width, with many values."""
    values = np.random.default_rng(4).exponential(5, 100_000)
    edges = np.linspace(0, values.max(), 2000)
    counts = np.histogram(values, edges)[0].astype(float)[None, :]
    for share in (0.05, 0.5, 0.99):
        assert quantiles(counts, edges, share)[0] == pytest.approx(
            np.quantile(values, share), rel=0.01
        )


def test_an_interval_is_wider_with_fewer_blocks() -> None:
    """As Student's t is; there is none for what is not known."""
    drawn = np.random.default_rng(5).normal(10, 1, 100_000)
    low, high = interval(drawn, 10.0, 1_000_000, 0.95)
    assert (low, high) == pytest.approx((10 - 1.96, 10 + 1.96), abs=0.03)
    low, high = interval(drawn, 10.0, 16, 0.95)
    # 2.131 is the quantile of t with 15 degrees of freedom.
    assert high - 10 == pytest.approx(2.131 * (16 / 15) ** 0.5, rel=0.02)
    assert np.isnan(interval(np.array([np.nan]), 1.0, 16, 0.95)).all()


def test_intervals_hold_the_truth_where_those_of_single_values_do_not() -> None:
    """A small part of what `bench/compare_coverage.py` measures."""
    found = compare_coverage.coverage(rho=0.9, length=1000, trials=20)
    assert found["mean"] >= 0.8
    assert found["P50"] >= 0.8
    assert found["mean, one by one"] < 0.7
