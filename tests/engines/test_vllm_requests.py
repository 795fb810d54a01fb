"""A request trace of the real vLLM says of each request what vLLM itself says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from real_scheduler import make_request, make_scheduler, model_output
from real_vllm import Run
from tiny_model import make_tiny_model
from vllm.v1.request import RequestStatus

from sched_profiler import BatchProfiler, JsonlSink, MemorySink, SettingError
from sched_profiler.engines import vllm
from sched_profiler.engines.vllm_binding import (
    OF_CLASSES_FOR_TRACE,
    OF_SCHEDULER_FOR_TRACE,
    missing_for_request_trace,
)
from sched_profiler.engines.vllm_contents import contents_of
from sched_profiler.engines.vllm_probe import Probe
from sched_profiler.engines.vllm_requests import RequestProbe
from sched_profiler.request_record import RequestRecord, decode_request
from sched_profiler.request_trace import REQUESTS, RequestTrace
from sched_profiler.settings import Settings
from sched_profiler.sinks.base import SinkContext
from sched_profiler.testing import FakeClock

pytestmark = pytest.mark.vllm


def requests_of(log: Path) -> list[RequestRecord]:
    """Return the request records of a file."""
    return [decode_request(line) for line in log.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model: the scheduler reads its configuration."""
    return make_tiny_model(tmp_path_factory.mktemp("model"))


class Traced:
    """A real scheduler with a probe and a trace."""

    def __init__(self, model: Path, log: Path, *, strict: bool = True, **options: Any) -> None:
        self.scheduler = make_scheduler(model, **options)
        self.clock = FakeClock()
        self.trace = RequestTrace(
            JsonlSink(log, lines=REQUESTS, clock=self.clock),
            run_id="r",
            clock=self.clock,
            background=False,
            strict=strict,
        )
        self.profiler = BatchProfiler(
            MemorySink(), contents_of=contents_of(self.scheduler), background=False, strict=strict
        )
        self.requests = RequestProbe(self.scheduler, self.trace)
        Probe(self.scheduler, self.profiler).attach()
        self.requests.attach()

    def step(self) -> None:
        """Schedule, and bring each request that is not in prefill a token, 10 ms later."""
        output = self.scheduler.schedule()
        sampled = [
            [] if self.scheduler.requests[req_id].is_prefill_chunk else [7]
            for req_id in output.num_scheduled_tokens
        ]
        self.clock.advance(10)
        self.scheduler.update_from_output(output, model_output(output, sampled))


def test_a_trace_of_a_scheduler_under_pressure_is_exact(tiny: Path, tmp_path: Path) -> None:
    """Chunks, the prefix cache, preemptions and aborts."""
    rng = random.Random(1)
    life = Traced(
        tiny, tmp_path / "t.jsonl", num_blocks=24, max_num_batched_tokens=64, max_num_seqs=8
    )
    known: dict[int, Any] = {}
    shared = [rng.randrange(10, 500) for _ in range(48)]
    for number in range(40):
        prompt = shared * (number % 2) + [rng.randrange(10, 500) for _ in range(rng.randint(1, 90))]
        request = make_request(prompt, rng.randint(1, 40))
        known[number] = request, life.clock.time_ns() / 1e9
        life.scheduler.add_request(request)
        life.step()
        if number % 9 == 8:
            life.scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
    last = make_request([1, 2, 3], 5)
    while life.scheduler.has_unfinished_requests():
        life.step()
    life.scheduler.add_request(last)
    life.trace.close()
    records = {record.request_number: record for record in requests_of(tmp_path / "t.jsonl")}
    assert sorted(records) == list(range(41))
    assert records[40].outcome == "unfinished"
    assert records[40].num_cached_tokens is None
    for number, (request, arrived) in known.items():
        record = records[number]
        assert record.arrival_time == arrived
        assert record.num_prompt_tokens == request.num_prompt_tokens
        assert record.num_output_tokens == request.num_output_tokens
        assert record.num_preemptions == request.num_preemptions
        aborted = request.status == RequestStatus.FINISHED_ABORTED
        assert record.outcome == ("aborted" if aborted else "finished")
        assert (record.first_token_time is not None) == (request.num_output_tokens > 0)
        if record.first_token_time is not None:
            assert record.end_time is not None
            assert arrived < record.first_token_time <= record.end_time
        if record.outcome == "finished" and not record.num_preemptions:
            # A token a step, once it has the first.
            steps = round(((record.end_time or 0) - (record.first_token_time or 0)) / 0.01)
            assert steps == record.num_output_tokens - 1
    assert sum(record.num_preemptions for record in records.values()) > 0
    assert sum(record.num_cached_tokens or 0 for record in records.values()) > 0
    # The batches saw the same.
    batches = life.profiler.writer._maker.sink.sink.records  # type: ignore[attr-defined]
    assert sum(b.num_cached_tokens or 0 for b in batches) == sum(
        record.num_cached_tokens or 0 for record in records.values()
    )


def test_a_failing_trace_does_not_reach_the_engine(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is switched off after a few failures."""
    life = Traced(tiny, tmp_path / "t.jsonl", strict=False)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the trace fails, says the test")

    monkeypatch.setattr(life.trace, "arrived", fail)
    for _ in range(5):
        life.scheduler.add_request(make_request([1, 2, 3], 2))
    while life.scheduler.has_unfinished_requests():
        life.step()
    assert life.trace.boundary.num_failures == 3
    assert not life.trace.boundary.is_open
    life.trace.close()
    assert not (tmp_path / "t.jsonl").exists()


def test_this_vllm_has_all_that_a_trace_needs(tiny: Path) -> None:
    """A scheduler that lacks something is told what."""
    scheduler = make_scheduler(tiny)
    assert missing_for_request_trace(scheduler) == []
    assert missing_for_request_trace(object())[:2] == [
        "object._free_request",
        "object.add_request",
    ]


@pytest.mark.parametrize("name", OF_SCHEDULER_FOR_TRACE)
def test_what_a_scheduler_lacks_for_a_trace_is_named(
    tiny: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name in turn."""
    scheduler = make_scheduler(tiny)
    for owner in type(scheduler).__mro__:
        if name in vars(owner):
            monkeypatch.delattr(owner, name)
    assert missing_for_request_trace(scheduler) == [f"Scheduler.{name}"]


@pytest.mark.parametrize("name", OF_CLASSES_FOR_TRACE["vllm.v1.request:Request"])
def test_what_a_request_lacks_for_a_trace_is_named(
    tiny: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name in turn, in a class that has all others."""
    scheduler = make_scheduler(tiny)
    others = dict.fromkeys(OF_CLASSES_FOR_TRACE["vllm.v1.request:Request"])
    del others[name]
    monkeypatch.setattr("vllm.v1.request.Request", type("Request", (), others))
    assert missing_for_request_trace(scheduler) == [f"Request.{name}"]


def test_a_trace_that_cannot_be_made_is_said_and_leaves_the_rest_on(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A vLLM that lacks a name, or a package that is not installed."""
    scheduler = make_scheduler(tiny)
    settings = Settings(log=str(tmp_path / "log.jsonl"), request_trace=True)
    context = SinkContext(settings=settings, dp_rank=0, print_line=print)
    monkeypatch.setattr(vllm.logger, "propagate", True)
    assert vllm._request_trace(object(), "r", {}, context) is None
    assert "the request trace is off: this vLLM lacks object._free_request" in caplog.text

    def fail(_: SinkContext) -> JsonlSink:
        raise SettingError("zstd needs a package")

    monkeypatch.setattr(vllm.factories, "request_trace", fail)
    assert vllm._request_trace(scheduler, "r", {}, context) is None
    assert "the request trace is off: zstd needs a package" in caplog.text


def check_against_outputs(records: list[RequestRecord], outputs: list[dict[str, int]]) -> None:
    """Check that a trace says of each request what vLLM said to its client."""
    records = sorted(records, key=lambda record: record.request_number)
    assert [record.request_number for record in records] == list(range(len(outputs)))
    for record, output in zip(records, outputs, strict=True):
        assert record.outcome == "finished"
        assert record.num_prompt_tokens == output["prompt"]
        assert record.num_cached_tokens == output["cached"]
        assert record.num_output_tokens == output["generated"]
        assert record.num_dropped_requests == 0
        assert record.first_token_time is not None
        assert record.end_time is not None
        assert record.arrival_time < record.first_token_time <= record.end_time


def test_the_trace_of_a_real_engine_says_what_vllms_outputs_say(in_process: Run) -> None:
    """Lengths, and what the prefix cache held."""
    by_run: dict[str, list[RequestRecord]] = {}
    for record in requests_of(in_process.log.with_suffix(".requests.jsonl")):
        by_run.setdefault(record.run_id, []).append(record)
    assert list(by_run) == [batches[0].run_id for batches in in_process.runs]
    synchronous, users, failing = by_run.values()
    check_against_outputs(synchronous, in_process.outputs["synchronous"])
    check_against_outputs(users, in_process.outputs["users_scheduler"])
    # The model failed under these.
    assert [record.outcome for record in failing] == ["unfinished", "unfinished"]


def test_so_does_that_of_an_engine_core_in_its_own_process(asynchronous: Run) -> None:
    """Scheduling overlaps with the model."""
    records = requests_of(asynchronous.log.with_suffix(".requests.jsonl"))
    check_against_outputs(records, asynchronous.outputs["asynchronous"])
