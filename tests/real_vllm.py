"""Runs real vLLM engines in processes of their own and reads what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from oracle import disagreements

from sched_profiler import BatchRecord, decode

HERE = Path(__file__).parent / "engines"

ORACLE_MODES = (
    "chunked_and_cached",
    "preempted",
    "preempted_and_cached",
    "aborted",
    "priority",
    "structured_output",
    "pooling",
    "asynchronous_in_process",
    "asynchronous_workers",
    "pipeline_parallel",
    "ngram",
)
"""Scenarios of `offline.py` with the oracle inside; the last spoils its process for others."""


@attrs.frozen
class Run:
    """A process that ran vLLM offline.

    Attributes:
        runs: the records of each engine, in the order of their start.
        outputs: what vLLM itself said of the requests, by scenario.
        printed: everything the process printed.
        accounts: what the oracle said in each engine that had it inside, likewise in order.
    """

    runs: list[list[BatchRecord]]
    outputs: dict[str, Any]
    printed: str
    log: Path
    accounts: list[Account]


@attrs.frozen
class Account:
    """What the oracle said of each batch of one engine.

    Attributes:
        process: vLLM's name of the engine's process.
        batches: what each record must say, by field; see `oracle.disagreements`.
        wall_ms: from the first schedule() to the last result, by the oracle's own clock.
    """

    process: str
    batches: list[dict[str, Any]]
    wall_ms: float

    def check(self, records: list[BatchRecord]) -> None:
        """Check every record of the engine: none is missing, none is too many, none is wrong."""
        assert [record.batch_id for record in records] == list(range(len(records)))
        assert len(records) == len(self.batches) > 0
        for record, expected in zip(records, self.batches, strict=True):
            record.check()
            assert record.num_dropped_records == 0
            assert disagreements(record, expected) == [], f"batch {record.batch_id}"


def check_times(records: list[BatchRecord], wall_ms: float | None = None) -> None:
    """Total = schedule + queue + model_run, and Σ(model_run + idle) is the wall time."""
    parts = 0.0
    for record in records:
        assert record.model_run_duration_ms is not None
        assert record.total_step_duration_ms is not None
        assert record.queue_duration_ms is not None
        assert record.idle_duration_ms is not None
        assert record.total_step_duration_ms == pytest.approx(
            record.schedule_duration_ms + record.queue_duration_ms + record.model_run_duration_ms,
            abs=0.002,
        )
        parts += record.model_run_duration_ms + record.idle_duration_ms
    if wall_ms is not None:
        assert parts == pytest.approx(wall_ms, rel=0.01)


def read(log: Path) -> list[list[BatchRecord]]:
    """Return the records of a log by run, in the order of their start."""
    runs: dict[str | None, list[BatchRecord]] = {}
    for line in log.read_bytes().splitlines():
        record = decode(line)
        runs.setdefault(record.run_id, []).append(record)
    # Of engines in one process, a later one may be written first.
    return sorted(runs.values(), key=lambda records: records[0].timestamp)


def read_accounts(folder: Path) -> list[Account]:
    """Return what `oracle_scheduler` left, by process and within it in the order of start."""
    accounts = []
    for file in sorted(folder.glob("*.jsonl")):
        head, *lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        batches: dict[int, dict[str, Any]] = {}
        for line in lines:
            batches.setdefault(line["batch"], {}).update(line["expected"])
        assert list(batches) == list(range(len(batches)))
        wall_ms = 1000 * (lines[-1]["at"] - lines[0]["at"])
        accounts.append(Account(head["process"], list(batches.values()), wall_ms))
    return accounts


def run_offline(
    model: Path, folder: Path, scenarios: list[str], *, timeout: float = 280, **variables: str
) -> Run:
    """Run scenarios of `offline.py` in a fresh process with profiling on."""
    oracle = folder / "oracle"
    log = folder / "scheduler_profiling.jsonl"
    environ = {
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": str(log),
        "SCHED_PROFILER_STRICT": "1",
        "SCHED_ORACLE": str(oracle),
        # What it prints is looked at.
        "VLLM_LOGGING_LEVEL": "INFO",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": str(HERE),
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "offline.py"), str(model), *scenarios],
        env=os.environ | environ | variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    outputs = json.loads(next(x for x in reversed(done.stdout.splitlines()) if x.startswith('{"')))
    runs = read(log) if log.exists() else []
    return Run(runs, outputs, done.stdout, log, read_accounts(oracle))
