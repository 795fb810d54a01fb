"""Holds what `capacity` says against the real engine: at what request rate is it full?

`make bench` runs it. A real vLLM engine with a tiny model serves requests that come at random, at a
moderate rate. The command `capacity` reads its log and says at what rate the queue begins to grow
without bound. Then the same engine serves other requests at shares of that rate, below and above.
Where it is really full is seen from outside: how many requests get their answers for each that
comes, from the first quarter of them on to the last one. Below 95% it is saturated, and answers as
many in a second as it can: that is the rate that it bears, in the median of these runs. Beside it
stands the rate at which the share falls below 95%, interpolated between what was borne and what was
not; the two agree where the machine is steady. Nothing of this uses the log or the analysis.

One engine runs out of places (`max_num_seqs`), one out of KV cache.

A machine that others use as well is faster in one minute than in another, and nobody can predict
that. So each run also tells `machine`: how much longer the model took for its batches than it would
have in the minutes that were profiled, by one step-time model of all batches. The rates multiplied
by it are those of a machine as it was then. And the analysis is asked once more, about the requests
of these runs, with times fitted to their own batches: what is off there is off in the replay, and
not in the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from poisson_load import requests_of
from taking_turns import Block, Limits, TurnTaker, run_of
from tiny_model import make_tiny_model

from sched_profiler.analysis import load_requests
from sched_profiler.analysis.arrivals import Arrival
from sched_profiler.analysis.capacity import find_capacity
from sched_profiler.analysis.cost_model import fit_step_time
from sched_profiler.analysis.engine_time import fit_engine_time
from sched_profiler.engines.vllm_replay import VllmReplayScheduler, require_vllm

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from sched_profiler.analysis.cost_model import StepTimeModel
    from sched_profiler.analysis.recorded_run import RecordedRun


class Scenario(NamedTuple):
    """An engine, and what it runs out of."""

    name: str
    limits: Limits
    kv_mib: int


SCENARIOS = (
    Scenario("max_num_seqs", Limits(2048, 8), 16),
    Scenario("KV cache", Limits(2048, 64), 5),
)
LENGTHS = "short"
PROFILED_SEED = 1
TURNS = ((101, (0.8, 1.6, 0.5, 1.25, 1.0)), (102, (1.0, 1.25, 0.5, 1.6, 0.8)))
"""Seeds, and shares of the predicted rate: the same requests at each, only faster or slower."""
ANSWERED = 0.95
"""An engine is saturated if it answers fewer of those who come."""


class Ran(NamedTuple):
    """A run of the real engine."""

    turn: int
    share: float
    """Of the predicted rate."""
    rate: float
    answered: float
    """Answered for each that came."""
    saturated: bool
    machine: float
    mean_waiting: float
    kv_cache_peak: float
    num_preemptions: int
    model_busy: float


def answered_share(came: Sequence[float], answered: Sequence[float]) -> float:
    """Return how many were answered for each that came, while the last three quarters came."""
    first, last = came[len(came) // 4], came[-1]
    num_answered, num_came = (
        sum(first < moment <= last for moment in moments) for moments in (answered, came)
    )
    return num_answered / num_came


def full_at(runs: Sequence[tuple[float, float]]) -> list[float]:
    """Return at what rate an engine answers when more come, for each run in which more came.

    Args:
        runs: rates that were offered, and what share was answered.
    """
    return [rate * answered for rate, answered in runs if answered < ANSWERED]


def interpolated(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the rate at which the share that is answered falls below `ANSWERED`.

    Args:
        points: rates that were offered, and what share was answered.

    Returns:
        A rate between the highest that was borne and the next; None unless there are both.
    """
    pairs = [
        (low, high)
        for low, high in itertools.pairwise(sorted(points))
        if low[1] >= ANSWERED > high[1]
    ]
    if not pairs:
        return None
    (rate, share), (next_rate, next_share) = pairs[-1]
    return rate + (next_rate - rate) * (share - ANSWERED) / (share - next_share)


def capacity_of(log: Path, num_requests: int) -> dict[str, Any]:
    """Ask the command, as soon as all requests are in the trace."""
    while sum(map(len, load_requests(log).values())) < num_requests:
        time.sleep(0.2)
    command = [sys.executable, "-m", "sched_profiler", "capacity", str(log), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def replayed(run: RecordedRun, batches: pd.DataFrame, count: int) -> dict[str, Any]:
    """Ask the analysis about the requests of the first turn, with times fitted to all batches."""
    arrivals = [
        Arrival(
            time=one.moment,
            num_prompt_tokens=len(one.prompt),
            num_output_tokens=one.num_output_tokens,
        )
        for one in requests_of(TURNS[0][0], 1.0, count, LENGTHS)
    ]
    found = find_capacity(
        arrivals,
        run.settings,
        fit_engine_time(batches, async_scheduling=False),
        lambda settings, shared: VllmReplayScheduler(settings, num_shared_tokens=shared),
    )
    told: dict[str, Any] = json.loads(found.to_json())
    return told


def pace(model: StepTimeModel, batches: pd.DataFrame) -> float:
    """Return how long the model took, against what is usual for these batches."""
    return float(batches["model_run_duration_ms"].sum() / model.predict_batches(batches).sum())


def serve(scenario: Scenario, model: Path, log: Path, options: argparse.Namespace) -> Any:
    """Profile an engine, ask what rate it bears, and let it serve, unless that was done.

    Returns:
        What was stated, how many requests came in each run, and what became of them.
    """
    told = log.with_suffix(".served.json")
    if not told.exists():
        with TurnTaker(
            model, log, scenario.limits, "--kv-mib", str(scenario.kv_mib), "--lengths", LENGTHS
        ) as engine:
            profiled = engine.serve(PROFILED_SEED, options.requests, options.rate)
            stated = capacity_of(log, options.requests)
            predicted = stated["sustained_requests_per_s"]
            count = max(options.least, round(predicted * options.seconds))
            blocks = [
                [engine.serve(seed, count, share * predicted) for share in shares]
                for seed, shares in TURNS
            ]
        served = {"profiled": profiled, "stated": stated, "count": count, "blocks": blocks}
        told.write_text(json.dumps(served))
    return json.loads(told.read_text())


def check(scenario: Scenario, model: Path, log: Path, options: argparse.Namespace) -> Any:
    """Hold what was stated of an engine against what it did."""
    served = serve(scenario, model, log, options)
    profiled, stated, count = Block(*served["profiled"]), served["stated"], served["count"]
    predicted = stated["sustained_requests_per_s"]
    blocks = [
        (turn, share, Block(*block))
        for turn, ((_, shares), of_turn) in enumerate(zip(TURNS, served["blocks"], strict=True))
        for share, block in zip(shares, of_turn, strict=True)
    ]
    run = run_of(log)
    usual = fit_step_time(run.df)
    end = profiled.began + profiled.seconds
    before = run.df[run.df["timestamp"] <= end]
    as_profiled = pace(usual, before)
    runs = []
    for turn, share, block in blocks:
        rate = share * predicted
        came = [one.moment for one in requests_of(block.seed, rate, count, LENGTHS)]
        batches = between(run.df, block, came[len(came) // 4], came[-1])
        answered = answered_share(came, block.answered)
        runs.append(
            Ran(
                turn=turn,
                share=share,
                rate=rate,
                answered=answered,
                saturated=answered < ANSWERED,
                machine=pace(usual, batches) / as_profiled,
                mean_waiting=float(batches["num_waiting_reqs"].mean()),
                kv_cache_peak=float(batches["kv_cache_usage"].max()),
                num_preemptions=int(batches["num_preempted_reqs"].sum()),
                model_busy=float(batches["model_run_duration_ms"].sum())
                / 1e3
                / (came[-1] - came[len(came) // 4]),
            )
        )
    again = replayed(run, run.df[run.df["timestamp"] > end], count)
    return {
        "scenario": scenario.name,
        "limits": scenario.limits._asdict(),
        "num_kv_blocks": run.settings.num_blocks,
        "block_size": run.settings.block_size,
        "profiled": {
            "requests_per_s": options.rate,
            "num_requests": options.requests,
            "mean_step_ms": float(before["total_step_duration_ms"].mean()),
        },
        "num_requests": count,
        "num_cached_tokens": int(run.df["num_cached_tokens"].sum()),
        "stated": stated,
        "replayed": again,
        "runs": [one._asdict() for one in runs],
        "measured": held_against(predicted, runs, even=False),
        "measured_as_profiled": held_against(predicted, runs, even=True),
        "measured_against_replayed": held_against(
            again["sustained_requests_per_s"], runs, even=False
        ),
    }


def between(df: pd.DataFrame, block: Block, first: float, last: float) -> pd.DataFrame:
    """Return the batches of a part of a block."""
    return df[df["timestamp"].between(block.began + first, block.began + last)]


def held_against(predicted: float, runs: list[Ran], *, even: bool) -> dict[str, Any] | None:
    """Return the rate at which the engine was full, and predicted / measured; None if it never was.

    Args:
        predicted: by the analysis.
        runs: of all turns; for the interpolation, those at the same rate are one.
        even: as if the machine had been as fast as when it was profiled.
    """
    points = [(one.rate * (one.machine if even else 1.0), one.answered) for one in runs]
    rates = full_at(points)
    if not rates:
        return None
    middle = statistics.median(rates)
    by_share: dict[float, list[tuple[float, float]]] = {}
    for one, point in zip(runs, points, strict=True):
        by_share.setdefault(one.share, []).append(point)
    means = [
        (statistics.fmean(rate for rate, _ in same), statistics.fmean(share for _, share in same))
        for same in by_share.values()
    ]
    between_runs = interpolated(means)
    return {
        "requests_per_s": middle,
        "low": min(rates),
        "high": max(rates),
        "num_runs": len(rates),
        "ratio": predicted / middle,
        "interpolated_ratio": None if between_runs is None else predicted / between_runs,
    }


def show(found: dict[str, Any]) -> None:
    """Print a table of runs, and what it comes to."""
    stated = found["stated"]
    print(
        f"{found['scenario']}: full above {stated['sustained_requests_per_s']:.1f} requests/s "
        f"({stated['low']:.1f} to {stated['high']:.1f}), waiting for {stated['limit']}, "
        f"{found['num_requests']} requests a run"
    )
    names = ("turn", "offered/predicted", "answered/offered", "waiting", "saturated", "machine")
    print("".join(f"{name:>18}" for name in names))
    for one in sorted(found["runs"], key=lambda run: (run["share"], run["turn"])):
        cells = (
            str(one["turn"] + 1),
            f"{one['share']:.2f}",
            f"{one['answered']:.2f}",
            f"{one['mean_waiting']:.1f}",
            "yes" if one["saturated"] else "no",
            f"{one['machine']:.2f}",
        )
        print("".join(f"{cell:>18}" for cell in cells))
    for name in ("measured", "measured_as_profiled", "measured_against_replayed"):
        print(f"{name}: {found[name]}")


def main() -> None:
    """Profile, ask, serve, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--logs", type=Path, help="keep the logs here, and use those that are here")
    parser.add_argument(
        "--rate", type=float, default=80, help="of what is profiled; not far below what is sought"
    )
    parser.add_argument("--requests", type=int, default=1600, help="that are profiled")
    parser.add_argument("--seconds", type=float, default=7, help="of a run at the predicted rate")
    parser.add_argument("--least", type=int, default=150, help="requests of a run")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = make_tiny_model(folder / "model")
        checks = []
        for number, scenario in enumerate(SCENARIOS):
            checks.append(check(scenario, model, folder / f"{number}.jsonl", arguments))
            show(checks[-1])
    result = {"vllm": require_vllm(), "load_average": os.getloadavg()[2], "checks": checks}
    (arguments.out / "capacity_check.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
