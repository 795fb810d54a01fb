"""Runs real vLLM engines in processes of their own and reads what they left."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs

from sched_profiler import BatchRecord, decode

HERE = Path(__file__).parent / "engines"


@attrs.frozen
class Run:
    """A process that ran vLLM offline.

    Attributes:
        runs: the records of each engine, in the order of their start.
        outputs: what vLLM itself said of the requests, by scenario.
        printed: everything the process printed.
    """

    runs: list[list[BatchRecord]]
    outputs: dict[str, Any]
    printed: str
    log: Path


def read(log: Path) -> list[list[BatchRecord]]:
    """Return the records of a log by run."""
    records = [decode(line) for line in log.read_bytes().splitlines()]
    return [list(run) for _, run in itertools.groupby(records, key=lambda r: r.run_id)]


def run_offline(model: Path, folder: Path, scenarios: list[str], **variables: str) -> Run:
    """Run scenarios of `offline.py` in a fresh process with profiling on."""
    log = folder / "scheduler_profiling.jsonl"
    environ = {
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": str(log),
        "SCHED_PROFILER_STRICT": "1",
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
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    outputs = json.loads(next(x for x in reversed(done.stdout.splitlines()) if x.startswith('{"')))
    return Run(read(log) if log.exists() else [], outputs, done.stdout, log)
