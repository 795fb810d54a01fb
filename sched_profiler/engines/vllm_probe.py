"""Follows the steps of one vLLM scheduler: the part of the adapter on the engine's thread.

It costs what it reads, so it reads little. What a batch holds is worked out without a look at
every request: the few that are not in plain decode (in prefill, or preempted and waiting) are
watched; all others decode, and when the tokens left equal the requests left, every decode chunk is
1. Whatever need not be known before the next step changes it is worked out on the writer's thread,
by `contents_of`.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from sched_profiler.engines.vllm_stamp import STAMP, result_ready

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.profiler import BatchProfiler, Measurement, Scheduled

__all__ = ["Probe", "contents_of"]


class _Events(NamedTuple):
    """What a batch holds and what happened before it, beyond decodes of one token each."""

    prefill: dict[str, int]  # chunk by request
    prefill_context: int  # tokens computed before the batch, over the requests in prefill
    new_context: int  # likewise, over the requests that vLLM reports as new
    num_new: int
    num_resumed: int
    num_cached: int
    num_preempted: int
    num_finished: int  # in steps without a batch since the last record


_NO_EVENTS = _Events({}, 0, 0, 0, 0, 0, 0, 0)


class Probe:
    """Measures every batch of one scheduler into a profiler (made with `contents_of`).

    Its `schedule` and `update_from_output` take the place of the scheduler's own and call them;
    vLLM's exceptions and results pass through, failures of the probe do not leave it.
    """

    # Slots lie side by side in memory: in a live engine most of what a step reads is not cached.
    # For the same reason these two methods call no Python function of ours in a plain decode step.
    __slots__ = (
        "_also_waiting",
        "_carried",
        "_free_blocks",
        "_has_drafts",
        "_has_workers",
        "_length",
        "_next_id",
        "_now",
        "_pending",
        "_previous",
        "_profiler",
        "_queue",
        "_request_ids",
        "_room",
        "_schedule",
        "_scheduler",
        "_sessions",
        "_update_from_output",
        "_waiting",
        "_watched",
        "_writer",
    )

    def __init__(
        self, scheduler: Any, profiler: BatchProfiler, *, request_ids: bool = False
    ) -> None:
        """Bind to `scheduler` without changing it; with `request_ids` record who was in a batch."""
        self._scheduler = scheduler
        self._profiler = profiler
        self._request_ids = request_ids
        # Looked up once: each of them is needed in every step.
        self._now = profiler.clock.monotonic_ns
        self._schedule = scheduler.schedule
        self._update_from_output = scheduler.update_from_output
        self._length, self._waiting, self._also_waiting = _waiting_queues(scheduler)
        self._free_blocks = scheduler.kv_cache_manager.block_pool.free_block_queue
        self._has_drafts = scheduler.vllm_config.speculative_config is not None
        executor = scheduler.vllm_config.parallel_config.distributed_executor_backend
        self._has_workers = executor != "uni"
        self._writer = profiler.writer
        self._queue = profiler.writer.queue
        # Until the first batch is through `put`, which starts the writer, and after the last.
        self._room = 0
        # When the result of the previous batch was available.
        self._previous: int | None = None
        # Results come in the order of schedule(), so numbers may be given out when they come.
        self._next_id = 0
        # Batches without a result, oldest first, each with vLLM's object for it.
        self._pending: deque[tuple[Any, Scheduled]] = deque()
        # In prefill: the request by its id. Preempted and waiting: None by its id.
        self._watched: dict[str, Any] = {}
        # Requests with streaming input that were in a batch: each further input looks new to vLLM.
        self._sessions: weakref.WeakSet[Any] = weakref.WeakSet()
        # Requests finished and preempted in steps without a batch: the next record tells.
        self._carried: tuple[int, int] | None = None

    def attach(self) -> None:
        """Take the place of the scheduler's methods."""
        self._profiler.before_close = self.give_up
        self._scheduler.schedule = self.schedule
        self._scheduler.update_from_output = self.update_from_output

    def detach(self) -> None:
        """Give the scheduler its methods back: a probe that fails again and again is absent.

        Somebody may have wrapped ours since; then they stay, and do nothing but pass calls on.
        """
        for name in ("schedule", "update_from_output"):
            if vars(self._scheduler).get(name) == getattr(self, name):
                delattr(self._scheduler, name)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule as before, and read what the next steps will change."""
        now = self._now
        began = now()
        output = self._schedule(*args, **kwargs)
        ended = now()
        try:
            events = None
            if (
                self._watched
                or output.scheduled_new_reqs
                or output.preempted_req_ids
                or self._carried
            ):
                events = self._follow(output)
            if total := output.total_num_scheduled_tokens:
                length = self._length
                pending = self._pending
                num_reqs = len(output.num_scheduled_tokens)
                batch = (
                    began,
                    ended,
                    ended,
                    len(pending),
                    len(self._scheduler.running),
                    length(self._waiting) + length(self._also_waiting),
                    self._free_blocks.num_free_blocks,
                    num_reqs,
                    output.scheduled_cached_reqs.num_computed_tokens,
                    len(output.finished_req_ids),
                    events,
                    None if total == num_reqs else _decode_chunks(output, events),
                    self._request_ids and _ids(output, events),
                )
                # The output is what the result is matched by; it is not kept beyond that.
                pending.append((output, batch))
            else:
                self._carry(output)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            self._failed(error)
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """Take in a result as before, and hand the batch over."""
        now = self._now
        taken = now()
        drafts = None
        if self._has_drafts:
            # Before the update: it forgets which of these requests were aborted meanwhile.
            drafts = self._drafts(args, kwargs)
        returned = self._update_from_output(*args, **kwargs)
        updated = now()
        try:
            pending = self._pending
            output = args[0] if args else kwargs["scheduler_output"]
            if pending and (pending[0][0] is output or self._is_late(output)):
                generated = 0
                for client in returned.values():
                    outputs = client.outputs
                    if drafts is None and outputs and outputs[-1].new_token_ids:
                        # One token each; an output without one, of a failed request, comes last.
                        generated += len(outputs)
                    else:
                        generated += sum(len(output.new_token_ids) for output in outputs)
                ready = self._ready(taken, args, kwargs) if self._has_workers else taken
                batch_id = self._next_id
                self._next_id = batch_id + 1
                measurement = (
                    batch_id,
                    self._previous,
                    ready,
                    taken,
                    updated,
                    pending.popleft()[1],
                    generated,
                    drafts,
                )
                self._previous = ready
                queue = self._queue
                if len(queue) < self._room:
                    queue.append(measurement)
                else:
                    self._put(measurement)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            self._failed(error)
        return returned

    def _put(self, measurement: Measurement) -> None:
        """Hand a batch over to a writer that is not yet there, lags behind, or is closed."""
        *head, batch, generated, drafts = measurement
        # A long queue is not to hold a number for each request of each batch.
        batch = (*batch[:8], [sum(batch[8])], *batch[9:])
        self._writer.put((*head, batch, generated, drafts))
        self._room = self._writer.room

    def _ready(self, taken: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Return when a worker had the result ready; `taken` where it does not say."""
        model_output = args[1] if len(args) > 1 else kwargs["model_runner_output"]
        stamp = model_output.__dict__.get(STAMP)
        if stamp is None:
            return taken
        # Never before the hand-over, nor before the result of the last batch.
        submitted: int = self._pending[0][1][2]
        return max(result_ready(stamp, taken), submitted, self._previous or 0)

    def give_up(self) -> None:
        """Record what never got a result: the batch that brought the engine down among them."""
        while self._pending:
            batch = self._pending.popleft()[1]
            self._put((self._next_id, self._previous, None, None, None, batch, None, None))
            self._next_id += 1
        # The profiler may be about to close its writer.
        self._room = 0

    def _failed(self, error: Exception) -> None:
        if self._profiler.boundary.failed(error):
            self.detach()

    def _is_late(self, output: Any) -> bool:
        """Give up the batches before `output`: results come in the order of schedule().

        Tells whether `output` is pending at all; one without tokens is not.
        """
        if not any(batch[0] is output for batch in self._pending):
            return False
        later = []
        while self._pending[-1][0] is not output:
            later.append(self._pending.pop())
        found = self._pending.pop()
        self.give_up()
        self._pending.extend([found, *reversed(later)])
        return True

    def _drafts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int] | None:
        """Return how many draft tokens a batch had and how many of them the model accepted.

        Accepted is all that the model sampled but one per request, of the requests that are still
        there to take it.
        """
        try:
            output = args[0] if args else kwargs["scheduler_output"]
            if not output.scheduled_spec_decode_tokens:
                return None
            model_output = args[1] if len(args) > 1 else kwargs["model_runner_output"]
            sampled = model_output.sampled_token_ids
            num_drafts = num_accepted = 0
            for req_id, tokens in output.scheduled_spec_decode_tokens.items():
                num_drafts += len(tokens)
                request = self._scheduler.requests.get(req_id)
                if request is None or request.is_finished() or not sampled:
                    continue
                if request.num_stale_output_tokens and request.drop_stale_output:
                    continue
                num_sampled = len(sampled[model_output.req_id_to_index[req_id]])
                num_accepted += max(num_sampled - 1, 0)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            self._failed(error)
            return None
        return num_drafts, num_accepted

    def _follow(self, output: Any) -> _Events:
        """Keep account of who is not in plain decode; cheap as long as few are."""
        watched = self._watched
        for req_id in output.preempted_req_ids or ():
            watched[req_id] = None
        # After that: a request may be preempted and then aborted between two steps.
        for req_id in output.finished_req_ids:
            watched.pop(req_id, None)
        num_new = num_resumed = num_cached = new_context = 0
        for data in output.scheduled_new_reqs:
            new_context += data.num_computed_tokens
            # Model runner v2 is told of resumed requests as if they were new.
            if data.req_id in watched:
                num_resumed += 1
            elif not self._continues(data.req_id):
                num_new += 1
                num_cached += data.num_computed_tokens
            self._begin_prefill(data.req_id)
        for req_id in output.scheduled_cached_reqs.resumed_req_ids:
            num_resumed += 1
            self._begin_prefill(req_id)
        if not output.total_num_scheduled_tokens:
            return _NO_EVENTS
        prefill, prefill_context = self._prefill_of(output.num_scheduled_tokens)
        num_finished, num_preempted = self._carried or (0, 0)
        self._carried = None
        return _Events(
            prefill,
            prefill_context,
            new_context,
            num_new,
            num_resumed,
            num_cached,
            num_preempted + len(output.preempted_req_ids or ()),
            num_finished,
        )

    def _carry(self, output: Any) -> None:
        """Keep for the next record what happened before a step without a batch."""
        num_finished, num_preempted = self._carried or (0, 0)
        num_finished += len(output.finished_req_ids)
        num_preempted += len(output.preempted_req_ids or ())
        if num_finished or num_preempted:
            self._carried = num_finished, num_preempted

    def _begin_prefill(self, req_id: str) -> None:
        # Anew at the end of the dict: prefill requests stand in the order in which they began.
        self._watched.pop(req_id, None)
        self._watched[req_id] = self._scheduler.requests[req_id]

    def _continues(self, req_id: str) -> bool:
        """Tell whether this is further input of a session that was in a batch before."""
        request = self._scheduler.requests[req_id]
        if request.streaming_queue is None:
            return False
        if request in self._sessions:
            return True
        self._sessions.add(request)
        return False

    def _prefill_of(self, chunks: dict[str, int]) -> tuple[dict[str, int], int]:
        """Return the prefill chunks of the batch and their context; see "phase" in the docs."""
        prefill: dict[str, int] = {}
        context = 0
        last_chunks = []
        for req_id, request in self._watched.items():
            chunk = chunks.get(req_id)
            if chunk is None:
                continue
            # schedule() has already moved it on.
            computed = request.num_computed_tokens - chunk
            # After a preemption only the newest token may be left to compute: that is a decode.
            if request.num_output_tokens == 0 or request.num_tokens - computed > 1:
                prefill[req_id] = chunk
                context += computed
            if not request.is_prefill_chunk:
                last_chunks.append(req_id)
        for req_id in last_chunks:
            del self._watched[req_id]
        return prefill, context


class _WaitingByCounts:
    """As long as `get_request_counts` says that there are requests waiting."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def __len__(self) -> int:
        return self._scheduler.get_request_counts()[1]  # type: ignore[no-any-return]


def _waiting_queues(scheduler: Any) -> tuple[Callable[[Any], int], Any, Any]:
    """Return a function, and two objects of which it tells the lengths.

    Added up they are the requests in all waiting queues. `get_request_counts` says it in every
    version, through several Python calls. Where it does nothing but add up the lengths of queues
    that we know, these are asked directly.
    """
    names = sorted(set(type(scheduler).get_request_counts.__code__.co_names) - {"len", "running"})
    if not 0 < len(names) <= 2 or not {*names} <= {  # noqa: PLR2004 - as many as it returns
        "waiting",
        "skipped_waiting",
        "kv_holding_waiting",
    }:
        return len, _WaitingByCounts(scheduler), ()
    queues = [getattr(scheduler, name) for name in names]
    if len(queues) == 1:
        queues.append(deque())
    # vLLM's queue has a __len__ in Python; what it inherits says the same.
    length = deque.__len__ if all(isinstance(queue, deque) for queue in queues) else len
    return length, queues[0], queues[1]


def _decode_chunks(output: Any, events: _Events | None) -> list[int] | None:
    """Return the decode chunks, or None where all are 1."""
    chunks = output.num_scheduled_tokens
    prefill = events.prefill if events else {}
    num_decode = len(chunks) - len(prefill)
    if output.total_num_scheduled_tokens - sum(prefill.values()) == num_decode:
        return None
    return [chunk for req_id, chunk in chunks.items() if req_id not in prefill]


def _ids(output: Any, events: _Events | None) -> list[str]:
    prefill = events.prefill if events else {}
    return [*prefill, *(r for r in output.num_scheduled_tokens if r not in prefill)]


def contents_of(scheduler: Any) -> Callable[[Any, Any], dict[str, Any]]:
    """Return what turns a probe's measurements into record fields, on the writer's thread."""
    pool = scheduler.kv_cache_manager.block_pool
    # One block is vLLM's null block, which is never in use and never free.
    num_blocks = pool.num_gpu_blocks - 1

    def fields_of(
        contents: tuple[Any, ...], told: tuple[int | None, tuple[int, int] | None]
    ) -> dict[str, Any]:
        generated, drafts = told
        (
            num_running,
            num_waiting,
            free_blocks,
            num_reqs,
            computed,
            num_finished,
            events,
            decode,
            ids,
        ) = contents
        events = events or _NO_EVENTS
        prefill = events.prefill
        return {
            "prefill_chunk_sizes": list(prefill.values()),
            "decode_chunk_sizes": [1] * (num_reqs - len(prefill)) if decode is None else decode,
            "num_running_reqs": num_running,
            "num_waiting_reqs": num_waiting,
            "kv_cache_usage": 1 - free_blocks / num_blocks if num_blocks else 0.0,
            "prefill_context_tokens": events.prefill_context,
            "decode_context_tokens": sum(computed) + events.new_context - events.prefill_context,
            "num_new_reqs": events.num_new,
            "num_resumed_reqs": events.num_resumed,
            "num_cached_tokens": events.num_cached,
            "num_preempted_reqs": events.num_preempted,
            "num_finished_reqs": num_finished + events.num_finished,
            # Of a batch without a result nothing is known of its drafts.
            "num_draft_tokens": None if generated is None else drafts[0] if drafts else 0,
            "num_accepted_tokens": None if generated is None else drafts[1] if drafts else 0,
            "num_generated_tokens": generated,
            "request_ids": ids or None,
        }

    return fields_of
