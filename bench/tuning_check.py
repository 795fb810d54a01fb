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

Then the recommendation itself is tried. Two engines with different limits take turns and are
recorded. What `tune` says from the first turns alone is held against the later ones. Then the
command `tune` reads both logs and recommends limits, and if they are others, an engine with these
and one with the limits from before take turns over requests that were not recorded. Both see the
same minutes of the machine, so what changes between them can be held against what was stated,
whatever the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs
from poisson_load import Asked, requests_of
from taking_turns import Block, Limits, TurnTaker, measures_of_block, run_of
from tiny_model import make_tiny_model

from sched_profiler.analysis import load
from sched_profiler.analysis.arrivals import Arrival, arrivals_of
from sched_profiler.analysis.engine_time import EngineTime, fit_engine_time
from sched_profiler.analysis.replay_measures import recorded_measures
from sched_profiler.analysis.tuning import tune
from sched_profiler.engines.vllm_replay import VllmReplayScheduler, require_vllm

if TYPE_CHECKING:
    from sched_profiler.analysis.replay import EngineSettings

Candidates = tuple[dict[str, Any], dict[str, Any]]
"""Those of `tune` for the limits of now and for others."""
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

START = Limits(256, 16)
FAR = Limits(2048, 4)
"""Recorded beside it, so that the fit knows small and large batches."""
TRIED_BUDGETS = (512, 2048)
TRIED_SEQS = (4, 16)
NUM_WARM_UP = 24
FIT_SEEDS = [101, 102, 103]
CHECK_SEEDS = [201, 202, 203, 204]
"""Other requests than those of the fit."""


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


def record(
    model: Path,
    folder: Path,
    limits: tuple[Limits, Limits],
    seeds: list[int],
    *,
    rate: float,
    count: int,
) -> tuple[list[Path], list[tuple[Block, Block]]]:
    """Let two engines take turns; return their logs, and the blocks of each seed.

    Each seed is served by both, one right after the other, and by turns this or that one first.
    """
    name = "-".join(f"budget{one.budget}-seqs{one.seqs}" for one in limits)
    name += f"-rate{rate:g}-seed{seeds[0]}"
    logs = [folder / f"{name}.{number}.jsonl" for number in range(2)]
    told = folder / f"{name}.blocks.json"
    if not told.exists():
        with (
            TurnTaker(model, logs[0], limits[0]) as first,
            TurnTaker(model, logs[1], limits[1]) as second,
        ):
            # Once more for the first: `tune` replays the run that has the most requests.
            for seed, engine in enumerate((first, second, first)):
                engine.serve(seed, NUM_WARM_UP, rate)
            blocks = []
            for number, seed in enumerate(seeds):
                if number % 2:
                    after = second.serve(seed, count, rate)
                    blocks.append((first.serve(seed, count, rate), after))
                else:
                    before = first.serve(seed, count, rate)
                    blocks.append((before, second.serve(seed, count, rate)))
        told.write_text(json.dumps(blocks))
    return logs, [(Block(*one), Block(*two)) for one, two in json.loads(told.read_text())]


def recommendation(logs: list[Path], num_requests: int, num_replays: int) -> dict[str, Any]:
    """Ask the command, unless its answer is there."""
    answer = logs[0].with_suffix(".tune.json")
    if answer.exists():
        found: dict[str, Any] = json.loads(answer.read_text())
        return found
    command = [sys.executable, "-m", "sched_profiler", "tune", *map(str, logs), "--json"]
    command += ["--max-num-batched-tokens", ",".join(map(str, TRIED_BUDGETS))]
    command += ["--max-num-seqs", ",".join(map(str, TRIED_SEQS))]
    command += ["--requests", str(num_requests), "--replays", str(num_replays)]
    answer.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return recommendation(logs, num_requests, num_replays)


def spread(values: list[float]) -> dict[str, float]:
    """Return the mean, the lowest and the highest."""
    return {"value": statistics.fmean(values), "low": min(values), "high": max(values)}


def mean_range(ranges: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of ranges of replays that share their draws, and so vary together."""
    return {
        part: statistics.fmean(one[part] for one in ranges) for part in ("value", "low", "high")
    }


def replayed_block(
    requests: list[Asked],
    settings: EngineSettings,
    best: Limits,
    times: EngineTime,
    num_replays: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """Replay the requests of a block under both limits; return measures by side."""
    arrivals = [
        Arrival(
            time=one.moment,
            num_prompt_tokens=len(one.prompt),
            num_output_tokens=one.num_output_tokens,
        )
        for one in requests
    ]
    found = tune(
        arrivals,
        settings,
        times,
        lambda settings, shared: VllmReplayScheduler(settings, num_shared_tokens=shared),
        [best],
        num_replays=num_replays,
    )
    (other,) = found.others
    return {
        name: {
            "now": attrs.asdict(found.current.estimates[name]),
            "other": attrs.asdict(other.estimates[name]),
            "change": attrs.asdict(other.changes[name]),
        }
        for name in TOLD
    }


def compared(
    stated: Candidates,
    replays: list[dict[str, dict[str, dict[str, float]]]],
    measured: list[tuple[dict[str, float], dict[str, float]]],
) -> dict[str, Any]:
    """Return by measure what was stated, what replays of the same requests say, and what was."""
    now, other = stated
    return {
        name: {
            "stated": {
                "now": now["estimates"][name],
                "other": other["estimates"][name],
                "change": other["changes"][name],
            },
            "replayed": {
                side: mean_range([one[name][side] for one in replays])
                for side in ("now", "other", "change")
            },
            "measured": {
                "now": spread([one[name] for one, _ in measured]),
                "other": spread([two[name] for _, two in measured]),
                "change": spread([two[name] / one[name] - 1.0 for one, two in measured]),
            },
        }
        for name in TOLD
    }


def check_turns(
    logs: list[Path], blocks: list[tuple[Block, Block]], load_of: dict[str, Any], num_replays: int
) -> dict[str, Any]:
    """Fit to the first turns, and say what the later ones are: from the first limits to the second.

    This asks nothing more of the engines than what they have served already.
    """
    until = max(block.began + block.seconds for block in blocks[0])
    now_run, best_run = (run_of(log) for log in logs)
    batches = load(*logs)
    batches = batches[batches["timestamp"] <= until]
    times = fit_engine_time(batches, async_scheduling=False)
    best = Limits(best_run.settings.max_num_batched_tokens, best_run.settings.max_num_seqs)
    stated = tune(
        arrivals_of([one for one in now_run.requests if one.arrival_time <= until]),
        now_run.settings,
        times,
        lambda settings, shared: VllmReplayScheduler(settings, num_shared_tokens=shared),
        [best],
        num_replays=num_replays,
    ).to_dict()
    later = blocks[1:]
    measured = [
        (
            measures_of_block(now_run, now, **load_of),
            measures_of_block(best_run, other, **load_of),
        )
        for now, other in later
    ]
    replays = [
        replayed_block(
            requests_of(block.seed, **load_of), now_run.settings, best, times, num_replays
        )
        for block, _ in later
    ]
    return {
        "num_fitted": times.model.num_batches,
        "median_error_of_fit": times.model.cross_validation.median_error,
        "now": limits_of(stated["current"]),
        "other": best,
        "recommended": stated["recommended"],
        "words": stated["words"],
        "pairs": measured,
        "measures": compared((stated["current"], stated["others"][0]), replays, measured),
    }


def check_recommendation(
    model: Path, folder: Path, start: Limits, load_of: dict[str, Any], num_replays: int
) -> dict[str, Any]:
    """Record, ask for a recommendation, and hold it against the real engine."""
    logs, blocks = record(model, folder, (start, FAR), FIT_SEEDS, **load_of)
    num_requests = 2 * NUM_WARM_UP + load_of["count"] * len(FIT_SEEDS)
    stated = recommendation(logs, num_requests, num_replays)
    best = Limits(*stated["recommended"].values())
    if limits_of(stated["current"]) != start:
        raise RuntimeError(f"{start} was to be replayed, and {stated['current']} was")
    result = {
        "load": load_of,
        "start": start,
        "far": FAR,
        "recommended": best,
        "stated": stated,
        "turns": check_turns(logs, blocks, load_of, num_replays),
    }
    if best == start:
        return result
    (other,) = (one for one in stated["others"] if limits_of(one) == best)
    served, blocks = record(model, folder, (start, best), CHECK_SEEDS, **load_of)
    runs = [run_of(log) for log in served]
    measured = [
        (measures_of_block(runs[0], one, **load_of), measures_of_block(runs[1], two, **load_of))
        for one, two in blocks
    ]
    times = fit_engine_time(load(*logs), async_scheduling=False)
    replays = [
        replayed_block(requests_of(seed, **load_of), runs[0].settings, best, times, num_replays)
        for seed in CHECK_SEEDS
    ]
    return result | {
        "served": {
            "num_fitted": times.model.num_batches,
            "median_error_of_fit": times.model.cross_validation.median_error,
            "now": start,
            "other": best,
            "pairs": measured,
            "measures": compared((stated["current"], other), replays, measured),
        }
    }


def limits_of(candidate: dict[str, Any]) -> tuple[int, int]:
    """Return the limits of a candidate of `tune`."""
    return candidate["max_num_batched_tokens"], candidate["max_num_seqs"]


def show_recommendation(found: dict[str, Any]) -> None:
    """Print what was stated and what was measured."""
    print("\n".join(found["stated"]["words"]))
    for part in ("turns", "served"):
        if part not in found:
            print("to keep the limits was recommended, so there was nothing else to serve with")
            continue
        print(f"{part}: from {found[part]['now']} to {found[part]['other']}")
        print(f"{'':<32}{'stated':>28}{'replayed':>28}{'measured':>28}")
        for name, sides in found[part]["measures"].items():
            for side in ("now", "other", "change"):
                cells = "".join(
                    f"{one[side]['value']:.3g} ({one[side]['low']:.3g} to "
                    f"{one[side]['high']:.3g})".rjust(28)
                    for one in (sides["stated"], sides["replayed"], sides["measured"])
                )
                print(f"{name:<22}{side:<10}{cells}")


def main() -> None:
    """Serve, fit, predict, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--logs", type=Path, help="keep the logs here, and use those that are here")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--replays", type=int, default=5)
    parser.add_argument("--rate", type=float, default=4, help="for the recommendation")
    parser.add_argument("--block", type=int, default=64, help="requests of a turn")
    parser.add_argument("--start", type=int, nargs=2, default=START, metavar=("BUDGET", "SEQS"))
    parser.add_argument("--only", choices=("limits", "recommendation"), help="keep the other part")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    out = arguments.out / "tuning.json"
    result = json.loads(out.read_text()) if arguments.only and out.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = make_tiny_model(folder / "model")
        result["vllm"] = require_vllm()
        if arguments.only != "recommendation":
            result |= check_limits(model, folder, arguments.requests, arguments.replays)
        if arguments.only != "limits":
            load_of = {"rate": arguments.rate, "count": arguments.block}
            start = Limits(*arguments.start)
            found = check_recommendation(model, folder, start, load_of, arguments.replays)
            show_recommendation(found)
            result["recommendation"] = found
    out.write_text(json.dumps(result, indent=2) + "\n")


def check_limits(model: Path, folder: Path, num_requests: int, num_replays: int) -> dict[str, Any]:
    """Predict runs under several limits and measure them."""
    logs = {served: serve(served, model, folder, num_requests) for served in (*FITTED, *PREDICTED)}
    times = fit_engine_time(load(*(logs[one] for one in FITTED)), async_scheduling=False)
    checks = [check(one, logs[one], times, num_replays) for one in PREDICTED]
    replayed = [
        check(
            one,
            logs[one],
            fit_engine_time(load(logs[one]), async_scheduling=False),
            num_replays,
        )
        for one in PREDICTED
    ]
    show("predicted / measured, for runs that were not fitted", checks)
    show("the same with a model of the run's own batches", replayed)
    return {
        "fitted": [one._asdict() for one in FITTED],
        "median_error_of_fit": times.model.cross_validation.median_error,
        "load_average": os.getloadavg()[2],
        "predicted": checks,
        "replayed": replayed,
    }


if __name__ == "__main__":
    main()
