"""A line of a log is compact JSON that the schema describes."""

from __future__ import annotations

import contextlib
import json
import math
import re
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import records

from sched_profiler import BatchRecord, RecordError, decode, encode, schema

VALIDATOR = jsonschema.Draft202012Validator(schema())
DURATIONS = [f.name for f in attrs.fields(BatchRecord) if f.name.endswith("_duration_ms")]


@given(records())
def test_a_record_survives_encoding_and_decoding(record: BatchRecord) -> None:
    """What is read is what was written."""
    assert decode(encode(record)) == record


@given(records())
def test_every_line_is_valid_against_the_schema(record: BatchRecord) -> None:
    """The schema holds for whatever an engine can leave."""
    VALIDATOR.validate(json.loads(encode(record)))


@given(records())
def test_a_line_is_compact_and_durations_carry_a_decimal_point(record: BatchRecord) -> None:
    """No blank after a colon or comma, one line feed, at the end; text tools can rely on it."""
    line = encode(record).decode()
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    without_texts = re.sub(r'"(?:[^"\\]|\\.)*"', "", line)
    assert not re.search(r"\s", without_texts.removesuffix("\n"))
    for name in DURATIONS:
        value = getattr(record, name)
        if value is not None:
            assert re.search(rf'"{name}":[0-9]+\.[0-9]+[,}}]', line)


def test_the_grep_of_the_docs_finds_batches_of_10_to_99_ms(record: BatchRecord) -> None:
    r"""`grep '"schedule_duration_ms":[0-9][0-9]\.' LOG` is a promise."""
    pattern = rb'"schedule_duration_ms":[0-9][0-9]\.'
    slow = {
        ms: bool(re.search(pattern, encode(attrs.evolve(record, schedule_duration_ms=ms))))
        for ms in (0.5, 9.999, 10.0, 42.0, 99.999, 100.0)
    }
    assert slow == {0.5: False, 9.999: False, 10.0: True, 42.0: True, 99.999: True, 100.0: False}


def test_a_duration_that_is_a_whole_number_carries_a_decimal_point_too(record: BatchRecord) -> None:
    """Types are not enforced at run time; the promise of the line is."""
    line = encode(attrs.evolve(record, schedule_duration_ms=42, timestamp=7))
    assert b'"schedule_duration_ms":42.0,' in line
    assert b'"timestamp":7.0,' in line


def test_what_json_cannot_say_is_a_record_error(record: BatchRecord) -> None:
    """And no other: a sink can tell it from a failure of its own."""
    for change in ({"batch_id": 1j}, {"kv_cache_usage": "half"}):
        with pytest.raises(RecordError):
            encode(attrs.evolve(record, **change))


def test_the_17_fields_come_first_and_in_order(record: BatchRecord) -> None:
    """Their names and their order never change."""
    assert list(json.loads(encode(attrs.evolve(record, run_id="a", num_dropped_records=0)))) == [
        *("batch_id", "timestamp"),
        *("schedule_duration_ms", "model_run_duration_ms", "total_step_duration_ms"),
        *("num_prefill_reqs", "num_decode_reqs", "total_scheduled_tokens"),
        *("prefill_chunk_sizes", "decode_chunk_sizes"),
        *("avg_prefill_chunk_size", "max_prefill_chunk_size", "min_prefill_chunk_size"),
        *("avg_decode_chunk_size", "num_waiting_reqs", "num_running_reqs", "kv_cache_usage"),
        *("run_id", "num_dropped_records"),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["timestamp", "model_run_duration_ms", "idle_duration_ms"])
def test_nan_and_infinity_never_reach_a_line(name: str, value: float, record: BatchRecord) -> None:
    """JSON has no such numbers; other readers would choke on them."""
    with pytest.raises(RecordError, match=name):
        encode(attrs.evolve(record, **{name: value}))


def test_a_log_of_a_scheduling_only_fork_is_read(record: BatchRecord) -> None:
    """It lacks the model times; they are unknown, not zero."""
    fields = json.loads(encode(record))
    del fields["model_run_duration_ms"], fields["total_step_duration_ms"]
    VALIDATOR.validate(fields)
    assert decode(json.dumps(fields)).model_run_duration_ms is None


def test_an_unknown_field_is_ignored(record: BatchRecord) -> None:
    """Adding an optional field is a minor change, so an older reader must not mind."""
    fields = json.loads(encode(record)) | {"field_of_2031": [1]}
    VALIDATOR.validate(fields)
    assert decode(json.dumps(fields)) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, "schema_version 3 is newer than 1; upgrade sched-profiler"),
        ({"batch_id": "5"}, "batch_id is '5'; expected an integer"),
        ({"batch_id": 5.5}, "batch_id is 5.5; expected an integer"),
        ({"batch_id": True}, "batch_id is True; expected an integer"),
        ({"kv_cache_usage": None}, "kv_cache_usage is None; expected a number"),
        ({"decode_chunk_sizes": [1, "1"]}, "decode_chunk_sizes holds '1'; expected a list of int"),
        ({"prefill_chunk_sizes": {}}, "prefill_chunk_sizes is {}; expected a list of integers"),
        ({"run_id": 7}, "run_id is 7; expected a string or null"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str, record: BatchRecord) -> None:
    """With its value and what was expected; nothing is bent into shape."""
    with pytest.raises(RecordError, match=re.escape(message)):
        decode(json.dumps(json.loads(encode(record)) | change))


@pytest.mark.parametrize(
    ("line", "message"),
    [(b"{", "not JSON"), (b"[1]", "a list instead"), (b"\xff", "not JSON"), (b"{}", "lacks batch")],
)
def test_what_is_no_record_is_refused(line: bytes, message: str) -> None:
    """Whatever it is, it is one kind of error."""
    with pytest.raises(RecordError, match=message):
        decode(line)


@pytest.mark.parametrize("depth", [10, 900, 1000, 1023, 100_000])
@pytest.mark.parametrize("field", ["batch_id", "run_id", "decode_chunk_sizes"])
def test_a_deeply_nested_value_is_refused(record: BatchRecord, field: str, depth: int) -> None:
    """It may be too deep to parse, or only too deep to print."""
    nested = "[" * depth + "]" * depth
    line = encode(record).decode().rstrip("}\n") + f',"{field}":{nested}}}'
    with pytest.raises(RecordError):
        decode(line)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_record_or_a_record_error(line: bytes) -> None:
    """Nothing in a log can raise anything else."""
    with contextlib.suppress(RecordError):
        decode(line)


def test_schema_and_class_hold_each_other() -> None:
    """Every field of the class is in the schema as it is in the class, and the other way round."""
    types = {int: "integer", float: "number", str: "string", type(None): "null"}
    described = schema()["properties"]
    assert list(described) == [field.name for field in attrs.fields(BatchRecord)]
    for field in attrs.fields(BatchRecord):
        entry = described[field.name]
        assert entry["description"] == field.metadata["doc"]
        assert "Never null" in entry["description"] or "null" in entry["type"]
        parts = getattr(field.type, "__args__", (field.type,))
        if "list" in str(field.type):
            item = {"string" if "str" in str(field.type) else "integer"}
            assert {entry["items"]["type"]} == item
            assert "array" in entry["type"]
            assert ("null" in entry["type"]) == ("None" in str(field.type))
            limits = entry["items"]
        else:
            named = {entry["type"]} if isinstance(entry["type"], str) else set(entry["type"])
            assert named == {types[part] for part in parts}
            limits = entry
        assert limits.get("minimum") == field.metadata["minimum"]
        assert limits.get("maximum") == field.metadata["maximum"]
    without_default = {f.name for f in attrs.fields(BatchRecord) if f.default is attrs.NOTHING}
    scheduling_only = {"model_run_duration_ms", "total_step_duration_ms"}
    assert set(schema()["required"]) == without_default - scheduling_only


@pytest.mark.parametrize("unit", ["ms", "seconds"])
def test_every_duration_and_time_states_its_unit(unit: str) -> None:
    """A number without a unit is a guess."""
    for name, entry in schema()["properties"].items():
        if name.endswith("_ms" if unit == "ms" else "timestamp"):
            assert unit in entry["description"]


def test_the_schema_is_a_valid_one_with_an_identity() -> None:
    """Draft 2020-12, `$id`."""
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema()["$id"] == "urn:sched-profiler:schema:batch-record:v1"


def test_schema_is_the_file_beside_the_package_and_a_fresh_copy() -> None:
    """What other tools read from `schema/` is what the library gives out."""
    folder = Path(__file__).parents[1] / "schema"
    on_disk = json.loads((folder / "batch-record-v1.schema.json").read_text())
    schema()["properties"].clear()
    assert schema() == on_disk
    with pytest.raises(ValueError, match="schema version 9 is unknown"):
        schema(9)
