"""What is known of one batch.

A batch is what the scheduler of a continuous-batching engine forms in one step: the requests that
the model runs together, and how many tokens of each. The 17 fields without a default are in every
record and in this order in the file; the optional ones are left out where they are unknown.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import attrs

from sched_profiler.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCHEMA_VERSION", "BatchRecord", "chunk_statistics", "converted", "mean_chunk"]

SCHEMA_VERSION = 1
"""Version of the record layout that this package writes."""


def _field(doc: str, *, minimum: int | None = None, maximum: int | None = None) -> Any:
    """Describe a field that every record has: its meaning, its unit and when it is null."""
    return attrs.field(metadata={"doc": doc, "minimum": minimum, "maximum": maximum})


def _optional(doc: str, *, minimum: int | None = 0) -> Any:
    """Describe a field that is left out where it is unknown."""
    return attrs.field(default=None, metadata={"doc": doc, "minimum": minimum, "maximum": None})


# Without slots, of which attrs makes a frozen object in twice the time.
@attrs.frozen(kw_only=True, slots=False)
class BatchRecord:
    """One batch of one engine.

    Times are in milliseconds unless the name says otherwise; a field that is `None` is unknown,
    never zero. Nothing here holds a prompt, a token id or a credential.
    """

    batch_id: int = _field(
        "Counts up by one per batch of one run; given out before any queue, so that a lost record "
        "leaves a visible gap. Never null.",
        minimum=0,
    )
    timestamp: float = _field(
        "Unix time in seconds at which schedule() began. Never null.", minimum=0
    )
    schedule_duration_ms: float = _field("Wall time of schedule(), in ms. Never null.", minimum=0)
    model_run_duration_ms: float | None = _field(
        "Time the batch had the model to itself, in ms: from the later of its hand-over to the "
        "executor and the moment in which the previous batch's result was available, until its own "
        "was. Null where the engine reports scheduling only or the model returned no result.",
        minimum=0,
    )
    total_step_duration_ms: float | None = _field(
        "Latency of the step, in ms: from the start of schedule() until the result was available. "
        "Null where model_run_duration_ms is.",
        minimum=0,
    )
    num_prefill_reqs: int = _field("Requests of the batch in prefill. Never null.", minimum=0)
    num_decode_reqs: int = _field("Requests of the batch in decode. Never null.", minimum=0)
    total_scheduled_tokens: int = _field(
        "Tokens scheduled in the batch: the sum of both chunk lists. Never null.", minimum=0
    )
    prefill_chunk_sizes: list[int] = _field(
        "Tokens scheduled for each prefill request. Never null; empty when there is none.",
        minimum=1,
    )
    decode_chunk_sizes: list[int] = _field(
        "Tokens scheduled for each decode request: 1, or more with draft tokens. Never null; "
        "empty when there is none.",
        minimum=1,
    )
    avg_prefill_chunk_size: float | None = _field(
        "Mean of prefill_chunk_sizes, in tokens. Null when there is no prefill chunk.", minimum=1
    )
    max_prefill_chunk_size: int | None = _field(
        "Largest of prefill_chunk_sizes, in tokens. Null when there is no prefill chunk.",
        minimum=1,
    )
    min_prefill_chunk_size: int | None = _field(
        "Smallest of prefill_chunk_sizes, in tokens. Null when there is no prefill chunk.",
        minimum=1,
    )
    avg_decode_chunk_size: float | None = _field(
        "Mean of decode_chunk_sizes, in tokens. Null when there is no decode chunk.", minimum=1
    )
    num_waiting_reqs: int = _field(
        "Requests in all waiting queues of the scheduler right after schedule(). Never null.",
        minimum=0,
    )
    num_running_reqs: int = _field(
        "Requests in the running queue of the scheduler right after schedule(). Never null.",
        minimum=0,
    )
    kv_cache_usage: float = _field(
        "Share of the KV cache in use right after schedule(), from 0 to 1. Never null.",
        minimum=0,
        maximum=1,
    )

    schema_version: int | None = _optional(
        "Version of this schema. Absent in a log of the original feature."
    )
    run_id: str | None = _optional(
        "Short identifier, the same for one engine's life. Absent in a log of the original "
        "feature.",
        minimum=None,
    )
    dp_rank: int | None = _optional("Data-parallel rank of the engine. Absent where unknown.")
    num_prefill_tokens: int | None = _optional(
        "Tokens scheduled for prefill requests: the sum of prefill_chunk_sizes. "
        "Absent where unknown."
    )
    num_decode_tokens: int | None = _optional(
        "Tokens scheduled for decode requests: the sum of decode_chunk_sizes. Absent where unknown."
    )
    prefill_context_tokens: int | None = _optional(
        "Tokens computed before this batch, summed over its prefill requests: what their "
        "attention must read. Absent where unknown."
    )
    decode_context_tokens: int | None = _optional(
        "Tokens computed before this batch, summed over its decode requests: what their "
        "attention must read. Absent where unknown."
    )
    num_new_reqs: int | None = _optional(
        "Requests scheduled for the first time. Absent where unknown."
    )
    num_resumed_reqs: int | None = _optional(
        "Requests scheduled again after a preemption. Absent where unknown."
    )
    num_preempted_reqs: int | None = _optional(
        "Preemptions since the previous record. Absent where unknown."
    )
    num_finished_reqs: int | None = _optional(
        "Requests finished or aborted since the previous record. Absent where unknown."
    )
    num_cached_tokens: int | None = _optional(
        "Prompt tokens of the requests first scheduled here that the prefix cache already held. "
        "Absent where unknown."
    )
    num_draft_tokens: int | None = _optional(
        "Draft tokens of speculative decoding scheduled for verification. Absent where unknown."
    )
    num_accepted_tokens: int | None = _optional(
        "Draft tokens accepted by the model. Absent where unknown."
    )
    num_generated_tokens: int | None = _optional(
        "Tokens that the batch generated and the engine gave to its requests. Absent where unknown."
    )
    token_budget: int | None = _optional(
        "Most tokens that the scheduler may put into one batch. Absent where unknown."
    )
    queue_duration_ms: float | None = _optional(
        "Wait between the end of schedule() and the start of the model on this batch, in ms: "
        "behind the batches already in flight, 0 in a synchronous engine. Absent where "
        "model_run_duration_ms is null."
    )
    update_duration_ms: float | None = _optional(
        "Wall time in which the scheduler took in the result, in ms. Absent where unknown."
    )
    idle_duration_ms: float | None = _optional(
        "How long the model had nothing to do before this batch, in ms: from when the previous "
        "batch's result was available to the start of the model on this one; for the first batch "
        "of a run, from the start of its schedule(). Absent where model_run_duration_ms is null."
    )
    num_inflight_batches: int | None = _optional(
        "Batches without a result yet when this one was scheduled, itself not counted: 0 in a "
        "synchronous engine. Absent where unknown."
    )
    num_dropped_records: int | None = _optional(
        "Records of this run given up before this one was written: the queue was full, or a record "
        "could not be made. Absent where unknown."
    )
    request_ids: list[str] | None = _optional(
        "Identifiers of the requests, in the order of prefill_chunk_sizes and then "
        "decode_chunk_sizes. Absent unless asked for.",
        minimum=None,
    )

    def check(self) -> None:
        """Check what the types cannot say: finite numbers in range, and sums that agree.

        Raises:
            RecordError: naming the field, the value and what was expected.
        """
        for field in attrs.fields(BatchRecord):
            _check_range(field, getattr(self, field.name))
        for phase, chunks, count in (
            ("prefill", self.prefill_chunk_sizes, self.num_prefill_reqs),
            ("decode", self.decode_chunk_sizes, self.num_decode_reqs),
        ):
            if len(chunks) != count:
                raise RecordError(
                    f"num_{phase}_reqs is {count} but {phase}_chunk_sizes has {len(chunks)} entries"
                )
        total = sum(self.prefill_chunk_sizes) + sum(self.decode_chunk_sizes)
        if total != self.total_scheduled_tokens:
            raise RecordError(
                f"total_scheduled_tokens is {self.total_scheduled_tokens} "
                f"but the chunk lists add up to {total}"
            )


attrs.resolve_types(BatchRecord)
_TYPES: dict[str, Any] = {field.name: field.type for field in attrs.fields(BatchRecord)}


def _check_range(field: attrs.Attribute[Any], value: Any) -> None:
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    for number in value if isinstance(value, list) else [value]:
        if number is None or isinstance(number, str):
            continue
        if isinstance(number, float) and not math.isfinite(number):
            raise RecordError(f"{field.name} is {number}; expected a finite number")
        if low is not None and number < low:
            raise RecordError(f"{field.name} is {number}; expected at least {low}")
        if high is not None and number > high:
            raise RecordError(f"{field.name} is {number}; expected at most {high}")


def converted(fields: dict[str, Any]) -> dict[str, Any]:
    """Return record fields with their numbers as Python's own; others may come from NumPy.

    Raises:
        RecordError: if a field is unknown, or a value is not of the type of its field.
    """
    return {name: _converted(name, value) for name, value in fields.items()}


def _converted(name: str, value: Any) -> Any:
    kind = _TYPES.get(name)
    if kind is None:
        raise RecordError(f"there is no record field {name}")
    if value is None:
        return None
    try:
        if kind in (int, int | None):
            return _as_int(value)
        if kind in (float, float | None):
            # A text is no number, even if it reads like one.
            return float(value + 0)
        return [_as_int(item) if kind == list[int] else str(item) for item in value]
    except TypeError:
        expected = getattr(kind, "__name__", kind) if kind in (int, float) else kind
        raise RecordError(f"{name} is {value!r:.60}; expected {expected}") from None


def _as_int(value: Any) -> int:
    """Return any kind of whole number as an int; a truth value is none."""
    if isinstance(value, bool):
        raise TypeError(value)
    return operator.index(value)


def chunk_statistics(chunks: Sequence[int]) -> tuple[float | None, int | None, int | None]:
    """Return the mean (rounded to 2 decimals), the largest and the smallest chunk, in tokens.

    All three are `None` for an empty list: a zero would drag every mean down.
    """
    if not chunks:
        return None, None, None
    return mean_chunk(sum(chunks), len(chunks)), max(chunks), min(chunks)


def mean_chunk(num_tokens: int, num_chunks: int) -> float | None:
    """Return the mean of so many chunks (rounded to 2 decimals), `None` of none."""
    return round(num_tokens / num_chunks, 2) if num_chunks else None
