"""Real vLLM engines that take turns: each serves a block of requests while the others wait.

So all of them see the same minutes of a machine whose speed changes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import attrs
from poisson_load import requests_of

from sched_profiler.analysis import load, load_manifests
from sched_profiler.analysis.arrivals import load_requests
from sched_profiler.analysis.recorded_run import RecordedRun, find_run
from sched_profiler.analysis.replay_measures import recorded_measures

if TYPE_CHECKING:
    import pandas as pd

    from sched_profiler.request_record import RequestRecord

__all__ = ["Block", "Limits", "TurnTaker", "block_of", "measures_of_block", "run_of"]

_SLACK_S = 0.01
"""Between the clock of the load and that of the log; a block ends with its last answer."""


class Limits(NamedTuple):
    """Of a scheduler."""

    budget: int
    seqs: int


class Block(NamedTuple):
    """Requests that were served without a pause."""

    seed: int
    began: float
    seconds: float
    answered: list[float]
    """When each request had its answer, in the order of that, in seconds after it began."""


class TurnTaker:
    """An engine in a process of its own, which serves a block when it is told to."""

    def __init__(self, model: Path, log: Path, limits: Limits, *options: str) -> None:
        """Start it; it needs a while to be ready, and the first block waits for that.

        The options are those of `poisson_load.py`.
        """
        self.log = log
        self.limits = limits
        command = [sys.executable, str(Path(__file__).with_name("poisson_load.py"))]
        command += [str(model), str(log), "--blocks", *options]
        command += ["--budget", str(limits.budget), "--seqs", str(limits.seqs)]
        self._process = subprocess.Popen(
            command, env=os.environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def serve(self, seed: int, count: int, rate: float) -> Block:
        """Serve so many requests a second."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(seed, count, rate, file=self._process.stdin, flush=True)
        # Whatever libraries print goes before it.
        for line in self._process.stdout:
            if line.startswith('{"began"'):
                return Block(seed, **json.loads(line))
        raise RuntimeError(f"the engine with {self.limits} ended with {self._process.wait()}")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let it end, with all records written."""
        self._process.communicate()


def run_of(log: Path) -> RecordedRun:
    """Return what a log and its request trace hold."""
    return find_run(load(log), load_manifests(log), load_requests(log))


def block_of(
    run: RecordedRun, block: Block, count: int
) -> tuple[pd.DataFrame, list[RequestRecord]]:
    """Return the batches and the requests of a block."""
    first, last = block.began - _SLACK_S, block.began + block.seconds
    later = [one for one in run.requests if one.arrival_time >= first]
    # Another block of the same engine may follow at once.
    return run.df[run.df["timestamp"].between(first, last)], later[:count]


def measures_of_block(
    run: RecordedRun, block: Block, *, rate: float, count: int
) -> dict[str, float]:
    """Return what was measured in a block.

    The first token counts from the moment at which a request was to come, and not from the end of
    the step that ran then, where this engine sees it.
    """
    batches, requests = block_of(run, block, count)
    asked = requests_of(block.seed, rate, count)
    if len(requests) != len(asked):
        raise RuntimeError(f"{len(asked)} requests were asked of {run.run_id}: {len(requests)}")
    arrived = [block.began + due.moment for due in asked]
    late = [one.arrival_time - due for one, due in zip(requests, arrived, strict=True)]
    requests = [
        attrs.evolve(one, arrival_time=due) for one, due in zip(requests, arrived, strict=True)
    ]
    return recorded_measures(batches, requests) | {"seen_late_ms": 1e3 * min(late)}
