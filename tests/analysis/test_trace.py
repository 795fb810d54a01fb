"""The log as a timeline."""

from __future__ import annotations

import io
import itertools
import json
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest
from browser import open_browser
from perfetto import open_trace
from simulated_engine import Load, Setup, SimulatedEngine
from synthetic import batch, records, seed_record, write_log
from trace_event_format import Event, check_events

from sched_profiler import BatchRecord
from sched_profiler.analysis import load, write_trace
from sched_profiler.cli import main

START = 1_790_000_000
"""When the first batch of a log begins."""


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
        slices = tracks[100, track]
        assert sum(s["dur"] for s in slices) / 1e3 == pytest.approx(df[column].sum(), rel=0.002)
        for one, two in itertools.pairwise(slices):
            assert one["ts"] + one["dur"] <= two["ts"]
    assert len(tracks[100, "model run"]) == 600
    assert [s["args"]["batch_id"] for s in tracks[100, "schedule"]] == list(range(600))
    # The model is idle or runs, and nothing else.
    busy = sorted(tracks[100, "model run"] + tracks[100, "idle"], key=lambda s: (s["ts"], s["dur"]))
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
    model = tracks_of(events)[100, "model run"]
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
        "KV cache": {"in use, %": 98.7},
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
    assert names == {100: 'run 0, rank 0 ("</script>\u2028)', 101: "run 1, rank 1 (b)"}
    tracks = tracks_of(events)
    assert tracks[100, "schedule"][0]["ts"] == 0
    assert tracks[101, "schedule"][0]["ts"] == 5_000_000


def steps(set_back_s: float = 0.0) -> list[BatchRecord]:
    """Return eight steps of 10 ms, by a clock that is set back before the fifth."""
    return [
        batch(
            number,
            timestamp=START + number * 0.01 - set_back_s * (number > 3),
            dp_rank=0,
            update_duration_ms=0.5,
        )
        for number in range(8)
    ]


def test_a_clock_that_was_set_back_makes_no_overlap(tmp_path: Path) -> None:
    """What follows comes after what was before, as long as it was."""
    tracks = tracks_of(events_of(load(write_log(tmp_path / "run.jsonl", steps(set_back_s=5)))))
    for track, length in (("schedule", 1000), ("model run", 9000), ("idle", 1000), ("update", 500)):
        assert [one["dur"] for one in tracks[100, track]] == [length] * 8
    assert [one["ts"] for one in tracks[100, "schedule"]] == list(range(0, 80_000, 10_000))


@pytest.mark.parametrize("measured", [True, False])
def test_a_log_of_the_original_feature_has_a_timeline(measured: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """As far as it goes: what it did not measure has no slice."""
    log = list(records(30, overlap=True))
    df = pd.DataFrame([seed_record(record, measured=measured) for record in log])
    tracks = tracks_of(events_of(df))
    assert len(tracks[100, "schedule"]) == 30
    assert len(tracks[100, "model run"]) == (30 if measured else 0)
    assert (100, "idle") not in tracks
    if measured:
        ends = [s["ts"] + s["dur"] for s in tracks[100, "model run"]]
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
    return {"ph": "M", "pid": 9, "name": "process_name", "args": {"name": "run"}} | fields


def a_slice(**fields: object) -> Event:
    """Return a slice from 10 to 30."""
    event = {"ph": "X", "pid": 9, "tid": 1, "ts": 10, "dur": 20, "name": "schedule", "args": {}}
    return event | fields


def a_counter(**fields: object) -> Event:
    """Return a value of a counter."""
    return {"ph": "C", "pid": 9, "ts": 10, "name": "requests", "args": {"waiting": 1}} | fields


NAMES = [a_name(), a_name(name="thread_name", tid=1)]


@pytest.mark.parametrize(
    "events",
    [
        [a_slice()],
        [*NAMES, a_name()],
        [*NAMES, a_name(name="thread_label", tid=2)],
        [*NAMES, a_name(name="thread_name", tid=9)],
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


RANKS = [
    SimulatedEngine(
        seed=rank,
        dp_rank=rank,
        run_id=f'{rank} "</script>',
        setup=Setup(is_async=rank == 1, num_blocks=256),
        load=Load(requests_per_s=30),
    )
    for rank in (1, 2, 3)
]
"""Three ranks under more load than their KV cache has room for; one schedules asynchronously."""
TRACKS = ("schedule", "model run", "idle", "update")
SHOWN = [
    *("schedule 1", "model run 2", "idle 3", "update 4"),
    *("KV cache in use, %", "requests running", "requests waiting"),
    *("tokens decode", "tokens prefill"),
]
"""What Perfetto shows of a run, from top to bottom."""
ROUNDING_NS = 5000
"""What is off by rounding: records and traces have times in whole µs, and a few are added up."""
COMPLAINTS = """
    select name, idx, value, severity from stats
    where severity in ('error', 'data_loss') and value > 0
"""
SLICES = """
    select process.name, thread.name, slice.name, ts, ts + dur, depth
    from slice join thread_track on track_id = thread_track.id
    join thread using (utid) join process using (upid)
    order by ts, slice.id
"""
COUNTERS = """
    select process.name, track.name, ts, value
    from counter join process_counter_track as track on track_id = track.id
    join process using (upid)
    order by ts
"""


def slices_of(record: BatchRecord) -> dict[tuple[str, str], tuple[float, float]]:
    """Return when each slice of a batch begins and ends, in ns, by its track and name."""
    begin = 1e9 * (record.timestamp - START)
    end = begin + 1e6 * (record.total_step_duration_ms or 0)
    runs = end - 1e6 * (record.model_run_duration_ms or 0)
    scheduled = begin + 1e6 * record.schedule_duration_ms
    phases = [bool(record.num_prefill_reqs), bool(record.num_decode_reqs)]
    kind = "mixed" if all(phases) else "prefill" if phases[0] else "decode"
    slices = {
        ("schedule", "schedule"): (begin, scheduled),
        ("model run", kind): (runs, end),
        ("update", "update"): (end, end + 1e6 * (record.update_duration_ms or 0)),
    }
    if record.idle_duration_ms:
        slices["idle", "idle"] = (runs - 1e6 * record.idle_duration_ms, runs)
    if record.num_preempted_reqs:
        slices["schedule", "preempted"] = (scheduled, scheduled)
    return slices


def counters_of(record: BatchRecord) -> dict[str, float]:
    """Return the counters after a batch was scheduled."""
    return {
        "KV cache in use, %": 100 * record.kv_cache_usage,
        "requests running": record.num_running_reqs,
        "requests waiting": record.num_waiting_reqs,
        "tokens decode": sum(record.decode_chunk_sizes),
        "tokens prefill": sum(record.prefill_chunk_sizes),
    }


def test_perfetto_shows_what_the_records_say(tmp_path: Path) -> None:
    """Its trace processor finds no fault, and all slices and counters are where they should be.

    The first of the runs is as if its clock had not been set back.
    """
    busy = [list(engine.run(200)) for engine in RANKS]
    paths = [
        write_log(tmp_path / f"{rank}.jsonl", log)
        for rank, log in enumerate([steps(set_back_s=5), *busy])
    ]
    logs = [steps(), *busy]
    assert main(["trace", *map(str, paths), "-o", str(tmp_path / "trace.json")]) == 0
    with open_browser() as browser, open_trace(browser, tmp_path / "trace.json") as perfetto:
        assert perfetto.query(COMPLAINTS) == []
        slices = perfetto.query(SLICES)
        counters = perfetto.query(COUNTERS)
        titles = perfetto.titles()
    runs = [f"run {rank}, rank {rank} ({log[0].run_id})" for rank, log in enumerate(logs)]
    size = 1 + len(SHOWN)
    shown = [titles[first : first + size] for first in range(0, len(titles), size)]
    assert sorted(shown) == [[f"{name} {100 + rank}", *SHOWN] for rank, name in enumerate(runs)]
    assert {row[0] for row in slices} == {row[0] for row in counters} == set(runs)
    assert all(depth == 0 for *_, depth in slices)
    for run, log in zip(runs, logs, strict=True):
        for track in TRACKS:
            found = [row[2:5] for row in slices if row[:2] == [run, track]]
            wanted = [
                (name, *times)
                for record in log
                for (on, name), times in slices_of(record).items()
                if on == track
            ]
            assert [name for name, *_ in found] == [name for name, *_ in wanted]
            for at in (1, 2):
                times = [row[at] for row in wanted]
                assert [row[at] for row in found] == pytest.approx(times, abs=ROUNDING_NS)
            assert all(one[2] <= two[1] for one, two in itertools.pairwise(found))
        scheduled = [slices_of(record)["schedule", "schedule"][1] for record in log]
        for name in counters_of(log[0]):
            found = [row[2:] for row in counters if row[:2] == [run, name]]
            assert [at for at, _ in found] == pytest.approx(scheduled, abs=ROUNDING_NS)
            values = [counters_of(record)[name] for record in log]
            assert [value for _, value in found] == pytest.approx(values)
    assert {row[2] for row in slices} >= {"prefill", "decode", "mixed", "idle", "preempted"}
