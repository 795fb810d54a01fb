"""Measures the batches of a continuous-batching engine.

The engine's thread only reads clocks and keeps references; what it leaves behind is a
`Measurement`, of which `record_of` makes a `BatchRecord` on the writer's thread.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict

from sched_profiler.boundary import Boundary
from sched_profiler.clock import SYSTEM_CLOCK, Clock
from sched_profiler.errors import RecordError, shown
from sched_profiler.lifetime import hook_signals
from sched_profiler.manifest import Run
from sched_profiler.record import (
    SCHEMA_VERSION,
    BatchRecord,
    chunk_statistics,
    converted,
    mean_chunk,
)
from sched_profiler.sinks.base import RunSink
from sched_profiler.writer import BackgroundWriter, DirectWriter, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self, Unpack

    from sched_profiler.manifest import RunFacts
    from sched_profiler.sinks.base import Sink

__all__ = ["Batch", "BatchProfiler", "Measurement", "OptionalContents"]

_NS_PER_US = 1_000
_US_PER_MS = 1_000
_LAST_WAIT_S = 0.1

# Plain tuples, for their speed, or what gives one when it is iterated. All times are ns of the
# monotonic clock.
Scheduled = Iterable[Any]
"""A batch as the engine's thread leaves it when it is scheduled: when schedule() began and when it
ended, when the batch was handed to the executor, how many batches were in flight; then whatever
tells what was in it."""
_NUM_OWN = 4

Measurement = Iterable[Any]
"""All that is known of a batch when it ends: its number; when the previous batch's result was
available (`None` for the first batch) and when its own was (`None` where the model returned none);
when the engine began to take in the result and when it had (`None` where not measured); the
`Scheduled`; then whatever the result told."""
_NUM_TIMES = 5


class OptionalContents(TypedDict, total=False):
    """The optional record fields that only the engine knows; see `BatchRecord`."""

    prefill_context_tokens: int
    decode_context_tokens: int
    num_new_reqs: int
    num_resumed_reqs: int
    num_preempted_reqs: int
    num_finished_reqs: int
    num_cached_tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_generated_tokens: int
    request_ids: list[str]


class BatchProfiler:
    """Profiles one engine: a run of batches, each of which becomes a record in a sink.

    As context managers, around the engine's own scheduler and model:

        with BatchProfiler(JsonlSink("run.jsonl")) as profiler:
            while engine.has_requests():
                with profiler.schedule() as batch:
                    plan = engine.schedule()
                    batch.scheduled(prefill_chunk_sizes=..., decode_chunk_sizes=..., ...)
                with batch.model_run():
                    engine.run_model(plan)

    Or as plain calls, when several batches are in flight: `batch = profiler.begin()`, then
    `batch.scheduled(...)`, `batch.submitted()` and, when its result arrives, `batch.finished()`.

    Attributes:
        run_id: short identifier that every record of this profiler carries.
        batch_ids: gives out the identifiers of batches, from 0.
        in_flight: the batches that are scheduled and have no result yet, oldest first.
        writer: what finished batches are handed to.
        boundary: what failures of an adapter go to.
        before_close: called by `close` first; an adapter that keeps its own batches in flight
            records there what never got a result.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        dp_rank: int | None = None,
        token_budget: int | None = None,
        facts: RunFacts | None = None,
        background: bool = True,
        ends_at_signal: bool = False,
        contents_of: Callable[[Any, Any], dict[str, Any]] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        strict: bool = False,
    ) -> None:
        """Profile into `sink`.

        Args:
            sink: where the records go; closed by `close()`.
            dp_rank: data-parallel rank of this engine.
            token_budget: most tokens that the scheduler may put into one batch.
            facts: what is constant for the run, for its manifest; see `RunFacts`.
            background: write on a thread of its own; off, records are written by the call that
                ends the batch, which tests like and engines do not.
            ends_at_signal: somebody handles SIGTERM and SIGINT, and ends the engine at once: write
                all there is, batches in flight too, and let the sink say its last word. Otherwise
                what is finished is written, and the engine may go on.
            contents_of: turns what the engine's thread left in a measurement, when the batch was
                scheduled and when it ended (two tuples), into record fields, on the writer's
                thread; by default each holds a dict of record fields.
            clock: the source of all times.
            strict: let failures of the profiler and its sink through instead of logging them. With
                `background`, `flush` and `close` raise the first one of the other thread.

        Raises:
            SettingError: if a fact is unknown or of a wrong type.
        """
        self.run_id = secrets.token_hex(6)
        self.clock = clock
        self._constants: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "dp_rank": dp_rank,
            "token_budget": token_budget,
        }
        self._contents_of = contents_of or _merged
        # What an engine's author passes by hand can be wrong; an adapter's own walk is tested.
        self._check_records = contents_of is None
        if isinstance(sink, RunSink):
            sink.begin_run(
                Run(
                    self.run_id,
                    dp_rank=dp_rank,
                    facts=facts or {},
                    num_dropped=lambda: self.num_dropped_records,
                )
            )
        self.writer: Writer
        if background:
            # The thread of the engine may be one that cannot do this later.
            hook_signals()
            self.writer = BackgroundWriter(
                sink,
                self._record_of,
                strict=strict,
                at_end=self.close,
                at_signal=self._end_at_signal if ends_at_signal else None,
            )
        else:
            self.writer = DirectWriter(sink, self._record_of, strict=strict)
        self.boundary = Boundary("profiling a batch", strict=strict)
        self.batch_ids = itertools.count()
        self._previous_result: int | None = None
        # Reentrant: a signal handler may end batches while its thread is in here.
        self._result_lock = threading.RLock()
        self.in_flight: dict[Batch, None] = {}
        self.before_close: Callable[[], None] | None = None

    def begin(self) -> Batch:
        """Begin a batch: the engine is about to schedule."""
        return Batch(self)

    @contextmanager
    def schedule(self) -> Iterator[Batch]:
        """Measure the scheduling of one batch; the block must call `Batch.scheduled`.

        A block that forms no batch leaves no record.
        """
        batch = self.begin()
        try:
            yield batch
        except BaseException:
            batch.finished(model_ran=False)
            raise

    def measured(self, batch_id: int, scheduled: Scheduled, told: Any, *, has_result: bool) -> None:
        """Hand over a batch whose result arrives now, or that will never have one."""
        # Results have an order, also where several threads bring them.
        with self._result_lock:
            result = self.clock.monotonic_ns() if has_result else None
            self.writer.put(
                (batch_id, self._previous_result, result, None, None, scheduled, told),
            )
            if result is not None:
                self._previous_result = result

    def not_measured(self, error: Exception) -> None:
        """Leave a gap for a batch that cannot be measured, and count it."""
        next(self.batch_ids)
        self.writer.drop()
        self.boundary.failed(error)

    @property
    def num_dropped_records(self) -> int:
        """Records given up since the start."""
        return self.writer.num_dropped

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all finished batches are written; tell whether that was so in `timeout` s."""
        return self.writer.flush(timeout)

    def close(self, timeout: float | None = 10.0) -> bool:
        """Write what is left and close the sink; tell whether that was so in `timeout` s.

        Batches without a result are recorded with a null `model_run_duration_ms`: the one that
        brought an engine down is the one to look at.
        """
        self._give_up()
        return self.writer.close(timeout)

    def _give_up(self) -> None:
        """Record the batches in flight as without a result."""
        for batch in list(self.in_flight):
            batch.finished(model_ran=False)
        if self.before_close is not None:
            self.before_close()

    def _end_at_signal(self) -> None:
        """Do in a signal handler what `close` does, and hardly wait for it."""
        self._give_up()
        if isinstance(self.writer, BackgroundWriter):
            self.writer.hurry(close_sink=True)
            # To wait is to let the writer's thread have the interpreter.
            self.writer.flush(timeout=_LAST_WAIT_S)

    def __enter__(self) -> Self:
        """Return the profiler; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the profiler."""
        self.close()

    def _record_of(self, measurement: Measurement, num_dropped: int) -> BatchRecord:
        epoch_ns = self.clock.time_ns() - self.clock.monotonic_ns()
        measurement = tuple(measurement)
        scheduled = tuple(measurement[_NUM_TIMES])
        fields = self._contents_of(scheduled[_NUM_OWN:], measurement[_NUM_TIMES + 1 :])
        if self._check_records:
            fields = converted(fields)
        fields |= self._constants
        fields["num_dropped_records"] = num_dropped
        fields["kv_cache_usage"] = round(fields["kv_cache_usage"], 6)
        _add_timing(fields, measurement, scheduled, epoch_ns)
        _add_chunks(fields)
        record = BatchRecord(**fields)
        if self._check_records:
            record.check()
        # A batch was measured: what fails to measure others does not fail all the time.
        self.boundary.succeeded()
        return record


class Batch:
    """One batch between the start of its scheduling and its record."""

    __slots__ = ("_began", "_contents", "_ended", "_id", "_num_inflight", "_profiler", "_submitted")

    def __init__(self, profiler: BatchProfiler) -> None:
        """Begin a batch of `profiler`; engines call `BatchProfiler.begin`."""
        self._profiler = profiler
        self._id: int | None = None
        self._ended = 0
        self._submitted: int | None = None
        self._num_inflight = 0
        self._contents: dict[str, Any] = {}
        self._began = profiler.clock.monotonic_ns()

    def scheduled(
        self,
        *,
        prefill_chunk_sizes: Sequence[int],
        decode_chunk_sizes: Sequence[int],
        num_waiting_reqs: int,
        num_running_reqs: int,
        kv_cache_usage: float,
        **optional: Unpack[OptionalContents],
    ) -> None:
        """End the scheduling: say what is in the batch and what is left in the queues.

        Arguments are the record fields of the same names; arrays and numbers of NumPy or PyTorch
        will do. A batch without tokens is discarded: it gets neither an identifier nor a record.
        One whose values cannot be is counted as dropped, and the log says why.

        Raises:
            TypeError: if there is no such optional field.
        """
        ended = self._profiler.clock.monotonic_ns()
        if unknown := optional.keys() - OptionalContents.__annotations__.keys():
            raise TypeError(
                f"a batch has no {', '.join(sorted(unknown))}; there are "
                f"{', '.join(sorted(OptionalContents.__annotations__))}"
            )
        if self._id is not None:
            return
        try:
            prefill, decode = list(prefill_chunk_sizes), list(decode_chunk_sizes)
        except Exception:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            self._profiler.not_measured(
                RecordError(
                    f"prefill_chunk_sizes is {shown(prefill_chunk_sizes)} and decode_chunk_sizes "
                    f"is {shown(decode_chunk_sizes)}; expected the tokens of each request"
                )
            )
            return
        if not (prefill or decode):
            return
        self._ended = ended
        self._contents = {
            "prefill_chunk_sizes": prefill,
            "decode_chunk_sizes": decode,
            "num_waiting_reqs": num_waiting_reqs,
            "num_running_reqs": num_running_reqs,
            "kv_cache_usage": kv_cache_usage,
            **optional,
        }
        self._id = next(self._profiler.batch_ids)
        self._num_inflight = len(self._profiler.in_flight)
        self._profiler.in_flight[self] = None

    def submitted(self) -> None:
        """Note that the batch is handed to the model; without this call, at the end of scheduling.

        The time from the end of scheduling to this moment counts as queueing.
        """
        self._submitted = self._profiler.clock.monotonic_ns()

    def finished(
        self,
        *,
        model_ran: bool = True,
        num_generated_tokens: int | None = None,
        num_accepted_tokens: int | None = None,
    ) -> None:
        """Note that the result arrived; the record is written.

        Args:
            model_ran: False in an engine that measures scheduling only, or when the model failed:
                the record then has null model times.
            num_generated_tokens: tokens that the batch generated.
            num_accepted_tokens: draft tokens that the model accepted.
        """
        if self._id is None or self not in self._profiler.in_flight:
            return  # without tokens, or finished before
        del self._profiler.in_flight[self]
        told = {
            "num_generated_tokens": num_generated_tokens,
            "num_accepted_tokens": num_accepted_tokens,
        }
        submitted = self._ended if self._submitted is None else self._submitted
        self._profiler.measured(
            self._id,
            (self._began, self._ended, submitted, self._num_inflight, self._contents),
            told,
            has_result=model_ran,
        )

    @contextmanager
    def model_run(self) -> Iterator[None]:
        """Measure from the hand-over to the result; a block that raises leaves null model times."""
        self.submitted()
        try:
            yield
        except BaseException:
            self.finished(model_ran=False)
            raise
        self.finished()


def _merged(contents: tuple[dict[str, Any]], told: tuple[dict[str, Any]]) -> dict[str, Any]:
    return contents[0] | told[0]


def _ms(nanoseconds: int) -> float:
    # In whole microseconds, which takes a third of the time of round(..., 3).
    return (nanoseconds + _NS_PER_US // 2) // _NS_PER_US / _US_PER_MS


def _add_timing(
    fields: dict[str, Any], times: tuple[Any, ...], scheduled: tuple[Any, ...], epoch_ns: int
) -> None:
    """Add the identity and the times of a batch; see "Exact meanings" in the docs."""
    batch_id, previous, result, taken, updated = times[:_NUM_TIMES]
    began, ended, submitted, num_inflight = scheduled[:_NUM_OWN]
    fields["batch_id"] = batch_id
    fields["timestamp"] = (epoch_ns + began) / 1e9
    fields["schedule_duration_ms"] = _ms(ended - began)
    fields["num_inflight_batches"] = num_inflight
    if result is None:
        fields["model_run_duration_ms"] = fields["total_step_duration_ms"] = None
        return
    started = submitted if previous is None else max(submitted, previous)
    fields["model_run_duration_ms"] = _ms(result - started)
    fields["total_step_duration_ms"] = _ms(result - began)
    fields["queue_duration_ms"] = _ms(started - ended)
    fields["idle_duration_ms"] = _ms(started - (began if previous is None else previous))
    if taken is not None and updated is not None:
        fields["update_duration_ms"] = _ms(updated - taken)


def _add_chunks(fields: dict[str, Any]) -> None:
    """Add what follows from the chunk lists."""
    prefill, decode = fields["prefill_chunk_sizes"], fields["decode_chunk_sizes"]
    average, largest, smallest = chunk_statistics(prefill)
    num_prefill_tokens, num_decode_tokens = sum(prefill), sum(decode)
    fields["num_prefill_reqs"] = len(prefill)
    fields["num_decode_reqs"] = len(decode)
    fields["num_prefill_tokens"] = num_prefill_tokens
    fields["num_decode_tokens"] = num_decode_tokens
    fields["total_scheduled_tokens"] = num_prefill_tokens + num_decode_tokens
    fields["avg_prefill_chunk_size"] = average
    fields["max_prefill_chunk_size"] = largest
    fields["min_prefill_chunk_size"] = smallest
    fields["avg_decode_chunk_size"] = mean_chunk(num_decode_tokens, len(decode))
