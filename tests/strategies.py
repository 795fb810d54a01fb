"""Hypothesis strategies for records."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import strategies as st

from sched_profiler.record import BatchRecord, chunk_statistics

_chunks = st.lists(st.integers(1, 100_000), max_size=40)
_durations = st.floats(0, 1e7).map(lambda ms: round(ms, 3))
_counts = st.integers(0, 10**9)


@st.composite
def records(draw: st.DrawFn) -> BatchRecord:
    """Any record that an engine could leave."""
    prefill, decode = draw(_chunks), draw(_chunks)
    average, largest, smallest = chunk_statistics(prefill)
    model_ran = draw(st.booleans())
    schedule, queue, model = draw(_durations), draw(_durations), draw(_durations)
    return BatchRecord(
        batch_id=draw(_counts),
        timestamp=draw(st.floats(0, 4e9)),
        schedule_duration_ms=schedule,
        model_run_duration_ms=model if model_ran else None,
        total_step_duration_ms=round(schedule + queue + model, 3) if model_ran else None,
        num_prefill_reqs=len(prefill),
        num_decode_reqs=len(decode),
        total_scheduled_tokens=sum(prefill) + sum(decode),
        prefill_chunk_sizes=prefill,
        decode_chunk_sizes=decode,
        avg_prefill_chunk_size=average,
        max_prefill_chunk_size=largest,
        min_prefill_chunk_size=smallest,
        avg_decode_chunk_size=chunk_statistics(decode)[0],
        num_waiting_reqs=draw(_counts),
        num_running_reqs=draw(_counts),
        kv_cache_usage=draw(st.floats(0, 1)),
        **draw(st.fixed_dictionaries({}, optional=_optional_fields())),
    )


def _optional_fields() -> dict[str, st.SearchStrategy[Any]]:
    by_type = {
        int | None: _counts,
        float | None: _durations,
        str | None: st.text(max_size=12),
        list[str] | None: st.lists(st.text(max_size=8), max_size=5),
    }
    fields = {
        field.name: by_type[field.type]
        for field in attrs.fields(BatchRecord)
        if field.default is None
    }
    fields["schema_version"] = st.just(1)
    return fields
