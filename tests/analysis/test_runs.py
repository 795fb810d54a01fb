"""Runs, and which of their batches were seen."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sched_profiler.analysis.runs import Ranges, Run

_numbers = st.lists(st.integers(0, 30), max_size=12)


@given(st.lists(_numbers, max_size=5))
def test_ranges_are_a_set(parts: list[list[int]]) -> None:
    """What is new is told for each number, the first of equal ones being new."""
    ranges, known = Ranges(), set[int]()
    for numbers in parts:
        expected = []
        for number in numbers:
            expected.append(number not in known)
            known.add(number)
        is_new = ranges.add(np.array(numbers, dtype=np.int64))
        assert (expected if is_new is None else is_new.tolist()) == expected
        if is_new is None:
            assert all(expected)


@given(_numbers, _numbers)
def test_ranges_overlap_where_they_have_a_number_in_common(one: list[int], two: list[int]) -> None:
    """And can be put together where they have none."""
    first, second = Ranges(), Ranges()
    first.add(np.array(one, dtype=np.int64))
    second.add(np.array(two, dtype=np.int64))
    assert first.overlaps(second) == second.overlaps(first) == bool(set(one) & set(two))
    if not first.overlaps(second):
        first.update(second)
        probe = first.add(np.arange(31))
        is_new = np.ones(31, dtype=bool) if probe is None else probe
        assert set(np.flatnonzero(~is_new).tolist()) == set(one) | set(two)


def test_a_run_without_rows_has_no_time_and_no_gap() -> None:
    """Unknown is None."""
    run = Run()
    run.add(np.empty(0, dtype=np.int64), np.empty(0), {})
    assert run.wall_time_s is None
    assert run.num_missing is None
