"""What the probe leaves behind of a scheduler's life: nothing that grows."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from engine_under_test import until
from real_scheduler import make_request, make_scheduler, model_output
from tiny_model import make_tiny_model
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

import sched_profiler
from sched_profiler import BatchProfiler, BatchRecord, JsonlSink, MemorySink
from sched_profiler.engines.vllm_contents import contents_of
from sched_profiler.engines.vllm_probe import Probe
from sched_profiler.engines.vllm_stamp import CLOCK, STAMP

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("every_hook")]

OURS = str(Path(sched_profiler.__file__).parent / "*")
NUM_STEPS = 6000
# `make soak` asks for a million, and for the figures.
NUM_SOAK_STEPS = int(os.environ.get("SCHED_PROFILER_SOAK_STEPS", "12000"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model: the scheduler reads its configuration."""
    return make_tiny_model(tmp_path_factory.mktemp("model"))


_NO_STAMP = object()


class BlockedSink:
    """Blocks until told to go on, and then counts."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.num_records = 0
        self.last: BatchRecord | None = None

    def write(self, record: BatchRecord) -> None:
        self.go_on.wait()
        self.num_records += 1
        self.last = record

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Life:
    """A scheduler under load: requests come, finish, are preempted, aborted, and fall silent."""

    def __init__(
        self,
        model: Path,
        sink: Any,
        *,
        num_running: int = 8,
        num_blocks: int = 24,
        budget: int = 64,
        strict: bool = True,
        cls: Any = None,
    ) -> None:
        self.scheduler = make_scheduler(
            model,
            max_num_seqs=num_running,
            max_num_batched_tokens=budget,
            num_blocks=num_blocks,
            cls=cls,
        )
        self.num_running = num_running
        self.rng = random.Random(0)
        self.profiler = BatchProfiler(sink, contents_of=contents_of(self.scheduler), strict=strict)
        self.probe = Probe(self.scheduler, self.profiler)
        self.probe.attach()
        self.num_batches = self.num_aborted = self.num_waiting_before = 0

    def step(self, *, skip_result: bool = False, stamp: Any = _NO_STAMP) -> None:
        requests = self.scheduler.requests
        while len(requests) < self.num_running + 2:
            prompt = [self.rng.randrange(10, 500) for _ in range(self.rng.randint(1, 100))]
            request = make_request(prompt, self.rng.randint(1, 40))
            # Sessions that go silent: what they know must go with them.
            request.resumable = self.rng.random() < 0.03
            self.scheduler.add_request(request)
        if self.rng.random() < 0.05:
            self.num_aborted += 1
            self.scheduler.finish_requests(
                self.rng.choice(list(requests)), RequestStatus.FINISHED_ABORTED
            )
        output = self.scheduler.schedule()
        sampled = [
            [] if requests[req_id].is_prefill_chunk else [7]
            for req_id in output.num_scheduled_tokens
        ]
        self.num_waiting_before = self.scheduler.get_request_counts()[1]
        result = model_output(output, sampled)
        if stamp is not _NO_STAMP:
            setattr(result, STAMP, stamp)
        if skip_result:
            self.probe.hook.inner_update(output, result)
        else:
            self.scheduler.update_from_output(output, result)
        self.num_batches += bool(sampled)


def memory_of_ours() -> int:
    """Return the bytes that lines of ours allocated and nobody freed."""
    gc.collect()
    ours = tracemalloc.take_snapshot().filter_traces(
        [tracemalloc.Filter(inclusive=True, filename_pattern=OURS)]
    )
    return sum(trace.size for trace in ours.traces)


def resident_kib() -> int:
    """Return what this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 10


def num_requests_alive() -> int:
    """Return how many requests anybody in this process still keeps."""
    gc.collect()
    return sum(type(thing) is Request for thing in gc.get_objects())


def test_memory_is_flat_over_a_long_life(tiny: Path, tmp_path: Path) -> None:
    """Finished, aborted, preempted and silent requests leave nothing behind."""
    log = tmp_path / "log.jsonl"
    before = num_requests_alive()
    life = Life(tiny, JsonlSink(log))
    tracemalloc.start()
    try:
        sizes = []
        for number in range(NUM_STEPS):
            life.step()
            if number % (NUM_STEPS // 6) == NUM_STEPS // 6 - 1:
                life.profiler.flush()
                sizes.append(memory_of_ours())
                log.unlink()
                log.touch()
    finally:
        tracemalloc.stop()
    assert life.profiler.close()
    assert life.num_batches > NUM_STEPS / 2
    assert life.num_aborted > NUM_STEPS / 50
    # What is there of the requests that are alive differs by a little.
    assert max(sizes[1:]) < sizes[0] + 20_000, sizes
    assert num_requests_alive() - before == len(life.scheduler.requests)


@pytest.mark.timeout(7200)
def test_a_process_does_not_grow(tiny: Path, tmp_path: Path) -> None:
    """Neither what Python has handed out nor what the process holds, whoever allocated it."""
    log = tmp_path / "log.jsonl"
    life = Life(tiny, JsonlSink(log))
    blocks, resident = [], []
    for number in range(NUM_SOAK_STEPS):
        life.step()
        if number % 500 == 0:
            life.profiler.flush()
        if number % (NUM_SOAK_STEPS // 12) == NUM_SOAK_STEPS // 12 - 1:
            life.profiler.flush()
            gc.collect()
            blocks.append(sys.getallocatedblocks())
            resident.append(resident_kib())
            log.unlink()
            log.touch()
    assert life.profiler.close()
    assert life.profiler.num_dropped_records == 0
    if out := os.environ.get("SCHED_PROFILER_SOAK_OUT"):
        found = {"steps": NUM_SOAK_STEPS, "blocks": blocks, "resident_kib": resident}
        Path(out).write_text(json.dumps(found) + "\n", encoding="utf-8")
    # The requests that are alive differ by some hundred blocks; a sixth is for warming up.
    assert max(blocks[2:]) < min(blocks[:2]) + 3000, blocks
    assert max(resident[2:]) < resident[1] + 8 * 1024, resident


def test_a_queue_that_grows_holds_no_number_per_request(tiny: Path) -> None:
    """What is summed up later as a rule is summed up at once when the writer lags behind."""
    sink = BlockedSink()
    life = Life(tiny, sink, num_running=64, num_blocks=1000, budget=4096)
    for _ in range(800):
        life.step()
    queue = list(life.profiler.writer.queue)
    lengths = [len(tuple(tuple(measurement)[5])[8]) for measurement in queue]
    assert max(lengths[:500]) > 40
    assert max(lengths[520:]) == 1
    sink.go_on.set()
    assert life.profiler.close()
    assert sink.num_records == life.num_batches
    assert sink.last.decode_context_tokens > 64 * 30


@pytest.mark.parametrize("raises", [False, True])
def test_a_signal_while_a_result_is_taken_in_leaves_no_gap(tiny: Path, *, raises: bool) -> None:
    """The engine core is asked to end in the middle of vLLM's own update.

    The batch has its result; unless vLLM's handler raises there, then it is recorded without one.
    """
    sink = MemorySink()
    life = Life(tiny, sink)
    for _ in range(5):
        life.step()
    update = life.probe.hook.inner_update

    def interrupted(*args: Any) -> Any:
        life.profiler._end_at_signal()
        if raises:
            raise SystemExit
        return update(*args)

    life.probe.hook.inner_update = interrupted
    with pytest.raises(SystemExit) if raises else contextlib.nullcontext():
        life.step()
    assert life.profiler.close()
    assert [record.batch_id for record in sink.records] == list(range(6))
    results = [record.model_run_duration_ms is not None for record in sink.records]
    assert results == [True] * 5 + [not raises]
    assert life.profiler.num_dropped_records == 0


def test_a_batch_that_could_not_be_measured_leaves_a_gap_and_is_counted(tiny: Path) -> None:
    """Serving goes on, and the next records tell."""
    sink = MemorySink()
    life = Life(tiny, sink, strict=False)
    for number in range(6):
        free_blocks = life.probe.hook.free_blocks
        if number == 3:
            life.probe.hook.free_blocks = None
        life.step()
        life.probe.hook.free_blocks = free_blocks
        life.profiler.flush()
    assert not life.profiler.close(), "not everything could be recorded"
    assert [record.batch_id for record in sink.records] == [0, 1, 2, 4, 5]
    assert [record.num_dropped_records for record in sink.records] == [0, 0, 0, 1, 1]


def test_a_result_that_never_comes_is_given_up_when_a_later_one_does(tiny: Path) -> None:
    """Results come in the order of schedule(): the batch before has none."""
    sink = MemorySink()
    life = Life(tiny, sink)
    life.step()
    life.step(skip_result=True)
    life.step()
    assert life.profiler.close()
    assert [record.batch_id for record in sink.records] == [0, 1, 2]
    assert sink.records[1].model_run_duration_ms is None
    assert sink.records[2].model_run_duration_ms is not None


def test_a_probe_that_is_switched_off_while_it_gives_up_counts_what_it_loses(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three failures are enough; the result that came is then the fourth batch without a record."""
    sink = MemorySink()
    life = Life(tiny, sink, strict=False)
    life.step()
    for _ in range(3):
        life.step(skip_result=True)

    def put(_: Any) -> None:
        raise OSError

    monkeypatch.setattr(life.profiler.writer, "put", put)
    life.step()
    assert life.probe.hook.pending is None
    assert "schedule" not in vars(life.scheduler)
    life.step()
    life.profiler.close()
    assert len(sink.records) == 1
    assert life.profiler.num_dropped_records == 4


@pytest.mark.parametrize("stamp", [None, ()])
def test_a_worker_that_has_nothing_to_say_says_nothing(tiny: Path, stamp: Any) -> None:
    """Then a result is there when the engine takes it."""
    sink = MemorySink()
    life = Life(tiny, sink)
    life.probe.hook.has_workers = True
    life.step(stamp=stamp)
    assert life.profiler.close()
    assert sink.records[0].model_run_duration_ms is not None


def test_a_stamp_from_before_the_hand_over_is_not_believed(tiny: Path) -> None:
    """Nor one from before the result of the batch before: time does not run backwards."""
    sink = MemorySink()
    life = Life(tiny, sink)
    life.probe.hook.has_workers = True
    for _ in range(3):
        life.step(stamp=(CLOCK, 1))
    assert life.profiler.close()
    assert [record.model_run_duration_ms for record in sink.records] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("wrapped", ["schedule", "update_from_output"])
def test_a_probe_that_is_off_keeps_nothing_even_if_somebody_wrapped_it(
    tiny: Path, wrapped: str
) -> None:
    """It cannot be taken out of their way, so it passes calls on."""
    life = Life(tiny, MemorySink(), strict=False)
    theirs = getattr(life.scheduler, wrapped)

    def wrapper(*args: Any) -> Any:
        return theirs(*args)

    setattr(life.scheduler, wrapped, wrapper)
    life.step()
    life.probe.detach()
    for _ in range(20):
        life.step()
    assert life.probe.hook.pending is None
    life.profiler.close()
    assert life.profiler.num_dropped_records == 0


def test_a_schedulers_own_queue_of_the_users_is_asked(tiny: Path) -> None:
    """A subclass may put another queue into the place of vLLM's at any time."""

    class Sorting(Scheduler):  # type: ignore[misc]  # vLLM ships no types
        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            waiting = create_request_queue(self.policy)
            waiting.extend(sorted(self.waiting, key=lambda request: request.num_tokens))
            self.waiting = waiting
            return super().schedule(*args, **kwargs)

    sink = MemorySink()
    life = Life(tiny, sink, num_running=3, cls=Sorting)
    for number in range(6):
        for _ in range(2):
            life.scheduler.add_request(make_request([7] * (20 - number), 5))
        life.step()
        expected = life.num_waiting_before
        life.profiler.flush()
        assert sink.records[-1].num_waiting_reqs == expected > 0
    assert life.profiler.close()


def test_a_batch_after_the_close_is_counted(tiny: Path, tmp_path: Path) -> None:
    """An engine that goes on after the end of the profile does so unharmed."""
    life = Life(tiny, JsonlSink(tmp_path / "log.jsonl"))
    for _ in range(20):
        life.step()
    assert life.profiler.close()
    for _ in range(20):
        life.step()
    assert life.profiler.num_dropped_records == 20
    assert len(Path(tmp_path / "log.jsonl").read_bytes().splitlines()) == life.num_batches - 20


class Awkward(Scheduler):  # type: ignore[misc]  # vLLM ships no types
    """Takes arguments that no vLLM has, and fails when told to."""

    error: BaseException | None = None
    heard: Any = None

    def schedule(self, *args: Any, news: Any = None) -> Any:
        self.heard = args, news
        return super().schedule()

    def update_from_output(
        self, scheduler_output: Any, model_runner_output: Any, news: Any = None
    ) -> Any:
        if self.error is not None:
            raise self.error
        return super().update_from_output(scheduler_output, model_runner_output)


def test_arguments_pass_through_by_place_and_by_name(tiny: Path) -> None:
    """Those that we know and those that we do not."""
    sink = MemorySink()
    life = Life(tiny, sink, cls=Awkward)
    life.scheduler.add_request(make_request([7] * 20, 5))
    for _ in range(2):
        output = life.scheduler.schedule(True, news="a")  # noqa: FBT003 - as vLLM might call it
        assert life.scheduler.heard == ((True,), "a")
        result = model_output(output, [[7]])
        setattr(result, STAMP, (CLOCK, 1))
        life.scheduler.update_from_output(
            news="b", model_runner_output=result, scheduler_output=output
        )
    assert life.profiler.close()
    assert [record.num_generated_tokens for record in sink.records] == [1, 1]


@pytest.mark.parametrize("error", [ValueError("vLLM's own"), KeyboardInterrupt()])
def test_an_exception_of_vllms_passes_through(tiny: Path, error: BaseException) -> None:
    """The batch has no result; the engine sees its exception, and no other."""
    sink = MemorySink()
    life = Life(tiny, sink, cls=Awkward)
    life.step()
    life.scheduler.error = error
    with pytest.raises(type(error)) as caught:
        life.step()
    assert caught.value is error
    assert caught.value.__context__ is None
    life.profiler.close()
    results = [record.model_run_duration_ms is not None for record in sink.records]
    assert results == [True, False]


@pytest.mark.parametrize("strict", [False, True])
def test_a_failure_of_ours_reaches_the_engine_in_tests_only(tiny: Path, *, strict: bool) -> None:
    """The boundary keeps it where it is closed, as it is in production."""
    life = Life(tiny, MemorySink(), strict=strict)
    life.step()
    life.probe.hook.free_blocks = None
    with pytest.raises(AttributeError) if strict else contextlib.nullcontext():
        life.step()
    life.probe.hook.has_workers = True
    life.probe.hook.free_blocks = life.scheduler.kv_cache_manager.block_pool.free_block_queue
    with pytest.raises((TypeError, ValueError)) if strict else contextlib.nullcontext():
        life.step(stamp=("half a stamp",))
    life.profiler.close()
    assert life.profiler.num_dropped_records == 2


def test_an_engine_with_nothing_left_to_serve_has_its_records_written(tiny: Path) -> None:
    """Not up to a poll later: whoever has the last answer may stop it now."""
    scheduler = make_scheduler(tiny, max_num_seqs=4, max_num_batched_tokens=64, num_blocks=100)
    sink = MemorySink()
    profiler = BatchProfiler(sink, contents_of=contents_of(scheduler))
    writer: Any = profiler.writer
    # It comes round when it starts, and then only if it is woken.
    writer._poll_s = 1000
    Probe(scheduler, profiler).attach()
    scheduler.add_request(make_request([5, 6, 7], 3))
    while scheduler.has_requests():
        output = scheduler.schedule()
        result = model_output(output, [[7]] * len(output.num_scheduled_tokens))
        scheduler.update_from_output(output, result)
    until(lambda: len(sink.records) == 3)
    assert profiler.close()
