"""Summing up a log."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import batch, records, seed_record, write_log

from sched_profiler.analysis import Distribution, Summary, load, stats, summarize
from sched_profiler.analysis.sketch import Sketch

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sched_profiler import BatchRecord


@pytest.fixture
def summary_of(tmp_path: Path) -> Any:
    """Return a function that sums up records by way of a log."""

    def summary_of(batches: Iterable[BatchRecord]) -> Summary:
        return summarize(load(write_log(tmp_path / "run.jsonl", batches)))

    return summary_of


def assert_distribution(actual: Distribution | None, values: list[float]) -> None:
    """Compare with Python's own statistics."""
    assert actual is not None
    percentiles = statistics.quantiles(values, n=100, method="inclusive")
    assert actual.count == len(values)
    assert actual.mean == pytest.approx(statistics.fmean(values))
    assert actual.min == min(values)
    assert actual.max == max(values)
    assert actual.p50 == pytest.approx(statistics.median(values))
    assert actual.p95 == pytest.approx(percentiles[94])
    assert actual.p99 == pytest.approx(percentiles[98])


@pytest.mark.parametrize("overlap", [False, True])
def test_a_summary_agrees_with_plain_python(summary_of: Any, overlap: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Every number is computed a second time, from the records and without arrays."""
    log = list(records(1_000, seed=3, overlap=overlap))
    summary = summary_of(log)
    assert summary.num_batches == 1_000
    assert summary.num_runs == 1
    assert_distribution(summary.schedule_duration_ms, [r.schedule_duration_ms for r in log])
    assert_distribution(summary.model_run_duration_ms, [r.model_run_duration_ms for r in log])
    assert_distribution(summary.total_step_duration_ms, [r.total_step_duration_ms for r in log])
    assert_distribution(
        summary.prefill_chunk_size, [chunk for r in log for chunk in r.prefill_chunk_sizes]
    )
    assert_distribution(
        summary.decode_chunk_size, [chunk for r in log for chunk in r.decode_chunk_sizes]
    )
    schedule_ms = sum(r.schedule_duration_ms for r in log)
    model_run_ms = sum(r.model_run_duration_ms for r in log)
    wall_ms = model_run_ms + sum(r.idle_duration_ms for r in log)
    waited_ms = sum(
        min(r.schedule_duration_ms, max(0.0, r.idle_duration_ms - r.queue_duration_ms)) for r in log
    )
    tokens = sum(r.total_scheduled_tokens for r in log)
    prefill_tokens = sum(r.num_prefill_tokens for r in log)
    assert summary.schedule_share_of_step == pytest.approx(
        schedule_ms / sum(r.total_step_duration_ms for r in log)
    )
    assert summary.critical_path_share == pytest.approx(waited_ms / wall_ms)
    assert summary.mean_prefill_reqs == pytest.approx(
        statistics.fmean(r.num_prefill_reqs for r in log)
    )
    assert summary.mean_decode_reqs == pytest.approx(
        statistics.fmean(r.num_decode_reqs for r in log)
    )
    assert summary.total_scheduled_tokens == tokens
    assert summary.prefill_token_share == pytest.approx(prefill_tokens / tokens)
    assert summary.wall_time_s == pytest.approx(wall_ms / 1000)
    assert summary.wall_time_source == "model_run + idle"
    assert "of wall time (the sum of model run and idle)\n" in str(summary)
    assert summary.tokens_per_second == pytest.approx(1000 * tokens / wall_ms)
    assert summary.combined_tokens_per_second == pytest.approx(summary.tokens_per_second)
    assert summary.busy_tokens_per_second == pytest.approx(1000 * tokens / model_run_ms)
    assert summary.max_waiting_reqs == max(r.num_waiting_reqs for r in log)
    assert summary.max_kv_cache_usage == max(r.kv_cache_usage for r in log)
    assert summary.num_dropped_records == 0
    assert summary.num_missing_batches == 0


def test_a_log_of_three_batches_by_hand(summary_of: Any) -> None:
    """A synchronous engine: each batch costs 1 ms of scheduling and 9 ms of model, one pauses."""
    summary = summary_of(
        [
            batch(0, prefill=[90], decode=[]),
            batch(1, decode=[1, 1]),
            # 10 ms without a request, then 1 ms of scheduling
            batch(2, prefill=[6], decode=[1, 1], idle_duration_ms=11.0, num_waiting_reqs=4),
        ]
    )
    assert summary.wall_time_s == pytest.approx(0.040)
    assert summary.schedule_share_of_step == pytest.approx(0.1)
    assert summary.critical_path_share == pytest.approx(3 / 40)
    assert summary.total_scheduled_tokens == 100
    assert summary.tokens_per_second == pytest.approx(2_500)
    assert summary.busy_tokens_per_second == pytest.approx(100 / 0.027)
    assert summary.prefill_token_share == pytest.approx(0.96)
    assert summary.mean_decode_reqs == pytest.approx(4 / 3)
    assert summary.max_waiting_reqs == 4
    chunks = summary.prefill_chunk_size
    assert chunks is not None
    assert (chunks.mean, chunks.p50, chunks.p95) == (48.0, 48.0, pytest.approx(85.8))


def test_scheduling_behind_a_running_model_is_not_on_the_critical_path(summary_of: Any) -> None:
    """Only the part of schedule() for which the model had nothing to do delays it."""
    ready_in_time = batch(0, schedule_ms=4.0, queue_ms=5.0, idle_duration_ms=0.0)
    late_by_1_ms = batch(1, schedule_ms=4.0, queue_ms=0.0, idle_duration_ms=1.0)
    # 2 ms between the end of schedule() and the hand-over are no fault of schedule().
    late_hand_over = batch(2, schedule_ms=4.0, queue_ms=2.0, idle_duration_ms=3.0)
    # The model waited for a request, and then for all of schedule().
    late_request = batch(3, schedule_ms=4.0, queue_ms=0.0, idle_duration_ms=50.0)
    summary = summary_of([ready_in_time, late_by_1_ms, late_hand_over, late_request])
    assert summary.critical_path_share == pytest.approx((0 + 1 + 1 + 4) / (4 * 9 + 54))


def test_what_a_log_lacks_is_none_and_not_zero(tmp_path: Path) -> None:
    """A log of a fork that measures scheduling only still gives all that is in it."""
    log = tmp_path / "seed.jsonl"
    lines = [json.dumps(seed_record(batch(number), measured=False)) for number in range(3)]
    log.write_text("\n".join(lines), encoding="utf-8")
    summary = summarize(load(log))
    assert summary.schedule_duration_ms is not None
    assert summary.prefill_chunk_size is None
    for name in (
        "model_run_duration_ms",
        "total_step_duration_ms",
        "schedule_share_of_step",
        "critical_path_share",
        "busy_tokens_per_second",
        "num_dropped_records",
    ):
        assert getattr(summary, name) is None, name
    assert summary.prefill_token_share == 0.0
    # Batches begin 10 ms apart, and the last takes 1 ms to schedule.
    assert summary.wall_time_source == "timestamps"
    said = "of wall time (from the first timestamp to the end of the last step)\n"
    assert said in str(summary)
    assert summary.wall_time_s == pytest.approx(0.021, abs=1e-6)
    assert summary.tokens_per_second == pytest.approx(3 / 0.021, rel=1e-4)
    text = str(summary)
    assert text.count("not recorded") == 6
    assert "nan" not in text.lower()
    assert "none" in text


def test_without_idle_times_wall_time_ends_with_the_last_step(summary_of: Any) -> None:
    """The timestamps say when steps began; the last one lasts as long as it took."""
    summary = summary_of([batch(number, idle_duration_ms=None) for number in range(3)])
    assert summary.wall_time_source == "timestamps"
    assert summary.wall_time_s == pytest.approx(0.030, abs=1e-6)
    assert summary.critical_path_share is None


def test_one_batch_without_idle_time_makes_timestamps_decide(summary_of: Any) -> None:
    """A sum with a hole in it would make the engine look faster than it is."""
    summary = summary_of([batch(0), batch(1, idle_duration_ms=None), batch(2)])
    assert summary.wall_time_source == "timestamps"


def test_a_batch_without_a_result_leaves_the_wall_time_measured(summary_of: Any) -> None:
    """The idle time of the next batch reaches back to the last result before it."""
    summary = summary_of([batch(0), batch(1, model_run_ms=None), batch(2, idle_duration_ms=11.0)])
    assert summary.wall_time_source == "model_run + idle"
    assert summary.wall_time_s == pytest.approx(0.030)
    assert summary.model_run_duration_ms.count == 2


def test_runs_after_one_another_add_up(summary_of: Any) -> None:
    """The time between runs is nobody's, neither for one engine nor for all."""
    first = [batch(number) for number in range(10)]
    second = [batch(number, run_id="next", timestamp=2e9 + number / 100) for number in range(10)]
    summary = summary_of([*first, *second])
    assert summary.num_runs == 2
    assert summary.wall_time_s == pytest.approx(0.2)
    assert summary.elapsed_time_s == pytest.approx(0.2)
    assert summary.tokens_per_second == pytest.approx(100)
    assert summary.combined_tokens_per_second == pytest.approx(100, rel=1e-4)
    assert summary.num_missing_batches == 0


def test_ranks_side_by_side_are_faster_together(summary_of: Any) -> None:
    """Wall time is that of the engines; the time on the clock passes for all of them at once."""
    ranks = [batch(number, dp_rank=rank) for rank in range(4) for number in range(10)]
    summary = summary_of(ranks)
    assert summary.num_runs == 4
    assert summary.wall_time_s == pytest.approx(0.4)
    assert summary.elapsed_time_s == pytest.approx(0.1)
    assert summary.tokens_per_second == pytest.approx(100)
    assert summary.combined_tokens_per_second == pytest.approx(400, rel=1e-4)
    assert "all runs together" in str(summary)


def test_the_source_of_wall_time_is_mixed_if_runs_differ(summary_of: Any) -> None:
    """Each run is measured as well as its log allows."""
    poor = [batch(number, run_id="poor", idle_duration_ms=None) for number in range(3)]
    summary = summary_of([*poor, batch(0), batch(1)])
    assert summary.wall_time_source == "mixed"
    assert "(of some runs the sum of model run and idle, of others from" in str(summary)
    assert summary.wall_time_s == pytest.approx(0.05, abs=1e-6)


def test_lost_records_are_told_by_the_engine_and_by_gaps(summary_of: Any) -> None:
    """Counts are cumulative in a run and add up over runs; gaps show without any count."""
    summary = summary_of(
        [
            batch(5, num_dropped_records=0),
            batch(8, num_dropped_records=2),
            batch(0, run_id="other", num_dropped_records=3),
            batch(1, run_id="silent"),
        ]
    )
    assert summary.num_dropped_records == 5
    assert summary.num_missing_batches == 2


def test_what_load_left_out_is_in_the_summary(tmp_path: Path) -> None:
    """Also in its text, but only where there was anything."""
    log = write_log(tmp_path / "run.jsonl", records(3))
    quiet = str(summarize(load(log)))
    assert "left out" not in quiet
    log.write_bytes(b"broken\n" + 2 * log.read_bytes() + b'{"batch')
    summary = summarize(load(log, skip_invalid=True))
    assert summary.num_skipped_lines == 1
    assert summary.num_half_written_lines == 1
    assert summary.num_duplicate_batches == 3
    assert str(summary).count("left out") == 3


def test_a_selection_of_rows_can_be_summed_up(tmp_path: Path) -> None:
    """Summaries of parts of a run are what a notebook asks for."""
    log = list(records(200, seed=5))
    df = load(write_log(tmp_path / "run.jsonl", log))
    summary = summarize(df[df["num_prefill_reqs"] > 0])
    chosen = [record for record in log if record.num_prefill_reqs]
    assert summary.num_batches == len(chosen)
    assert_distribution(
        summary.prefill_chunk_size, [chunk for r in chosen for chunk in r.prefill_chunk_sizes]
    )
    nothing = summarize(df.iloc[:0])
    assert nothing.num_batches == 0
    assert nothing.wall_time_s is None
    assert str(nothing).startswith("0 batches of 0 runs\n")


def test_a_frame_made_without_load_can_be_summed_up() -> None:
    """The 17 fields as plain Python values are enough, and even fewer."""
    df = pd.DataFrame([seed_record(record) for record in records(50)])
    summary = summarize(df)
    assert summary.num_runs == 1
    assert summary.decode_chunk_size is not None
    assert summary.num_skipped_lines is None
    few = summarize(df[["schedule_duration_ms"]])
    assert few.schedule_duration_ms == summary.schedule_duration_ms
    assert few.max_waiting_reqs is None
    assert few.total_scheduled_tokens is None


@given(st.lists(st.integers(1, 9) | st.integers(1, 2**31 - 1), min_size=2, max_size=50))
def test_a_distribution_of_counts_is_that_of_the_values(values: list[int]) -> None:
    """Counting chunk sizes instead of keeping them all changes nothing."""
    sizes, counts = np.unique(np.array(values), return_counts=True)
    sketch = Sketch()
    sketch.add(sizes.astype(float), counts)
    assert_distribution(stats._distribution(sketch), [float(v) for v in values])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=8))
def test_elapsed_time_is_the_length_of_a_union(spans: list[tuple[int, int]]) -> None:
    """Counted second by second."""
    seconds = {second for start, length in spans for second in range(start, start + length)}
    starts = np.array([float(start) for start, _ in spans])
    ends = np.array([float(start + length) for start, length in spans])
    assert stats._length_of_union(starts, ends) == len(seconds)


def test_a_summary_is_plain_data(summary_of: Any) -> None:
    """As a dict and as JSON, with null for what is not recorded."""
    summary = summary_of([batch(0, decode=[1, 3])])
    data = json.loads(summary.to_json())
    assert data == summary.to_dict()
    assert data["decode_chunk_size"] == {
        "count": 2,
        "mean": 2.0,
        "min": 1.0,
        "p50": 2.0,
        "p95": pytest.approx(2.9),
        "p99": pytest.approx(2.98),
        "max": 3.0,
        "percentile_error": 0.0,
    }
    assert data["prefill_chunk_size"] is None


def test_the_text_of_a_summary_is_aligned(summary_of: Any) -> None:
    """Numbers stand in columns, with thousands separated."""
    lines = str(summary_of(records(500))).splitlines()
    assert lines[0].startswith("500 batches of 1 run, ")
    table = lines[2:8]
    assert table[0].split() == ["mean", "min", "P50", "P95", "P99", "max"]
    assert len({len(line) for line in table}) == 1
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("on the critical path ") for line in lines)
