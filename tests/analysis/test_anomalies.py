"""Finding what is wrong in a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import pandas as pd
import pytest
from simulated_engine import Faults, Load, Setup, SimulatedEngine, Times
from synthetic import records, seed_record, write_log

from sched_profiler.analysis import Finding, find_anomalies, load, scan

if TYPE_CHECKING:
    from collections.abc import Callable

Find = Any


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., list[Finding]]:
    """Return a function that runs engines side by side and finds what is wrong with them."""

    def find(
        *engines: SimulatedEngine, num_batches: int = 2000, with_manifest: bool = True
    ) -> list[Finding]:
        log = [record for engine in engines for record in engine.run(num_batches)]
        manifests = [engine.manifest() for engine in engines] if with_manifest else []
        path = write_log(tmp_path / "run.jsonl", log)
        found = find_anomalies(load(path), manifests)
        # Whatever is found in the rows of a short log is found in its digest.
        assert find_anomalies(scan(path), manifests) == found
        return found

    return find


def only(findings: list[Finding]) -> Finding:
    """Return the finding that must be the only one."""
    assert len(findings) == 1, [str(finding) for finding in findings]
    return findings[0]


def ranks(number: int, slow: float) -> list[SimulatedEngine]:
    """Return ranks of which the second is slower."""
    return [
        SimulatedEngine(
            seed=rank,
            run_id=f"rank{rank}",
            dp_rank=rank,
            faults=Faults(slow_model=slow if rank == 1 else 1.0),
        )
        for rank in range(number)
    ]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_steady_run_has_no_finding(find: Find, seed: int, is_async: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Also where the machine hiccups now and then."""
    times = Times(hiccups_per_s=0.5)
    engine = SimulatedEngine(seed=seed, setup=Setup(is_async=is_async), times=times)
    assert find(engine) == []


def test_schedule_times_that_stand_out_are_found(find: Find) -> None:
    """With the batches in which it was."""
    engine = SimulatedEngine(faults=Faults(spike_every=100, spike_ms=10))
    finding = only(find(engine))
    assert finding.kind == "schedule_spikes"
    assert set(finding.batch_ids) <= set(engine.spikes)
    assert len(finding.batch_ids) == 5
    in_sight = [batch for batch in engine.spikes if batch >= 10]
    assert finding.numbers["num_spikes"] == len(in_sight)
    assert f"in {len(in_sight)} of 1,990 batches" in finding.title
    assert finding.numbers["spike_ms_p50"] == pytest.approx(10, rel=0.25)
    assert "period_batches" not in finding.numbers


@pytest.mark.parametrize("busy", [False, True])
def test_spikes_at_a_constant_distance_are_said_to_be(busy: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Also between others, and where the machine holds up the model as often."""
    times = Times(hiccups_per_s=5) if busy else Times()
    df = pd.DataFrame([attrs.asdict(record) for record in SimulatedEngine(times=times).run(2000)])
    df.loc[7::40, "schedule_duration_ms"] += 10
    df.loc[[75, 333, 700, 1001], "schedule_duration_ms"] += 10
    (finding,) = (one for one in find_anomalies(df) if one.kind == "schedule_spikes")
    assert finding.numbers["period_batches"] == 40
    assert " of them every 40 batches; " in finding.title
    assert finding.remedy.startswith("Look for what counts to 40 ")


def test_smaller_spikes_of_a_busy_machine_hide_none_that_keep_to_a_distance() -> None:
    """Although there are more of them; they are left out of what is told."""
    df = pd.DataFrame([attrs.asdict(record) for record in SimulatedEngine().run(900)])
    df.loc[39::40, "schedule_duration_ms"] += 100
    draw = np.random.default_rng(5)
    at = draw.choice([n for n in range(900) if n % 40 != 39], size=28, replace=False)
    df.loc[at, "schedule_duration_ms"] += draw.uniform(4.0, 5.0, size=28)
    df.loc[draw.choice(900, size=28, replace=False), "model_run_duration_ms"] += 4.3
    (finding,) = (one for one in find_anomalies(df) if one.kind == "schedule_spikes")
    assert finding.numbers["period_batches"] == 40
    assert 22 <= finding.numbers["num_spikes"] <= 26
    assert finding.numbers["spike_ms_p50"] == pytest.approx(100, rel=0.05)


def test_spikes_no_more_frequent_than_those_of_the_machine_are_not_found(find: Find) -> None:
    """What holds the model up as often as schedule() is not the scheduler's doing."""
    times = Times(hiccups_per_s=5, schedule_constant=1.0, constant=4.0)
    assert "schedule_spikes" not in {f.kind for f in find(SimulatedEngine(times=times))}


@pytest.mark.parametrize(
    ("faults", "how"),
    [(Faults(drift=9.0), "by and by"), (Faults(step_change=3.0), "since batch")],
)
def test_a_schedule_that_gets_slower_is_found(find: Find, faults: Faults, how: str) -> None:
    """Whether by and by or at once."""
    finding = only(find(SimulatedEngine(faults=faults)))
    assert finding.kind == "schedule_drift"
    assert how in finding.title
    assert finding.numbers["times_as_long"] == pytest.approx(3, rel=0.2)
    assert finding.numbers["change_batch_id"] == pytest.approx(1005, abs=200)


def test_more_requests_are_no_drift(find: Find) -> None:
    """Schedule time follows what batches hold, and the load of this run rises all along."""
    load_of = Load(requests_per_s=12, output_tokens=600)
    times = Times(schedule_per_request=0.02, constant=20)
    assert "schedule_drift" not in {
        f.kind for f in find(SimulatedEngine(load=load_of, times=times))
    }


def test_a_run_of_batches_that_all_differ_shows_no_drift() -> None:
    """Nothing can be compared, and nothing is made up."""
    df = pd.DataFrame([seed_record(record) for record in records(150)])
    df["total_scheduled_tokens"] = 2 ** (np.arange(150) / 2)
    df["schedule_duration_ms"] = np.linspace(0.1, 2, 150)
    assert "schedule_drift" not in {f.kind for f in find_anomalies(df)}


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_queue_for_seats_is_found(find: Find, with_manifest: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Without a manifest, the limit is what running requests never exceed."""
    engine = SimulatedEngine(setup=Setup(max_num_seqs=8), load=Load(requests_per_s=30))
    finding = only(find(engine, with_manifest=with_manifest))
    assert finding.kind == "queue_blocked"
    assert finding.severity == "critical"
    assert finding.numbers["blocked_by_max_num_seqs_share"] > 0.9
    assert ("as it seems" in finding.title) is not with_manifest
    assert "max_num_seqs (8" in finding.title
    assert "ever more" in finding.title
    assert finding.remedy.startswith("Raise max_num_seqs")


def test_a_queue_for_tokens_is_found(find: Find) -> None:
    """The budget is used up."""
    engine = SimulatedEngine(
        setup=Setup(token_budget=64), load=Load(requests_per_s=60, output_tokens=5)
    )
    finding = only(find(engine))
    assert finding.numbers["blocked_by_token_budget_share"] > 0.9
    assert "whole token budget" in finding.title


def test_a_queue_for_several_reasons_says_how_much_each_has(find: Find) -> None:
    """The largest comes first, and the remedy says what it costs."""
    engine = SimulatedEngine(
        setup=Setup(token_budget=160, max_num_seqs=40),
        load=Load(requests_per_s=60, prompt_tokens=100, output_tokens=60),
    )
    finding = next(one for one in find(engine) if one.kind == "queue_blocked")
    shares = {
        reason: finding.numbers[f"blocked_by_{reason}_share"]
        for reason in ("token_budget", "max_num_seqs")
    }
    assert all(0.05 < share < 0.95 for share in shares.values())
    assert max(shares, key=lambda name: shares[name]) == "token_budget"
    assert (
        f"mostly ({shares['token_budget']:.0%} of that time) because batches use the whole token "
        f"budget, {shares['max_num_seqs']:.0%} because max_num_seqs (40) are running"
    ) in finding.title
    assert "sched-profiler tune weighs" in finding.remedy


def test_a_queue_for_nothing_that_is_known_says_so(tmp_path: Path) -> None:
    """Structured output, for one, holds requests back without a limit of the scheduler."""
    log = list(records(300, max_num_seqs=1000))
    df = load(write_log(tmp_path / "run.jsonl", log))
    df["num_waiting_reqs"], df["kv_cache_usage"] = 3, 0.2
    finding = next(f for f in find_anomalies(df) if f.kind == "queue_blocked")
    assert finding.numbers["blocked_by_other_share"] > 0.5
    assert "the KV cache has room (20% in use)" in finding.title


def test_a_full_kv_cache_and_its_preemptions_are_found(find: Find) -> None:
    """With the tokens that have to be computed again, which the simulation counts itself."""
    engine = SimulatedEngine(setup=Setup(num_blocks=300), load=Load(requests_per_s=20))
    found = {finding.kind: finding for finding in find(engine)}
    assert set(found) == {"queue_blocked", "kv_cache_saturated", "preemption_storm"}
    assert found["queue_blocked"].numbers["blocked_by_kv_cache_share"] > 0.9
    storm = found["preemption_storm"].numbers
    assert storm["num_preempted_reqs"] == engine.num_preemptions
    assert storm["lost_tokens"] == pytest.approx(engine.num_recomputed_tokens, rel=0.1)
    assert "lost about" in found["preemption_storm"].title


def test_preemptions_count_also_where_lost_tokens_are_unknown(tmp_path: Path) -> None:
    """A log without contexts tells how many there were."""
    df = load(write_log(tmp_path / "run.jsonl", records(300)))
    df["num_preempted_reqs"] = 0
    df.loc[50:59, "num_preempted_reqs"] = 1
    found = {finding.kind: finding for finding in find_anomalies(df)}
    assert found["preemption_storm"].title == "Requests were preempted 10 times"
    assert "lost_tokens" not in found["preemption_storm"].numbers
    df["num_preempted_reqs"] = 0
    df.loc[[50, 100], "num_preempted_reqs"] = 1
    assert "preemption_storm" not in {finding.kind for finding in find_anomalies(df)}


def test_few_preemptions_cost_too_little_to_tell(find: Find) -> None:
    """A full cache that nobody notices is what it is for."""
    engine = SimulatedEngine(seed=1, setup=Setup(num_blocks=420), load=Load(requests_per_s=14))
    assert "preemption_storm" not in {finding.kind for finding in find(engine)}


def test_a_model_that_waits_for_the_scheduler_is_found(find: Find) -> None:
    """A synchronous engine is told to schedule while the model runs."""
    finding = only(find(SimulatedEngine(times=Times(schedule_constant=1.5))))
    assert finding.kind == "scheduler_on_critical_path"
    assert finding.numbers["schedule_share_of_wall_time"] == pytest.approx(0.17, abs=0.03)
    assert "--async-scheduling" in finding.remedy


def test_an_asynchronous_scheduler_is_on_the_path_only_if_slower_than_the_model(find: Find) -> None:
    """As long as it is faster, nobody waits for it."""
    fast, slow = (
        SimulatedEngine(setup=Setup(is_async=True), times=Times(schedule_constant=ms))
        for ms in (3.0, 12.0)
    )
    assert find(fast) == []
    finding = only(find(slow))
    assert finding.kind == "scheduler_on_critical_path"
    assert finding.severity == "critical"


def test_pauses_with_requests_at_hand_are_found(find: Find) -> None:
    """And pauses for lack of requests are not: the load of a steady run has many."""
    engine = SimulatedEngine(faults=Faults(gap_every=100, gap_ms=30))
    finding = only(find(engine))
    assert finding.kind == "idle_gaps"
    assert set(finding.batch_ids) <= set(engine.gaps)
    assert finding.numbers["gap_ms_p50"] == pytest.approx(30, rel=0.3)
    assert find(SimulatedEngine(load=Load(requests_per_s=1))) == []


def test_prefills_that_hold_decodes_up_are_found(find: Find) -> None:
    """Against batches of as many decodes without prefill."""
    engine = SimulatedEngine(load=Load(prompt_tokens=1200, prompt_spread=0.5))
    finding = only(find(engine))
    assert finding.kind == "prefill_interference"
    assert finding.numbers["times_as_long_p50"] > 2
    truth = engine.times.per_prefill_token * finding.numbers["prefill_tokens_p50"]
    assert finding.numbers["extra_ms_p50"] == pytest.approx(truth, rel=0.2)
    assert "sched-profiler tune weighs" in finding.remedy


@pytest.mark.parametrize("number", [2, 4])
def test_one_slow_rank_among_many_is_found(find: Find, number: int) -> None:
    """For the same batches, whatever each rank has to do."""
    finding = only(find(*ranks(number, slow=1.3)))
    assert finding.kind == "slow_rank"
    assert (finding.run, finding.dp_rank) == (1, 1)
    assert finding.numbers["times_as_long"] == pytest.approx(1.3, abs=0.05)
    assert "run 1, rank 1" in str(finding)
    assert find(*ranks(number, slow=1.0)) == []


def test_ranks_that_ran_at_other_times_are_not_compared(tmp_path: Path) -> None:
    """The machine may have been another one."""
    log = [
        *records(300, dp_rank=0, run_id="a"),
        *records(300, dp_rank=1, run_id="b", start=1_800_000_000.0),
    ]
    df = load(write_log(tmp_path / "run.jsonl", log))
    df.loc[df["run"] == 1, "model_run_duration_ms"] *= 2
    assert "slow_rank" not in {finding.kind for finding in find_anomalies(df)}


def test_the_gravest_come_first(find: Find) -> None:
    """Each with three lines of text, and as plain data."""
    engine = SimulatedEngine(
        setup=Setup(max_num_seqs=8),
        load=Load(requests_per_s=30),
        faults=Faults(spike_every=100, spike_ms=5),
    )
    grave, less = find(engine)
    assert (grave.severity, less.severity) == ("critical", "warning")
    assert str(less).startswith("warning   schedule() took ")
    assert str(less).count("\n") == 2
    assert less.to_dict()["batch_ids"] == list(less.batch_ids)


@pytest.mark.parametrize("measured", [True, False])
def test_a_log_of_the_original_feature_has_findings_as_far_as_it_goes(measured: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """The 17 fields show queues and schedule times, and do not break the rest."""
    engine = SimulatedEngine(
        setup=Setup(max_num_seqs=8),
        load=Load(requests_per_s=30),
        faults=Faults(spike_every=100, spike_ms=20),
    )
    df = pd.DataFrame([seed_record(record, measured=measured) for record in engine.run(1500)])
    assert {finding.kind for finding in find_anomalies(df)} == {"queue_blocked", "schedule_spikes"}


@pytest.mark.parametrize(
    ("engine", "kinds"),
    [
        (SimulatedEngine(), set()),
        (SimulatedEngine(faults=Faults(spike_every=100, spike_ms=10)), {"schedule_spikes"}),
        (SimulatedEngine(faults=Faults(gap_every=100, gap_ms=30)), {"idle_gaps"}),
        (SimulatedEngine(faults=Faults(drift=9.0)), {"schedule_drift"}),
        (SimulatedEngine(times=Times(schedule_constant=1.5)), {"scheduler_on_critical_path"}),
        (
            SimulatedEngine(setup=Setup(num_blocks=300), load=Load(requests_per_s=20)),
            {"queue_blocked", "kv_cache_saturated", "preemption_storm"},
        ),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else "",
)
def test_a_part_of_a_long_run_shows_what_the_whole_shows(
    engine: SimulatedEngine,
    kinds: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With about the same shares of the time, and it says how large a part it is."""
    monkeypatch.setattr("sched_profiler.analysis.sample.MAX_STRETCHES", 6)
    log = write_log(tmp_path / "run.jsonl", engine.run(12 * 512))
    whole, part = (
        {finding.kind: finding for finding in find_anomalies(one, [engine.manifest()])}
        for one in (load(log), scan(log))
    )
    assert set(whole) == set(part) == kinds
    for kind, finding in part.items():
        assert finding.looked_at == 0.5
        assert "(0.5 of the run was looked at)" in str(finding)
        for name, value in whole[kind].numbers.items():
            if "share_of_wall_time" in name:
                assert finding.numbers[name] == pytest.approx(value, abs=0.15), name


def test_a_short_run_has_no_findings(find: Find) -> None:
    """Of a hundred batches nobody knows what is usual."""
    engine = SimulatedEngine(faults=Faults(spike_every=5, spike_ms=50))
    assert find(engine, num_batches=109) == []
    assert find_anomalies(pd.DataFrame()) == []
