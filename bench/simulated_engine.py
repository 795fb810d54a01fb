"""A continuous-batching engine on a fake clock, in which one can plant faults.

Requests arrive at random, queue, are prefilled in chunks under a token budget, take blocks of a KV
cache, are preempted where it is full and recomputed later, decode and leave. Times follow what a
batch holds, with noise that is correlated from batch to batch and now and then a hiccup, as on a
machine that does other things as well. The same seed gives the same records. Nothing here is a
measurement of a real engine; what the analysis says of its logs can be held against what was
planted.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import TYPE_CHECKING, Any

import attrs

from sched_profiler.manifest import RunManifest
from sched_profiler.record import SCHEMA_VERSION, BatchRecord, chunk_statistics

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Faults", "Load", "Setup", "SimulatedEngine", "Times"]

_START = 1_790_000_000.0
_BLOCK = 16


@attrs.frozen(kw_only=True)
class Load:
    """What the clients do."""

    requests_per_s: float = 12.0
    prompt_tokens: float = 150.0
    """Median of a log-normal distribution."""
    prompt_spread: float = 0.8
    """Its sigma."""
    output_tokens: float = 80.0
    """Mean of an exponential distribution."""


@attrs.frozen(kw_only=True)
class Setup:
    """What is constant for a run."""

    token_budget: int = 2048
    max_num_seqs: int = 128
    num_blocks: int = 4096
    is_async: bool = False


@attrs.frozen(kw_only=True)
class Times:
    """How long things take, in ms. Those of the model are the truth that a fit should find."""

    constant: float = 6.0
    per_prefill_token: float = 0.02
    per_decode_request: float = 0.05
    per_prefill_context_token: float = 0.0005
    per_decode_context_token: float = 0.0002
    schedule_constant: float = 0.15
    schedule_per_request: float = 0.004
    update_constant: float = 0.05
    update_per_request: float = 0.002
    between: float = 0.05
    """What a synchronous engine does between update and schedule()."""
    noise: float = 0.05
    """Sigma of the log-normal noise of each time."""
    autocorrelation: float = 0.6
    """Of the model's noise, from one batch to the next."""
    hiccups_per_s: float = 0.05
    """The machine does something else for some milliseconds, whatever the engine is at."""


@attrs.frozen(kw_only=True)
class Faults:
    """What is planted; by default nothing."""

    spike_every: int = 0
    """Every so many batches schedule() takes longer, at random; 0 for never."""
    spike_ms: float = 0.0
    drift: float = 1.0
    """By the end of the run schedule() takes so many times as long, little by little."""
    step_change: float = 1.0
    """From the middle of the run on, schedule() takes so many times as long."""
    gap_every: int = 0
    """Every so many batches the engine stands still although there is work; 0 for never."""
    gap_ms: float = 0.0
    slow_model: float = 1.0
    """The model takes so many times as long."""


@attrs.define(eq=False)
class _Request:
    num_prompt: int
    num_output: int
    num_computed: int = 0
    num_generated: int = 0
    was_computed: int = 0
    """Tokens that had been computed when it was last preempted: up to there it recomputes."""
    num_blocks: int = 0

    @property
    def num_left(self) -> int:
        return self.num_prompt + self.num_generated - self.num_computed

    @property
    def in_prefill(self) -> bool:
        return self.num_generated == 0 or self.num_left > 1


@attrs.define(eq=False)
class SimulatedEngine:
    """One engine; `run` yields its records, and the counts are the truth about them afterwards."""

    seed: int = 0
    load: Load = Load()
    setup: Setup = Setup()
    times: Times = Times()
    faults: Faults = Faults()
    run_id: str = "51m"
    dp_rank: int | None = None
    num_recomputed_tokens: int = attrs.field(default=0, init=False)
    num_preemptions: int = attrs.field(default=0, init=False)
    spikes: list[int] = attrs.field(factory=list, init=False)
    """Batches whose schedule() was made longer."""
    gaps: list[int] = attrs.field(factory=list, init=False)
    """Batches before which the engine stood still."""
    _waiting: deque[_Request] = attrs.field(factory=deque, init=False)
    _running: list[_Request] = attrs.field(factory=list, init=False)
    _free_blocks: int = attrs.field(default=0, init=False)

    def manifest(self) -> RunManifest:
        """Return what would stand beside the log."""
        return RunManifest(
            run_id=self.run_id,
            dp_rank=self.dp_rank,
            log="run.jsonl",
            started=_START,
            updated=_START,
            host="simulated",
            pid=1,
            python_version="3",
            sched_profiler_version="0",
            engine="simulated",
            max_num_batched_tokens=self.setup.token_budget,
            max_num_seqs=self.setup.max_num_seqs,
            block_size=_BLOCK,
            num_blocks=self.setup.num_blocks,
            async_scheduling=self.setup.is_async,
        )

    def run(self, num_batches: int) -> Iterator[BatchRecord]:
        """Serve for so many batches."""
        rng = random.Random(self.seed)
        self._free_blocks = self.setup.num_blocks
        now = 0.0  # ms; when the scheduler is free
        result = 0.0  # when the result of the batch before is available
        arrival = 0.0
        noise = 0.0
        update = 0.0
        num_finished = 0
        is_drained = False
        for batch_id in range(num_batches):
            if batch_id:
                now += self.times.between * rng.lognormvariate(0, 0.3)
            if not (self._waiting or self._running) and arrival > now:
                now = arrival
            while arrival <= now:
                self._waiting.append(self._new_request(rng))
                arrival += rng.expovariate(self.load.requests_per_s / 1e3)
            if (
                self.faults.gap_every
                and not is_drained
                and rng.random() < 1 / self.faults.gap_every
            ):
                now = max(now, result) + self.faults.gap_ms * rng.lognormvariate(0, 0.2)
                self.gaps.append(batch_id)
            plan, new, resumed, preempted = self._schedule()
            prefill = [r for r in plan if r.in_prefill]
            decode = [r for r in plan if not r.in_prefill]
            contexts = [sum(r.num_computed for r in phase) for phase in (prefill, decode)]
            chunks = [plan[r] for r in prefill]
            schedule = self._schedule_ms(rng, len(plan), batch_id, num_batches)
            noise = self.times.autocorrelation * noise + rng.gauss(0, self.times.noise) * (
                math.sqrt(1 - self.times.autocorrelation**2)
            )
            model = self._model_ms(sum(chunks), len(decode), *contexts) * math.exp(noise)
            model = self._with_hiccup(rng, model)
            scheduled = now + schedule
            begins = max(scheduled, result)
            ends = begins + model
            update = self.times.update_constant + self.times.update_per_request * len(plan)
            update *= rng.lognormvariate(0, 0.2)
            yield _record(
                batch_id=batch_id,
                prefill=chunks,
                num_decode=len(decode),
                timestamp=round(_START + now / 1e3, 6),
                schedule_duration_ms=round(schedule, 3),
                model_run_duration_ms=round(model, 3),
                total_step_duration_ms=round(ends - now, 3),
                num_waiting_reqs=len(self._waiting),
                num_running_reqs=len(self._running),
                kv_cache_usage=round(1 - self._free_blocks / self.setup.num_blocks, 4),
                run_id=self.run_id,
                dp_rank=self.dp_rank,
                prefill_context_tokens=contexts[0],
                decode_context_tokens=contexts[1],
                num_new_reqs=new,
                num_resumed_reqs=resumed,
                num_preempted_reqs=preempted,
                num_finished_reqs=num_finished,
                num_cached_tokens=0,
                token_budget=self.setup.token_budget,
                queue_duration_ms=round(begins - scheduled, 3),
                update_duration_ms=round(update, 3),
                idle_duration_ms=round(begins - result, 3),
                num_inflight_batches=int(self.setup.is_async and batch_id > 0),
                num_dropped_records=0,
            )
            num_finished = self._take_in(plan)
            is_drained = not (self._running or self._waiting)
            now = max(scheduled, result + update) if self.setup.is_async else ends + update
            if self.setup.is_async and is_drained:
                now = ends + update
            result = ends

    def _new_request(self, rng: random.Random) -> _Request:
        prompt = int(self.load.prompt_tokens * rng.lognormvariate(0, self.load.prompt_spread))
        output = 1 + int(rng.expovariate(1 / self.load.output_tokens))
        # One request alone must fit.
        most = self.setup.num_blocks * _BLOCK // 2
        return _Request(min(max(1, prompt), most), min(output, most - 1))

    def _allocate(self, request: _Request, chunk: int) -> bool:
        needed = -(-(request.num_computed + chunk) // _BLOCK) - request.num_blocks
        if needed > self._free_blocks:
            return False
        self._free_blocks -= needed
        request.num_blocks += needed
        return True

    def _free(self, request: _Request) -> None:
        self._free_blocks += request.num_blocks
        request.num_blocks = 0

    def _schedule(self) -> tuple[dict[_Request, int], int, int, int]:
        """Return the tokens of each request, and how many are new, resumed and preempted."""
        budget = self.setup.token_budget
        plan: dict[_Request, int] = {}
        num_new = num_resumed = num_preempted = 0
        index = 0
        while index < len(self._running) and budget:
            request = self._running[index]
            chunk = min(request.num_left, budget)
            while not self._allocate(request, chunk):
                victim = self._running.pop()
                budget += plan.pop(victim, 0)
                self._free(victim)
                victim.was_computed = max(victim.was_computed, victim.num_computed)
                victim.num_computed = 0
                self._waiting.appendleft(victim)
                num_preempted += 1
                if victim is request:
                    break
            else:
                plan[request] = chunk
                budget -= chunk
                index += 1
        while (
            self._waiting
            and budget
            and not num_preempted
            and len(self._running) < self.setup.max_num_seqs
        ):
            request = self._waiting[0]
            chunk = min(request.num_left, budget)
            if not self._allocate(request, chunk):
                break
            self._running.append(self._waiting.popleft())
            plan[request] = chunk
            budget -= chunk
            if request.was_computed:
                num_resumed += 1
            else:
                num_new += 1
        self.num_preemptions += num_preempted
        return plan, num_new, num_resumed, num_preempted

    def _take_in(self, plan: dict[_Request, int]) -> int:
        """Take in the tokens of a batch; return how many requests have finished."""
        for request, chunk in plan.items():
            again = min(request.num_computed + chunk, request.was_computed) - request.num_computed
            self.num_recomputed_tokens += max(0, again)
            request.num_computed += chunk
            if request.num_left == 0:
                request.num_generated += 1
        done = [r for r in self._running if r.num_generated >= r.num_output]
        for request in done:
            self._free(request)
        self._running = [r for r in self._running if r.num_generated < r.num_output]
        return len(done)

    def _schedule_ms(
        self, rng: random.Random, num_reqs: int, batch_id: int, num_batches: int
    ) -> float:
        t, f = self.times, self.faults
        schedule = t.schedule_constant + t.schedule_per_request * num_reqs
        schedule *= rng.lognormvariate(0, 4 * t.noise)
        schedule *= f.drift ** (batch_id / num_batches)
        if batch_id >= num_batches // 2:
            schedule *= f.step_change
        schedule = self._with_hiccup(rng, schedule)
        if f.spike_every and rng.random() < 1 / f.spike_every:
            self.spikes.append(batch_id)
            schedule += f.spike_ms * rng.lognormvariate(0, 0.3)
        return schedule

    def _model_ms(
        self, prefill: int, decodes: int, prefill_context: int, decode_context: int
    ) -> float:
        t = self.times
        return self.faults.slow_model * (
            t.constant
            + t.per_prefill_token * prefill
            + t.per_decode_request * decodes
            + t.per_prefill_context_token * prefill_context
            + t.per_decode_context_token * decode_context
        )

    def _with_hiccup(self, rng: random.Random, milliseconds: float) -> float:
        if rng.random() < self.times.hiccups_per_s * milliseconds / 1e3:
            return milliseconds + rng.expovariate(1 / 10)
        return milliseconds


def _record(*, batch_id: int, prefill: list[int], num_decode: int, **fields: Any) -> BatchRecord:
    average, largest, smallest = chunk_statistics(prefill)
    return BatchRecord(
        batch_id=batch_id,
        num_prefill_reqs=len(prefill),
        num_decode_reqs=num_decode,
        total_scheduled_tokens=sum(prefill) + num_decode,
        prefill_chunk_sizes=prefill,
        decode_chunk_sizes=[1] * num_decode,
        avg_prefill_chunk_size=average,
        max_prefill_chunk_size=largest,
        min_prefill_chunk_size=smallest,
        avg_decode_chunk_size=1.0 if num_decode else None,
        num_prefill_tokens=sum(prefill),
        num_decode_tokens=num_decode,
        schema_version=SCHEMA_VERSION,
        **fields,
    )
