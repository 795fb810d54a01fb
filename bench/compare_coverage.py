"""Measures whether the intervals of `compare` hold what they promise.

    PYTHONPATH=bench:examples python bench/compare_coverage.py

First on series whose truth is known: step times that follow a first-order autoregression, of more
and more memory. How often is the true ratio of two runs' values within the interval of 95%? Beside
it, the same for a bootstrap that draws batches one by one, as if they did not depend on each other.
Then on pairs of simulated engines that differ in nothing but chance: how often is there a verdict?
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import pandas as pd
from findings import healthy

from sched_profiler.analysis.bootstrap import (
    block_length,
    blocks,
    draw,
    interval,
    quantiles,
)
from sched_profiler.analysis.comparison import compare
from sched_profiler.analysis.run_metrics import METRICS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Statistic = tuple[float, Floats, int]
    """Value, draws, number of blocks."""

_SIGMA = 0.3
_CONFIDENCE = 0.95


def autoregression(rng: np.random.Generator, length: int, rho: float) -> Floats:
    """Return log-normal times of which the logarithm is a first-order autoregression."""
    noise = rng.normal(0, math.sqrt(1 - rho**2), length)
    series = np.empty(length)
    state = rng.normal()
    for index in range(length):
        state = rho * state + noise[index]
        series[index] = state
    return np.exp(_SIGMA * series)


def mean_of(times: Floats, block: NDArray[np.int64], seed: int) -> Statistic:
    """Return the mean, as `compare` makes it."""
    number = int(block[-1]) + 1
    counts = draw(number, seed)
    means = (counts @ np.bincount(block, times)) / (counts @ np.bincount(block))
    return float(times.mean()), means, number


def statistics_of(times: Floats, each: int, seed: int) -> dict[str, Statistic]:
    """Return mean, P50 and P99, as `compare` makes them."""
    block = blocks(len(times), each)
    number = int(block[-1]) + 1
    counts = draw(number, seed)
    edges = np.geomspace(times.min() * 0.999, times.max() * 1.001, 1025)
    bins = np.searchsorted(edges, times, side="right") - 1
    histogram = np.bincount(block * 1024 + bins, minlength=number * 1024).reshape(number, 1024)
    found = {"mean": mean_of(times, block, seed)}
    for name, share in (("P50", 0.50), ("P99", 0.99)):
        whole = quantiles(histogram.sum(axis=0, keepdims=True).astype(float), edges, share)[0]
        value = float(np.quantile(times, share))
        drawn = value * quantiles(counts @ histogram.astype(float), edges, share) / whole
        found[name] = (value, drawn, number)
    return found


def coverage(rho: float, length: int, trials: int) -> dict[str, Any]:
    """Return how often the interval of a ratio of two equal series holds 1."""
    held: Counter[str] = Counter()
    for trial in range(trials):
        rng = np.random.default_rng([trial, length, round(rho * 1000)])
        pair = [autoregression(rng, length, rho) for _ in range(2)]
        first, second = (
            statistics_of(times, block_length([times]), 2 * trial + number)
            for number, times in enumerate(pair)
        )
        for name in first:
            held[name] += holds_one(first[name], second[name])
        held["mean, one by one"] += holds_one(
            *(mean_of(times, blocks(length, 1), number) for number, times in enumerate(pair))
        )
    return {"rho": rho, "length": length, "trials": trials} | {
        name: float(number / trials) for name, number in held.items()
    }


def holds_one(first: Statistic, second: Statistic) -> bool:
    """Tell whether the interval of the ratio holds 1."""
    value, drawn = math.log(second[0] / first[0]), np.log(second[1] / first[1])
    low, high = interval(drawn, value, min(first[2], second[2]), _CONFIDENCE)
    return low <= 0 <= high


def same_engine_twice(trials: int, confidence: float) -> dict[str, Any]:
    """Return how many verdicts there are where nothing but chance differs."""
    verdicts: Counter[str] = Counter()
    metrics = 0
    for trial in range(trials):
        first = healthy(random.Random(f"{trial} compare"))
        second = healthy(random.Random(f"{trial} compare"))
        second.seed = first.seed + 1
        frames = {}
        for name, engine in (("A", first), ("B", second)):
            frame = pd.DataFrame([attrs.asdict(record) for record in engine.run(3000)])
            frames[name] = frame
        found = compare(frames, confidence=confidence).differences
        metrics += len(found)
        verdicts.update(f.metric for f in found if f.verdict not in ("within noise", "unknown"))
    return {
        "confidence": confidence,
        "pairs": trials,
        "metrics": metrics,
        "verdicts": sum(verdicts.values()),
        "by_metric": {metric.name: verdicts[metric.name] for metric in METRICS},
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--trials", type=int, default=200)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for length in (1000, 4000):
        for rho in (0.0, 0.5, 0.9, 0.98):
            rows.append(coverage(rho, length, arguments.trials))
            print(rows[-1], flush=True)
    result = {
        "coverage": rows,
        "same_engine": [
            same_engine_twice(arguments.trials // 4, confidence) for confidence in (0.95, 0.99)
        ],
    }
    print(json.dumps(result["same_engine"], indent=2))
    (arguments.out / "compare.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
