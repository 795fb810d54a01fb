"""What an engine was: from its manifest, from the caller, from the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from synthetic import records, seed_record, write_log
from test_cli_replay import FACTS, log_in

from sched_profiler import LogError
from sched_profiler.analysis import load, load_manifests
from sched_profiler.analysis.arrivals import Arrival
from sched_profiler.analysis.recorded_run import RecordedRun, find_run

ASKED = [
    Arrival(time=0.0, num_prompt_tokens=100, num_output_tokens=20),
    Arrival(time=1.0, num_prompt_tokens=50, num_output_tokens=90),
]
TOLD = {"max_num_seqs": 8, "block_size": 16, "num_blocks": 100}


def run_without_manifest(path: Path, told: dict[str, Any], **fields: Any) -> RecordedRun:
    """Return the run of a log whose records have these fields."""
    log = [attrs.evolve(one, run_id="r1", **fields) for one in records(30)]
    return find_run(load(write_log(path / "log.jsonl", log)), [], {}, told=told, arrivals=ASKED)


def test_with_a_manifest_nothing_is_assumed(tmp_path: Path) -> None:
    """But for what it leaves out."""
    rest = {
        "long_prefill_token_threshold": 0,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,
        "scheduling_policy": "priority",
        "async_scheduling": False,
        "pipeline_parallel_size": 1,
    }
    log = log_in(tmp_path, 30, **rest)
    df, manifests = load(log), load_manifests(log)
    run = find_run(df, manifests, {}, told={}, arrivals=ASKED)
    assert run.assumed == ()
    assert run.limits == FACTS | rest
    assert run.settings == find_run(df, manifests, {}).settings


def test_what_the_log_tells_is_taken_from_it(tmp_path: Path) -> None:
    """The budget of its batches, and a length that no request exceeds."""
    run = run_without_manifest(tmp_path, TOLD, token_budget=512)
    assert run.lacking == []
    assert run.settings.max_num_batched_tokens == 512
    assert run.settings.max_model_len == 141
    assert "max_num_batched_tokens=512: token_budget of every record." in run.assumed
    assert "max_num_seqs=8: as it was given." in run.assumed
    assert "scheduling_policy=fcfs" in run.assumed[-1]


def test_a_budget_that_changes_is_not_taken(tmp_path: Path) -> None:
    """It is then no constant of the run; nor is one that is not told."""
    log = [
        attrs.evolve(one, run_id="r1", token_budget=512 + one.batch_id % 2) for one in records(30)
    ]
    df = load(write_log(tmp_path / "log.jsonl", log))
    for batches in (df, df.assign(token_budget=float("nan"))):
        run = find_run(batches, [], {}, told=TOLD, arrivals=ASKED)
        assert run.lacking == ["max_num_batched_tokens"]
        with pytest.raises(LogError, match="max_num_batched_tokens"):
            _ = run.settings


@pytest.mark.parametrize(("in_flight", "most"), [(0, 1), (1, 2), (3, 4)])
def test_batches_on_their_way_tell_how_many_there_may_be(
    tmp_path: Path, in_flight: int, most: int
) -> None:
    """As many as were on their way when one was scheduled, and that one."""
    run = run_without_manifest(
        tmp_path, TOLD, token_budget=512, num_inflight_batches=in_flight, queue_duration_ms=0.0
    )
    assert run.settings.max_in_flight == most


def test_a_log_of_the_original_feature_has_a_run(tmp_path: Path) -> None:
    """Without a name, and with nothing told."""
    log = tmp_path / "log.jsonl"
    df = load(write_log(log, records(30)))
    df = df[[*seed_record(next(iter(records(1)))), "run"]].assign(run_id=None, dp_rank=None)
    run = find_run(df, [], {}, told={})
    assert (run.run_id, run.dp_rank, run.requests) == (None, None, [])
    assert run.limits == {}


def test_a_run_with_a_manifest_goes_before_a_longer_one_without(tmp_path: Path) -> None:
    """Of that one less is known."""
    log = log_in(tmp_path, 30)
    other = [attrs.evolve(one, run_id="r2", dp_rank=0) for one in records(60)]
    df = load(log, write_log(tmp_path / "other.jsonl", other))
    assert find_run(df, load_manifests(log), {}, told={}).run_id == "r1"
    assert find_run(df, [], {}, told={}).run_id == "r2"
