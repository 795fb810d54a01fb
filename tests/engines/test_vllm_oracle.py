"""vLLM's real scheduler in every order of steps: each record is what an independent walk says."""

from __future__ import annotations

import random
from collections import Counter, deque
from pathlib import Path
from typing import Any

import pytest
import vllm
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from oracle import Oracle, disagreements
from real_scheduler import make_request, make_scheduler, model_output
from tiny_model import make_tiny_model
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import RequestStatus

from sched_profiler import BatchProfiler, MemorySink
from sched_profiler.engines.vllm_contents import contents_of
from sched_profiler.engines.vllm_probe import Probe
from sched_profiler.testing import FakeClock

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("every_hook")]

RELEASE = tuple(map(int, vllm.__version__.split(".")[:2]))
SHARED_PREFIX = [9] * 200


# Less than of other tests, since each is a scheduler's life; `make fuzz` asks for more.
NUM_HISTORIES = 60 * settings().max_examples // 100

MOST_IDLE = 100


class StuckError(Exception):
    """vLLM leaves a request that streams its input unserved; it does so without a profiler too."""


class Engine:
    """An engine core around vLLM's scheduler; a fabricated model, a profiler, an oracle."""

    def __init__(
        self,
        model: Path,
        *,
        depth: int = 1,
        seed: int = 0,
        request_ids: bool = True,
        **options: Any,
    ) -> None:
        self.scheduler = make_scheduler(model, **options)
        self.depth = depth
        self.rng = random.Random(seed)
        self.clock = FakeClock()
        self.sink = MemorySink()
        self.profiler = BatchProfiler(
            self.sink,
            background=False,
            contents_of=contents_of(self.scheduler),
            clock=self.clock,
            strict=True,
        )
        self.probe = Probe(self.scheduler, self.profiler, request_ids=request_ids)
        self.probe.attach()
        self.oracle = Oracle(self.scheduler)
        self.sessions: list[str] = []
        self.in_flight: deque[tuple[Any, list[list[int]]]] = deque()
        self.expected: list[dict[str, Any]] = []
        self.totals: Counter[str] = Counter()

    def add(self, prompt: int, max_tokens: int, *, shared: bool = False, priority: int = 0) -> None:
        start = SHARED_PREFIX[:prompt] if shared else []
        rest = self._tokens(prompt - len(start))
        self.scheduler.add_request(make_request(start + rest, max_tokens, priority=priority))

    def _tokens(self, number: int) -> list[int]:
        return [self.rng.randrange(10, 500) for _ in range(number)]

    def talk(self, number: int, prompt: int, max_tokens: int) -> None:
        """Give further input to a request that streams it, or begin a new one."""
        request = make_request(self._tokens(prompt), max_tokens, resumable=True)
        open_sessions = [r for r in self.sessions if r in self.scheduler.requests]
        if number < len(open_sessions):
            request.request_id = open_sessions[number]
        else:
            self.sessions.append(request.request_id)
        self.scheduler.add_request(request)

    def hang_up(self) -> None:
        """Tell all requests that stream their input that there is no more."""
        for req_id in self.sessions:
            if req_id in self.scheduler.requests:
                request = make_request([10], 1)
                request.request_id = req_id
                self.scheduler.add_request(request)
        self.sessions.clear()

    def abort(self, number: int) -> None:
        ids = list(self.scheduler.requests)
        if ids:
            self.scheduler.finish_requests(ids[number % len(ids)], RequestStatus.FINISHED_ABORTED)

    def step(self) -> None:
        """Do what EngineCore.step and step_with_batch_queue do."""
        if len(self.in_flight) < self.depth and self.scheduler.has_requests():
            self.clock.advance(1)
            self.oracle.look()
            output = self.scheduler.schedule()
            expected = self.oracle.batch(output)
            if expected is not None:
                self.expected.append(expected)
            self.in_flight.append((output, self.sample(output)))
            if len(self.in_flight) < self.depth and output.total_num_scheduled_tokens:
                return
        if self.in_flight:
            self.settle()

    def sample(self, output: Any) -> list[list[int]]:
        """Return what the model will sample: nothing in the middle of a prompt, else 1 + drafts."""
        sampled = []
        for req_id in output.num_scheduled_tokens:
            drafts = len(output.scheduled_spec_decode_tokens.get(req_id, ()))
            accepted = self.rng.randint(0, drafts)
            in_prompt = self.scheduler.requests[req_id].is_prefill_chunk
            sampled.append([] if in_prompt else [self.rng.randrange(10, 500)] * (1 + accepted))
        return sampled

    def settle(self) -> None:
        self.clock.advance(10)
        output, sampled = self.in_flight.popleft()
        returned = self.scheduler.update_from_output(output, model_output(output, sampled))
        if not output.num_scheduled_tokens:
            return
        record = self.sink.records[-1]
        # vLLM's own account of what this batch brought.
        tokens = sum(len(o.new_token_ids) for client in returned.values() for o in client.outputs)
        assert record.num_generated_tokens == tokens
        stats = [c.scheduler_stats for c in returned.values() if c.scheduler_stats]
        spec = [s.spec_decoding_stats for s in stats if s.spec_decoding_stats]
        assert record.num_accepted_tokens == sum(s.num_accepted_tokens for s in spec)
        self.totals["accepted"] += record.num_accepted_tokens
        # With asynchronous scheduling the worker keeps its drafts; the scheduler has placeholders.
        if self.scheduler.num_spec_tokens and not isinstance(self.scheduler, AsyncScheduler):
            self.draft({o.request_id for client in returned.values() for o in client.outputs})

    def draft(self, req_ids: set[str]) -> None:
        """Propose tokens for the requests that a batch gave tokens to, as the worker does."""
        for req_id in sorted(req_ids):
            request = self.scheduler.requests.get(req_id)
            if request is not None and request.status == RequestStatus.RUNNING:
                number = self.rng.randint(0, self.scheduler.num_spec_tokens)
                request.spec_token_ids = [self.rng.randrange(10, 500) for _ in range(number)]

    def finish(self) -> None:
        """Serve everything to its end, then hold every record against the oracle."""
        self.hang_up()
        num_steps, last_batch = 0, 0
        while self.scheduler.has_requests() or self.in_flight:
            before = len(self.expected)
            self.step()
            num_steps += 1
            if len(self.expected) > before:
                last_batch = num_steps
            assert num_steps < 5000
            if num_steps - last_batch > MOST_IDLE:
                raise StuckError
        if self.scheduler.requests:
            raise StuckError
        self.check()
        assert not self.probe._watched, "a request that is gone leaves nothing behind"
        assert not self.probe.hook.pending

    def check(self) -> None:
        records = self.sink.records
        assert [r.batch_id for r in records] == list(range(len(records)))
        assert len(records) == len(self.expected)
        for record, expected in zip(records, self.expected, strict=True):
            record.check()
            assert disagreements(record, expected) == [], f"batch {record.batch_id}"
            self.totals["preempted"] += record.num_preempted_reqs or 0
            self.totals["resumed"] += record.num_resumed_reqs or 0
            self.totals["cached"] += record.num_cached_tokens or 0
            self.totals["draft"] += record.num_draft_tokens or 0
            self.totals["mixed"] += bool(record.num_prefill_reqs and record.num_decode_reqs)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model: the scheduler reads its configuration."""
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def test_chunked_prefill_and_decode_share_batches(tiny: Path) -> None:
    """Prompts longer than the budget, one-token prompts, last chunks of one token."""
    engine = Engine(tiny)
    for prompt in (1, 2, 255, 256, 257, 513, 1000, 17, 512):
        engine.add(prompt, 20)
    engine.finish()
    assert engine.totals["mixed"]


def test_a_fully_cached_prompt_is_prefill(tiny: Path) -> None:
    """Its last token is computed again: a chunk of 1 with nothing generated yet."""
    engine = Engine(tiny)
    engine.add(129, 3, shared=True)
    engine.finish()
    engine.add(129, 3, shared=True)
    engine.step()
    (chunk,) = engine.sink.records[-1].prefill_chunk_sizes
    assert chunk == 1
    assert engine.sink.records[-1].num_cached_tokens == 128
    engine.finish()


@pytest.mark.parametrize("caching", [False, True])
def test_preempted_requests_recompute_as_prefill(tiny: Path, *, caching: bool) -> None:
    """In several chunks, and one request more than once; vLLM's own details call it generation."""
    engine = Engine(tiny, num_blocks=30, max_num_batched_tokens=64, enable_prefix_caching=caching)
    for number in range(12):
        engine.add(40 + number, 150)
    engine.finish()
    assert engine.totals["preempted"] > 12
    assert engine.totals["resumed"] == engine.totals["preempted"]
    assert max(engine.oracle.seen_preemptions.values()) > 1
    recomputed = sum(r.num_prefill_tokens or 0 for r in engine.sink.records)
    assert recomputed > sum(40 + n for n in range(12))


def test_drafts_are_decode_with_larger_chunks(tiny: Path) -> None:
    """Accepted and rejected ones; the oracle for both is vLLM's own statistics."""
    engine = Engine(tiny, num_speculative_tokens=3, log_stats=True)
    for prompt in (30, 300, 5, 700):
        engine.add(prompt, 60)
    engine.finish()
    assert engine.totals["draft"] > engine.totals["accepted"] > 0
    assert any(max(r.decode_chunk_sizes, default=0) == 4 for r in engine.sink.records)


def test_drafts_are_accepted_also_where_batches_overlap(tiny: Path) -> None:
    """What was in flight when a request was preempted is stale, and accepted by nobody."""
    engine = Engine(
        tiny,
        depth=2,
        async_scheduling=True,
        num_speculative_tokens=3,
        log_stats=True,
        num_blocks=60,
    )
    for prompt in (30, 300, 5, 200):
        engine.add(prompt, 60)
    for number in range(40):
        engine.step()
        if number % 8 == 7:
            engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    engine.finish()
    assert engine.totals["draft"] > engine.totals["accepted"] > 0
    assert engine.totals["preempted"] > 4


def test_kv_cache_that_is_lost_is_computed_again_as_prefill(tiny: Path) -> None:
    """A connector that fails to load it makes vLLM set a request back, without a preemption."""
    engine = Engine(tiny)
    engine.add(100, 20)
    engine.add(50, 20)
    for _ in range(5):
        engine.step()
    lost = next(iter(engine.scheduler.requests.values()))
    lost.num_computed_tokens = 16
    engine.step()
    record = engine.sink.records[-1]
    assert record.prefill_chunk_sizes == [lost.num_tokens - 1 - 16]
    assert record.prefill_context_tokens == 16
    assert record.decode_chunk_sizes == [1]
    engine.finish()


def test_aborted_requests_leave_nothing_behind(tiny: Path) -> None:
    """In prefill, in decode, waiting, preempted, and while their batch is in flight."""
    engine = Engine(tiny, depth=2, async_scheduling=True, num_blocks=60)
    for number in range(40):
        engine.add(100 + 20 * (number % 7), 50)
        engine.step()
        engine.abort(number * 7)
    engine.finish()


def test_further_input_of_a_session_is_a_prefill_and_no_new_request(tiny: Path) -> None:
    """What it computed before is its own, and no hit of the prefix cache."""
    engine = Engine(tiny)
    engine.talk(0, 40, 3)
    for _ in range(5):
        engine.step()
    engine.talk(0, 30, 3)
    engine.step()
    first, last = engine.sink.records[0], engine.sink.records[-1]
    assert (first.num_new_reqs, last.num_new_reqs) == (1, 0)
    assert (last.num_resumed_reqs, last.num_cached_tokens) == (0, 0)
    assert last.prefill_chunk_sizes == [30]
    assert last.prefill_context_tokens == 42
    engine.add(20, 3)
    engine.step()
    engine.step()
    engine.step()
    # A session without input waits, in a queue of vLLM's own for those that hold KV cache.
    assert engine.sink.records[-1].num_waiting_reqs == 1
    engine.finish()
    engine.oracle.all_requests.clear()
    assert not engine.probe._sessions, "only whoever else keeps a request keeps it known"


Load = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.one_of(st.integers(1, 40), st.integers(1, 500)),
            st.integers(1, 40),
            st.booleans(),
            st.integers(0, 2),
        ),
        st.tuples(st.just("talk"), st.integers(0, 3), st.integers(1, 60), st.integers(1, 10)),
        st.tuples(st.just("abort"), st.integers(0, 100)),
        st.tuples(st.just("step"), st.integers(1, 12)),
        st.tuples(st.just("reset_prefix_cache")),
    ),
    min_size=3,
    max_size=40,
)


@settings(
    max_examples=NUM_HISTORIES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    load=Load,
    mode=st.sampled_from(["sync", "async", "pipeline", "async pipeline"]),
    caching=st.booleans(),
    num_blocks=st.sampled_from([34, 50, 200]),
    budget=st.sampled_from([16, 64, 256]),
    drafts=st.sampled_from([0, 0, 3]),
    policy=st.sampled_from(["fcfs", "priority"]),
    request_ids=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_every_record_of_any_history_is_what_the_oracle_says(  # noqa: C901, PLR0917 - a history has that many sides
    tiny: Path,
    load: list[tuple[Any, ...]],
    mode: str,
    caching: bool,  # noqa: FBT001
    num_blocks: int,
    budget: int,
    drafts: int,
    policy: str,
    request_ids: bool,  # noqa: FBT001
    seed: int,
) -> None:
    """Random arrivals, lengths, shared prefixes, aborts, preemptions, acceptance, queue depths."""
    is_async = mode.startswith("async")
    if mode == "pipeline" and RELEASE == (0, 27):
        drafts = 0  # with drafts in flight it schedules less than no token, and its assertion fails
    engine = Engine(
        tiny,
        depth={"sync": 1, "async": 2, "pipeline": 2, "async pipeline": 3}[mode],
        seed=seed,
        request_ids=request_ids,
        async_scheduling=is_async,
        enable_prefix_caching=caching,
        num_blocks=num_blocks,
        max_num_batched_tokens=budget,
        num_speculative_tokens=drafts,
        log_stats=bool(drafts),
        policy=policy,
        max_model_len=540,
    )
    for action, *arguments in load:
        if action == "add":
            prompt, max_tokens, shared, priority = arguments
            # What can never fit would wait for ever.
            prompt = min(prompt, (num_blocks - 2) * 16 - max_tokens - 8)
            engine.add(prompt, max_tokens, shared=shared, priority=priority)
        elif action == "talk":
            # A session that stops in the middle of accepted drafts fails an assertion of vLLM's.
            # Older versions hang: if it stops with a batch in flight, or if it keeps the KV cache
            # that others wait for.
            if not drafts and RELEASE >= (0, 32):
                engine.talk(*arguments)
        elif action == "abort":
            engine.abort(*arguments)
        elif action == "reset_prefix_cache":
            # vLLM cannot while a session waits and keeps its KV cache.
            if not any(req_id in engine.scheduler.requests for req_id in engine.sessions):
                engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        else:
            for _ in range(arguments[0]):
                engine.step()
    try:
        engine.finish()
    except StuckError:
        # Nothing of ours decides what vLLM schedules; and only sessions can bring it there.
        assert any(action == "talk" for action, *_ in load)
        reject()
