"""A small continuous-batching engine that profiles itself.

Run it: `python examples/custom_engine.py`, then `sched-profiler analyze custom_engine.jsonl`.
What an engine of your own needs are the lines marked with (1) to (4).
"""

from __future__ import annotations

import random
import time
from collections import deque
from typing import TYPE_CHECKING

import attrs

from sched_profiler import BatchProfiler, ConsoleSink, JsonlSink, TeeSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@attrs.define(eq=False)
class Request:
    """A prompt of some tokens, of which some more are to be generated."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_computed: int = 0
    num_generated: int = 0

    @property
    def in_prefill(self) -> bool:
        """Whether no token is generated yet, or several known ones are still to compute."""
        return self.num_generated == 0 or self.num_left > 1

    @property
    def num_left(self) -> int:
        """Known tokens whose KV cache is not computed yet."""
        return self.num_prompt_tokens + self.num_generated - self.num_computed


class Engine:
    """Schedules first come, first served; prefill is chunked to a token budget."""

    def __init__(
        self,
        profiler: BatchProfiler,
        *,
        run_model: Callable[[int], None],
        token_budget: int = 256,
        max_num_seqs: int = 16,
        kv_cache_tokens: int = 16_384,
    ) -> None:
        """Profile into `profiler`; `run_model` is called with the tokens of each batch."""
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._profiler = profiler
        self._run_model = run_model
        self._token_budget = token_budget
        self._max_num_seqs = max_num_seqs
        self._kv_cache_tokens = kv_cache_tokens

    def run(self, requests: Iterable[Request]) -> None:
        """Serve all requests to their end.

        Raises:
            ValueError: if one of them will never fit into the KV cache.
        """
        for request in requests:
            needed = request.num_prompt_tokens + request.num_output_tokens
            if needed > self._kv_cache_tokens:
                raise ValueError(f"{needed} tokens do not fit into {self._kv_cache_tokens}")
            self.waiting.append(request)
        while self.waiting or self.running:
            self.step()

    def step(self) -> None:
        """Form a batch, run the model on it, take in the tokens."""
        with self._profiler.schedule() as batch:  # (1) around the scheduler
            plan = self._schedule()
            prefill = [request for request in plan if request.in_prefill]
            decode = [request for request in plan if not request.in_prefill]
            batch.scheduled(  # (2) what is in the batch
                prefill_chunk_sizes=[plan[request] for request in prefill],
                decode_chunk_sizes=[plan[request] for request in decode],
                num_waiting_reqs=len(self.waiting),
                num_running_reqs=len(self.running),
                kv_cache_usage=self._kv_cache_use() / self._kv_cache_tokens,
                prefill_context_tokens=sum(request.num_computed for request in prefill),
                decode_context_tokens=sum(request.num_computed for request in decode),
            )
        with batch.model_run():  # (3) around the model
            self._run_model(sum(plan.values()))
        self._update(plan)

    def _schedule(self) -> dict[Request, int]:
        budget = self._token_budget
        plan: dict[Request, int] = {}
        for request in self.running:
            if chunk := min(request.num_left, budget):
                plan[request] = chunk
                budget -= chunk
        while self.waiting and budget and len(self.running) < self._max_num_seqs:
            request = self.waiting[0]
            needed = request.num_prompt_tokens + request.num_output_tokens
            if self._kv_cache_use() + needed > self._kv_cache_tokens:
                break
            self.running.append(self.waiting.popleft())
            plan[request] = min(request.num_left, budget)
            budget -= plan[request]
        return plan

    def _update(self, plan: dict[Request, int]) -> None:
        for request, chunk in plan.items():
            request.num_computed += chunk
            if request.num_left == 0:
                request.num_generated += 1
        self.running = [r for r in self.running if r.num_generated < r.num_output_tokens]

    def _kv_cache_use(self) -> int:
        return sum(r.num_prompt_tokens + r.num_output_tokens for r in self.running)


def main() -> None:
    """Serve a hundred requests with a model that takes 2 ms and 10 µs more for each token."""
    random.seed(0)
    requests = [
        Request(random.choice([20, 100, 400, 1500]), random.randint(5, 60))  # noqa: S311 - a load
        for _ in range(100)
    ]
    sink = TeeSink(JsonlSink("custom_engine.jsonl"), ConsoleSink(every=100))
    with BatchProfiler(sink, token_budget=256) as profiler:  # (4) one profiler for an engine
        engine = Engine(profiler, run_model=lambda tokens: time.sleep(0.002 + tokens * 1e-5))
        engine.run(requests)
    print("the log is custom_engine.jsonl; next: sched-profiler analyze custom_engine.jsonl")


if __name__ == "__main__":
    main()
