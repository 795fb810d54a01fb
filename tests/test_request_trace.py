"""A request trace holds what a replay needs of each request, and nothing of what it said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
from engine_under_test import serve
from hypothesis import given
from hypothesis import strategies as st

from sched_profiler import BatchProfiler, JsonlSink, RecordError, SchemaVersionError
from sched_profiler.log_files import find_logs, find_manifests, find_request_traces
from sched_profiler.log_names import request_trace_of
from sched_profiler.manifest import parse_manifest
from sched_profiler.request_record import (
    OUTCOMES,
    RequestRecord,
    decode_request,
    encode_request,
)
from sched_profiler.request_trace import REQUESTS, RequestTrace
from sched_profiler.sinks.rotation import Rotation
from sched_profiler.testing import FakeClock

SCHEMA = json.loads(
    (Path(__file__).parents[1] / "schema" / "request-trace-v1.schema.json").read_text()
)
COUNTS = st.integers(0, 2**53)
TIMES = st.floats(0, 4e9)
RECORDS = st.builds(
    RequestRecord,
    run_id=st.text(),
    dp_rank=st.none() | COUNTS,
    request_number=COUNTS,
    arrival_time=TIMES,
    first_token_time=st.none() | TIMES,
    end_time=st.none() | TIMES,
    outcome=st.sampled_from(OUTCOMES),
    num_prompt_tokens=COUNTS,
    num_cached_tokens=st.none() | COUNTS,
    num_output_tokens=COUNTS,
    num_preemptions=COUNTS,
    num_dropped_requests=COUNTS,
)
RECORD = RequestRecord(
    run_id="1f2844d5b97a",
    dp_rank=0,
    request_number=3,
    arrival_time=1_700_000_000.25,
    first_token_time=1_700_000_000.5,
    end_time=1_700_000_001.0,
    outcome="finished",
    num_prompt_tokens=40,
    num_cached_tokens=16,
    num_output_tokens=7,
    num_preemptions=0,
    num_dropped_requests=0,
)


def test_the_schema_has_the_fields_of_the_class_with_its_types() -> None:
    """Both ways, in the same order, with the same words."""
    names = {int: "integer", float: "number", str: "string", type(None): "null"}
    assert list(SCHEMA["properties"]) == [field.name for field in attrs.fields(RequestRecord)]
    assert SCHEMA["required"] == list(SCHEMA["properties"])
    for field in attrs.fields(RequestRecord):
        described = SCHEMA["properties"][field.name]
        assert described["description"] == field.metadata["doc"]
        if field.name == "trace_version":
            assert described["const"] == field.default
            continue
        kinds = getattr(field.type, "__args__", (field.type,))
        types = described["type"]
        assert (types if isinstance(types, list) else [types]) == [names[kind] for kind in kinds]
    assert SCHEMA["properties"]["outcome"]["enum"] == list(OUTCOMES)


@given(RECORDS)
def test_a_record_is_valid_against_the_schema_and_comes_back(record: RequestRecord) -> None:
    """One line, whatever is in it."""
    line = encode_request(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(line))
    assert decode_request(line) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_prompt_tokens": "40"}, "num_prompt_tokens is '40'"),
        ({"num_prompt_tokens": -1}, "num_prompt_tokens is -1; expected 0 or more"),
        ({"num_output_tokens": 2.5}, "num_output_tokens is 2.5"),
        ({"outcome": "lost"}, "outcome is 'lost'; expected finished, aborted"),
        ({"run_id": None}, "run_id is None; expected a string"),
    ],
)
def test_a_value_that_cannot_be_is_an_error_that_names_the_field(
    change: dict[str, Any], message: str
) -> None:
    """So does a schema, and this needs none."""
    fields = json.loads(encode_request(RECORD)) | change
    with pytest.raises(RecordError, match=message):
        decode_request(json.dumps(fields))
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(fields)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "a list instead of a JSON object"),
        (b"{}", "lacks trace_version"),
    ],
)
def test_what_is_no_record_is_an_error(line: bytes, message: str) -> None:
    """Damaged lines and those of other files."""
    with pytest.raises(RecordError, match=message):
        decode_request(line)


def test_a_newer_version_is_refused() -> None:
    """With what to do about it."""
    fields = json.loads(encode_request(RECORD)) | {"trace_version": 2, "new": 1}
    with pytest.raises(SchemaVersionError, match="newer than 1; upgrade"):
        decode_request(json.dumps(fields))


@pytest.mark.parametrize(
    ("log", "trace"),
    [
        ("sched.jsonl", "sched.requests.jsonl"),
        ("/a/b.c/sched.dp1.jsonl", "/a/b.c/sched.dp1.requests.jsonl"),
        ("/a/b.c/sched", "/a/b.c/sched.requests.jsonl"),
        ("s3://bucket/prefix/", "s3://bucket/prefix/scheduler_profiling.requests.jsonl"),
        ("s3://bucket/prefix/x.jsonl", "s3://bucket/prefix/x.requests.jsonl"),
    ],
)
def test_a_trace_is_beside_its_log(log: str, trace: str) -> None:
    """Wherever that is."""
    assert request_trace_of(log) == trace


def a_trace(path: Path, clock: FakeClock, rotation: Rotation | None = None) -> RequestTrace:
    """Return a trace into a file, written on the caller's thread."""
    sink = JsonlSink(path, clock=clock, lines=REQUESTS, rotation=rotation or Rotation())
    return RequestTrace(
        sink, run_id="r1", dp_rank=2, facts={"engine": "custom"}, clock=clock, background=False
    )


def test_a_request_is_written_when_it_ends_with_the_times_of_its_life(tmp_path: Path) -> None:
    """Those that are still with the engine at the end are written too."""
    clock = FakeClock()
    trace = a_trace(tmp_path / "log.requests.jsonl", clock)
    first, second, third = (trace.arrived() for _ in range(3))
    first.num_cached = 16
    clock.advance(250)
    trace.got_first_token(first)
    clock.advance(750)
    trace.ended(first, "finished", num_prompt_tokens=40, num_output_tokens=9, num_preemptions=1)
    trace.before_close = lambda: trace.ended(
        third, "unfinished", num_prompt_tokens=5, num_output_tokens=0, num_preemptions=0
    )
    assert trace.close()
    lines = (tmp_path / "log.requests.jsonl").read_bytes().splitlines()
    ended, left = map(decode_request, lines)
    assert (ended.run_id, ended.dp_rank, ended.request_number) == ("r1", 2, 0)
    times = [ended.arrival_time, ended.first_token_time, ended.end_time]
    assert times == pytest.approx([1.7e9, 1.7e9 + 0.25, 1.7e9 + 1.0], rel=0, abs=1e-6)
    assert ended.outcome == "finished"
    assert (ended.num_prompt_tokens, ended.num_cached_tokens) == (40, 16)
    assert (ended.num_output_tokens, ended.num_preemptions) == (9, 1)
    assert (left.request_number, left.outcome, left.end_time) == (2, "unfinished", None)
    assert left.first_token_time is left.num_cached_tokens is None
    # The second never ended here: its number is the gap that shows it.
    assert second.number == 1
    (manifest,) = tmp_path.glob("*.run.json")
    told = parse_manifest(manifest.read_bytes(), manifest.name)
    assert (told.num_written_records, told.num_dropped_records) == (2, 1)


def test_what_reads_logs_takes_a_trace_for_none(tmp_path: Path) -> None:
    """Neither the trace and its parts nor its manifest; it is found beside the log."""
    with BatchProfiler(JsonlSink(tmp_path / "log.jsonl"), background=False) as profiler:
        serve(profiler, 2)
    clock = FakeClock()
    trace = a_trace(tmp_path / "log.requests.jsonl", clock, Rotation(part_bytes=1))
    for _ in range(3):
        request = trace.arrived()
        clock.advance(1)
        trace.ended(
            request, "finished", num_prompt_tokens=1, num_output_tokens=1, num_preemptions=0
        )
    trace.close()
    for log in (str(tmp_path), f"{tmp_path}/*", f"{tmp_path}/log*.jsonl", f"{tmp_path}/log.jsonl"):
        assert [Path(file.path).name for file in find_logs(log)] == ["log.jsonl"]
        assert len(list(find_manifests(log))) == 1
        assert len(find_request_traces(log)) == 3


def test_a_full_disk_loses_requests_that_are_counted(tmp_path: Path) -> None:
    """What cannot be written stays ours."""
    clock = FakeClock()
    trace = a_trace(tmp_path / "file" / "log.requests.jsonl", clock)
    (tmp_path / "file").touch()
    for _ in range(2):
        trace.ended(
            trace.arrived(), "finished", num_prompt_tokens=1, num_output_tokens=1, num_preemptions=0
        )
    assert not trace.flush()
    assert not trace.close()
    assert trace.writer.num_dropped == 2
