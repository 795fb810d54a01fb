"""Plays requests through a scheduler on a virtual clock, with no model behind it.

An engine's real scheduler, behind `ReplayScheduler`, schedules; how long a batch takes is told
by `StepTimes`. Between them is nothing but the loop of an engine core.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import numpy as np

from sched_profiler.errors import LogError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from sched_profiler.analysis.arrivals import Arrival

    Floats = NDArray[np.float64]

__all__ = ["EngineSettings", "Plan", "Replay", "ReplayScheduler", "StepTimes", "replay"]


@attrs.frozen(kw_only=True)
class EngineSettings:
    """What a scheduler is made from; named as in vLLM and in the run manifest."""

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    block_size: int
    num_blocks: int
    long_prefill_token_threshold: int = 0
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    scheduling_policy: str = "fcfs"
    async_scheduling: bool = False
    pipeline_parallel_size: int = 1

    @property
    def max_in_flight(self) -> int:
        """Batches that are scheduled before the result of the first is there."""
        if self.pipeline_parallel_size > 1:
            return self.pipeline_parallel_size
        return 2 if self.async_scheduling else 1


@attrs.frozen(kw_only=True)
class Plan:
    """A batch that was scheduled."""

    prefill_chunk_sizes: list[int]
    decode_tokens: int
    prefill_context_tokens: int
    decode_context_tokens: int
    num_reqs: int
    num_waiting_reqs: int
    num_running_reqs: int
    num_preempted_reqs: int
    num_cached_tokens: int
    kv_cache_usage: float

    @property
    def num_tokens(self) -> int:
        """Tokens in the batch."""
        return sum(self.prefill_chunk_sizes) + self.decode_tokens

    @property
    def terms(self) -> tuple[float, ...]:
        """What a step-time model asks of the batch: the values of its `TERMS`."""
        chunks = self.prefill_chunk_sizes
        return (
            1.0,
            sum(chunks),
            sum(chunk * chunk for chunk in chunks),
            self.prefill_context_tokens,
            self.decode_tokens,
            self.decode_context_tokens,
        )


class ReplayScheduler(Protocol):
    """An engine's scheduler without its model."""

    def add(self, number: int, arrival: Arrival) -> None:
        """Take a request in."""
        ...

    def has_requests(self) -> bool:
        """Tell whether there is somebody to schedule, now or when a result came."""
        ...

    def schedule(self) -> tuple[Plan, Any]:
        """Form a batch; it may be empty. Return it and what stands for it."""
        ...

    def take_result(self, batch: Any) -> Iterable[tuple[int, bool]]:
        """Take in that a batch ran; return who got a token, and whether it was the last one."""
        ...


class StepTimes(Protocol):
    """How long an engine takes, in ms."""

    def schedule_ms(self, plan: Plan) -> float:
        """Return the time that it took to form a batch."""
        ...

    def model_ms(self, plan: Plan, now: float) -> float:
        """Return the time that the model takes for it, from now on: in s, as arrivals are."""
        ...

    def rest_ms(self, plan: Plan, now: float) -> float:
        """Return the time from its result, now, until the engine schedules again."""
        ...


@attrs.frozen(kw_only=True, eq=False)
class Replay:
    """What became of requests; arrays have one value a batch, or one a request in their order.

    Times are in seconds, on the clock of the arrivals, durations in ms.
    """

    scheduled: Floats
    """When schedule() began."""
    ready: Floats
    """When the result was there."""
    model_ms: Floats
    schedule_ms: Floats
    plans: list[Plan]
    arrival: Floats
    first_token: Floats
    end: Floats
    num_output_tokens: NDArray[np.int64]
    token_gaps_ms: Floats
    """Time between two tokens of a request, over all requests."""

    @property
    def makespan_s(self) -> float:
        """From the first arrival to the end of the last request."""
        return float(self.end.max() - self.arrival.min())


def replay(
    arrivals: Sequence[Arrival],
    scheduler: ReplayScheduler,
    times: StepTimes,
    *,
    max_in_flight: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Replay:
    """Play requests until all of them have their answers.

    Like the engine core of vLLM it schedules as long as fewer than `max_in_flight` batches are on
    their way and somebody can be scheduled, and otherwise waits for the oldest result. A request is
    seen when the engine next schedules.

    Args:
        arrivals: in the order of their times.
        scheduler: fresh.
        times: how long things take.
        max_in_flight: 1 for an engine that waits for each result.
        progress: told now and then how many requests have their answers.

    Raises:
        LogError: if a request can never be scheduled.
    """
    clock = _Clock(arrivals, scheduler, times, progress)
    in_flight: deque[tuple[Plan, Any, float]] = deque()
    while True:
        clock.admit()
        if scheduler.has_requests() and len(in_flight) < max_in_flight:
            plan, batch, ready = clock.schedule()
            if plan.num_tokens:
                in_flight.append((plan, batch, ready))
                if len(in_flight) < max_in_flight:
                    continue
            else:
                scheduler.take_result(batch)
        if in_flight:
            clock.take(*in_flight.popleft())
        elif not clock.wait():
            break
    return clock.result()


class _Clock:
    """The state of a replay."""

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        scheduler: ReplayScheduler,
        times: StepTimes,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._arrivals = arrivals
        self._scheduler = scheduler
        self._times = times
        self._progress = progress
        self._num_seen = self._num_ended = 0
        self._now = arrivals[0].time
        self._model_free = -np.inf
        self._steps: list[tuple[float, float, float, float]] = []
        self._plans: list[Plan] = []
        self._first = np.full(len(arrivals), np.nan)
        self._last = np.full(len(arrivals), np.nan)
        self._end = np.full(len(arrivals), np.nan)
        self._num_tokens = np.zeros(len(arrivals), dtype=np.int64)
        self._gaps: list[float] = []

    def admit(self) -> None:
        """Give the scheduler who came by now."""
        arrivals = self._arrivals
        while self._num_seen < len(arrivals) and arrivals[self._num_seen].time <= self._now:
            self._scheduler.add(self._num_seen, arrivals[self._num_seen])
            self._num_seen += 1

    def schedule(self) -> tuple[Plan, Any, float]:
        """Form a batch; return it, what stands for it, and when its result will be there."""
        began = self._now
        plan, batch = self._scheduler.schedule()
        schedule_ms = self._times.schedule_ms(plan)
        self._now += schedule_ms / 1e3
        if not plan.num_tokens:
            return plan, batch, self._now
        begins = max(self._now, self._model_free)
        model_ms = self._times.model_ms(plan, begins)
        ready = begins + model_ms / 1e3
        self._model_free = ready
        self._plans.append(plan)
        self._steps.append((began, ready, model_ms, schedule_ms))
        return plan, batch, ready

    def take(self, plan: Plan, batch: Any, ready: float) -> None:
        """Take a result in when it is there."""
        self._now = max(self._now, ready)
        for number, is_last in self._scheduler.take_result(batch):
            last = self._last[number]
            if np.isnan(last):
                self._first[number] = self._now
            else:
                self._gaps.append(1e3 * (self._now - last))
            self._last[number] = self._now
            self._num_tokens[number] += 1
            if is_last:
                self._end[number] = self._now
                self._num_ended += 1
        self._now += self._times.rest_ms(plan, self._now) / 1e3
        if self._progress is not None:
            self._progress(self._num_ended)

    def wait(self) -> bool:
        """Let time pass until somebody comes; tell whether anybody will."""
        if self._num_seen < len(self._arrivals):
            self._now = max(self._now, self._arrivals[self._num_seen].time)
            return True
        if self._num_ended < len(self._arrivals):
            number = int(np.argmax(np.isnan(self._end)))
            arrival = self._arrivals[number]
            raise LogError(
                f"request {number} ({arrival.num_prompt_tokens} prompt and "
                f"{arrival.num_output_tokens} output tokens) can never be scheduled with these "
                "settings: the KV cache or the budget is too small for it; give larger ones, or "
                "leave it out"
            )
        return False

    def result(self) -> Replay:
        steps = np.array(self._steps, dtype=np.float64).reshape(-1, 4)
        return Replay(
            scheduled=steps[:, 0],
            ready=steps[:, 1],
            model_ms=steps[:, 2],
            schedule_ms=steps[:, 3],
            plans=self._plans,
            arrival=np.array([arrival.time for arrival in self._arrivals]),
            first_token=self._first,
            end=self._end,
            num_output_tokens=self._num_tokens,
            token_gaps_ms=np.array(self._gaps),
        )
