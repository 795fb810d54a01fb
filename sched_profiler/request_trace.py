"""What a replay needs of each request: when it came, and how many tokens it had.

A request trace is a log of requests beside the log of batches: one JSON object a line, written when
a request ends. Nothing of what a request says is in it.
"""

from __future__ import annotations

import itertools
import json
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs
import orjson

from sched_profiler.boundary import Boundary
from sched_profiler.clock import SYSTEM_CLOCK, Clock
from sched_profiler.codec import schema_text
from sched_profiler.errors import RecordError, SchemaVersionError, shown
from sched_profiler.manifest import Run
from sched_profiler.sinks.base import RunSink
from sched_profiler.sinks.jsonl import Lines
from sched_profiler.writer import BackgroundWriter, DirectWriter, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sched_profiler.sinks.base import Sink

__all__ = [
    "OUTCOMES",
    "REQUESTS",
    "TRACE_VERSION",
    "RequestRecord",
    "RequestTrace",
    "TracedRequest",
    "decode_request",
    "encode_request",
    "request_schema",
]

TRACE_VERSION = 1
"""Version of the lines that this package writes."""

OUTCOMES = ("finished", "aborted", "failed", "unfinished")
"""How a request may have ended."""

_LAST_WAIT_S = 0.005


def _field(doc: str, **options: Any) -> Any:
    return attrs.field(metadata={"doc": doc}, **options)


@attrs.frozen(kw_only=True, slots=True)
class RequestRecord:
    """One request, from when the engine took it in until it left. Unknown is null."""

    trace_version: int = _field("Version of this layout.", default=TRACE_VERSION)
    run_id: str = _field("The `run_id` of the batches that served it.")
    dp_rank: int | None = _field("Data-parallel rank of the engine, if it has one.")
    request_number: int = _field(
        "Counts the requests of one engine as they come, from 0: a number that is missing was lost."
    )
    arrival_time: float = _field(
        "Unix time in seconds at which the engine core gave the request to its scheduler."
    )
    first_token_time: float | None = _field(
        "Unix time in seconds at which the engine core had taken in its first token. Null if there "
        "was none."
    )
    end_time: float | None = _field(
        "Unix time in seconds at which it left the scheduler. Null if it had not by the end of the "
        "run."
    )
    outcome: str = _field(
        "`finished` with a length or a token that ends it; `aborted` by the client, or by the API "
        "server at a stop string; `failed`; `unfinished` when the run ended."
    )
    num_prompt_tokens: int = _field("Tokens of the prompt.")
    num_cached_tokens: int | None = _field(
        "Tokens of the prompt that were in the prefix cache when it was first scheduled. Null if "
        "it left before the result of its first batch."
    )
    num_output_tokens: int = _field("Tokens that were generated.")
    num_preemptions: int = _field("How often it was preempted.")
    num_dropped_requests: int = _field(
        "Requests that have no line so far: the queue was full, or writing failed."
    )


attrs.resolve_types(RequestRecord)
_FIELDS = attrs.fields(RequestRecord)


def encode_request(record: RequestRecord) -> bytes:
    """Return the record as one line of compact JSON, with its line feed."""
    return orjson.dumps({f.name: getattr(record, f.name) for f in _FIELDS}) + b"\n"


def decode_request(line: bytes | str) -> RequestRecord:
    """Return the record that one line of a request trace holds; unknown fields are ignored.

    Raises:
        RecordError: if the line is no JSON object, is of a newer version, lacks a field or has one
            that cannot be; the message names the field, not the file and the line.
    """
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(fields, dict):
        raise RecordError(f"a {type(fields).__name__} instead of a JSON object")
    version = fields.get("trace_version")
    if type(version) is int and version > TRACE_VERSION:
        raise SchemaVersionError(
            f"trace_version {version} is newer than {TRACE_VERSION}; upgrade sched-profiler"
        )
    known = {}
    for field in _FIELDS:
        if field.name not in fields:
            raise RecordError(f"lacks {field.name}")
        value = fields[field.name]
        kinds: tuple[Any, ...] = getattr(field.type, "__args__", (field.type,))
        if type(value) not in kinds and not (type(value) is int and float in kinds):
            raise RecordError(f"{field.name} is {shown(value)}")
        if isinstance(value, int) and value < 0:
            raise RecordError(f"{field.name} is {value}; it cannot be negative")
        known[field.name] = value
    record = RequestRecord(**known)
    if record.outcome not in OUTCOMES:
        raise RecordError(f"outcome is {shown(record.outcome)}; expected {', '.join(OUTCOMES)}")
    return record


def request_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a line of a request trace, as a fresh dict."""
    loaded: dict[str, Any] = json.loads(schema_text(f"request-trace-v{TRACE_VERSION}.schema.json"))
    return loaded


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
