"""Least squares with coefficients that are not negative."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sched_profiler.analysis.nonnegative import solve


def best_of_all(gram: np.ndarray, moments: np.ndarray) -> float:
    """Return the smallest value over all sets of columns, tried one by one."""
    smallest = 0.0
    for chosen in product([False, True], repeat=len(moments)):
        free = np.array(chosen)
        if not free.any():
            continue
        x = np.linalg.solve(gram[np.ix_(free, free)], moments[free])
        if x.min() >= 0:
            # At the best x of a set, G x = m.
            smallest = min(smallest, -float(moments[free] @ x))
    return smallest


@pytest.mark.parametrize("seed", range(30))
def test_no_other_set_of_columns_does_better(seed: int) -> None:
    """Tried against every one, with columns of very different scales."""
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(40, 5)) * np.array([1, 1e3, 1e-3, 1e6, 1])
    target = design @ (rng.normal(size=5) / np.array([1, 1e3, 1e-3, 1e6, 1])) + rng.normal(size=40)
    gram, moments = design.T @ design, design.T @ target
    x = solve(gram, moments)
    assert (x >= 0).all()
    assert x @ gram @ x - 2 * moments @ x == pytest.approx(best_of_all(gram, moments), rel=1e-6)


def test_a_column_of_zeros_gets_nothing() -> None:
    """Nothing is known of it."""
    design = np.column_stack([np.ones(10), np.zeros(10), np.arange(10)])
    target = design @ np.array([2.0, 7.0, 3.0])
    assert solve(design.T @ design, design.T @ target) == pytest.approx([2, 0, 3])
    assert solve(np.zeros((2, 2)), np.zeros(2)).tolist() == [0, 0]


def test_twins_share_without_an_error() -> None:
    """Two equal columns have no one solution; the sum is right."""
    design = np.column_stack([np.ones(10), np.arange(10), np.arange(10)])
    target = design @ np.array([2.0, 1.0, 3.0])
    x = solve(design.T @ design, design.T @ target)
    assert x[1] + x[2] == pytest.approx(4)
