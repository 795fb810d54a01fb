"""The batches by which the findings of a long run are concluded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sched_profiler.analysis import sample
from sched_profiler.analysis.sample import COLUMNS, Sample, share_out

_STRETCH = 512


def sample_of(*numbers: int) -> Sample:
    """Return a sample of the stretches of these numbers."""
    ids = (np.array(numbers)[:, None] * _STRETCH + np.arange(_STRETCH)).ravel()
    made = Sample()
    add(made, ids)
    return made


def add(made: Sample, ids: np.ndarray) -> None:
    """Add batches with these numbers, and with their number in every column."""
    made.add(np.arange(len(ids)), ids, dict.fromkeys(COLUMNS, ids.astype(np.float64)))


def stretches_of(made: Sample) -> list[int]:
    """Return the numbers of the stretches that are kept, all of which must be whole."""
    ids = made.columns()["batch_id"].astype(np.int64)
    assert (np.diff(ids) > 0).all()
    numbers, counts = np.unique(ids // _STRETCH, return_counts=True)
    assert set(counts) <= {_STRETCH}
    assert len(made) == len(ids)
    return [int(number) for number in numbers]


def test_what_is_kept_is_spread_evenly_over_the_run() -> None:
    """However many stretches there is room for."""
    made = sample_of(*range(64))
    made.cut(16)
    assert stretches_of(made) == list(range(0, 64, 4))
    made.cut(5)
    assert stretches_of(made) == [0, 8, 16, 32, 48]
    columns = made.columns()
    assert columns["kv_cache_usage"].tolist() == columns["batch_id"].tolist()


@given(
    order=st.permutations(range(24)),
    cuts=st.lists(st.integers(6, 24), min_size=24, max_size=24),
    most=st.integers(1, 6),
)
def test_it_does_not_matter_how_a_run_is_cut_into_parts(
    order: list[int], cuts: list[int], most: int
) -> None:
    """Nor in which order they come, and what was already left out of them."""
    whole = sample_of(*range(12))
    whole.cut(most)
    merged = Sample()
    for half, cut in zip(order, cuts, strict=True):
        part = Sample()
        # Half a stretch: the other half is in another part.
        add(part, np.arange(half * _STRETCH // 2, (half + 1) * _STRETCH // 2))
        part.cut(cut)
        merged.merge(part)
        merged.cut(cut)
    merged.cut(most)
    assert stretches_of(merged) == stretches_of(whole)


def test_what_was_cut_does_not_come_back() -> None:
    """Half of a stretch would pass for one."""
    made = sample_of(0, 1, 2)
    made.cut(2)
    assert stretches_of(made) == [0, 2]
    add(made, np.arange(_STRETCH, 2 * _STRETCH))
    assert stretches_of(made) == [0, 2]


def test_runs_share_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short one keeps all, and even of too many each keeps something."""
    monkeypatch.setattr(sample, "MAX_STRETCHES", 10)
    runs = [sample_of(*range(count)) for count in (2, 30, 30)]
    share_out(runs)
    assert [run.num_stretches for run in runs] == [2, 4, 4]
    runs = [sample_of(*range(7, 9)) for _ in range(30)]
    share_out(runs)
    assert [run.num_stretches for run in runs] == [1] * 30
    share_out([])
