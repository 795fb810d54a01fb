"""A seeded stand-in for an engine: plausible records and logs without running one.

A small queueing model: requests of mixed lengths arrive at a rate that rises and falls, are
prefilled in chunks under a token budget, decode one token a batch and leave. Step times follow
what the batch holds, with a long tail. Nothing here is a measurement.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import TYPE_CHECKING, Any

import attrs

from sched_profiler.codec import encode
from sched_profiler.record import SCHEMA_VERSION, BatchRecord
from sched_profiler.testing import make_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["SEED_FIELDS", "batch", "records", "seed_record", "write_log"]

SEED_FIELDS = tuple(
    field.name for field in attrs.fields(BatchRecord) if field.default is attrs.NOTHING
)
"""Names of the 17 fields that every record has."""

_TOKEN_BUDGET = 2048
_KV_CACHE_TOKENS = 120_000
_START = 1_790_000_000.0


def batch(
    batch_id: int = 0,
    *,
    prefill: Iterable[int] = (),
    decode: Iterable[int] = (1,),
    schedule_ms: float = 1.0,
    model_run_ms: float | None = 9.0,
    queue_ms: float | None = 0.0,
    **fields: Any,
) -> BatchRecord:
    """Return a record with every number that follows from the arguments filled in."""
    prefill, decode = list(prefill), list(decode)
    is_measured = model_run_ms is not None
    total_ms = None if model_run_ms is None else schedule_ms + (queue_ms or 0.0) + model_run_ms
    defaults: dict[str, Any] = {
        "timestamp": _START + batch_id * 0.01,
        "schedule_duration_ms": schedule_ms,
        "model_run_duration_ms": model_run_ms,
        "total_step_duration_ms": total_ms,
        "num_waiting_reqs": 0,
        "kv_cache_usage": 0.5,
        "schema_version": SCHEMA_VERSION,
        "run_id": "run",
        "queue_duration_ms": queue_ms if is_measured else None,
        "idle_duration_ms": schedule_ms if is_measured else None,
    }
    return make_record(batch_id, prefill=prefill, decode=decode, **(defaults | fields))


def seed_record(record: BatchRecord, *, measured: bool = True) -> dict[str, Any]:
    """Return the 17 fields alone, as a fork of the original feature writes them.

    With `measured=False` the fork measures scheduling only, and has no key for the rest.
    """
    fields = {name: getattr(record, name) for name in SEED_FIELDS}
    if not measured:
        del fields["model_run_duration_ms"], fields["total_step_duration_ms"]
    return fields


def write_log(path: Path, records: Iterable[BatchRecord]) -> Path:
    """Write the records to a log at `path`, and return the path."""
    with path.open("wb") as stream:
        stream.writelines(map(encode, records))
    return path


@attrs.define
class _Load:
    """Requests on their way through the model: prompts and outputs still to be computed."""

    rng: random.Random
    waiting: deque[int] = attrs.field(factory=deque)
    prefilling: deque[int] = attrs.field(factory=deque)
    decoding: list[int] = attrs.field(factory=list)
    context: int = 0

    def arrive(self, mean: float) -> None:
        """Let about `mean` requests arrive."""
        whole, part = divmod(mean, 1.0)
        for _ in range(int(whole) + (self.rng.random() < part)):
            self.waiting.append(1 + int(min(self.rng.lognormvariate(5.2, 1.1), 8000)))

    def form_batch(self, max_num_seqs: int) -> tuple[list[int], int]:
        """Schedule one batch; return its prefill chunks and how many requests decode."""
        num_decodes = len(self.decoding)
        budget = _TOKEN_BUDGET - num_decodes
        chunks: list[int] = []
        while self.waiting and num_decodes + len(self.prefilling) < max_num_seqs:
            self.prefilling.append(self.waiting.popleft())
        unfinished: deque[int] = deque()
        while self.prefilling:
            left = self.prefilling.popleft()
            chunk = min(left, budget)
            budget -= chunk
            if chunk:
                chunks.append(chunk)
            if chunk < left:
                unfinished.append(left - chunk)
        self.prefilling = unfinished
        finished = len(chunks) - (1 if unfinished and chunks else 0)
        self.decoding = [left - 1 for left in self.decoding if left > 1]
        self.decoding += [1 + int(self.rng.expovariate(1 / 180)) for _ in range(finished)]
        self.context = max(0, self.context + sum(chunks) + num_decodes)
        self.context = min(self.context, 900 * (len(self.decoding) + len(self.prefilling)))
        return chunks, num_decodes


def records(
    num_batches: int,
    *,
    seed: int = 0,
    overlap: bool = False,
    run_id: str = "5eed5eed",
    dp_rank: int | None = None,
    start: float = _START,
    max_num_seqs: int = 96,
) -> Iterator[BatchRecord]:
    """Yield the records of one run.

    Args:
        num_batches: how many; about 20 to 90 of a batch's requests decode.
        seed: the same seed gives the same records.
        overlap: schedule a batch while the one before runs, as asynchronous scheduling does.
        run_id: of every record.
        dp_rank: of every record.
        start: Unix time of the first batch.
        max_num_seqs: most requests in a batch.
    """
    rng = random.Random(seed)
    load = _Load(rng)
    now_ms = 0.0  # when the scheduler is free
    result_ms = 0.0  # when the result of the batch before arrives
    period = rng.uniform(4_000, 6_000)
    for batch_id in range(num_batches):
        wave = 0.30 + 0.18 * math.sin(2 * math.pi * batch_id / period)
        load.arrive(wave if batch_id else 4)
        while not (load.waiting or load.prefilling or load.decoding):
            now_ms += rng.expovariate(1 / 40)
            load.arrive(1)
        chunks, num_decodes = load.form_batch(max_num_seqs)
        decode = [1] * num_decodes
        tokens = sum(chunks)
        schedule_ms = (0.12 + 0.004 * (num_decodes + 3 * len(chunks))) * rng.lognormvariate(0, 0.2)
        if rng.random() < 0.002:
            schedule_ms += rng.paretovariate(1.3)
        model_ms = (6.0 + 0.035 * num_decodes + 0.016 * tokens + 3e-5 * load.context) * (
            rng.lognormvariate(0, 0.05)
        )
        scheduled_ms = now_ms + schedule_ms
        begins_ms = max(scheduled_ms, result_ms)
        ends_ms = begins_ms + model_ms
        queue_ms, idle_ms = begins_ms - scheduled_ms, begins_ms - result_ms
        yield batch(
            batch_id,
            prefill=chunks,
            decode=decode,
            schedule_ms=round(schedule_ms, 3),
            model_run_ms=round(model_ms, 3),
            queue_ms=round(queue_ms, 3),
            total_step_duration_ms=round(ends_ms - now_ms, 3),
            idle_duration_ms=round(idle_ms, 3),
            timestamp=round(start + now_ms / 1e3, 6),
            num_waiting_reqs=len(load.waiting),
            num_running_reqs=len(load.prefilling) + len(load.decoding),
            kv_cache_usage=round(min(1.0, load.context / _KV_CACHE_TOKENS), 4),
            run_id=run_id,
            dp_rank=dp_rank,
            num_prefill_tokens=tokens,
            num_decode_tokens=num_decodes,
            token_budget=_TOKEN_BUDGET,
            num_inflight_batches=int(overlap and batch_id > 0),
            num_dropped_records=0,
        )
        now_ms = max(scheduled_ms, result_ms) if overlap else ends_ms
        result_ms = ends_ms
