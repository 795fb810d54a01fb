"""Slow batches beside others like them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from simulated_engine import Faults, SimulatedEngine
from synthetic import batch, records, seed_record, write_log

from sched_profiler.analysis import Deviation, load, slow_batches


def log_of(tmp_path: Path, *batches: object) -> pd.DataFrame:
    """Return the frame of 60 batches of 8 decodes and some more after them."""
    usual = [batch(number, decode=[1] * 8, schedule_ms=1 + number % 3) for number in range(60)]
    return load(write_log(tmp_path / "run.jsonl", [*usual, *batches]))


def test_a_batch_is_compared_with_those_that_hold_about_the_same(tmp_path: Path) -> None:
    """The median of them is usual, and their spread is the measure."""
    slow = batch(60, decode=[1] * 9, schedule_ms=20, num_waiting_reqs=7, request_ids=["a"] * 9)
    other = batch(61, decode=[1] * 64, schedule_ms=5)
    found, *rest = slow_batches(log_of(tmp_path, slow, other), schedule_over_ms=6)
    assert rest == []
    assert (found.batch_id, found.over, found.num_alike) == (60, ("schedule",), 50)
    assert (found.num_decode_reqs, found.decode_tokens, found.prefill_tokens) == (9, 9, 0)
    assert found.request_ids == ("a",) * 9
    schedule = found.deviations["schedule"]
    assert (schedule.value, schedule.usual) == (20, 2)
    assert schedule.z == pytest.approx(18 / 1.4826, abs=0.01)
    assert found.deviations["model run"].z == 0
    assert found.deviations["waiting"].z == 7
    assert sorted(found.unusual) == ["idle", "schedule", "total step", "waiting"]
    assert found.to_dict()["deviations"]["schedule"]["usual"] == 2


def test_the_slowest_come_first_and_no_more_than_asked_for(tmp_path: Path) -> None:
    """Of several limits, the one that a batch exceeds most often counts."""
    df = log_of(
        tmp_path,
        batch(60, schedule_ms=4, model_run_ms=30),
        batch(61, schedule_ms=40, model_run_ms=9),
        batch(62, schedule_ms=40, model_run_ms=90),
    )
    found = slow_batches(df, schedule_over_ms=10, model_run_over_ms=10, total_over_ms=60)
    assert [one.batch_id for one in found] == [62, 61, 60]
    assert found[0].over == ("schedule", "model run", "total step")
    assert found[2].over == ("model run",)
    assert [one.batch_id for one in slow_batches(df, schedule_over_ms=10, top=1)] == [61]
    assert slow_batches(df, total_over_ms=1000) == []


def test_without_a_limit_the_longest_steps_are_slow(tmp_path: Path) -> None:
    """Or the longest schedule(), where nothing else was measured."""
    log = list(records(200, seed=4))
    df = load(write_log(tmp_path / "run.jsonl", log))
    longest = sorted(log, key=lambda r: -(r.total_step_duration_ms or 0))[:3]
    assert [one.batch_id for one in slow_batches(df, top=3)] == [r.batch_id for r in longest]
    bare = pd.DataFrame([seed_record(record, measured=False) for record in log])
    (first,) = slow_batches(bare, top=1)
    assert first.batch_id == max(log, key=lambda r: r.schedule_duration_ms).batch_id
    assert "model run" not in first.deviations
    assert first.request_ids is None


def test_a_batch_like_no_other_is_not_compared(tmp_path: Path) -> None:
    """What is usual for it nobody knows."""
    df = log_of(tmp_path, batch(60, prefill=[500, 20], schedule_ms=50))
    (found,) = slow_batches(df, schedule_over_ms=10)
    assert found.num_alike == 0
    assert found.deviations == {}
    assert found.durations_ms["schedule"] == 50
    assert found.prefill_chunk_sizes == (500, 20)
    assert found.prefill_tokens == 520


def test_what_alone_sets_a_batch_apart_is_said(tmp_path: Path) -> None:
    """The context counts, though tokens are the same as in all others."""
    log = [
        batch(number, decode=[1] * 8, decode_context_tokens=9000 if number == 60 else 800)
        for number in range(61)
    ]
    strange = batch(61, prefill=[9] * 70, decode=[1] * 99, schedule_ms=50)
    df = load(write_log(tmp_path / "run.jsonl", [*log, strange]))
    by_number = {one.batch_id: one for one in slow_batches(df, top=62)}
    assert by_number[60].num_alike == 0
    assert by_number[60].why_not_compared == (
        "no other of its run holds about the same; what sets it apart is decode context alone"
    )
    assert by_number[61].why_not_compared == "no other of its run holds about the same"
    assert by_number[0].set_apart_by is None


@pytest.mark.parametrize(
    ("z", "shown"), [(0.63, "+0.6"), (-62.14, "-62.1"), (1477.7, "+1,480"), (-103.6, "-104")]
)
def test_a_deviation_is_shown_in_three_digits_at_most(z: float, shown: str) -> None:
    """More would be false precision."""
    assert Deviation(value=1, usual=1, z=z).shown_z == shown


def test_runs_are_not_mixed(tmp_path: Path) -> None:
    """Another run may have had another machine."""
    log = [
        batch(number, run_id=run, schedule_ms=ms)
        for run, ms in (("a", 1.0), ("b", 10.0))
        for number in range(60)
    ]
    df = load(write_log(tmp_path / "run.jsonl", log))
    assert {one.deviations["schedule"].usual for one in slow_batches(df, schedule_over_ms=5)} == {
        10.0
    }


def test_planted_spikes_are_the_slow_batches(tmp_path: Path) -> None:
    """All of them, and only their schedule() stands out."""
    engine = SimulatedEngine(faults=Faults(spike_every=100, spike_ms=20))
    df = load(write_log(tmp_path / "run.jsonl", engine.run(1500)))
    found = slow_batches(df, schedule_over_ms=5, top=1000)
    assert {one.batch_id for one in found} == set(engine.spikes)
    compared = [one for one in found if one.deviations]
    assert len(compared) > 5
    assert all(next(iter(one.unusual)) in ("schedule", "idle") for one in compared)


def test_a_record_that_contradicts_itself_is_compared_without_a_warning(tmp_path: Path) -> None:
    """A damaged log may have fewer tokens in a batch than in its chunks."""
    damaged = batch(60, prefill=[100], decode=[], schedule_ms=20, total_scheduled_tokens=5)
    (found,) = slow_batches(log_of(tmp_path, damaged), schedule_over_ms=6)
    assert (found.prefill_tokens, found.decode_tokens, found.num_alike) == (100, -95, 0)
