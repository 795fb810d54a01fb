"""A record says what a batch was, and its parts agree."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import records

from sched_profiler import BatchRecord, RecordError, chunk_statistics


@given(st.lists(st.integers(1, 10**6), min_size=1))
def test_chunk_statistics_are_ordered_and_true(chunks: list[int]) -> None:
    """Min ≤ mean ≤ max, and all three are what an independent computation says."""
    mean, largest, smallest = chunk_statistics(chunks)
    assert mean is not None
    assert largest is not None
    assert smallest is not None
    assert smallest <= mean <= largest
    ascending = sorted(chunks)
    assert (smallest, largest) == (ascending[0], ascending[-1])
    assert math.isclose(mean, math.fsum(chunks) / len(chunks), abs_tol=0.00501)


def test_chunk_statistics_of_nothing_are_null() -> None:
    """A zero would drag every mean down."""
    assert chunk_statistics([]) == (None, None, None)


@given(records())
def test_a_consistent_record_passes_its_check(record: BatchRecord) -> None:
    """Counts and sums of the chunk lists agree with the totals."""
    record.check()
    assert record.num_prefill_reqs == len(record.prefill_chunk_sizes)
    assert record.num_decode_reqs == len(record.decode_chunk_sizes)
    chunks = record.prefill_chunk_sizes + record.decode_chunk_sizes
    assert record.total_scheduled_tokens == sum(chunks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_prefill_reqs": 3}, "num_prefill_reqs is 3 but prefill_chunk_sizes has 1 entries"),
        ({"num_decode_reqs": 0}, "num_decode_reqs is 0 but decode_chunk_sizes has 2 entries"),
        ({"total_scheduled_tokens": 9}, "total_scheduled_tokens is 9 but the chunk lists add up"),
        ({"decode_chunk_sizes": [1, 0]}, "decode_chunk_sizes is 0; expected at least 1"),
        ({"kv_cache_usage": 1.5}, "kv_cache_usage is 1.5; expected at most 1"),
        ({"num_waiting_reqs": -1}, "num_waiting_reqs is -1; expected at least 0"),
        ({"schedule_duration_ms": math.nan}, "schedule_duration_ms is nan; expected a finite"),
    ],
)
def test_a_check_names_field_value_and_expectation(
    change: dict[str, object], message: str, record: BatchRecord
) -> None:
    """Whoever gets the error can act on it."""
    with pytest.raises(RecordError, match=message):
        attrs.evolve(record, **change).check()


def test_a_record_cannot_be_changed(record: BatchRecord) -> None:
    """Sinks share it."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        record.batch_id = 7  # type: ignore[misc]  # that is the point
