"""Counts of bounded size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sched_profiler.analysis import sketch
from sched_profiler.analysis.sketch import Sketch, key_of, middle_of, value_of

SHARES = [0.0, 0.05, 0.5, 0.95, 0.99, 1.0]
_numbers = st.floats(allow_nan=False, allow_infinity=False)


def sketch_of(*parts: list[float]) -> Sketch:
    """Return one sketch of all parts, made by merging."""
    whole = Sketch()
    for values in parts:
        part = Sketch()
        part.add(np.array(values, dtype=np.float64))
        whole.merge(part)
    return whole


@given(st.lists(_numbers, min_size=1))
def test_keys_are_in_the_order_of_the_values(numbers: list[float]) -> None:
    """And lead back to them."""
    values = np.array(numbers)
    assert value_of(key_of(values)).tolist() == numbers
    keys = key_of(np.sort(values))
    assert keys.tolist() == np.sort(keys).tolist()


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=50))
def test_a_sketch_of_few_values_is_exact(numbers: list[float]) -> None:
    """Its quantiles are those of NumPy."""
    one = sketch_of(numbers)
    assert one.relative_error == 0.0
    assert one.quantiles(SHARES) == pytest.approx(np.quantile(numbers, SHARES).tolist())
    assert (one.count, one.smallest, one.largest) == (len(numbers), min(numbers), max(numbers))


@given(st.lists(st.floats(1, 500), min_size=30), st.integers(20, 30))
def test_quantiles_of_a_coarse_sketch_keep_the_stated_error(numbers: list[float], few: int) -> None:
    """However few values are told apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketch, "MAX_VALUES", few)
        one = sketch_of(numbers[::2], numbers[1::2])
        values, counts = one.values()
        assert len(values) <= few
        assert counts.sum() == one.count == len(numbers)
        for rank, exact in enumerate(sorted(numbers)):
            (quantile,) = one.quantiles([rank / (len(numbers) - 1)])
            assert quantile == pytest.approx(exact, rel=one.relative_error + 1e-9)


@given(
    st.lists(st.lists(st.floats(0, 1e6), max_size=20), min_size=2, max_size=4),
    st.sampled_from([3, 10, 1000]),
)
def test_the_order_of_merging_changes_nothing(parts: list[list[float]], few: int) -> None:
    """Not even where values had to be taken together; only the sum is rounded differently."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketch, "MAX_VALUES", few)
        whole = Sketch()
        whole.add(np.array(list(itertools.chain.from_iterable(parts))))
        expected = [part.tolist() for part in whole.values()]
        for order in itertools.permutations(parts):
            merged = sketch_of(*order)
            assert [part.tolist() for part in merged.values()] == expected
            assert merged.level == whole.level
            assert merged.total == pytest.approx(whole.total)


def test_a_million_different_values_are_kept_in_little_memory_and_well() -> None:
    """What is stated for a log: at most 0.1 %, and far less for times of one order."""
    values = np.random.default_rng(0).lognormal(2, 1.5, 1_000_000)
    one = Sketch()
    for part in np.split(values, 100):
        one.add(part)
    assert len(one.values()[0]) <= sketch.MAX_VALUES
    assert 0 < one.relative_error < 0.001
    exact = np.quantile(values, SHARES)
    assert np.abs(one.quantiles(SHARES) / exact - 1).max() <= one.relative_error
    assert one.total / one.count == pytest.approx(values.mean())


def test_the_error_of_any_log_is_less_than_a_thousandth() -> None:
    """Also of one with every microsecond from the first to a day, which no engine writes."""
    one = Sketch()
    one.add(np.geomspace(1e-3, 86_400_000, 400_000))
    assert one.relative_error < 0.001


def test_the_middle_of_a_key_is_between_its_ends() -> None:
    """Also where nothing was dropped."""
    keys = key_of(np.array([1.0, 1.5, 1000.0]))
    assert middle_of(keys, 0).tolist() == [1.0, 1.5, 1000.0]
    middles = middle_of(keys >> 44, 44)
    assert middles.tolist() == pytest.approx([1.0, 1.5, 1000.0], rel=0.004)
