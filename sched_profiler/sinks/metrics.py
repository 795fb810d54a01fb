"""What monitoring gets of a record: the metrics that vLLM's own lack.

vLLM counts tokens, requests and preemptions, and knows its queues and its KV cache; it does not
say how long scheduling took, how long the model waited for it, or what phases a batch was made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.record import BatchRecord

__all__ = ["METRICS", "Metric"]

_DURATIONS = (
    *(0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
# What is in no batch is worth knowing: the first bucket holds the zeros.
_TOKENS = (0, 1, 8, 32, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
_REQUESTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@attrs.frozen
class Metric:
    """One metric, for every monitoring system alike.

    Attributes:
        name: without the prefix `sched_profiler_` and without a unit.
        kind: a histogram has a value of every batch, a gauge the value of the last one.
        unit: as Prometheus writes it; empty for a plain number.
        description: what it measures.
        value: its value in a batch, in `unit`; `None` where the record does not have it.
        buckets: upper bounds of a histogram's buckets, in `unit`.
    """

    name: str
    kind: Literal["histogram", "gauge"]
    unit: str
    description: str
    value: Callable[[BatchRecord], float | None]
    buckets: tuple[float, ...] = ()


def _duration(name: str, description: str) -> Metric:
    field = f"{name}_ms"

    def seconds(record: BatchRecord) -> float | None:
        milliseconds = getattr(record, field)
        return None if milliseconds is None else milliseconds / 1000

    return Metric(name, "histogram", "seconds", description, seconds, _DURATIONS)


METRICS = (
    _duration("schedule_duration", "Wall time of schedule()."),
    _duration("queue_duration", "Wait of a scheduled batch behind those already in flight."),
    _duration("model_run_duration", "Time a batch had the model to itself."),
    _duration("total_step_duration", "From the start of schedule() to the result of the batch."),
    _duration("update_duration", "Wall time in which the scheduler took in a result."),
    _duration("idle_duration", "How long the model had nothing to do before a batch."),
    Metric(
        "batch_prefill_reqs",
        "histogram",
        "",
        "Requests of a batch in prefill.",
        lambda record: record.num_prefill_reqs,
        _REQUESTS,
    ),
    Metric(
        "batch_decode_reqs",
        "histogram",
        "",
        "Requests of a batch in decode.",
        lambda record: record.num_decode_reqs,
        _REQUESTS,
    ),
    Metric(
        "batch_prefill_tokens",
        "histogram",
        "",
        "Tokens of a batch scheduled for prefill.",
        lambda record: sum(record.prefill_chunk_sizes),
        _TOKENS,
    ),
    Metric(
        "batch_decode_tokens",
        "histogram",
        "",
        "Tokens of a batch scheduled for decode.",
        lambda record: sum(record.decode_chunk_sizes),
        _TOKENS,
    ),
    Metric(
        "inflight_batches",
        "gauge",
        "",
        "Batches without a result yet when the last one was scheduled.",
        lambda record: record.num_inflight_batches,
    ),
    Metric(
        "token_budget",
        "gauge",
        "",
        "Most tokens that the scheduler may put into one batch.",
        lambda record: record.token_budget,
    ),
    Metric(
        "dropped_records",
        "gauge",
        "",
        "Records of the run given up so far.",
        lambda record: record.num_dropped_records,
    ),
)
"""Every metric, in the order of the documentation."""
