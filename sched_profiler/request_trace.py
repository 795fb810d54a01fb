"""Hands what requests leave to a writer, as the lines of a request trace."""

from __future__ import annotations

import itertools
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sched_profiler.boundary import Boundary
from sched_profiler.clock import SYSTEM_CLOCK, Clock
from sched_profiler.manifest import Run
from sched_profiler.request_record import RequestRecord, encode_request
from sched_profiler.sinks.base import RunSink
from sched_profiler.sinks.jsonl import Lines
from sched_profiler.writer import BackgroundWriter, DirectWriter, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sched_profiler.sinks.base import Sink

__all__ = ["REQUESTS", "RequestTrace", "TracedRequest"]

_LAST_WAIT_S = 0.005

REQUESTS = Lines(encode_request, attrgetter("request_number"))
"""The lines of a request trace, for a `JsonlSink`."""


class TracedRequest:
    """A request that is with the engine.

    Attributes:
        number: of the request.
        arrived_ns: Unix time at which it came.
        first_token_ns: Unix time of its first token, once there is one.
        num_cached: tokens found in the prefix cache, once it was scheduled.
    """

    __slots__ = ("arrived_ns", "first_token_ns", "num_cached", "number")

    def __init__(self, number: int, arrived_ns: int) -> None:
        """Note that a request came."""
        self.number = number
        self.arrived_ns = arrived_ns
        self.first_token_ns: int | None = None
        self.num_cached: int | None = None


class RequestTrace:
    """Takes the requests of one engine and hands their records to a sink, off its thread.

    Attributes:
        boundary: what failures of an adapter go to.
        before_close: called by `close` first; an adapter ends there what is still with it.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        run_id: str,
        dp_rank: int | None = None,
        facts: Mapping[str, Any] | None = None,
        background: bool = True,
        ends_at_signal: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        strict: bool = False,
    ) -> None:
        """Trace into `sink`, whose lines are `REQUESTS`; the rest is as for `BatchProfiler`."""
        self._run_id = run_id
        self._dp_rank = dp_rank
        self._clock = clock
        self._numbers = itertools.count()
        self.boundary = Boundary("tracing a request", strict=strict)
        self.before_close: Callable[[], None] | None = None
        if isinstance(sink, RunSink):
            sink.begin_run(
                Run(
                    run_id,
                    dp_rank=dp_rank,
                    facts=facts or {},
                    num_dropped=lambda: self.writer.num_dropped,
                )
            )
        # A sink takes the records that its lines are made for.
        to_record: Any = self._record_of
        self.writer: Writer
        if background:
            self.writer = BackgroundWriter(
                sink,
                to_record,
                what="requests",
                strict=strict,
                at_end=self.close,
                at_signal=self._end_at_signal if ends_at_signal else None,
            )
        else:
            self.writer = DirectWriter(sink, to_record, what="requests", strict=strict)

    def arrived(self) -> TracedRequest:
        """Note that the engine took a request in."""
        return TracedRequest(next(self._numbers), self._clock.time_ns())

    def got_first_token(self, request: TracedRequest) -> None:
        """Note that its first token is there."""
        request.first_token_ns = self._clock.time_ns()

    def ended(
        self,
        request: TracedRequest,
        outcome: str,
        *,
        num_prompt_tokens: int,
        num_output_tokens: int,
        num_preemptions: int,
    ) -> None:
        """Hand over a request that left the engine, or that the engine leaves."""
        ended_ns = None if outcome == "unfinished" else self._clock.time_ns()
        self.writer.put(
            (request, ended_ns, outcome, num_prompt_tokens, num_output_tokens, num_preemptions)
        )

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that ended is written; tell whether that was so in `timeout` s."""
        return self.writer.flush(timeout)

    def close(self, timeout: float | None = 10.0) -> bool:
        """Write what is left and close the sink; tell whether that was so in `timeout` s."""
        if self.before_close is not None:
            self.before_close()
        return self.writer.close(timeout)

    def _end_at_signal(self) -> None:
        if self.before_close is not None:
            self.before_close()
        if isinstance(self.writer, BackgroundWriter):
            self.writer.hurry(close_sink=True)
            # To wait is to let the writer's thread have the interpreter.
            self.writer.flush(timeout=_LAST_WAIT_S)

    def _record_of(self, measurement: tuple[Any, ...], num_dropped: int) -> RequestRecord:
        request, ended_ns, outcome, num_prompt, num_output, num_preemptions = measurement
        return RequestRecord(
            run_id=self._run_id,
            dp_rank=self._dp_rank,
            request_number=request.number,
            arrival_time=request.arrived_ns / 1e9,
            first_token_time=_seconds(request.first_token_ns),
            end_time=_seconds(ended_ns),
            outcome=outcome,
            num_prompt_tokens=num_prompt,
            num_cached_tokens=request.num_cached,
            num_output_tokens=num_output,
            num_preemptions=num_preemptions,
            num_dropped_requests=num_dropped,
        )


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9
