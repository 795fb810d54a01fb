"""Keeps account of the requests of one vLLM scheduler, for the hook in its methods' place.

The hook costs what it reads, so it reads little. What a batch holds is worked out without a look at
every request: the few that are not in plain decode (in prefill, or preempted and waiting) are
watched; all others decode, and when the tokens left equal the requests left, every decode chunk is
1. Whatever need not be known before the next step changes it is worked out on the writer's thread,
by `vllm_contents`.
"""

from __future__ import annotations

import itertools
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from sched_profiler.engines.vllm_contents import COMPUTED, NO_EVENTS, PREFILL, Events
from sched_profiler.engines.vllm_hook import HOOKS
from sched_profiler.engines.vllm_stamp import CLOCK, STAMP

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.engines.vllm_hook import Hook, PlainEvents
    from sched_profiler.profiler import BatchProfiler, Measurement, Scheduled

__all__ = ["Probe"]


class Probe:
    """Measures every batch of one scheduler into a profiler (made with `contents_of`).

    Attributes:
        hook: its `schedule` and `update_from_output` call the scheduler's own.
    """

    __slots__ = ("_profiler", "_scheduler", "_sessions", "_watched", "_writer", "hook")

    def __init__(
        self,
        scheduler: Any,
        profiler: BatchProfiler,
        *,
        request_ids: bool = False,
        make_hook: type[Hook] | None = None,
    ) -> None:
        """Bind to `scheduler` without changing it; with `request_ids` record who was in a batch."""
        self._scheduler = scheduler
        self._profiler = profiler
        self._writer = profiler.writer
        # In prefill: the request by its id. Preempted and waiting: None by its id.
        self._watched: dict[str, Any] = {}
        # Requests with streaming input that were in a batch: each further input looks new to vLLM.
        self._sessions: weakref.WeakSet[Any] = weakref.WeakSet()
        length, waiting, also_waiting = _waiting_queues(scheduler)
        make_hook = make_hook or [*HOOKS.values()][-1]
        self.hook = make_hook(
            account=self,
            inner_schedule=scheduler.schedule,
            inner_update=scheduler.update_from_output,
            now=profiler.clock.monotonic_ns,
            scheduler=scheduler,
            length=length,
            waiting=waiting,
            also_waiting=also_waiting,
            free_blocks=scheduler.kv_cache_manager.block_pool.free_block_queue,
            watched=self._watched,
            queue=profiler.writer.queue,
            ids=itertools.count(),
            pending=deque(),
            previous=None,
            carried=None,
            stamp_name=STAMP,
            stamp_clock=CLOCK,
            has_workers=(
                scheduler.vllm_config.parallel_config.distributed_executor_backend != "uni"
            ),
            has_request_ids=request_ids,
            reads_system_clock=profiler.clock.monotonic_ns is time.monotonic_ns,
        )

    def attach(self) -> None:
        """Take the place of the scheduler's methods."""
        self._profiler.before_close = self.give_up
        self._scheduler.schedule = self.hook.schedule
        self._scheduler.update_from_output = self.hook.update_from_output

    def detach(self) -> None:
        """Give the scheduler its methods back: a probe that fails again and again is absent.

        Somebody may have wrapped ours since; then they stay, and do nothing but pass calls on.
        """
        self.give_up()
        self.hook.pending = None
        for name in ("schedule", "update_from_output"):
            if vars(self._scheduler).get(name) == getattr(self.hook, name):
                delattr(self._scheduler, name)

    def put(self, measurement: Measurement) -> None:
        """Hand a batch over to a writer that is not yet there, lags behind, or is closed."""
        *head, scheduled, generated, drafts = measurement
        batch = list(scheduled)
        # A long queue is not to hold a number for each request of each batch.
        batch[COMPUTED] = [sum(batch[COMPUTED])]
        self._writer.put((*head, batch, generated, drafts))
        self.hook.room = self._writer.room

    def give_up(self) -> None:
        """Record what never got a result: the batch that brought the engine down among them."""
        while pending := self.hook.pending:
            batch = pending.popleft()[1]
            self.without_result(next(self.hook.ids), batch)
        # The profiler may be about to close its writer.
        self.hook.room = 0

    def without_result(self, batch_id: int, batch: Scheduled | None) -> None:
        """Record a batch whose result did not come or could not be taken in."""
        if batch is None:
            self._writer.drop()
            return
        try:
            self.put((batch_id, self.hook.previous, None, None, None, batch, None, None))
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            self.lost(error)

    def not_scheduled(self, output: Any, error: Exception) -> None:
        """Let the batch of a step that could not be followed leave a gap."""
        pending = self.hook.pending
        if pending is not None and getattr(output, "total_num_scheduled_tokens", True):
            pending.append((output, None))
        self.failed(error)

    def lost(self, error: Exception | None) -> None:
        """Count a batch that has no record; the error is new if there is one."""
        self._writer.drop()
        if error is not None:
            self.failed(error)

    def failed(self, error: Exception) -> None:
        """Pass a failure to the profiler's boundary, and be off once that says so."""
        if self._profiler.boundary.failed(error):
            self.detach()

    def is_late(self, output: Any) -> bool:
        """Give up the batches before `output`: results come in the order of schedule().

        Tells whether `output` is pending at all; one without tokens is not.
        """
        pending = self.hook.pending
        if pending is None or not any(batch[0] is output for batch in pending):
            return False
        later = []
        while pending[-1][0] is not output:
            later.append(pending.pop())
        found = pending.pop()
        self.give_up()
        pending.extend([found, *reversed(later)])
        return True

    def drafts(self, output: Any, model_output: Any) -> tuple[int | None, int | None]:
        """Return how many draft tokens a batch had and how many of them the model accepted.

        Accepted is all that the model sampled but one per request, of the requests that are still
        there to take it. Where the drafts are of another kind (a diffusion model), it is unknown.
        """
        drafts = output.scheduled_spec_decode_tokens
        num_drafts = sum(map(len, drafts.values()))
        if self._scheduler.vllm_config.speculative_config is None:
            return num_drafts, None
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

    def chunks(
        self, output: Any, events: PlainEvents | None
    ) -> tuple[PlainEvents | None, list[int]]:
        """Return the events and the decode chunks of a batch in which not all of these are 1."""
        chunks = output.num_scheduled_tokens
        prefill = events[PREFILL] if events else {}
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
            known = Events._make(events or NO_EVENTS)
            prefill = prefill.copy()
            context = known.prefill_context + self._add_prefill(again, prefill)
            events = known._replace(prefill=prefill, prefill_context=context)
        return events, [chunk for req_id, chunk in chunks.items() if req_id not in prefill]

    def follow(self, output: Any) -> PlainEvents:
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
            if request.streaming_queue is None or not self.continues(request):
                num_new += 1
                num_cached += data.num_computed_tokens
            # Nothing is generated yet, so this is a prefill.
            prefill[req_id] = chunks[req_id]
            context += data.num_computed_tokens
            if request.is_prefill_chunk:
                watched[req_id] = request
        num_finished, num_preempted = self.hook.carried or (0, 0)
        self.hook.carried = None
        return (
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

    def carry(self, output: Any) -> None:
        """Keep for the next record what happened before a step without a batch.

        With nothing left to serve, have the writer write what there is.
        """
        num_finished, num_preempted = self.hook.carried or (0, 0)
        num_finished += len(output.finished_req_ids)
        num_preempted += len(output.preempted_req_ids or ())
        if num_finished or num_preempted:
            self.hook.carried = num_finished, num_preempted
        # The engine has served all that it had: whoever asked may stop it now, and vLLM kills its
        # engine core in the moment in which it asks it to end.
        if not self._scheduler.running:
            self._writer.wake()

    def request_ids(self, output: Any, events: PlainEvents | None) -> list[str]:
        """Return who is in the batch: those in prefill first, as the chunks are."""
        prefill = events[PREFILL] if events else {}
        return [*prefill, *(r for r in output.num_scheduled_tokens if r not in prefill)]

    def _begin_prefill(self, req_id: str) -> None:
        # Anew at the end of the dict: prefill requests stand in the order in which they began.
        self._watched.pop(req_id, None)
        self._watched[req_id] = self._scheduler.requests[req_id]

    def continues(self, session: Any) -> bool:
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
