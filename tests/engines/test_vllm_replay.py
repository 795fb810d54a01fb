"""A replay through vLLM's real scheduler forms the batches that the real engine formed."""

from __future__ import annotations

import bisect
import json
import random
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
from real_vllm import Run
from test_cli_replay import FACTS, log_in

from sched_profiler import BatchRecord, SchedProfilerError
from sched_profiler.analysis import load, load_manifests
from sched_profiler.analysis.arrivals import Arrival, arrivals_of, load_requests
from sched_profiler.analysis.recorded_run import find_run
from sched_profiler.analysis.replay import EngineSettings, Plan, replay
from sched_profiler.cli import main
from sched_profiler.engines import vllm_replay
from sched_profiler.engines.vllm_replay import VllmReplayScheduler, require_vllm

pytestmark = pytest.mark.vllm

SETTINGS = EngineSettings(
    max_num_batched_tokens=128, max_num_seqs=8, max_model_len=2048, block_size=16, num_blocks=150
)


class Recorded:
    """The times that a run took, batch by batch."""

    def __init__(self, records: Sequence[BatchRecord]) -> None:
        self.records = records
        self.number = -1

    def schedule_ms(self, plan: Plan) -> float:
        self.number += bool(plan.num_tokens)
        return self.records[self.number].schedule_duration_ms

    def model_ms(self, plan: Plan, now: float) -> float:
        record = self.records[self.number]
        return (record.total_step_duration_ms or 0.0) - record.schedule_duration_ms

    def rest_ms(self, plan: Plan, now: float) -> float:
        if self.number + 1 == len(self.records):
            return 0.0
        record, following = self.records[self.number : self.number + 2]
        ended = record.timestamp + (record.total_step_duration_ms or 0.0) / 1e3
        return max(0.0, 1e3 * (following.timestamp - ended))


class Steady:
    """Each step takes as long as its tokens."""

    def schedule_ms(self, plan: Plan) -> float:
        return 0.1

    def model_ms(self, plan: Plan, now: float) -> float:
        return 1.0 + 0.02 * plan.num_tokens

    def rest_ms(self, plan: Plan, now: float) -> float:
        return 0.1


def test_with_the_recorded_times_the_batches_are_the_recorded_ones(in_process: Run) -> None:
    """Of a real engine, with chunks and, in the second round, the prefix cache."""
    records = in_process.runs[0]
    log = in_process.log
    df = load(log)
    first = df[df["run"] == 0]
    run = find_run(first, load_manifests(log), load_requests(log))
    assert run.run_id == records[0].run_id
    # When the engine first looked: between two of its looks, who comes when makes no difference.
    looks = [record.timestamp for record in records]
    arrivals = [
        attrs.evolve(a, time=looks[bisect.bisect_left(looks, a.time)])
        for a in arrivals_of(run.requests)
    ]
    shared = max(arrival.num_cached_tokens for arrival in arrivals)
    assert shared > 0
    scheduler = VllmReplayScheduler(run.settings, num_shared_tokens=shared)
    done = replay(arrivals, scheduler, Recorded(records))
    assert len(done.plans) == len(records)
    for plan, record in zip(done.plans, records, strict=True):
        assert sorted(plan.prefill_chunk_sizes) == sorted(record.prefill_chunk_sizes)
        assert plan.decode_tokens == record.num_decode_tokens
        assert plan.prefill_context_tokens == record.prefill_context_tokens
        assert plan.decode_context_tokens == record.decode_context_tokens
        assert plan.num_waiting_reqs == record.num_waiting_reqs
        assert plan.num_running_reqs == record.num_running_reqs
        assert plan.num_cached_tokens == record.num_cached_tokens


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("num_blocks", [150, 40])
def test_no_token_is_lost_in_vllms_own_scheduler(*, is_async: bool, num_blocks: int) -> None:
    """Synchronous and asynchronous, with room and, where requests are preempted, without."""
    rng = random.Random(3)
    arrivals = [
        Arrival(
            time=0.01 * number,
            num_prompt_tokens=rng.randint(40, 300),
            num_output_tokens=rng.randint(1, 60),
            num_cached_tokens=32 * (number % 2),
        )
        for number in range(60)
    ]
    engine = attrs.evolve(SETTINGS, async_scheduling=is_async, num_blocks=num_blocks)
    scheduler = VllmReplayScheduler(engine, num_shared_tokens=32)
    done = replay(arrivals, scheduler, Steady(), max_in_flight=engine.max_in_flight)
    assert done.num_output_tokens.tolist() == [a.num_output_tokens for a in arrivals]
    prefill = sum(sum(plan.prefill_chunk_sizes) for plan in done.plans)
    preempted = sum(plan.num_preempted_reqs for plan in done.plans)
    cached = sum(plan.num_cached_tokens for plan in done.plans)
    prompts = sum(a.num_prompt_tokens for a in arrivals)
    if num_blocks == 150:
        assert preempted == 0
        assert cached == sum(a.num_cached_tokens for a in arrivals)
        assert prefill == prompts - cached
    else:
        assert preempted > 0
        assert prefill > prompts - cached
    assert all(plan.num_tokens <= engine.max_num_batched_tokens for plan in done.plans)
    assert all(plan.num_running_reqs <= engine.max_num_seqs for plan in done.plans)
    decode = sum(plan.decode_tokens for plan in done.plans)
    assert decode >= sum(a.num_output_tokens - 1 for a in arrivals) - preempted


def test_settings_that_vllm_refuses_are_an_error_with_its_words() -> None:
    """No traceback of pydantic's."""
    refused = attrs.evolve(SETTINGS, max_num_batched_tokens=4, max_num_seqs=8)
    told = r"^vLLM refuses max_num_batched_tokens=4, max_num_seqs=8: [^\n]+; give other limits$"
    with pytest.raises(SchedProfilerError, match=told) as error:
        VllmReplayScheduler(refused)
    assert "pydantic" not in str(error.value)


def test_without_vllm_it_is_said_where_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps it from being imported."""
    assert require_vllm()
    monkeypatch.setitem(__import__("sys").modules, "vllm.v1.core.sched", None)
    with pytest.raises(SchedProfilerError, match="a replay needs vLLM, whose scheduler it runs"):
        require_vllm()
    assert vllm_replay.__all__ == ["VllmReplayScheduler", "require_vllm"]


def test_tune_and_capacity_replay_through_it_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With requests from a CSV file."""
    trace = tmp_path / "trace.csv"
    rows = "".join(f"{0.05 * n},{100 + n},{5 + n % 3}\n" for n in range(40))
    trace.write_text(f"arrival_time,num_prompt_tokens,num_output_tokens\n{rows}")
    log = str(log_in(tmp_path))
    arguments = [log, "--trace", str(trace)]
    tried = ["--max-num-batched-tokens", "128,512", "--max-num-seqs", "16", "--replays", "2"]
    assert main(["tune", *arguments, *tried]) == 0
    printed = capsys.readouterr()
    assert "Recommended: " in printed.out
    assert "40 requests replayed 2 times" in printed.out
    assert "step times fitted to" in printed.err
    assert main(["capacity", *arguments, "--json"]) == 0
    recorded = json.loads(capsys.readouterr().out)
    assert recorded["kind"] == "replay"
    # And the same without a manifest, once the options tell what it told.
    (manifest,) = tmp_path.glob("*.run.json")
    manifest.unlink()
    told = [f"--{name.replace('_', '-')}={value}" for name, value in FACTS.items()]
    assert main(["capacity", *arguments, *told, "--json"]) == 0
    without = json.loads(capsys.readouterr().out)
    assert len(without.pop("assumed")) > len(recorded.pop("assumed"))
    assert without == recorded
