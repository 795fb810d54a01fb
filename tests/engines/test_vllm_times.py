"""Times on the real engine: a delay added in one place shows in that place and nowhere else."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from real_vllm import HERE, read

from sched_profiler import BatchRecord

pytestmark = pytest.mark.vllm

# Two processes share two cores with whatever else runs there; a pipeline has three.
NOISE_MS = {"sync": 6.0, "async": 6.0, "pipeline": 10.0}
ADDED_MS = 20.0


def lower_decile(values: list[float]) -> float:
    """Return the value that a tenth of all are below."""
    return statistics.quantiles(values, n=10)[0]


@attrs.frozen
class Timed:
    """An engine that ran through phases: none, model, schedule, gap."""

    mode: str
    records: list[BatchRecord]
    turns: list[tuple[str, float, list[BatchRecord]]]
    """Phases in the order in which they ran, how long they took in ms, and their records."""
    worker_ms: list[float]
    """How long the last worker took for each batch of the engine, in order."""

    @property
    def noise_ms(self) -> float:
        """How far a time may be off."""
        return NOISE_MS[self.mode]

    def typical(self, phase: str, value: Callable[[BatchRecord], float | None]) -> float:
        """Return the lower decile of a value over the decode steps of a phase.

        Rather than the median: whatever else runs on the machine only ever makes steps longer.
        """
        turns = [records for name, _, records in self.turns if name == phase]
        decodes = [r for records in turns for r in records if not r.num_prefill_reqs]
        return lower_decile([value(record) or 0.0 for record in decodes])

    def added(self, phase: str) -> dict[str, float]:
        """Return by how much each part of a step is longer in a phase than without a delay."""
        return {
            name: self.typical(phase, value) - self.typical("none", value)
            for name, value in {
                "schedule": lambda r: r.schedule_duration_ms,
                "model_run": lambda r: r.model_run_duration_ms,
                "update": lambda r: r.update_duration_ms,
                "idle": lambda r: r.idle_duration_ms,
            }.items()
        }


@pytest.fixture(scope="module", params=["sync", "async", "pipeline"])
def timed(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Timed:
    """Run the phases in a synchronous, an asynchronous, and a pipelined engine."""
    folder = tmp_path_factory.mktemp("timed")
    log = folder / "log.jsonl"
    environ = {
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": str(log),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "SCHED_PROFILER_STRICT": "1",
        "SLOW_MODEL": str(folder / "slow"),
        "PYTHONPATH": str(HERE),
        # One thread: two of them would wait for each other whenever the machine is busy.
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / "timing.py"),
            str(model),
            request.param,
            str(ADDED_MS),
        ],
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    phases = json.loads(next(x for x in done.stdout.splitlines() if x.startswith('[["none"')))
    (records,) = read(log)
    # The worker's clock is the monotonic one: what it noted last belongs to the last phase.
    noted = [
        [float(moment) for moment in line.split()]
        for line in (folder / "slow.times").read_text().splitlines()
    ]
    return Timed(
        request.param,
        records,
        [
            (phase, 1000 * (ended - began), [r for r in records if began <= r.timestamp <= ended])
            for phase, began, ended in phases
        ],
        # Before the first batch it has warmed up.
        [1000 * (ended - began) for began, ended in noted[-len(records) :]],
    )


def check_idle(timed: Timed, added: dict[str, float]) -> None:
    """Check that the model waits for the part of the delay in which it has nothing else to do."""
    least = ADDED_MS / 4 if timed.mode == "async" else ADDED_MS - timed.noise_ms
    assert ADDED_MS + timed.noise_ms > added["idle"] > least


def test_a_slower_model_is_model_time_only(timed: Timed) -> None:
    """A sleep in the worker."""
    added = timed.added("model")
    assert added["model_run"] == pytest.approx(ADDED_MS, abs=timed.noise_ms)
    assert abs(added["schedule"]) < 2
    assert abs(added["update"]) < 2
    assert added["idle"] < timed.noise_ms - 4


def test_a_slower_scheduler_is_schedule_time_and_the_idle_time_it_causes(timed: Timed) -> None:
    """A sleep in schedule(): none of it passes for model time.

    Also where the engine schedules while the model runs, and takes the result of the batch before
    only after that.
    """
    added = timed.added("schedule")
    assert added["schedule"] == pytest.approx(ADDED_MS, abs=2)
    assert added["model_run"] < timed.noise_ms
    assert abs(added["update"]) < 2
    check_idle(timed, added)


def test_time_between_steps_is_idle_time_only(timed: Timed) -> None:
    """A sleep between two steps of the engine."""
    added = timed.added("gap")
    check_idle(timed, added)
    assert added["model_run"] < timed.noise_ms
    assert abs(added["schedule"]) < 2
    assert abs(added["update"]) < 2


def test_parts_add_up_to_the_time_that_the_caller_waited(timed: Timed) -> None:
    """Σ(model_run + idle), but for what vLLM does before the first step and after the last."""
    for _, wall_ms, records in timed.turns:
        parts = sum((r.model_run_duration_ms or 0) + (r.idle_duration_ms or 0) for r in records)
        # Of the first batch, only its own scheduling belongs to the phase.
        parts += records[0].schedule_duration_ms - (records[0].idle_duration_ms or 0)
        # On a busy machine that takes long; the oracle's clock says it to 1%, for every mode.
        assert 0 < wall_ms - parts < max(150, 0.1 * wall_ms)


def test_model_run_is_what_the_worker_measures_plus_transport(timed: Timed) -> None:
    """Compared batch by batch in the phases with a gap, where nothing queues for long."""
    assert len(timed.worker_ms) == len(timed.records)
    in_gaps = {r.batch_id for name, _, records in timed.turns for r in records if name == "gap"}
    transport = [
        (record.model_run_duration_ms or 0.0) - worker_ms
        for record, worker_ms in zip(timed.records, timed.worker_ms, strict=True)
        if record.batch_id in in_gaps
    ]
    assert len(transport) > 70
    # In a pipeline the last worker also waits for the first, from before the batch is its own.
    least = -timed.noise_ms if timed.mode == "pipeline" else -0.5
    assert least < lower_decile(transport) < timed.noise_ms
