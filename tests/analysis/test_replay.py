"""A replay loses no token, its clock never goes back, and what it finds is what was put in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sched_profiler import LogError, SchedProfilerError
from sched_profiler.analysis.arrivals import Arrival
from sched_profiler.analysis.capacity import estimate_capacity, find_capacity
from sched_profiler.analysis.engine_time import EngineTime, Pace, fit_engine_time
from sched_profiler.analysis.replay import EngineSettings, Plan, replay
from sched_profiler.analysis.replay_measures import MEASURES, measures_of
from sched_profiler.analysis.tuning import Tuning, limits_around, tune

SETTINGS = EngineSettings(
    max_num_batched_tokens=256, max_num_seqs=8, max_model_len=4096, block_size=16, num_blocks=1000
)
CONSTANT, PREFILL, DECODE = 4.0, 0.05, 0.2


class FirstComeFirstServed:
    """A small scheduler: decodes first, then prompts in chunks; as many requests as allowed."""

    def __init__(self, engine: EngineSettings, num_shared_tokens: int = 0) -> None:
        self.engine = engine
        self.waiting: list[int] = []
        self.running: list[int] = []
        self.left: dict[int, list[int]] = {}
        self.busy: set[int] = set()

    def add(self, number: int, arrival: Arrival) -> None:
        self.waiting.append(number)
        prompt = arrival.num_prompt_tokens - arrival.num_cached_tokens
        self.left[number] = [prompt, arrival.num_output_tokens]

    def has_requests(self) -> bool:
        return bool(self.waiting or self.running)

    def schedule(self) -> tuple[Plan, Any]:
        while self.waiting and len(self.running) < self.engine.max_num_seqs:
            self.running.append(self.waiting.pop(0))
        budget = self.engine.max_num_batched_tokens
        chunks: dict[int, int] = {}
        for number in self.running:
            if number not in self.busy and budget:
                chunks[number] = min(max(1, self.left[number][0]), budget)
                budget -= chunks[number]
        self.busy |= chunks.keys()
        prefill = [chunk for number, chunk in chunks.items() if self.left[number][0]]
        plan = Plan(
            prefill_chunk_sizes=prefill,
            decode_tokens=len(chunks) - len(prefill),
            prefill_context_tokens=0,
            decode_context_tokens=0,
            num_reqs=len(chunks),
            num_waiting_reqs=len(self.waiting),
            num_running_reqs=len(self.running),
            num_preempted_reqs=0,
            num_cached_tokens=0,
            kv_cache_usage=min(1.0, 0.05 * len(self.running)),
        )
        return plan, chunks

    def take_result(self, batch: dict[int, int]) -> Iterable[tuple[int, bool]]:
        got = []
        for number, chunk in batch.items():
            left = self.left[number]
            self.busy.discard(number)
            left[0] = max(0, left[0] - chunk)
            if left[0] == 0:
                left[1] -= 1
                got.append((number, left[1] == 0))
                if left[1] == 0:
                    self.running.remove(number)
        return got


class Times:
    """The same times for ever."""

    def schedule_ms(self, plan: Plan) -> float:
        return 0.5

    def model_ms(self, plan: Plan, now: float) -> float:
        return CONSTANT + PREFILL * sum(plan.prefill_chunk_sizes) + DECODE * plan.decode_tokens

    def rest_ms(self, plan: Plan, now: float) -> float:
        return 0.25


def requests(
    count: int, *, rate: float, seed: int = 0, prompt: int = 200, output: int = 20
) -> list[Arrival]:
    """Return requests that come at random."""
    draw = np.random.default_rng(seed)
    times = np.cumsum(draw.exponential(1 / rate, size=count))
    return [
        Arrival(
            time=float(time),
            num_prompt_tokens=int(draw.integers(1, 2 * prompt)),
            num_output_tokens=int(draw.integers(1, 2 * output)),
        )
        for time in times
    ]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0, 0.2), st.integers(1, 600), st.integers(1, 30)),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 3),
    st.integers(1, 6),
)
def test_no_token_is_lost_and_the_clock_never_goes_back(
    load: list[tuple[float, int, int]], max_in_flight: int, seqs: int
) -> None:
    """Whatever comes when, and however many batches are on their way."""
    moment, arrivals = 0.0, []
    for gap, prompt, output in load:
        moment += gap
        arrivals.append(Arrival(time=moment, num_prompt_tokens=prompt, num_output_tokens=output))
    scheduler = FirstComeFirstServed(attrs.evolve(SETTINGS, max_num_seqs=seqs))
    told: list[int] = []
    done = replay(arrivals, scheduler, Times(), max_in_flight=max_in_flight, progress=told.append)
    assert sum(sum(plan.prefill_chunk_sizes) for plan in done.plans) == sum(p for _, p, _ in load)
    assert done.num_output_tokens.tolist() == [output for _, _, output in load]
    assert len(done.token_gaps_ms) == sum(output - 1 for _, _, output in load)
    assert (np.diff(done.scheduled) >= 0).all()
    assert (np.diff(done.ready) > 0).all()
    assert (done.ready > done.scheduled).all()
    assert (done.first_token > done.arrival).all()
    assert (done.end >= done.first_token).all()
    assert done.scheduled[0] >= done.arrival[0]
    # One model: batches do not overlap on it.
    assert (np.diff(done.ready) >= done.model_ms[1:] / 1e3 - 1e-9).all()
    assert told == sorted(told)
    assert told[-1] == len(arrivals)
    assert all(
        np.isfinite(value) or name in {"tpot_ms", "token_gap_p95_ms"}
        for name, value in measures_of(done).items()
    )
    assert set(measures_of(done)) == {measure.name for measure in MEASURES}


def test_one_request_takes_the_time_that_its_parts_take() -> None:
    """By hand: a prompt in two chunks, then two more tokens."""
    arrival = Arrival(time=10.0, num_prompt_tokens=300, num_output_tokens=3)
    done = replay([arrival], FirstComeFirstServed(SETTINGS), Times())
    first = (0.5 + 4 + 256 * 0.05) + 0.25 + (0.5 + 4 + 44 * 0.05)
    assert done.first_token[0] == pytest.approx(10 + first / 1e3)
    assert done.token_gaps_ms == pytest.approx([0.25 + 0.5 + 4.2] * 2)
    assert measures_of(done)["ttft_ms"] == pytest.approx(first)
    assert measures_of(done)["tpot_ms"] == pytest.approx(4.95)


def test_a_request_that_can_never_be_scheduled_is_an_error() -> None:
    """It says which, and does not go on for ever."""

    class Refuses(FirstComeFirstServed):
        def has_requests(self) -> bool:
            return False

    with pytest.raises(LogError, match=r"request 0 \(300 prompt and 3 output tokens\) can never"):
        replay(
            [Arrival(time=0.0, num_prompt_tokens=300, num_output_tokens=3)],
            Refuses(SETTINGS),
            Times(),
        )


def frame_of(arrivals: Sequence[Arrival], noise: float = 0.05) -> pd.DataFrame:
    """Return the log that an engine with these times would leave."""
    done = replay(arrivals, FirstComeFirstServed(SETTINGS), Times())
    draw = np.random.default_rng(7)
    rows = len(done.plans)
    model = done.model_ms * np.exp(noise * draw.standard_normal(rows))
    handed = done.scheduled + done.schedule_ms / 1e3
    idle = 1e3 * np.diff(handed, prepend=handed[0]) - np.concatenate(([0], done.model_ms[:-1]))
    plans = done.plans
    # A request is new where it is first in a batch: here, where it comes to run.
    seen, new = 0, []
    for plan, began in zip(plans, done.scheduled, strict=True):
        here = sum(a.time <= began for a in arrivals) - plan.num_waiting_reqs
        new.append(here - seen)
        seen = here
    chunks = pd.ArrowDtype(pa.list_(pa.int64()))
    return pd.DataFrame(
        {
            "run": 0,
            "batch_id": np.arange(rows),
            "timestamp": done.scheduled,
            "schedule_duration_ms": done.schedule_ms,
            "model_run_duration_ms": model,
            "total_step_duration_ms": model + done.schedule_ms,
            "idle_duration_ms": idle,
            "update_duration_ms": 0.1,
            "num_prefill_reqs": [len(plan.prefill_chunk_sizes) for plan in plans],
            "num_decode_reqs": [plan.decode_tokens for plan in plans],
            "num_prefill_tokens": [sum(plan.prefill_chunk_sizes) for plan in plans],
            "total_scheduled_tokens": [plan.num_tokens for plan in plans],
            "prefill_chunk_sizes": pd.Series(
                [plan.prefill_chunk_sizes for plan in plans], dtype=chunks
            ),
            "prefill_context_tokens": 0,
            "decode_context_tokens": 0,
            "num_new_reqs": new,
            "num_running_reqs": [plan.num_running_reqs for plan in plans],
            "kv_cache_usage": [plan.kv_cache_usage for plan in plans],
        }
    )


@pytest.fixture(scope="module")
def times() -> EngineTime:
    """Return what was fitted to a run of 300 requests."""
    return fit_engine_time(frame_of(requests(300, rate=10.0)), async_scheduling=False)


def test_the_times_of_an_engine_are_found_in_its_log(times: EngineTime) -> None:
    """The model's, that of schedule(), and that of all that it does besides."""
    found = {term.name: term.coefficient for term in times.model.terms}
    assert found["constant"] == pytest.approx(CONSTANT, rel=0.05)
    assert found["prefill_tokens"] == pytest.approx(PREFILL, rel=0.05)
    assert found["decode_tokens"] == pytest.approx(DECODE, rel=0.2)
    for num_reqs in (1, 5):
        assert times.schedule.at(num_reqs) == pytest.approx(0.5, rel=0.01)
        assert times.rest.at(num_reqs) == pytest.approx(0.25, rel=0.05)


def test_times_are_the_same_for_the_same_seed_and_others_for_another(times: EngineTime) -> None:
    """Else a comparison of limits would be one of noise."""
    load = requests(40, rate=10.0, seed=3)
    ends = [
        replay(load, FirstComeFirstServed(SETTINGS), times.sampled(seed)).end.tolist()
        for seed in (0, 0, 1)
    ]
    assert ends[0] == ends[1] != ends[2]


def test_the_pace_of_a_machine_is_one_of_time_and_not_of_batches() -> None:
    """A stall adds the same to whatever it meets, and what it took in all is what it took."""
    # 10 ms of work in 10 ms; then 1 ms of work in 11 ms; then 9 in 9.
    pace = Pace(np.array([[10.0, 10.0], [11.0, 1.0], [9.0, 9.0]]))
    assert pace.time_for(4.0, 2.0) == pytest.approx(4.0)
    assert pace.time_for(2.0, 9.0) == pytest.approx(1.0 + 11.0)
    assert pace.time_for(10.0, 9.0) == pytest.approx(1.0 + 11.0 + 8.0)
    # It begins again after 30 ms, which hold 20 ms of work.
    assert pace.time_for(4.0, 30.0 * 7 + 2.0) == pytest.approx(4.0)
    assert pace.time_for(40.0, 5.0) == pytest.approx(60.0)
    # Work in parts takes as long as work in one.
    now = 3.0
    for part in (0.5, 7.0, 0.25, 30.0, 1.25):
        now += pace.time_for(part, now)
    assert now - 3.0 == pytest.approx(pace.time_for(39.0, 3.0))


def test_other_limits_meet_the_same_machine(times: EngineTime) -> None:
    """So what limits change is known much better than how long anything takes."""
    slow = np.repeat([1.0, 4.0, 1.0, 1.0, 3.0, 1.0], 50)
    uneven = attrs.evolve(times, model_pace=np.column_stack([10.0 * slow, np.full(300, 10.0)]))
    load = requests(150, rate=5.0, seed=5)
    result = tune(load, SETTINGS, uneven, FirstComeFirstServed, [(512, 8)], num_replays=8)
    (other,) = result.others
    step = result.current.estimates["step_ms"]
    change = other.changes["step_ms"]
    assert change.high - change.low < 0.5 * (step.high - step.low) / step.value


def test_with_asynchronous_scheduling_the_rest_is_what_the_update_takes() -> None:
    """More of it is hidden behind the model and cannot be seen."""
    df = frame_of(requests(300, rate=10.0))
    assert fit_engine_time(df, async_scheduling=True).rest.at(3) == pytest.approx(0.1)


def tuned(times: EngineTime, limits: list[tuple[int, int]], **options: Any) -> Tuning:
    """Tune for requests that come fast."""
    load = requests(150, rate=45.0, seed=5)
    return tune(load, SETTINGS, times, FirstComeFirstServed, limits, num_replays=3, **options)


def test_more_room_is_recommended_where_requests_wait_for_it(times: EngineTime) -> None:
    """And less is not; the recorded limits are the measure of all."""
    told: list[tuple[int, int]] = []
    tried = [(256, 2), (256, 32), (256, 8)]
    result = tuned(times, tried, progress=lambda *counts: told.append(counts))
    assert [(c.max_num_batched_tokens, c.max_num_seqs) for c in result.others] == [
        (256, 2),
        (256, 32),
    ]
    few, many = result.others
    assert few.changes["request_ms"].low > 0
    assert many.changes["request_ms"].high < 0
    assert result.recommended is many
    assert told[-1] == (3 * 3 * 150, 3 * 3 * 150)
    # Nobody was preempted: of that there is no ratio.
    changes = {name: change.value for name, change in result.current.changes.items()}
    assert all(value == 0 for name, value in changes.items() if name != "num_preemptions")
    data = json.loads(result.to_json())
    assert data["recommended"] == {"max_num_batched_tokens": 256, "max_num_seqs": 32}
    assert "Recommended: max_num_batched_tokens=256, max_num_seqs=32" in str(result)
    assert "256 (now)" in str(result)
    # Nothing that was fitted held so much.
    assert many.unseen > 0.1
    assert "run it once" in str(result)


def test_a_gain_within_what_replays_are_off_is_not_recommended(times: EngineTime) -> None:
    """Although every draw of the fit agrees that there is one."""
    result = tuned(times, [(256, 32)])
    (more,) = result.others
    for gain, is_recommended in ((0.05, False), (0.11, True)):
        change = attrs.evolve(more.changes["request_ms"], value=-gain, low=-gain, high=-gain)
        slight = attrs.evolve(more, changes={**more.changes, "request_ms": change})
        told = attrs.evolve(result, others=(slight,))
        assert (told.recommended is slight) is is_recommended
        assert ("sooner by more than 8%" in str(told)) is not is_recommended


def test_what_changes_nothing_is_not_recommended(times: EngineTime) -> None:
    """The replay is held against what was measured, and says so if it is far off."""
    result = tuned(times, [(256, 8)], recorded={"step_ms": 1.0})
    assert result.recommended is result.current
    assert "Recommended: keep max_num_batched_tokens=256, max_num_seqs=8" in str(result)
    assert "far off" in str(result)
    assert "Nothing was recorded" not in str(result)
    assert "recorded" in str(result)


def test_limits_that_the_engine_refuses_are_told(times: EngineTime) -> None:
    """The others are tried all the same."""

    def make(engine: EngineSettings, num_shared_tokens: int) -> FirstComeFirstServed:
        if engine.max_num_seqs == 99:
            raise SchedProfilerError("vLLM refuses max_num_seqs=99")
        return FirstComeFirstServed(engine)

    load = requests(30, rate=16.0)
    result = tune(load, SETTINGS, times, make, [(256, 99), (256, 4)], num_replays=2)
    assert len(result.others) == 1
    assert result.refused == ("vLLM refuses max_num_seqs=99",)
    assert "Not tried: vLLM refuses" in str(result)


def test_limits_around_are_those_that_an_engine_can_have() -> None:
    """No budget below the number of requests, and no request less than one."""
    assert limits_around(SETTINGS) == [
        (64, 8),
        (128, 8),
        (512, 8),
        (1024, 8),
        (256, 4),
        (256, 16),
    ]
    least = attrs.evolve(SETTINGS, max_num_batched_tokens=8, max_num_seqs=1)
    assert (2, 1) in limits_around(least)
    assert all(budget >= seqs >= 1 for budget, seqs in limits_around(least))


def test_the_rate_at_which_an_engine_is_full_is_found(times: EngineTime) -> None:
    """Against what the engine of this test can do: that is known from its busiest second."""
    load = requests(150, rate=5.0, seed=9)
    result = find_capacity(load, SETTINGS, times, FirstComeFirstServed)
    everybody = [attrs.evolve(arrival, time=0.001 * n) for n, arrival in enumerate(load * 4)]
    crowded = replay(everybody, FirstComeFirstServed(SETTINGS), Times())
    most = len(everybody) / crowded.makespan_s
    assert result.sustained_requests_per_s == pytest.approx(most, rel=0.12)
    assert result.saturated_requests_per_s == pytest.approx(
        result.sustained_requests_per_s, rel=0.04
    )
    assert result.low <= result.sustained_requests_per_s <= result.high
    assert result.limit == "max_num_seqs"
    assert result.kv_full_requests_per_s is None
    assert [one.requests_per_s for one in result.loads] == sorted(
        one.requests_per_s for one in result.loads
    )
    data = json.loads(result.to_json())
    assert data["kind"] == "replay"
    assert "grows without bound above" in str(result)
    assert "max_num_seqs run at a time" in str(result)


@pytest.mark.parametrize(("rate", "is_light"), [(0.5, True), (8.0, False)])
def test_a_log_of_little_load_is_told_to_say_little(
    times: EngineTime, rate: float, *, is_light: bool
) -> None:
    """The rate that it gives is a long way from anything that was seen."""
    load = requests(150, rate=rate, seed=9)
    result = find_capacity(load, SETTINGS, times, FirstComeFirstServed)
    assert (result.recorded_requests_per_s < 0.2 * result.sustained_requests_per_s) is is_light
    assert ("So light a load" in str(result)) is is_light


def test_requests_that_come_at_once_have_no_rate(times: EngineTime) -> None:
    """So there is none to scale."""
    load = [Arrival(time=1.0, num_prompt_tokens=5, num_output_tokens=5)] * 3
    with pytest.raises(LogError, match=r"3 requests that came within .* have no rate"):
        find_capacity(load, SETTINGS, times, FirstComeFirstServed)


def test_a_log_alone_gives_an_estimate_that_says_so() -> None:
    """Busy time and running requests, in proportion."""
    load = requests(300, rate=5.0)
    df = frame_of(load)
    result = estimate_capacity(df, max_num_seqs=8)
    assert result.recorded_requests_per_s == pytest.approx(5.0, rel=0.15)
    assert 0 < result.model_busy < result.engine_busy < 1
    assert result.engine_requests_per_s > result.recorded_requests_per_s
    assert result.seats_requests_per_s is not None
    assert result.seats_requests_per_s > result.recorded_requests_per_s
    assert "An estimate from the log alone" in str(result)
    assert json.loads(result.to_json())["kind"] == "estimate"
    with pytest.raises(LogError, match="num_new_reqs"):
        estimate_capacity(df.drop(columns="num_new_reqs"), max_num_seqs=None)
