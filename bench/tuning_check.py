"""Holds predictions of `tune` against the real engine, on runs that the fit has not seen.

`make bench` runs it. A real vLLM engine with a tiny model serves requests that come at random,
under several limits. The step-time model is fitted to the runs with some of them; the others are
predicted from their request traces alone, and measured. Printed is predicted / measured.

Each run has requests of its own. What is predicted for a run is a replay of its arrivals under its
limits; nothing of its batches is used.

A machine that others use as well is faster in one run than in another, and nobody can predict that.
So two more things are told. `machine` is how long the model took for the batches of the run, set
against what the fitted model says of them: how much slower the machine was. And each run is
replayed once more with a model that is fitted to its own batches: what is off there is off in the
replay, and not in the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import attrs
from tiny_model import make_tiny_model

from sched_profiler.analysis import load, load_manifests
from sched_profiler.analysis.arrivals import arrivals_of, load_requests
from sched_profiler.analysis.engine_time import EngineTime, fit_engine_time
from sched_profiler.analysis.recorded_run import RecordedRun, find_run
from sched_profiler.analysis.replay_measures import recorded_measures
from sched_profiler.analysis.tuning import tune
from sched_profiler.engines.vllm_replay import VllmReplayScheduler, require_vllm

TOLD = (
    "step_ms",
    "ttft_ms",
    "ttft_p95_ms",
    "tpot_ms",
    "request_ms",
    "output_tokens_per_s",
    "model_busy",
)


class Served(NamedTuple):
    """A run of the real engine."""

    budget: int
    seqs: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its log."""
        return f"budget{self.budget}-seqs{self.seqs}-rate{self.rate:g}-seed{self.seed}"


FITTED = (Served(128, 16, 30, 3), Served(2048, 16, 30, 2))
PREDICTED = (
    Served(256, 16, 30, 1),
    Served(512, 16, 30, 4),
    Served(1024, 4, 30, 5),
    Served(256, 16, 44, 6),
    Served(2048, 16, 44, 7),
)


def serve(served: Served, model: Path, folder: Path, num_requests: int) -> Path:
    """Run the engine, unless its log is there; return the log."""
    log = folder / f"{served.name}.jsonl"
    if not log.exists():
        command = [sys.executable, str(Path(__file__).with_name("poisson_load.py"))]
        command += [str(model), str(log), "--requests", str(num_requests)]
        for name in ("budget", "seqs", "rate", "seed"):
            command += [f"--{name}", str(getattr(served, name))]
        subprocess.run(command, check=True, env=os.environ, stdout=subprocess.DEVNULL)
    return log


def run_of(log: Path) -> RecordedRun:
    """Return what a log and its request trace hold."""
    return find_run(load(log), load_manifests(log), load_requests(log))


def check(served: Served, log: Path, times: EngineTime, num_replays: int) -> dict[str, Any]:
    """Predict a run and measure it."""
    run = run_of(log)
    predicted = tune(
        arrivals_of(run.requests),
        run.settings,
        times,
        lambda settings, shared: VllmReplayScheduler(settings, num_shared_tokens=shared),
        [],
        num_replays=num_replays,
    ).current
    measured = recorded_measures(run.df, run.requests)
    took = float(run.df["model_run_duration_ms"].sum())
    return {
        "limits": served._asdict(),
        "num_batches": len(run.df),
        "num_requests": len(run.requests),
        "unseen": predicted.unseen,
        "machine": took / float(times.model.predict_batches(run.df).sum()),
        "median_error_of_fit": times.model.cross_validation.median_error,
        "measures": {
            name: {
                "measured": measured[name],
                "predicted": attrs.asdict(predicted.estimates[name]),
                "ratio": predicted.estimates[name].value / measured[name],
            }
            for name in TOLD
        },
    }


def show(title: str, checks: list[dict[str, Any]]) -> None:
    """Print a table of ratios."""
    print(f"{title}\n{'budget':>7}{'seqs':>6}{'rate':>6}{'machine':>9}", end="")
    print("".join(f"{name:>21}" for name in TOLD))
    for one in checks:
        limits = one["limits"]
        ratios = "".join(f"{one['measures'][name]['ratio']:>21.2f}" for name in TOLD)
        print(f"{limits['budget']:>7}{limits['seqs']:>6}{limits['rate']:>6}", end="")
        print(f"{one['machine']:>9.2f}{ratios}")


def main() -> None:
    """Serve, fit, predict, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--logs", type=Path, help="keep the logs here, and use those that are here")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--replays", type=int, default=5)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = make_tiny_model(folder / "model")
        logs = {
            served: serve(served, model, folder, arguments.requests)
            for served in (*FITTED, *PREDICTED)
        }
        version = require_vllm()
        times = fit_engine_time(load(*(logs[one] for one in FITTED)), async_scheduling=False)
        checks = [check(one, logs[one], times, arguments.replays) for one in PREDICTED]
        replayed = [
            check(
                one,
                logs[one],
                fit_engine_time(load(logs[one]), async_scheduling=False),
                arguments.replays,
            )
            for one in PREDICTED
        ]
    result = {
        "vllm": version,
        "fitted": [one._asdict() for one in FITTED],
        "median_error_of_fit": times.model.cross_validation.median_error,
        "load_average": os.getloadavg()[2],
        "predicted": checks,
        "replayed": replayed,
    }
    show("predicted / measured, for runs that were not fitted", checks)
    show("the same with a model of the run's own batches", replayed)
    (arguments.out / "tuning.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
