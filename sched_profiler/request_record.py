"""What a replay needs of each request: when it came, and how many tokens it had.

A request trace is a log of requests beside the log of batches: one JSON object a line, written when
a request ends. Nothing of what a request says is in it.
"""

from __future__ import annotations

from typing import Any

import attrs
import orjson

from sched_profiler.codec import json_object
from sched_profiler.errors import RecordError, shown

__all__ = [
    "OUTCOMES",
    "TRACE_VERSION",
    "RequestRecord",
    "decode_request",
    "encode_request",
]

TRACE_VERSION = 1
"""Version of the lines that this package writes."""

OUTCOMES = ("finished", "aborted", "failed", "unfinished")
"""How a request may have ended."""


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
_WORDS: dict[Any, str] = {int: "an integer", float: "a number", str: "a string"}


def encode_request(record: RequestRecord) -> bytes:
    """Return the record as one line of compact JSON, with its line feed."""
    return orjson.dumps({f.name: getattr(record, f.name) for f in _FIELDS}) + b"\n"


def decode_request(line: bytes | str) -> RequestRecord:
    """Return the record that one line of a request trace holds; unknown fields are ignored.

    Raises:
        RecordError: if the line is no JSON object, is of a newer version, lacks a field or has one
            that cannot be; the message names the field, not the file and the line.
    """
    fields = json_object(line, "trace_version", TRACE_VERSION)
    known = {}
    for field in _FIELDS:
        if field.name not in fields:
            raise RecordError(f"lacks {field.name}")
        value = fields[field.name]
        kinds: tuple[Any, ...] = getattr(field.type, "__args__", (field.type,))
        if type(value) not in kinds and not (type(value) is int and float in kinds):
            expected = " or ".join("null" if k is type(None) else _WORDS[k] for k in kinds)
            raise RecordError(f"{field.name} is {shown(value)}; expected {expected}")
        if isinstance(value, int) and value < 0:
            raise RecordError(f"{field.name} is {value}; expected 0 or more")
        known[field.name] = value
    record = RequestRecord(**known)
    if record.outcome not in OUTCOMES:
        raise RecordError(f"outcome is {shown(record.outcome)}; expected {', '.join(OUTCOMES)}")
    return record
