"""A line is valid exactly where the reference says so, and what is wrong has place and reason."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from peak_memory import on_linux, peak_mb
from strategies import damaged, lines, records
from synthetic import batch, seed_record, write_log
from synthetic import records as plausible_records

from sched_profiler import BatchRecord, LogError, encode, schema
from sched_profiler.validate import (
    _NOT_ACCEPTED,
    Violation,
    _shortened,
    _strict_decoder,
    _struct,
    validate,
    violations,
)

VALIDATOR = jsonschema.Draft202012Validator(schema())


def is_record(line: bytes) -> bool:
    """Tell whether the reference accepts a line: strict JSON in UTF-8, and then the schema."""
    try:
        fields = json.loads(line.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if not isinstance(version, bool) and VALIDATOR.is_type(version, "integer") and version > 1:
        return False
    try:
        return bool(VALIDATOR.is_valid(fields))
    except RecursionError:
        return False  # it could not print why


def refuse(word: str) -> float:
    """Refuse NaN and infinities, which json takes and JSON does not have."""
    raise ValueError(word)


def is_accepted_at_once(line: bytes) -> bool:
    """Tell whether the fast decoder is content, so that the reference is not even asked."""
    try:
        _strict_decoder().decode(_shortened(line))
    except _NOT_ACCEPTED:
        return False
    return True


@given(lines())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@example(b'{"schema_version":2.0}')
@example(b"[]")
@example(b"null")
@example(b"")
def test_both_engines_agree_on_every_line(line: bytes) -> None:
    """Good and bad: what one accepts the other accepts."""
    expected = is_record(line)
    assert (list(violations(line)) == []) is expected
    if is_accepted_at_once(line):
        assert expected


@pytest.mark.parametrize(
    "chunks",
    [
        *([1] * number for number in (7, 8, 9, 300, 20_000)),
        *([1] * 300 + [last] for last in (2, 11, 0, -1, 1.5, None, "1", [1], [1] * 300)),
        "[1,1,1,1,1,1,1,1,1,1]",
        "[1,1,1,1,1,1,1,1,1,1",
        ["[1,1,1,1,1,1,1,1,1,1]"],
    ],
    ids=lambda chunks: json.dumps(chunks)[-12:],
)
def test_both_engines_agree_on_many_ones(chunks: Any) -> None:
    """They are not looked at one by one; here they stand in a list, in a text, and in no JSON."""
    fields = json.loads(encode(batch(3)))
    for name in ("decode_chunk_sizes", "run_id", "request_ids", "batch_id", "unknown"):
        line = json.dumps(fields | {name: chunks}, separators=(",", ":")).encode()
        for text in (line, line.replace(b"1]", b"1,]"), line[:-9], line.replace(b",1,1]", b",11]")):
            assert (list(violations(text)) == []) is is_record(text)
            if is_accepted_at_once(text):
                assert is_record(text)


@given(records())
def test_a_record_is_accepted_at_once(record: BatchRecord) -> None:
    """The reference is too slow for all lines; it must not be needed for good ones."""
    assert is_accepted_at_once(encode(record))


@given(records().map(encode).map(bytes.rstrip).flatmap(damaged))
def test_both_engines_agree_on_a_damaged_record(line: bytes) -> None:
    """One wrong byte somewhere."""
    assert (list(violations(line)) == []) is is_record(line)
    if is_accepted_at_once(line):
        assert is_record(line)


def test_a_schema_that_says_more_than_the_fast_decoder_knows_is_an_error() -> None:
    """Whoever adds a keyword to the schema is told, or it would be passed over."""
    extended = schema()
    extended["properties"]["batch_id"]["multipleOf"] = 2
    with pytest.raises(KeyError, match="multipleOf"):
        _struct(extended, forbid_unknown_fields=True)


def changed(**fields: Any) -> bytes:
    """Return the line of a record with other values for some of its fields."""
    return json.dumps(json.loads(encode(batch(3))) | fields).encode()


@pytest.mark.parametrize(
    ("line", "path", "reason"),
    [
        (changed(num_waiting_reqs="many"), "$.num_waiting_reqs", "'many' is not of type 'integer'"),
        (changed(batch_id=True), "$.batch_id", "True is not of type 'integer'"),
        (changed(batch_id=-1), "$.batch_id", "-1 is less than the minimum of 0"),
        (changed(kv_cache_usage=1.5), "$.kv_cache_usage", "1.5 is greater than the maximum of 1"),
        (
            changed(decode_chunk_sizes=[1, 1, 0]),
            "$.decode_chunk_sizes[2]",
            "0 is less than the minimum of 1",
        ),
        (
            changed(schema_version=3),
            "$.schema_version",
            "3 is newer than 1; upgrade sched-profiler",
        ),
        (b"[1]", "$", "[1] is not of type 'object'"),
        (b"{", "$", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
        (b'{"batch_id":NaN}', "$", "not JSON (NaN is no number)"),
        (b'{"batch_id":"\xff"}', "$", "not UTF-8 (invalid start byte at byte 13)"),
        (b"\x00", "$", "not JSON (Expecting value at column 1)"),
        (b"[" * 100_000, "$", "nested too deeply"),
        (changed(batch_id=1).replace(b'": 1', b'": ' + b"1" * 9999, 1), "$", "a number has too"),
        (changed(run_id=["x" * 500]), "$.run_id", "['xxxxxxxx"),
    ],
)
def test_a_violation_has_a_path_and_a_reason(line: bytes, path: str, reason: str) -> None:
    """Which a user can act on."""
    ((found_path, found_reason),) = violations(line)
    assert found_path == path
    assert found_reason.startswith(reason)
    assert len(found_reason) <= 200


def test_every_violation_of_a_line_is_told() -> None:
    """Not only the first."""
    line = changed(batch_id="a", num_running_reqs=-1, kv_cache_usage=2)
    assert [path for path, _ in violations(line)] == [
        "$.batch_id",
        "$.num_running_reqs",
        "$.kv_cache_usage",
    ]
    assert next(violations(b"{}")) == ("$", "'batch_id' is a required property")
    assert len(list(violations(b"{}"))) == 15


@pytest.mark.parametrize(
    "fields",
    [
        {"field_of_2031": {"nested": [1, "é"]}},
        {"batch_id": 3.0},
        {"run_id": None},
        {"schema_version": 1.0},
        {"num_waiting_reqs": 10**30},
    ],
)
def test_what_the_schema_allows_is_no_violation(fields: dict[str, Any]) -> None:
    """Fields of a newer minor version, whole numbers with a point, nulls, large counts."""
    assert list(violations(changed(**fields))) == []


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Write a log of 40 records, of which the 10th and 20th are broken."""
    path = write_log(tmp_path / "run.jsonl", plausible_records(40))
    found = path.read_bytes().splitlines(keepends=True)
    found[9] = b'{"batch_id":9}\n'
    found[19] = changed(batch_id=-20) + b"\n"
    path.write_bytes(b"".join(found))
    return path


def test_a_report_has_counts_and_the_first_violations(log: Path) -> None:
    """Up to the limit; all are counted."""
    report = validate(log, limit=2)
    assert (report.num_records, report.num_invalid_records, report.num_violations) == (40, 2, 15)
    assert report.violations == [
        Violation(str(log), 10, "$", "'timestamp' is a required property"),
        Violation(str(log), 10, "$", "'schedule_duration_ms' is a required property"),
    ]
    assert str(validate(log).violations[-1]) == (
        f"{log}:20: $.batch_id: -20 is less than the minimum of 0"
    )


@pytest.mark.parametrize("block_bytes", [1, 100, 1000, 5000])
def test_line_numbers_hold_across_blocks(
    log: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """A log is read in blocks of whole lines."""
    monkeypatch.setattr("sched_profiler.reader._BLOCK_BYTES", block_bytes)
    assert {violation.line for violation in validate(log).violations} == {10, 20}


def test_a_half_written_line_is_no_violation(tmp_path: Path) -> None:
    """Its writer was killed or has not finished; the reader tolerates it as well."""
    path = tmp_path / "run.jsonl"
    whole = encode(batch(0))
    path.write_bytes(whole + whole[:50] + b"\n" + whole + b"\n" + whole[:70])
    report = validate(path)
    assert (report.num_records, report.num_violations) == (2, 0)
    assert report.num_half_written_lines == 2


def test_logs_of_the_original_feature_are_valid(tmp_path: Path) -> None:
    """With the 17 fields, and with the 15 of a fork that measures scheduling only."""
    path = tmp_path / "seed.jsonl"
    path.write_text(
        "".join(
            json.dumps(seed_record(batch(n), measured=measured)) + "\n"
            for n, measured in enumerate((True, False))
        )
    )
    assert validate(path).num_violations == 0


def test_an_empty_log_is_an_error(tmp_path: Path) -> None:
    """There is nothing to be valid."""
    path = tmp_path / "run.jsonl"
    path.touch()
    with pytest.raises(LogError, match="no record in"):
        validate(path)


@on_linux
def test_a_line_of_many_violations_is_told_in_little_memory(tmp_path: Path) -> None:
    """They are counted one by one; more than the first are never held."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(changed(decode_chunk_sizes=[0] * 100_000))
    code, _, megabytes = peak_mb("validate", path)
    assert code == 1
    assert validate(path, limit=1).num_violations == 100_000
    assert megabytes < 100


@on_linux
def test_a_long_log_is_validated_in_little_memory(tmp_path: Path) -> None:
    """What is held does not grow with the log: 100 MB take no more than 10 MB do."""
    block = b"".join(encode(record) for record in plausible_records(10_000))
    path = tmp_path / "run.jsonl"
    path.write_bytes(block)
    _, _, short = peak_mb("validate", path)
    with path.open("ab") as stream:
        for _ in range(12):
            stream.write(block)
    assert path.stat().st_size > 80e6
    code, _, long = peak_mb("validate", path)
    assert code == 0
    assert long < short + 20


@pytest.mark.parametrize("num_decodes", [1, 64])
def test_it_is_fast(tmp_path: Path, num_decodes: int) -> None:
    """bench/validate_rate.py measures it: far above this floor, which holds on a busy machine."""
    path = write_log(
        tmp_path / "run.jsonl", (batch(n, decode=[1] * num_decodes) for n in range(20_000))
    )
    began = time.thread_time()
    assert validate(path).num_violations == 0
    assert 20_000 / (time.thread_time() - began) > 40_000


def test_progress_is_told_how_much_is_validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number grows up to the size of the logs."""
    monkeypatch.setattr("sched_profiler.reader._BLOCK_BYTES", 2_000)
    log = write_log(tmp_path / "log.jsonl", plausible_records(50))
    seen: list[tuple[int, int]] = []
    validate(log, progress=lambda done, total: seen.append((done, total)))
    size = log.stat().st_size
    assert len(seen) > 5
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)
