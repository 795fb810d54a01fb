"""A custom engine profiles itself, and its times are exact."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import custom_engine
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sched_profiler import Batch, BatchProfiler, BatchRecord, MemorySink, encode, schema
from sched_profiler.errors import RecordError
from sched_profiler.testing import FakeClock

VALIDATOR = jsonschema.Draft202012Validator(schema())
NOTHING_WAITS = {"num_waiting_reqs": 0, "num_running_reqs": 1, "kv_cache_usage": 0.5}


class Bench:
    """A profiler on a fake clock that writes to memory."""

    def __init__(self) -> None:
        self.clock = FakeClock(unix_time_s=1000.0)
        self.sink = MemorySink()
        self.profiler = BatchProfiler(
            self.sink,
            dp_rank=3,
            token_budget=256,
            background=False,
            clock=self.clock,
            strict=True,
        )

    @property
    def records(self) -> list[BatchRecord]:
        return self.sink.records

    def schedule(self, ms: float, *, prefill: list[int] | None = None) -> Batch:
        batch = self.profiler.begin()
        self.clock.advance(ms)
        batch.scheduled(
            prefill_chunk_sizes=prefill or [], decode_chunk_sizes=[1, 1], **NOTHING_WAITS
        )
        return batch


@pytest.fixture
def bench() -> Bench:
    """Return a profiler on a fake clock."""
    return Bench()


def test_a_synchronous_engine_has_exact_times(bench: Bench) -> None:
    """Schedule, model, idle and total are what the clock says; nothing queues."""
    for _ in range(2):
        with bench.profiler.schedule() as batch:
            bench.clock.advance(2.5)
            batch.scheduled(prefill_chunk_sizes=[64, 3], decode_chunk_sizes=[1, 4], **NOTHING_WAITS)
        with batch.model_run():
            bench.clock.advance(40)
        bench.clock.advance(1.25)  # taking in the result
    first, second = bench.records
    assert (first.batch_id, second.batch_id) == (0, 1)
    assert (first.timestamp, second.timestamp) == (1000.0, 1000.04375)
    for record in (first, second):
        assert record.schedule_duration_ms == 2.5
        assert record.model_run_duration_ms == 40.0
        assert record.total_step_duration_ms == 42.5
        assert record.queue_duration_ms == 0.0
        assert record.num_inflight_batches == 0
    # The first batch made the model wait for its own scheduling, the second for the update too.
    assert first.idle_duration_ms == 2.5
    assert second.idle_duration_ms == 3.75


def test_a_batch_behind_another_queues_and_does_not_count_the_model_twice(bench: Bench) -> None:
    """Two batches in flight: the second has the model from the first one's result on."""
    first = bench.schedule(1)
    first.submitted()
    bench.clock.advance(4)
    second = bench.schedule(1)
    second.submitted()
    bench.clock.advance(5)
    first.finished()
    bench.clock.advance(10)
    second.finished()
    one, two = bench.records
    assert (one.model_run_duration_ms, one.queue_duration_ms) == (10.0, 0.0)
    assert (two.model_run_duration_ms, two.queue_duration_ms) == (10.0, 5.0)
    assert two.total_step_duration_ms == 16.0
    assert two.idle_duration_ms == 0.0
    assert (one.num_inflight_batches, two.num_inflight_batches) == (0, 1)


def test_time_until_the_hand_over_is_queueing_and_leaves_the_model_idle(bench: Bench) -> None:
    """What lies between the end of scheduling and the hand-over is neither schedule nor model."""
    batch = bench.schedule(1)
    bench.clock.advance(3)
    batch.submitted()
    bench.clock.advance(7)
    batch.finished()
    (record,) = bench.records
    assert record.queue_duration_ms == 3.0
    assert record.idle_duration_ms == 4.0
    assert record.total_step_duration_ms == 11.0


def test_contents_become_counts_sums_and_statistics(bench: Bench) -> None:
    """The chunk lists are all an engine has to give."""
    batch = bench.profiler.begin()
    batch.scheduled(
        prefill_chunk_sizes=[100, 50],
        decode_chunk_sizes=[1, 1, 3],
        num_waiting_reqs=7,
        num_running_reqs=5,
        kv_cache_usage=0.123456789,
        num_new_reqs=2,
        request_ids=["a", "b", "c", "d", "e"],
    )
    batch.finished(num_generated_tokens=4, num_accepted_tokens=1)
    (record,) = bench.records
    assert (record.num_prefill_reqs, record.num_decode_reqs) == (2, 3)
    assert (record.num_prefill_tokens, record.num_decode_tokens) == (150, 5)
    assert record.total_scheduled_tokens == 155
    assert record.avg_prefill_chunk_size == 75.0
    assert (record.max_prefill_chunk_size, record.min_prefill_chunk_size) == (100, 50)
    assert record.avg_decode_chunk_size == 1.67
    assert (record.num_waiting_reqs, record.num_running_reqs) == (7, 5)
    assert record.kv_cache_usage == 0.123457
    assert (record.num_new_reqs, record.num_generated_tokens) == (2, 4)
    assert record.num_accepted_tokens == 1
    assert record.request_ids == ["a", "b", "c", "d", "e"]
    assert (record.dp_rank, record.token_budget, record.schema_version) == (3, 256, 1)
    assert record.run_id == bench.profiler.run_id
    assert record.num_draft_tokens is None  # unknown, not 0
    assert record.update_duration_ms is None


def test_an_empty_batch_leaves_no_record_and_its_time_is_idle(bench: Bench) -> None:
    """It takes no identifier either, so it is no gap; the wall time stays whole."""
    bench.schedule(1).finished()
    with bench.profiler.schedule() as batch:
        bench.clock.advance(5)
        batch.scheduled(prefill_chunk_sizes=[], decode_chunk_sizes=[], **NOTHING_WAITS)
    with batch.model_run():
        bench.clock.advance(20)
    bench.schedule(1).finished()
    assert [record.batch_id for record in bench.records] == [0, 1]
    assert bench.records[1].idle_duration_ms == 26.0


def test_an_engine_that_measures_scheduling_only_has_null_model_times(bench: Bench) -> None:
    """Null, never zero."""
    bench.schedule(2).finished(model_ran=False)
    (record,) = bench.records
    assert record.schedule_duration_ms == 2.0
    assert record.model_run_duration_ms is None
    assert record.total_step_duration_ms is None
    assert record.queue_duration_ms is None
    assert record.idle_duration_ms is None


def test_an_exception_of_the_engine_passes_and_its_batch_is_recorded(bench: Bench) -> None:
    """The batch that brought the engine down is the one to look at."""
    batch = bench.schedule(1, prefill=[512])
    with pytest.raises(ZeroDivisionError), batch.model_run():
        1 / 0  # noqa: B018 - the model fails
    (record,) = bench.records
    assert record.model_run_duration_ms is None
    assert record.prefill_chunk_sizes == [512]


def test_an_exception_of_the_scheduler_passes_and_leaves_no_record(bench: Bench) -> None:
    """There was no batch."""
    with pytest.raises(ZeroDivisionError), bench.profiler.schedule():
        1 / 0  # noqa: B018 - the scheduler fails
    assert bench.records == []


def test_closing_records_the_batches_in_flight(bench: Bench) -> None:
    """A run that ends early shows what it was at, and leaves no gap."""
    bench.schedule(1)
    bench.schedule(1)
    bench.profiler.close()
    assert [r.batch_id for r in bench.records] == [0, 1]
    assert [r.model_run_duration_ms for r in bench.records] == [None, None]
    bench.profiler.close()
    assert len(bench.records) == 2


def test_a_batch_that_ends_twice_is_recorded_once(bench: Bench) -> None:
    """A custom engine's mistake must not falsify the log."""
    batch = bench.schedule(1)
    batch.finished()
    batch.finished()
    batch.scheduled(prefill_chunk_sizes=[9], decode_chunk_sizes=[], **NOTHING_WAITS)
    batch.finished()
    assert len(bench.records) == 1


def test_malformed_contents_are_counted_and_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The engine goes on; the next record tells how many are missing."""
    sink = MemorySink()
    profiler = BatchProfiler(sink, background=False)
    for usage in (7.0, 0.5):
        batch = profiler.begin()
        batch.scheduled(
            prefill_chunk_sizes=[1],
            decode_chunk_sizes=[],
            num_waiting_reqs=0,
            num_running_reqs=1,
            kv_cache_usage=usage,
        )
        batch.finished()
    (record,) = sink.records
    assert (record.batch_id, record.num_dropped_records) == (1, 1)
    assert profiler.num_dropped_records == 1
    assert "kv_cache_usage is 7.0; expected at most 1" in caplog.text


def test_a_field_that_there_is_not_is_refused_at_the_call(bench: Bench) -> None:
    """Where the author sees it, and not on the writer's thread; nothing is recorded."""
    batch = bench.profiler.begin()
    with pytest.raises(TypeError, match=r"no num_prefils; there are .*num_new_reqs, "):
        batch.scheduled(
            prefill_chunk_sizes=[1],
            decode_chunk_sizes=[],
            num_prefils=1,  # type: ignore[call-arg]  # the mistake
            **NOTHING_WAITS,
        )
    assert bench.records == []


def test_a_wall_clock_stepped_back_changes_no_duration(bench: Bench) -> None:
    """Durations come from the monotonic clock, timestamps follow the wall clock."""
    batch = bench.schedule(1)
    bench.clock.step_wall_clock(-100_000)
    bench.clock.advance(9)
    batch.finished()
    (record,) = bench.records
    assert record.total_step_duration_ms == 10.0
    assert record.timestamp == 900.0


steps = st.lists(
    st.tuples(*(st.integers(0, 30_000).map(lambda us: us / 1000) for _ in range(5))),
    min_size=1,
    max_size=40,
)


@given(steps, st.integers(1, 4))
def test_times_add_up_however_batches_overlap(
    durations: list[tuple[float, ...]], depth: int
) -> None:
    """Total = schedule + queue + model_run; wall = Σ(model_run + idle), whatever is in flight."""
    bench = Bench()
    in_flight: list[Batch] = []
    began = bench.clock.time_ns()
    for schedule_ms, submit_ms, model_ms, update_ms, gap_ms in durations:
        batch = bench.schedule(schedule_ms)
        bench.clock.advance(submit_ms)
        batch.submitted()
        in_flight.append(batch)
        if len(in_flight) == depth:
            bench.clock.advance(model_ms)
            in_flight.pop(0).finished()
            ended = bench.clock.time_ns()
            bench.clock.advance(update_ms)
        bench.clock.advance(gap_ms)
    for batch in in_flight:
        bench.clock.advance(1)
        batch.finished()
        ended = bench.clock.time_ns()
    wall_ms = (ended - began) / 1e6
    parts = 0.0
    for record in bench.records:
        assert record.model_run_duration_ms is not None
        assert record.queue_duration_ms is not None
        assert record.idle_duration_ms is not None
        assert record.queue_duration_ms >= 0
        assert record.idle_duration_ms >= 0
        assert record.total_step_duration_ms == pytest.approx(
            record.schedule_duration_ms + record.queue_duration_ms + record.model_run_duration_ms,
            abs=1e-6,
        )
        parts += record.model_run_duration_ms + record.idle_duration_ms
    assert len(bench.records) == len(durations)
    assert parts == pytest.approx(wall_ms, abs=1e-5)


def test_the_example_engine_profiles_itself_exactly() -> None:
    """Its records say what an independent count of its requests says."""
    bench = Bench()
    engine = custom_engine.Engine(
        bench.profiler, run_model=lambda tokens: bench.clock.advance(2 + tokens / 100)
    )
    rng = random.Random(1)
    load = [(rng.choice([1, 20, 300, 1500]), rng.randint(1, 40)) for _ in range(60)]
    engine.run(custom_engine.Request(prompt, output) for prompt, output in load)
    records = bench.records
    assert sum(r.total_scheduled_tokens for r in records) == sum(p + o - 1 for p, o in load)
    assert sum(r.num_prefill_tokens or 0 for r in records) == sum(p for p, _ in load)
    assert [r.batch_id for r in records] == list(range(len(records)))
    assert max(r.total_scheduled_tokens for r in records) <= 256
    for record in records:
        model_ms = 2 + record.total_scheduled_tokens / 100
        assert record.model_run_duration_ms == pytest.approx(model_ms)
        assert set(record.decode_chunk_sizes) <= {1}
    # Every request leaves one mark per token it generated after its prefill.
    assert sum(r.num_decode_reqs for r in records) == sum(o - 1 for _, o in load)
    mixed = [r for r in records if r.num_prefill_reqs and r.num_decode_reqs]
    assert mixed, "the load must form mixed batches, or this shows little"


def test_the_example_runs_as_documented(tmp_path: Path) -> None:
    """`python examples/custom_engine.py` leaves a log without loss."""
    done = subprocess.run(
        [sys.executable, custom_engine.__file__],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (tmp_path / "custom_engine.jsonl").read_text().splitlines()
    assert [json.loads(line)["batch_id"] for line in lines] == list(range(len(lines)))
    assert f"scheduler profile: {len(lines)} batches" in done.stderr
    assert "custom_engine.jsonl" in done.stdout


def test_batches_are_numbered_without_a_gap_across_threads() -> None:
    """Identifiers are given out one by one, whoever asks, and no record is lost."""
    sink = MemorySink()
    with BatchProfiler(sink, strict=True) as profiler:
        all_there = threading.Barrier(5)

        def serve(is_there: threading.Event) -> None:
            is_there.set()
            all_there.wait(60)
            for _ in range(500):
                batch = profiler.begin()
                batch.scheduled(prefill_chunk_sizes=[1], decode_chunk_sizes=[], **NOTHING_WAITS)
                batch.finished()

        threads = []
        # One after the other: two that start at once are too much for a tracer such as coverage's.
        for _ in range(4):
            is_there = threading.Event()
            threads.append(threading.Thread(target=serve, args=(is_there,)))
            threads[-1].start()
            assert is_there.wait(60)
        interval = sys.getswitchinterval()
        # So that threads meet in every place.
        sys.setswitchinterval(1e-6)
        all_there.wait(60)
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert sorted(r.batch_id for r in sink.records) == list(range(2000))


@given(
    prefill=st.lists(st.integers(1, 10**5), max_size=30),
    decode=st.lists(st.integers(1, 8), max_size=30),
    queues=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    usage=st.floats(0, 1),
)
def test_whatever_an_engine_reports_becomes_a_consistent_and_valid_record(
    prefill: list[int], decode: list[int], queues: tuple[int, int], usage: float
) -> None:
    """Counts, sums and statistics follow from the chunk lists; the line fits the schema."""
    bench = Bench()
    batch = bench.profiler.begin()
    batch.scheduled(
        prefill_chunk_sizes=prefill,
        decode_chunk_sizes=decode,
        num_waiting_reqs=queues[0],
        num_running_reqs=queues[1],
        kv_cache_usage=usage,
    )
    batch.finished()
    if not prefill and not decode:
        assert bench.records == []
        return
    (record,) = bench.records
    assert (record.num_prefill_reqs, record.num_decode_reqs) == (len(prefill), len(decode))
    assert record.total_scheduled_tokens == sum(prefill) + sum(decode)
    if prefill:
        ascending = sorted(prefill)
        assert record.min_prefill_chunk_size == ascending[0]
        assert record.max_prefill_chunk_size == ascending[-1]
        assert record.avg_prefill_chunk_size is not None
        assert min(prefill) <= record.avg_prefill_chunk_size <= max(prefill)
    else:
        statistics = ("avg", "max", "min")
        assert [getattr(record, f"{s}_prefill_chunk_size") for s in statistics] == [None] * 3
    assert (record.avg_decode_chunk_size is None) == (not decode)
    VALIDATOR.validate(json.loads(encode(record)))


def test_numbers_of_numpy_are_numbers() -> None:
    """An engine that counts with NumPy gets the same record."""
    np = pytest.importorskip("numpy")
    bench = Bench()
    batch = bench.profiler.begin()
    batch.scheduled(
        prefill_chunk_sizes=[np.int64(5)],
        decode_chunk_sizes=list(np.ones(2, dtype=np.int32)),
        num_waiting_reqs=np.uint8(3),
        num_running_reqs=3,
        kv_cache_usage=np.float32(0.5),
    )
    batch.finished()
    (record,) = bench.records
    assert json.loads(encode(record))["decode_chunk_sizes"] == [1, 1]
    assert type(record.num_waiting_reqs) is int
    assert record.kv_cache_usage == 0.5


@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_chunks_may_be_arrays(module: str) -> None:
    """Of any length: an array has no truth value."""
    library = pytest.importorskip(module)
    bench = Bench()
    for prefill, decode in (([3, 4], [1]), ([], [1, 1]), ([], [])):
        batch = bench.profiler.begin()
        batch.scheduled(
            prefill_chunk_sizes=library.asarray(prefill, dtype=library.int64),
            decode_chunk_sizes=library.asarray(decode, dtype=library.int64),
            **NOTHING_WAITS,
        )
        batch.finished()
    assert [record.prefill_chunk_sizes for record in bench.records] == [[3, 4], []]
    assert [record.decode_chunk_sizes for record in bench.records] == [[1], [1, 1]]


@pytest.mark.parametrize("chunks", [None, 5])
def test_chunks_that_cannot_be_do_not_reach_the_engine(
    chunks: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The batch leaves a gap and is counted, however many there are; a test hears of it."""
    sink = MemorySink()
    with BatchProfiler(sink, background=False) as profiler:
        for sizes in (chunks, chunks, chunks, chunks, [1]):
            with profiler.schedule() as batch:
                batch.scheduled(prefill_chunk_sizes=sizes, decode_chunk_sizes=[], **NOTHING_WAITS)
            with batch.model_run():
                pass
    assert [(record.batch_id, record.num_dropped_records) for record in sink.records] == [(4, 4)]
    assert caplog.text.count(f"prefill_chunk_sizes is {chunks} and decode") == 1
    assert "switched off" not in caplog.text
    batch = BatchProfiler(sink, background=False, strict=True).begin()
    with pytest.raises(RecordError, match="expected the tokens of each request"):
        batch.scheduled(prefill_chunk_sizes=chunks, decode_chunk_sizes=[], **NOTHING_WAITS)


def test_strict_tells_of_what_failed_in_the_background() -> None:
    """At the end of the block: a run without records is not well."""

    class Refusing(MemorySink):
        def write(self, record: BatchRecord) -> None:
            raise OSError(28, "No space left on device")

    with (
        pytest.raises(OSError, match="No space left"),
        BatchProfiler(Refusing(), strict=True) as profiler,
        profiler.schedule() as batch,
    ):
        batch.scheduled(prefill_chunk_sizes=[1], decode_chunk_sizes=[], **NOTHING_WAITS)


@pytest.mark.parametrize("value", ["3", 2.5, True, [1]])
def test_a_count_that_is_no_whole_number_is_refused(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The analysis would refuse it; the log names the field and the value, the engine goes on."""
    sink = MemorySink()
    profiler = BatchProfiler(sink, background=False)
    batch = profiler.begin()
    batch.scheduled(
        prefill_chunk_sizes=[1],
        decode_chunk_sizes=[],
        num_waiting_reqs=value,
        num_running_reqs=1,
        kv_cache_usage=0.0,
    )
    batch.finished()
    assert sink.records == []
    assert profiler.num_dropped_records == 1
    assert f"num_waiting_reqs is {value!r}; expected int" in caplog.text
