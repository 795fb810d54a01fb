"""What the last seconds of a log come down to."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from synthetic import batch, records

from sched_profiler import BatchRecord
from sched_profiler.testing import FakeClock
from sched_profiler.window import (
    DURATIONS,
    NUM_SLICES,
    Window,
    budget_share,
    idle_share,
    per_batch,
    per_second,
)

_START = 1_790_000_000.0


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands where the records of the tests begin."""
    fake = FakeClock()
    fake.advance(1e3 * (_START - fake.time_ns() / 1e9))
    return fake


def steady(seconds: float, **fields: object) -> list[BatchRecord]:
    """Return a batch each 100 ms that begins where the tests do."""
    return [
        batch(number, timestamp=_START + 0.1 * number, **fields)  # type: ignore[arg-type]
        for number in range(round(seconds * 10))
    ]


def filled(clock: FakeClock, found: list[BatchRecord], seconds: float = 30) -> Window:
    """Return a window that has caught up with records, the last of which has just come."""
    window = Window(seconds, clock=clock)
    last = found[-1]
    clock.advance(
        1e3 * (last.timestamp - clock.time_ns() / 1e9) + (last.total_step_duration_ms or 0)
    )
    for record in found:
        window.add(record)
    window.catch_up()
    window.settle()
    return window


def test_rates_are_those_of_the_records(clock: FakeClock) -> None:
    """Over the window, over the last second, and in each slice."""
    found = steady(60, prefill=[20, 30], decode=[1] * 4, num_new_reqs=2, num_preempted_reqs=0)
    every = filled(clock, found).everything
    for name, expected in (
        ("num_batches", 10),
        ("prefill_tokens", 500),
        ("decode_tokens", 40),
        ("num_new_reqs", 20),
        ("num_preempted_reqs", 0),
    ):
        value = per_second(name)
        assert every.mean(value) == pytest.approx(expected, rel=0.02)
        assert every.recent(value) == pytest.approx(expected)
        assert every.series(value) == pytest.approx([expected] * NUM_SLICES)
    assert every.mean(per_second("num_finished_reqs")) is None


def test_means_and_shares_are_those_of_the_records(clock: FakeClock) -> None:
    """Times, queues, the KV cache, the token budget and how long the model stood still."""
    found = steady(
        60, model_run_ms=60.0, num_waiting_reqs=3, kv_cache_usage=0.25, token_budget=10, decode=[1]
    )
    every = filled(clock, found).everything
    assert every.mean(per_batch("model_run_duration_ms", 1e-3)) == pytest.approx(60)
    assert every.mean(per_batch("num_waiting_reqs", 2)) == pytest.approx(6)
    assert every.mean(per_batch("kv_cache_ppm", 1e-6)) == pytest.approx(0.25)
    assert every.mean(budget_share) == pytest.approx(0.1)
    assert every.mean(idle_share(1)) == pytest.approx(0.4, abs=0.02)
    assert every.mean(idle_share(2)) == pytest.approx(0.7, abs=0.02)


def test_what_no_record_tells_is_unknown(clock: FakeClock) -> None:
    """Of an engine that measures scheduling only, and says little else."""
    every = filled(clock, steady(10, model_run_ms=None)).everything
    assert every.mean(idle_share(1)) is None
    assert every.mean(per_batch("model_run_duration_ms")) is None
    assert every.percentiles("total_step_duration_ms", [0.5]) is None
    assert every.mean(budget_share) is None
    assert len(every.slow(5)) == 5


def test_percentiles_are_within_half_a_percent(clock: FakeClock) -> None:
    """Of those that NumPy has, up to which of two neighbours is taken."""
    found = [r for r in records(6000, start=_START) if r.timestamp < _START + 29]
    every = filled(clock, found).everything
    shares = [0.5, 0.9, 0.99, 1.0]
    for name in DURATIONS:
        exact = np.quantile([getattr(r, name) for r in found], shares, method="lower")
        assert every.percentiles(name, shares) == pytest.approx(exact, rel=0.0051)


def test_a_time_of_nothing_is_nothing(clock: FakeClock) -> None:
    """A clock may be too coarse to tell."""
    every = filled(clock, steady(5, schedule_ms=0.0)).everything
    assert every.percentiles("schedule_duration_ms", [0.5, 1.0]) == [0.0, 0.0]


def test_what_is_older_than_the_window_leaves_no_trace(clock: FakeClock) -> None:
    """After a long run there are as many slices as after a short one."""
    window = filled(clock, [*steady(300), *steady(1)], seconds=6)
    every = window.everything
    assert every.num_batches == pytest.approx(66, abs=2)
    assert len(every._slices) <= NUM_SLICES + 1
    histogram = every._all.histograms["model_run_duration_ms"]
    assert histogram.total() == every.num_batches
    assert window.num_missing == 0


def test_a_window_that_slides_empties_when_nothing_comes(clock: FakeClock) -> None:
    """Rates fall to nothing, and idle rises to all."""
    window = filled(clock, steady(60))
    assert window.slides
    for seconds, expected in ((15, 5.0), (60, 0.0)):
        clock.advance(1e3 * seconds)
        window.settle()
        rate = window.everything.mean(per_second("num_batches"))
        assert rate == pytest.approx(expected, abs=0.2)
    assert window.quiet_s == pytest.approx(75, abs=0.01)
    assert window.everything.mean(idle_share(1)) == 1.0
    # The engine is shown all the same.
    assert len(window.shown_lanes()) == 1
    assert window.everything.slow(5) == []


def test_a_log_that_ended_long_ago_shows_its_end(clock: FakeClock) -> None:
    """Until something comes: then it goes on from now."""
    window = Window(30, clock=clock)
    for record in steady(60):
        window.add(record)
    clock.advance(1e3 * 3600)
    window.catch_up()
    clock.advance(1e3 * 100)
    window.settle()
    assert not window.slides
    assert window.age_s == pytest.approx(3640, abs=1)
    assert window.everything.mean(per_second("num_batches")) == pytest.approx(10, rel=0.02)
    window.add(batch(0, timestamp=_START + 3700, run_id="next"))
    window.settle()
    assert window.slides
    assert [lane.run_id for lane in window.shown_lanes()] == ["next"]


def test_where_records_come_in_parts_the_window_ends_with_the_newest(clock: FakeClock) -> None:
    """Between two uploads nothing is idle."""
    window = Window(30, is_prompt=False, clock=clock)
    for record in steady(60):
        window.add(record)
    window.catch_up()
    window.add(batch(600, timestamp=_START + 60))
    clock.advance(1e3 * 25)
    window.settle()
    assert not window.slides
    assert window.everything.recent(per_second("num_batches")) == pytest.approx(10)


def test_a_run_that_began_within_the_window_is_divided_by_its_own_time(clock: FakeClock) -> None:
    """What was before it was no idle time."""
    every = filled(clock, steady(5)).everything
    assert every.span_s == pytest.approx(5, abs=0.1)
    assert every.mean(per_second("num_batches")) == pytest.approx(10, rel=0.03)
    series = every.series(per_second("num_batches"))
    assert series[:40] == [None] * 40


def test_engines_are_told_apart(clock: FakeClock) -> None:
    """By run and rank, in the order of ranks; a record may come late."""
    found = [
        batch(number, timestamp=_START + 0.1 * number, run_id=f"run{rank}", dp_rank=rank)
        for number in range(200)
        for rank in (1, 0)
    ]
    window = filled(clock, found[2:] + found[:2])
    lanes = window.shown_lanes()
    assert [(lane.run_id, lane.dp_rank) for lane in lanes] == [("run0", 0), ("run1", 1)]
    assert [lane.num_batches for lane in lanes] == [200, 200]
    assert window.everything.num_batches == 400
    assert window.num_missing == 0


def test_the_slowest_batches_are_kept(clock: FakeClock) -> None:
    """The longest step first; of many slices."""
    found = steady(20)
    slow = {37: 500.0, 100: 900.0, 101: 700.0}
    found = [
        batch(r.batch_id, timestamp=r.timestamp, model_run_ms=slow.get(r.batch_id, 9.0))
        for r in found
    ]
    every = filled(clock, found).everything
    assert [record.batch_id for record in every.slow(3)] == [100, 101, 37]
    assert len(every.slow(100)) == 8


def test_what_is_lost_is_counted(clock: FakeClock) -> None:
    """Gaps between batches, and what the engine says; also after the engine is forgotten."""
    window = Window(30, clock=clock)
    for number in (0, 1, 2, 5, 6, 9):
        window.add(batch(number, num_dropped_records=2))
    assert (window.num_missing, window.num_dropped) == (4, 2)
    # A late one closes its gap.
    window.add(batch(3))
    assert window.num_missing == 3
    for number in range(1000):
        window.add(batch(0, timestamp=_START + 1, run_id=f"run{number}"))
    assert len(window.lanes) == 256
    assert (window.num_missing, window.num_dropped) == (3, 2)


def test_a_restart_without_run_ids_is_no_loss(clock: FakeClock) -> None:
    """In a log of the original feature each start of the engine begins at 0."""
    window = Window(30, clock=clock)
    for number in (0, 1, 2, 3, 0, 1):
        window.add(batch(number, run_id=None))
    assert window.num_missing == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: batch(0, timestamp=_START + 1e9),
        lambda: batch(0, timestamp=1e300),
        lambda: batch(0, model_run_ms=1e308),
        lambda: batch(0, schedule_ms=-1.0),
        lambda: batch(0, kv_cache_usage=1e9),
        lambda: batch(0, num_waiting_reqs=-4),
    ],
)
def test_a_record_that_cannot_be_true_does_not_push_the_others_out(
    clock: FakeClock, make: Callable[[], BatchRecord]
) -> None:
    """It is counted as left out."""
    window = Window(30, clock=clock)
    window.add(batch(0))
    window.add(make())
    window.settle()
    assert window.num_refused == 1
    assert window.everything.num_batches == 1


def test_an_empty_window_has_no_figures(clock: FakeClock) -> None:
    """Nothing is known before the first record."""
    window = Window(30, clock=clock)
    window.catch_up()
    window.settle()
    assert window.quiet_s is None
    assert window.age_s is None
    assert window.shown_lanes() == []
    assert window.everything.mean(per_second("num_batches")) is None
    assert window.everything.recent(per_second("num_batches")) is None
    assert math.isinf(window._newest_end)
