"""What runs on the engine's thread in every step: the two methods in the scheduler's place.

A plain step, in which every request decodes one token, is followed here alone; what else may have
happened is asked of an account of the requests (`vllm_probe`). `_vllm_hook.c` is the same in C, for
half of the cost, and is taken where it was built; this is what it must do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator

    from sched_profiler.profiler import Measurement, Scheduled

__all__ = ["HOOKS", "Account", "Hook", "PlainEvents"]

PlainEvents = tuple[Any, ...]
"""What `Events` of `vllm_contents` gives names to; a tuple without names is made faster."""

# Where they are in a batch, and in events.
_SUBMITTED, _EVENTS, _DECODE = 2, 10, 11
_SURPLUS = 1


class Account(Protocol):
    """Knows the requests that are not in plain decode, and what to do when a step is not plain."""

    def follow(self, output: Any) -> PlainEvents:
        """Keep account of a step in which requests come, go, or are in prefill."""
        ...

    def continues(self, session: Any) -> bool:
        """Tell whether a request with streaming input was in a batch before."""
        ...

    def carry(self, output: Any) -> None:
        """Keep for the next record what happened before a step without a batch."""
        ...

    def chunks(
        self, output: Any, events: PlainEvents | None
    ) -> tuple[PlainEvents | None, list[int]]:
        """Return events and decode chunks of a batch in which not all of these are 1."""
        ...

    def request_ids(self, output: Any, events: PlainEvents | None) -> list[str]:
        """Return who is in the batch."""
        ...

    def not_scheduled(self, output: Any, error: Exception) -> None:
        """Deal with a failure after schedule()."""
        ...

    def is_late(self, output: Any) -> bool:
        """Tell whether `output` is pending; if so, make it the oldest."""
        ...

    def drafts(self, output: Any, model_output: Any) -> tuple[int | None, int | None]:
        """Return how many draft tokens a batch had and how many were accepted."""
        ...

    def put(self, measurement: Measurement) -> None:
        """Hand a measurement to a writer that has no room for it in its queue."""
        ...

    def without_result(self, batch_id: int, batch: Scheduled | None) -> None:
        """Record a batch whose result could not be taken in."""
        ...

    def lost(self, error: Exception | None) -> None:
        """Count a batch that has no record; the error is new if there is one."""
        ...

    def failed(self, error: Exception) -> None:
        """Deal with a failure that lost no batch."""
        ...


class Hook:
    """Measures every batch of one scheduler.

    vLLM's exceptions and results pass through; failures of ours do not leave it.

    Attributes:
        account: what is asked where a step is not plain.
        inner_schedule, inner_update: the scheduler's own methods.
        now: ns of a monotonic clock.
        scheduler: whose `running` is counted.
        length: tells the length of `waiting` and `also_waiting`, together all waiting queues.
        free_blocks: whose `num_free_blocks` is read.
        watched: requests that are not in plain decode; empty in a plain step.
        queue: the writer's; a measurement is appended as long as it is shorter than `room`.
        ids: numbers of batches. Results come in the order of schedule(), so they may be given out
            when these come.
        pending: batches without a result, oldest first, each with vLLM's object for it; no batch
            where measuring it failed. None once the hook is off.
        previous: when the result of the previous batch was available.
        carried: what the next record has to tell of steps without a batch.
        room: 0 until the first measurement is through `put`, and after the last.
        stamp_name: attribute of a result with which a worker in another process says when it was
            ready: by which clock, and ns. Where the clock is not `stamp_clock`, it says nothing.
        has_workers: there are such workers.
    """

    # Slots lie side by side in memory: in a live engine most of what a step reads is not cached.
    # For the same reason the methods call no Python function of ours in a plain decode step.
    __slots__ = (
        "account",
        "also_waiting",
        "carried",
        "free_blocks",
        "has_request_ids",
        "has_workers",
        "ids",
        "inner_schedule",
        "inner_update",
        "length",
        "now",
        "pending",
        "previous",
        "queue",
        "room",
        "scheduler",
        "stamp_clock",
        "stamp_name",
        "waiting",
        "watched",
    )

    def __init__(
        self,
        *,
        account: Account,
        inner_schedule: Callable[..., Any],
        inner_update: Callable[..., Any],
        now: Callable[[], int],
        scheduler: Any,
        length: Callable[[Any], int],
        waiting: Any,
        also_waiting: Any,
        free_blocks: Any,
        watched: dict[str, Any],
        queue: deque[Any],
        ids: Iterator[int],
        pending: deque[tuple[Any, Scheduled | None]] | None,
        previous: int | None,
        carried: tuple[int, int] | None,
        stamp_name: str,
        stamp_clock: str,
        has_workers: bool,
        has_request_ids: bool,
        reads_system_clock: bool,  # noqa: ARG002 - C need not call `now` then
    ) -> None:
        """Change nothing: whoever makes a hook puts its methods into the scheduler's place."""
        self.account = account
        self.inner_schedule = inner_schedule
        self.inner_update = inner_update
        self.now = now
        self.scheduler = scheduler
        self.length = length
        self.waiting = waiting
        self.also_waiting = also_waiting
        self.free_blocks = free_blocks
        self.watched = watched
        self.queue = queue
        self.ids = ids
        self.pending = pending
        self.previous = previous
        self.carried = carried
        self.stamp_name = stamp_name
        self.stamp_clock = stamp_clock
        self.room = 0
        self.has_workers = has_workers
        self.has_request_ids = has_request_ids

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule as before, and read what the next steps will change."""
        now = self.now
        began = now()
        output = self.inner_schedule(*args, **kwargs)
        ended = now()
        pending = self.pending
        if pending is None:
            return output
        try:
            events = decode = None
            computed = output.scheduled_cached_reqs.num_computed_tokens
            total = num_reqs = output.total_num_scheduled_tokens
            # As many tokens as requests that were in a batch before: one for each, and none is new.
            if total != len(computed) or self.watched or self.carried or output.preempted_req_ids:
                num_reqs = len(output.num_scheduled_tokens)
                events = self.account.follow(output)
            if num_reqs:
                length = self.length
                # What is left, if every decode chunk is 1, is what the prefill chunks are longer.
                if total - num_reqs != (events[_SURPLUS] if events else 0):
                    events, decode = self.account.chunks(output, events)
                batch = (
                    began,
                    ended,
                    ended,
                    len(pending),
                    len(self.scheduler.running),
                    length(self.waiting) + length(self.also_waiting),
                    self.free_blocks.num_free_blocks,
                    num_reqs,
                    computed,
                    len(output.finished_req_ids),
                    events,
                    decode,
                    self.account.request_ids(output, events) if self.has_request_ids else None,
                )
                # The output is what the result is matched by; it is not kept beyond that.
                pending.append((output, batch))
            else:
                self.account.carry(output)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            self.account.not_scheduled(output, error)
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:  # noqa: C901, PLR0912, PLR0915 - a call costs a cold step more than a branch
        """Take in a result as before, and hand the batch over."""
        now = self.now
        taken = now()
        output: Any = args[0] if args else kwargs.get("scheduler_output")
        model_output = args[1] if len(args) > 1 else kwargs.get("model_runner_output")
        drafts = None
        is_ours = False
        try:
            pending = self.pending
            if pending and (pending[0][0] is output or self.account.is_late(output)):
                # From here on no signal handler can take it for a batch without a result.
                batch: Any = pending.popleft()[1]
                batch_id = next(self.ids)
                is_ours = True
                # Without events and with decode chunks of 1 only there are no drafts.
                is_plain = batch is None or (batch[_EVENTS] is None and batch[_DECODE] is None)
                if not is_plain and output.scheduled_spec_decode_tokens:
                    # Before the update: it forgets which of its requests were aborted meanwhile.
                    drafts = self.account.drafts(output, model_output)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            drafts = None, None
            self.account.failed(error)
        try:
            returned = self.inner_update(*args, **kwargs)
        except BaseException:
            if is_ours:
                self.account.without_result(batch_id, batch)
            raise
        if not is_ours:
            return returned
        updated = now()
        if batch is None:
            self.previous = taken
            self.account.lost(None)
            return returned
        try:
            generated = 0
            for client in returned.values():
                outputs = client.outputs
                if drafts is None and outputs and outputs[-1].new_token_ids:
                    # One token each; an output without one, of a failed request, comes last.
                    generated += len(outputs)
                else:
                    generated += sum(len(output.new_token_ids) for output in outputs)
            ready = taken
            if self.has_workers and (stamp := model_output.__dict__.get(self.stamp_name)):
                clock, ready = stamp
                # Never after it was taken, before the hand-over, or before the result of the last
                # batch.
                if clock != self.stamp_clock or ready > taken:
                    ready = taken
                ready = max(ready, batch[_SUBMITTED], self.previous or 0)
            measurement = (
                batch_id,
                self.previous,
                ready,
                taken,
                updated,
                batch,
                generated,
                drafts,
            )
            self.previous = ready
            queue = self.queue
            if len(queue) < self.room:
                queue.append(measurement)
            else:
                self.account.put(measurement)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            self.account.lost(error)
        return returned


HOOKS: dict[str, type[Hook]] = {"python": Hook}
"""The hooks there are, by the language they are written in, the cheapest last."""
try:
    from sched_profiler.engines import _vllm_hook  # type: ignore[attr-defined]  # C, if it is there
except ImportError:  # no compiler where this was built
    pass
else:
    HOOKS["c"] = _vllm_hook.Hook
