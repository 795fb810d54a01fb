"""Follows the steps of one vLLM scheduler: the part of the adapter on the engine's thread.

It costs what it reads, so it reads little. What a batch holds is worked out without a look at
every request: the few that are not in plain decode (in prefill, or preempted and waiting) are
watched; all others decode, and when the tokens left equal the requests left, every decode chunk is
1. Whatever need not be known before the next step changes it is worked out on the writer's thread,
by `vllm_contents`.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from sched_profiler.engines.vllm_contents import COMPUTED, NO_EVENTS, Events, make_events
from sched_profiler.engines.vllm_stamp import STAMP, result_ready

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.profiler import BatchProfiler, Measurement, Scheduled

__all__ = ["Probe"]


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
        "_has_workers",
        "_ids",
        "_length",
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
        executor = scheduler.vllm_config.parallel_config.distributed_executor_backend
        self._has_workers = executor != "uni"
        self._writer = profiler.writer
        self._queue = profiler.writer.queue
        # Until the first batch is through `put`, which starts the writer, and after the last.
        self._room = 0
        # When the result of the previous batch was available.
        self._previous: int | None = None
        # Results come in the order of schedule(), so numbers may be given out when they come.
        self._ids = itertools.count()
        # Batches without a result, oldest first, each with vLLM's object for it; no batch where
        # measuring it failed. None once the probe is off.
        self._pending: deque[tuple[Any, Scheduled | None]] | None = deque()
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
        self.give_up()
        self._pending = None
        for name in ("schedule", "update_from_output"):
            if vars(self._scheduler).get(name) == getattr(self, name):
                delattr(self._scheduler, name)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule as before, and read what the next steps will change."""
        now = self._now
        began = now()
        output = self._schedule(*args, **kwargs)
        ended = now()
        pending = self._pending
        if pending is None:
            return output
        try:
            events = decode = None
            if (
                self._watched
                or output.scheduled_new_reqs
                or output.preempted_req_ids
                or self._carried
            ):
                events = self._follow(output)
            if total := output.total_num_scheduled_tokens:
                length = self._length
                num_reqs = len(output.num_scheduled_tokens)
                # What is left, if every decode chunk is 1, is what the prefill chunks are longer.
                if total - num_reqs != (events.surplus if events else 0):
                    events, decode = self._chunks(output, events)
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
                    decode,
                    self._request_ids and _ids(output, events),
                )
                # The output is what the result is matched by; it is not kept beyond that.
                pending.append((output, batch))
            else:
                self._carry(output)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            if getattr(output, "total_num_scheduled_tokens", True):
                # Its number is used up all the same, so that it leaves a gap.
                pending.append((output, None))
            self._failed(error)
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:  # noqa: C901, PLR0912 - a call costs a cold step more than a branch
        """Take in a result as before, and hand the batch over."""
        now = self._now
        taken = now()
        batch = drafts = None
        is_ours = False
        try:
            pending = self._pending
            output = args[0] if args else kwargs["scheduler_output"]
            if pending and (pending[0][0] is output or self._is_late(output)):
                # From here on no signal handler can take it for a batch without a result.
                batch = pending.popleft()[1]
                batch_id = next(self._ids)
                is_ours = True
                if output.scheduled_spec_decode_tokens:
                    # Before the update: it forgets which of its requests were aborted meanwhile.
                    drafts = self._drafts(output, args, kwargs)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            drafts = None, None
            self._failed(error)
        try:
            returned = self._update_from_output(*args, **kwargs)
        except BaseException:
            if is_ours:
                self._without_result(batch_id, batch)
            raise
        updated = now()
        if not is_ours:
            return returned
        try:
            if batch is None:
                self._previous = taken
                self._writer.drop()
                return returned
            generated = 0
            for client in returned.values():
                outputs = client.outputs
                if drafts is None and outputs and outputs[-1].new_token_ids:
                    # One token each; an output without one, of a failed request, comes last.
                    generated += len(outputs)
                else:
                    generated += sum(len(output.new_token_ids) for output in outputs)
            ready = taken
            if self._has_workers:
                ready = self._ready(taken, batch, args, kwargs)
            measurement = (
                batch_id,
                self._previous,
                ready,
                taken,
                updated,
                batch,
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
            self._writer.drop()
            self._failed(error)
        return returned

    def _put(self, measurement: Measurement) -> None:
        """Hand a batch over to a writer that is not yet there, lags behind, or is closed."""
        *head, batch, generated, drafts = measurement
        # A long queue is not to hold a number for each request of each batch.
        total = [sum(batch[COMPUTED])]
        batch = (*batch[:COMPUTED], total, *batch[COMPUTED + 1 :])
        self._writer.put((*head, batch, generated, drafts))
        self._room = self._writer.room

    def _ready(
        self, taken: int, batch: Scheduled, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> int:
        """Return when a worker had the result ready; `taken` where it does not say."""
        model_output = args[1] if len(args) > 1 else kwargs["model_runner_output"]
        stamp = model_output.__dict__.get(STAMP)
        if stamp is None:
            return taken
        # Never before the hand-over, nor before the result of the last batch.
        submitted: int = batch[2]
        return max(result_ready(stamp, taken), submitted, self._previous or 0)

    def give_up(self) -> None:
        """Record what never got a result: the batch that brought the engine down among them."""
        while self._pending:
            batch = self._pending.popleft()[1]
            self._without_result(next(self._ids), batch)
        # The profiler may be about to close its writer.
        self._room = 0

    def _without_result(self, batch_id: int, batch: Scheduled | None) -> None:
        if batch is None:
            self._writer.drop()
            return
        try:
            self._put((batch_id, self._previous, None, None, None, batch, None, None))
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if self._profiler.boundary.failed(error):
            self.detach()

    def _is_late(self, output: Any) -> bool:
        """Give up the batches before `output`: results come in the order of schedule().

        Tells whether `output` is pending at all; one without tokens is not.
        """
        pending = self._pending
        if pending is None or not any(batch[0] is output for batch in pending):
            return False
        later = []
        while pending[-1][0] is not output:
            later.append(pending.pop())
        found = pending.pop()
        self.give_up()
        pending.extend([found, *reversed(later)])
        return True

    def _drafts(
        self, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[int | None, int | None]:
        """Return how many draft tokens a batch had and how many of them the model accepted.

        Accepted is all that the model sampled but one per request, of the requests that are still
        there to take it. Where the drafts are of another kind (a diffusion model), it is unknown.
        """
        drafts = output.scheduled_spec_decode_tokens
        num_drafts = sum(map(len, drafts.values()))
        if self._scheduler.vllm_config.speculative_config is None:
            return num_drafts, None
        model_output = args[1] if len(args) > 1 else kwargs["model_runner_output"]
        sampled = model_output.sampled_token_ids
        num_accepted = 0
        for req_id in drafts:
            request = self._scheduler.requests.get(req_id)
            if request is None or request.is_finished() or not sampled:
                continue
            if request.num_stale_output_tokens and request.drop_stale_output:
                continue
            num_sampled = len(sampled[model_output.req_id_to_index[req_id]])
            num_accepted += max(num_sampled - 1, 0)
        return num_drafts, num_accepted

    def _chunks(self, output: Any, events: Events | None) -> tuple[Events | None, list[int]]:
        """Return the events and the decode chunks of a batch in which not all of these are 1."""
        chunks = output.num_scheduled_tokens
        prefill = events.prefill if events else {}
        drafts = output.scheduled_spec_decode_tokens
        # KV cache that was lost, and not by a preemption: a connector failed to load it.
        again = {
            req_id: chunk
            for req_id, chunk in chunks.items()
            if req_id not in prefill and chunk > 1 + len(drafts.get(req_id, ()))
        }
        if again:
            for req_id in again:
                self._begin_prefill(req_id)
            events = events or NO_EVENTS
            prefill = prefill.copy()
            context = events.prefill_context + self._add_prefill(again, prefill)
            events = events._replace(prefill=prefill, prefill_context=context)
        return events, [chunk for req_id, chunk in chunks.items() if req_id not in prefill]

    def _follow(self, output: Any) -> Events:
        """Keep account of who is not in plain decode; cheap as long as few are."""
        watched = self._watched
        for req_id in output.preempted_req_ids or ():
            watched[req_id] = None
        # After that: a request may be preempted and then aborted between two steps.
        for req_id in output.finished_req_ids:
            watched.pop(req_id, None)
        num_new = num_resumed = num_cached = new_context = 0
        first = []
        for data in output.scheduled_new_reqs:
            new_context += data.num_computed_tokens
            if data.req_id not in watched:
                first.append(data)
                continue
            # Model runner v2 is told of resumed requests as if they were new.
            num_resumed += 1
            self._begin_prefill(data.req_id)
        for req_id in output.scheduled_cached_reqs.resumed_req_ids:
            num_resumed += 1
            self._begin_prefill(req_id)
        if not output.total_num_scheduled_tokens:
            return NO_EVENTS
        chunks = output.num_scheduled_tokens
        prefill: dict[str, int] = {}
        context = self._add_prefill(chunks, prefill) if watched else 0
        for data in first:
            req_id = data.req_id
            request = self._scheduler.requests[req_id]
            if request.streaming_queue is None or not self._continues(request):
                num_new += 1
                num_cached += data.num_computed_tokens
            # Nothing is generated yet, so this is a prefill.
            prefill[req_id] = chunks[req_id]
            context += data.num_computed_tokens
            if request.is_prefill_chunk:
                watched[req_id] = request
        num_finished, num_preempted = self._carried or (0, 0)
        self._carried = None
        return make_events(
            (
                prefill,
                sum(prefill.values()) - len(prefill),
                context,
                new_context,
                num_new,
                num_resumed,
                num_cached,
                num_preempted + len(output.preempted_req_ids or ()),
                num_finished,
            )
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

    def _continues(self, session: Any) -> bool:
        """Tell whether this is further input of a session that was in a batch before."""
        if session in self._sessions:
            return True
        self._sessions.add(session)
        return False

    def _add_prefill(self, chunks: dict[str, int], prefill: dict[str, int]) -> int:
        """Add the prefill chunks of those watched and return their context; see docs on phases."""
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
        return context


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
    is_vllms_own = all(
        cls.__module__.startswith("vllm.") or cls.__module__ in ("abc", "builtins")
        for cls in type(scheduler).__mro__
    )
    names = sorted(set(type(scheduler).get_request_counts.__code__.co_names) - {"len", "running"})
    known = {"waiting", "skipped_waiting", "kv_holding_waiting"}
    # Somebody's subclass may put other queues into their place.
    if not is_vllms_own or len(names) not in (1, 2) or not known.issuperset(names):
        return len, _WaitingByCounts(scheduler), ()
    queues = [getattr(scheduler, name) for name in names]
    if len(queues) == 1:
        queues.append(deque())
    # vLLM's queue has a __len__ in Python; what it inherits says the same.
    length = deque.__len__ if all(isinstance(queue, deque) for queue in queues) else len
    return length, queues[0], queues[1]


def _ids(output: Any, events: Events | None) -> list[str]:
    prefill = events.prefill if events else {}
    return [*prefill, *(r for r in output.num_scheduled_tokens if r not in prefill)]
