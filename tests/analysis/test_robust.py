"""Statistics that a few wild values cannot move."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sched_profiler.analysis.robust import (
    chance_of_as_many,
    change_point,
    period,
    rolling_median,
    spread,
)


def test_the_spread_of_normal_values_is_their_standard_deviation() -> None:
    """Also with a few wild ones."""
    values = np.random.default_rng(0).normal(5, 2, 4000)
    values[:100] = 1e9
    assert spread(values) == pytest.approx(2, rel=0.1)


def test_a_rolling_median_has_no_edges() -> None:
    """There it takes the values that are there."""
    values = np.array([1.0, 9.0, 2.0, np.nan, 3.0])
    assert rolling_median(values, 3).tolist() == [5.0, 2.0, 5.5, 2.5, 3.0]


def test_chances_are_those_of_poisson() -> None:
    """Summed up by hand."""
    assert chance_of_as_many(0, 2.0) == 1.0
    assert chance_of_as_many(3, 2.0) == pytest.approx(1 - math.exp(-2) * (1 + 2 + 2))
    assert chance_of_as_many(200, 1.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("index", [6, 20, 33])
def test_a_step_is_found_where_it_is(index: int) -> None:
    """And told from a slope."""
    values = np.random.default_rng(index).normal(0, 0.1, 40)
    values[index:] += 1
    change = change_point(values)
    assert change.index == index
    assert change.is_step
    assert (change.before, change.after) == pytest.approx((0, 1), abs=0.15)
    assert change.noise == pytest.approx(0.1, rel=0.5)
    assert not change_point(np.linspace(0, 1, 40)).is_step


@given(
    length=st.integers(5, 500),
    start=st.integers(0, 10_000),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(20, 200),
)
def test_a_planted_period_is_found_between_others(
    length: int, start: int, seed: int, count: int
) -> None:
    """Some of it may be missing, and a quarter as many numbers come at random."""
    rng = np.random.default_rng(seed)
    planted = start + length * np.arange(count)
    planted = planted[rng.random(count) > 0.05]
    others = rng.integers(start, start + length * count, count // 4)
    found = period(np.union1d(planted, others))
    assert found is not None
    assert found.length == length
    assert found.count >= len(planted)


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 300),
    per_number=st.floats(1.5, 500),
)
def test_random_numbers_have_no_period(seed: int, count: int, per_number: float) -> None:
    """However close they are, as long as they are not all there are."""
    rng = np.random.default_rng(seed)
    assert period(np.unique(rng.integers(0, int(per_number * count) + 1, count))) is None
