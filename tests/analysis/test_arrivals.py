"""Requests are read as recorded, and what is wrong with a trace is said with its place."""

from __future__ import annotations

import csv
from pathlib import Path

import attrs
import pytest
from engine_under_test import serve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_request_trace import RECORD

from sched_profiler import BatchProfiler, JsonlSink, LogError
from sched_profiler.analysis.arrivals import Arrival, arrivals_of, load_arrivals, load_requests
from sched_profiler.reader import Tally
from sched_profiler.request_record import encode_request

COLUMNS = ("arrival_time", "num_prompt_tokens", "num_output_tokens", "num_cached_tokens")
ARRIVALS = st.builds(
    lambda time, prompt, output, share: Arrival(
        time=time,
        num_prompt_tokens=prompt,
        num_output_tokens=output,
        num_cached_tokens=int(share * (prompt - 1)),
    ),
    st.floats(-1e9, 4e9),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
    st.floats(0, 1),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ARRIVALS, min_size=1, max_size=20))
def test_a_csv_file_comes_back_in_the_order_of_time(
    tmp_path: Path, arrivals: list[Arrival]
) -> None:
    """With a byte-order mark and other columns as well."""
    path = tmp_path / "trace.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*COLUMNS, "model"])
        for a in arrivals:
            rows.writerow(
                [repr(a.time), a.num_prompt_tokens, a.num_output_tokens, a.num_cached_tokens, "m,1"]
            )
    assert load_arrivals(path) == sorted(arrivals, key=lambda arrival: arrival.time)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_whatever_a_csv_file_holds_is_read_or_refused_with_its_name(
    tmp_path: Path, content: bytes
) -> None:
    """Never anything else."""
    path = tmp_path / "trace.csv"
    for head in (b"", b"arrival_time,num_prompt_tokens,num_output_tokens\n"):
        path.write_bytes(head + content)
        try:
            problem = "" if load_arrivals(path) else "an empty list"
        except LogError as error:
            problem = str(error)
        assert not problem or str(path) in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 of .* has no column arrival_time, num_prompt_tokens, num_output_tokens"),
        ("arrival_time,num_prompt_tokens\n1,2\n", "has no column num_output_tokens"),
        (
            "arrival_time,num_prompt_tokens,num_output_tokens\n",
            "below its heading; add a line",
        ),
        (
            "arrival_time,num_prompt_tokens,num_output_tokens\n0,1,1\nsoon,1,1\n",
            "line 3 of .*: arrival_time is 'soon'; expected seconds",
        ),
        (
            "arrival_time,num_prompt_tokens,num_output_tokens\nnan,1,1\n",
            "line 2 of .*: arrival_time is 'nan'",
        ),
        (
            "arrival_time,num_prompt_tokens,num_output_tokens\n0,0,1\n",
            "num_prompt_tokens is '0'; expected a whole number from 1 on",
        ),
        (
            "arrival_time,num_prompt_tokens,num_output_tokens\n0,1\n",
            "num_output_tokens is None",
        ),
        (
            "arrival_time,num_prompt_tokens,num_output_tokens,num_cached_tokens\n0,16,1,16\n",
            "num_cached_tokens is 16; it must be below num_prompt_tokens, 16",
        ),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_said_with_line_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    """And with what it may be."""
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(LogError, match=message):
        load_arrivals(path)


def test_a_csv_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Named by its path."""
    with pytest.raises(LogError, match=r"none\.csv cannot be read: No such file .*; name another"):
        load_arrivals(tmp_path / "none.csv")


def log_in(folder: Path) -> Path:
    """Write a log of a few batches."""
    with BatchProfiler(JsonlSink(folder / "log.jsonl"), background=False) as profiler:
        serve(profiler, 2)
    return folder / "log.jsonl"


def test_traces_beside_a_log_are_read_by_run_in_the_order_of_arrival(tmp_path: Path) -> None:
    """A line that is half written is left out, and one that was written twice counts once."""
    log = log_in(tmp_path)
    lines = [
        encode_request(attrs.evolve(RECORD, run_id=run, request_number=number))
        for run, number in (("a", 2), ("b", 0), ("a", 0), ("a", 0))
    ]
    trace = tmp_path / "log.requests.jsonl"
    trace.write_bytes(b"".join(lines) + lines[0][:40])
    found = load_requests(log)
    assert {key: [r.request_number for r in run] for key, run in found.items()} == {
        ("a", 0): [0, 2],
        ("b", 0): [0],
    }
    trace.write_bytes(lines[0] + b"{}\n")
    with pytest.raises(LogError, match=r"line 2 of .*log.requests.jsonl: lacks trace_version"):
        load_requests(log)
    tally = Tally()
    found = load_requests(log, skip_invalid=True, tally=tally)
    assert [*found] == [("a", 0)]
    assert tally.num_skipped_lines == 1
    trace.write_bytes(lines[0].replace(b'"trace_version":1', b'"trace_version":9'))
    with pytest.raises(LogError, match=r"upgrade sched-profiler$"):
        load_requests(log)


def test_requests_without_a_token_are_not_replayed(tmp_path: Path) -> None:
    """They were aborted while they waited, or failed; the last token of a prompt is computed."""
    records = [
        attrs.evolve(RECORD, arrival_time=3.0, num_cached_tokens=40),
        attrs.evolve(RECORD, arrival_time=1.0, num_output_tokens=0, first_token_time=None),
        attrs.evolve(RECORD, arrival_time=2.0, num_cached_tokens=None),
    ]
    assert [(a.time, a.num_cached_tokens) for a in arrivals_of(records)] == [(2.0, 0), (3.0, 39)]
