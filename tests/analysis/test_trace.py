"""The log as a timeline."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest
from simulated_engine import Setup, SimulatedEngine
from synthetic import batch, records, seed_record, write_log
from trace_event_format import Event, check_events

from sched_profiler.analysis import load, write_trace

TRACE_PROCESSOR = os.environ.get("PERFETTO_TRACE_PROCESSOR", "")


def events_of(df: pd.DataFrame) -> list[Event]:
    """Return the events of the trace of a log, all of them as the format demands."""
    stream = io.StringIO()
    count = write_trace(df, stream)
    events: list[Event] = json.loads(stream.getvalue())["traceEvents"]
    assert len(events) == count
    check_events(events)
    return events


def tracks_of(events: list[Event]) -> dict[tuple[int, str], list[Event]]:
    """Return the slices by process and name of the track."""
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["pid"], names[event["pid"], event["tid"]]].append(event)
    return tracks


@pytest.mark.parametrize("is_async", [False, True])
def test_a_trace_holds_what_the_log_does(tmp_path: Path, is_async: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Sums of slices are sums of columns, and slices of a track follow each other."""
    engine = SimulatedEngine(setup=Setup(is_async=is_async))
    df = load(write_log(tmp_path / "run.jsonl", engine.run(600)))
    events = events_of(df)
    tracks = tracks_of(events)
    for track, column in (
        ("schedule", "schedule_duration_ms"),
        ("model run", "model_run_duration_ms"),
        ("idle", "idle_duration_ms"),
        ("update", "update_duration_ms"),
    ):
        slices = tracks[1, track]
        assert sum(s["dur"] for s in slices) / 1e3 == pytest.approx(df[column].sum(), rel=0.002)
        for one, two in itertools.pairwise(slices):
            assert one["ts"] + one["dur"] <= two["ts"]
    assert len(tracks[1, "model run"]) == 600
    assert [s["args"]["batch_id"] for s in tracks[1, "schedule"]] == list(range(600))
    # The model is idle or runs, and nothing else.
    busy = sorted(tracks[1, "model run"] + tracks[1, "idle"], key=lambda s: (s["ts"], s["dur"]))
    gaps = [two["ts"] - one["ts"] - one["dur"] for one, two in itertools.pairwise(busy)]
    assert all(abs(gap) <= 3 for gap in gaps)


def test_slices_of_the_model_tell_what_it_ran(tmp_path: Path) -> None:
    """And each event the numbers of its batch."""
    log = [
        batch(0, prefill=[30, 4], decode=[]),
        batch(1, prefill=[30], decode=[1, 2]),
        batch(2, decode=[1], num_preempted_reqs=3, num_waiting_reqs=5, kv_cache_usage=0.987),
    ]
    events = events_of(load(write_log(tmp_path / "run.jsonl", log)))
    model = tracks_of(events)[1, "model run"]
    assert [one["name"] for one in model] == ["prefill", "mixed", "decode"]
    assert model[1]["args"] == {
        "batch_id": 1,
        "prefill requests": 1,
        "prefill tokens": 30,
        "decode requests": 2,
        "tokens": 33,
    }
    counters = {e["name"]: e["args"] for e in events if e["ph"] == "C"}
    assert counters == {
        "requests": {"waiting": 5, "running": 1},
        "tokens": {"prefill": 0, "decode": 1},
        "KV cache, %": {"in use": 98.7},
    }
    (instant,) = [e for e in events if e["ph"] == "i"]
    assert (instant["name"], instant["args"]) == ("preempted", {"requests": 3})


def test_each_rank_is_a_process_of_its_own(tmp_path: Path) -> None:
    """On one time axis; what a run is called cannot break the file."""
    log = [
        *records(20, run_id='"</script>\u2028', dp_rank=0),
        *records(20, run_id="b", dp_rank=1, start=1_790_000_005.0),
    ]
    events = events_of(load(write_log(tmp_path / "run.jsonl", log)))
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {1: 'run 0, rank 0 ("</script>\u2028)', 2: "run 1, rank 1 (b)"}
    tracks = tracks_of(events)
    assert tracks[1, "schedule"][0]["ts"] == 0
    assert tracks[2, "schedule"][0]["ts"] == 5_000_000


def test_a_clock_that_was_set_back_makes_no_overlap(tmp_path: Path) -> None:
    """A timeline cannot show that; the slices then follow each other without a gap."""
    log = [batch(number, timestamp=1e9 + number * 0.01 - 5 * (number > 3)) for number in range(8)]
    schedule = tracks_of(events_of(load(write_log(tmp_path / "run.jsonl", log))))[1, "schedule"]
    assert all(one["ts"] + one["dur"] <= two["ts"] for one, two in itertools.pairwise(schedule))


@pytest.mark.parametrize("measured", [True, False])
def test_a_log_of_the_original_feature_has_a_timeline(measured: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """As far as it goes: what it did not measure has no slice."""
    log = list(records(30, overlap=True))
    df = pd.DataFrame([seed_record(record, measured=measured) for record in log])
    tracks = tracks_of(events_of(df))
    assert len(tracks[1, "schedule"]) == 30
    assert len(tracks[1, "model run"]) == (30 if measured else 0)
    assert (1, "idle") not in tracks
    if measured:
        ends = [s["ts"] + s["dur"] for s in tracks[1, "model run"]]
        truth = [
            1e6 * (r.timestamp - log[0].timestamp) + 1e3 * (r.total_step_duration_ms or 0)
            for r in log
        ]
        assert ends == pytest.approx(truth, abs=5)


def test_no_batches_make_an_empty_trace() -> None:
    """Which is still one."""
    assert events_of(pd.DataFrame({"timestamp": []})) == []


def a_name(**fields: object) -> Event:
    """Return metadata of a process or a thread."""
    return {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "run"}} | fields


def a_slice(**fields: object) -> Event:
    """Return a slice from 10 to 30."""
    event = {"ph": "X", "pid": 1, "tid": 1, "ts": 10, "dur": 20, "name": "schedule", "args": {}}
    return event | fields


def a_counter(**fields: object) -> Event:
    """Return a value of a counter."""
    return {"ph": "C", "pid": 1, "ts": 10, "name": "requests", "args": {"waiting": 1}} | fields


NAMES = [a_name(), a_name(name="thread_name", tid=1)]


@pytest.mark.parametrize(
    "events",
    [
        [a_slice()],
        [*NAMES, a_name()],
        [*NAMES, a_name(name="thread_label", tid=2)],
        [*NAMES, a_name(name="thread_sort_index", tid=1, args={"sort_index": "1"})],
        [*NAMES, a_slice(tid=2)],
        [*NAMES, a_slice(ts=1.5)],
        [*NAMES, a_slice(ts=-1)],
        [*NAMES, a_slice(dur=-1)],
        [*NAMES, a_slice(name="")],
        [*NAMES, a_slice(s="t")],
        [*NAMES, a_slice(), a_slice(ts=9, dur=1)],
        [*NAMES, a_slice(), a_slice(ts=20, dur=20)],
        [*NAMES, a_counter(args={"waiting": "1"})],
        [*NAMES, a_counter(args={})],
        [*NAMES, a_counter(), a_counter(ts=9)],
        [*NAMES, a_counter(), a_counter(args={"running": 1})],
    ],
)
def test_what_is_not_of_the_format_is_seen(events: list[Event]) -> None:
    """The check by which the other tests go sees each of these, and takes what is near to it."""
    with pytest.raises(AssertionError):
        check_events(events)
    check_events([*NAMES, a_slice(), a_slice(ts=12, dur=18), a_slice(ts=30), a_counter()])


@pytest.mark.skipif(
    not TRACE_PROCESSOR,
    reason="PERFETTO_TRACE_PROCESSOR names no trace_processor_shell, which Perfetto's package on "
    "PyPI does not hold but downloads; the check of the format above stands for it",
)
def test_perfettos_own_trace_processor_reads_it(tmp_path: Path) -> None:
    """With `pip install perfetto`: without an error, and each slice and counter arrives."""
    perfetto = importlib.import_module("perfetto.trace_processor")
    engine = SimulatedEngine(setup=Setup(is_async=True))
    df = load(write_log(tmp_path / "run.jsonl", engine.run(600)))
    path = tmp_path / "trace.json"
    with path.open("w", encoding="utf-8") as stream:
        write_trace(df, stream)
    events = events_of(df)
    config = perfetto.TraceProcessorConfig(bin_path=TRACE_PROCESSOR)
    with perfetto.TraceProcessor(trace=str(path), config=config) as processor:
        errors = processor.query("select name from stats where severity = 'error' and value > 0")
        assert [row.name for row in errors] == []
        rows = processor.query(
            "select thread.name as track, count() as num, sum(dur) as ns from slice "
            "join thread_track on slice.track_id = thread_track.id join thread using (utid) "
            "group by track"
        )
        found = {row.track: (row.num, row.ns) for row in rows}
        num_values = next(iter(processor.query("select count() as num from counter"))).num
    instants = Counter("schedule" for event in events if event["ph"] == "i")
    assert found == {
        track: (len(slices) + instants[track], 1000 * sum(one["dur"] for one in slices))
        for (_, track), slices in tracks_of(events).items()
    }
    assert num_values == sum(len(event["args"]) for event in events if event["ph"] == "C")
