"""The examples with a real vLLM engine do what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from real_vllm import read

from sched_profiler import cli
from sched_profiler.analysis import find_anomalies, load, load_manifests

pytestmark = pytest.mark.vllm

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_sweep_runs_the_offline_engine_with_each_size_and_compares(tmp_path: Path) -> None:
    """Of two sizes the larger one takes fewer steps; the sides are called by their size."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "chunk_size_sweep.py"), "tiny", "64", "512"],
        cwd=tmp_path,
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    logs = [tmp_path / "sweep" / size / "scheduler_profiling.jsonl" for size in ("64", "512")]
    (small,), (large,) = map(read, logs)
    assert len(large) < len(small)
    for records, budget in ((small, 64), (large, 512)):
        assert {record.token_budget for record in records} == {budget}
        assert [record.batch_id for record in records] == list(range(len(records)))
        assert sum(record.num_generated_tokens or 0 for record in records) == 32 * 12
    # The summary of each, and then the comparison.
    assert len(re.findall(r"^\d+ batches of 1 run", done.stdout, re.MULTILINE)) == 2
    assert "max_num_batched_tokens=512" in done.stdout.rpartition("batches of 1 run")[2]


@pytest.fixture(scope="module")
def stall_logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run the example with the stall and without, as its page says; return the logs."""
    folder = tmp_path_factory.mktemp("stall")
    logs = {}
    for side, options in (("stalled", []), ("fixed", ["--fixed"])):
        logs[side] = folder / ".demo" / side / "scheduler_profiling.jsonl"
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "planted_stall.py"), "--requests", "200", *options],
            cwd=folder,
            env=os.environ
            | {
                "HF_HUB_OFFLINE": "1",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
                "VLLM_SCHEDULER_PROFILING_LOG": str(logs[side].relative_to(folder)),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        assert re.search(r"^12,800 tokens for 200 requests in \d", done.stdout, re.MULTILINE)
    return logs


def stalled_batches(log: Path) -> set[int]:
    """Return the batches of the log for which the example asks another service."""
    return {*range(39, len(load(log)), 40)}


def slow(log: Path, capsys: pytest.CaptureFixture[str]) -> set[int]:
    """Return the batches that `sched-profiler slow` names for a schedule() of 100 ms and more."""
    limits = ["--schedule-over", "99.9ms", "--top", "1000"]
    assert cli.main(["slow", str(log), *limits, "--json"]) == 0
    return {batch["batch_id"] for batch in json.loads(capsys.readouterr().out)}


def test_the_planted_stall_is_found(
    stall_logs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """`slow` names every 40th batch, and a finding counts them, whoever else was slow."""
    log = stall_logs["stalled"]
    stalled = stalled_batches(log)
    assert len(stalled) > 15
    assert stalled <= slow(log, capsys)
    findings = {finding.kind: finding for finding in find_anomalies(load(log), load_manifests(log))}
    spikes = findings["schedule_spikes"]
    assert spikes.numbers["num_spikes"] >= len(stalled)
    assert spikes.numbers["spike_ms_p50"] >= 99.9


def test_the_fix_of_the_planted_stall_leaves_no_finding(
    stall_logs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing happens every 40th batch any more, with the same batches as before."""
    log = stall_logs["fixed"]
    stalled = stalled_batches(log)
    assert len(slow(log, capsys) & stalled) < len(stalled) / 4
    findings = find_anomalies(load(log), load_manifests(log))
    assert "schedule_spikes" not in {finding.kind for finding in findings}
    tokens = [load(side)["total_scheduled_tokens"].sum() for side in stall_logs.values()]
    assert tokens[0] == tokens[1]
    assert load(log)["schedule_duration_ms"].quantile(0.99) < 100
