"""The numbers that runs are compared by, and how each comes from what a batch adds to it."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np

from sched_profiler.analysis.columns import numbers, occupied_ms, prefill_tokens

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["METRICS", "QUANTILES", "RATIOS", "Metric", "Series"]

_MS_PER_S = 1_000.0


@attrs.frozen(kw_only=True)
class Metric:
    """A number that runs are compared by."""

    name: str
    label: str
    better: Literal["higher", "lower"] | None
    kind: Literal["ratio", "share", "count"] = "ratio"
    """The change of a `share`, from 0 to 1, and of a `count`, which may be 0, is a difference; that
    of a `ratio` is the ratio of both values less 1. Ratios are judged by their logarithms, so that
    twice and half are as far from 1."""


METRICS = (
    Metric(name="tokens_per_second", label="throughput, tokens/s", better="higher"),
    Metric(name="generated_per_second", label="generated, tokens/s", better="higher"),
    Metric(name="decode_ms_mean", label="time of a decode, mean, ms", better="lower"),
    Metric(name="decode_ms_p50", label="time of a decode, P50, ms", better="lower"),
    Metric(name="decode_ms_p99", label="time of a decode, P99, ms", better="lower"),
    Metric(name="total_step_ms_p50", label="total step, P50, ms", better="lower"),
    Metric(name="total_step_ms_p99", label="total step, P99, ms", better="lower"),
    Metric(name="model_run_ms_p50", label="model run, P50, ms", better="lower"),
    Metric(name="schedule_ms_p50", label="schedule, P50, ms", better="lower"),
    Metric(name="schedule_ms_p99", label="schedule, P99, ms", better="lower"),
    Metric(name="idle_share", label="model idle, of the time", better="lower", kind="share"),
    Metric(name="waiting_reqs_mean", label="waiting, mean, requests", better="lower", kind="count"),
    Metric(name="kv_cache_usage_mean", label="KV cache, mean", better=None, kind="share"),
    Metric(name="scheduled_tokens_mean", label="tokens of a batch, mean", better=None),
)
"""What runs are compared by, in this order. The time of a decode is what a decoding request waits
for its next token: the wall time of the batch, which is model run and idle, for each of its
decodes."""

RATIOS: dict[str, tuple[str, str]] = {
    "tokens_per_second": ("tokens", "wall_s"),
    "generated_per_second": ("generated", "wall_s"),
    "decode_ms_mean": ("decodes x wall_ms", "decodes"),
    "idle_share": ("idle_s", "wall_s"),
    "waiting_reqs_mean": ("waiting x wall_s", "wall_s"),
    "kv_cache_usage_mean": ("kv_cache x wall_s", "wall_s"),
    "scheduled_tokens_mean": ("tokens", "batches"),
}
"""Metrics that are a sum of a `Series` over another."""
QUANTILES: dict[str, tuple[str, float]] = {
    "decode_ms_p50": ("decode", 0.50),
    "decode_ms_p99": ("decode", 0.99),
    "total_step_ms_p50": ("total_step", 0.50),
    "total_step_ms_p99": ("total_step", 0.99),
    "model_run_ms_p50": ("model_run", 0.50),
    "schedule_ms_p50": ("schedule", 0.50),
    "schedule_ms_p99": ("schedule", 0.99),
}
"""Metrics that are a quantile of times of a `Series`, and which."""


@attrs.frozen(eq=False)
class Series:
    """What metrics are made of: a number a batch each."""

    run: Ints
    sums: dict[str, Floats]
    """To be summed up; NaN where unknown."""
    times: dict[str, tuple[Floats, Floats]]
    """Times in ms and how often each counts."""

    @classmethod
    def of(cls, df: pd.DataFrame) -> Series:
        """Return those of a loaded log."""
        run = np.asarray(df["run"]) if "run" in df else np.zeros(len(df), dtype=np.int64)
        members = [np.flatnonzero(run == number) for number in np.unique(run)]
        wall = np.full(len(df), np.nan)
        for rows in members:
            wall[rows] = occupied_ms(df.iloc[rows])
        decodes = numbers(df, "num_decode_reqs")
        tokens = numbers(df, "total_scheduled_tokens")
        wall_s = wall / _MS_PER_S
        one = np.ones(len(df))
        return cls(
            run=run,
            sums={
                "batches": one,
                "tokens": tokens,
                "prefill": prefill_tokens(df),
                "generated": numbers(df, "num_generated_tokens"),
                "wall_s": wall_s,
                "idle_s": numbers(df, "idle_duration_ms") / _MS_PER_S,
                "decodes": decodes,
                "decodes x wall_ms": decodes * wall,
                "waiting x wall_s": numbers(df, "num_waiting_reqs") * wall_s,
                "kv_cache x wall_s": numbers(df, "kv_cache_usage") * wall_s,
            },
            times={
                "decode": (wall, decodes),
                "total_step": (numbers(df, "total_step_duration_ms"), one),
                "model_run": (numbers(df, "model_run_duration_ms"), one),
                "schedule": (numbers(df, "schedule_duration_ms"), one),
            },
        )

    @property
    def tokens(self) -> float:
        """All tokens that were scheduled."""
        return _sum(self.sums["tokens"])

    @property
    def tokens_per_batch(self) -> float:
        """Mean of the tokens of a batch."""
        return _ratio(self.tokens, len(self.run))

    @property
    def prefill_share(self) -> float:
        """Share of the tokens that are prefill."""
        return _ratio(_sum(self.sums["prefill"]), self.tokens)

    def fingerprint(self) -> bytes:
        """Return what is the same for the same numbers."""
        found = hashlib.sha256(self.run.tobytes())
        for values in (*self.sums.values(), *(times for times, _ in self.times.values())):
            found.update(np.ascontiguousarray(values).tobytes())
        return found.digest()

    def part(self, rows: Ints) -> Series:
        """Return the same of some batches."""
        return Series(
            self.run[rows],
            {name: values[rows] for name, values in self.sums.items()},
            {name: (v[rows], weights[rows]) for name, (v, weights) in self.times.items()},
        )

    def metrics(self) -> dict[str, float]:
        """Return all metrics, NaN where the log lacks what one needs."""
        found = {}
        for name, (part, whole) in RATIOS.items():
            found[name] = _ratio(_sum(self.sums[part]), _sum(self.sums[whole]))
        for name, (times, share) in QUANTILES.items():
            found[name] = _weighted_quantile(*self.times[times], share)
        return found


def _sum(values: Floats) -> float:
    return math.nan if np.isnan(values).all() else float(np.nansum(values))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _weighted_quantile(times: Floats, weights: Floats, share: float) -> float:
    known = ~np.isnan(times) & (weights > 0)
    times, weights = times[known], weights[known]
    if not len(times):
        return math.nan
    order = np.argsort(times)
    summed = np.cumsum(weights[order])
    return float(times[order][np.searchsorted(summed, share * summed[-1])])
