"""At what request rate an engine is full: recorded requests replayed faster and faster."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np

from sched_profiler.analysis.columns import numbers
from sched_profiler.analysis.plain_data import plain
from sched_profiler.analysis.replay import replay
from sched_profiler.errors import LogError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from sched_profiler.analysis.arrivals import Arrival
    from sched_profiler.analysis.engine_time import EngineTime
    from sched_profiler.analysis.replay import EngineSettings, Plan, Replay, ReplayScheduler

__all__ = ["Capacity", "CapacityEstimate", "Load", "estimate_capacity", "find_capacity"]

Limit = Literal["token budget", "max_num_seqs", "KV cache", "model"]
_UNSEEN = 0.10
_LIGHT = 0.2
"""Below this share of what the engine bears, its steps look dearer than they are under load."""
_WAIT_FOR: dict[Limit, str] = {
    "token budget": "Those who wait then wait for tokens in a batch (max_num_batched_tokens).",
    "max_num_seqs": "Those who wait then wait for others to finish: max_num_seqs run at a time.",
    "KV cache": "Those who wait then wait for room in the KV cache.",
    "model": "Nothing but the time that the model takes is in their way.",
}

_LEAST_REQUESTS = 400
"""Shorter traces are played again and again until there are so many."""
_GROWS = 0.05
"""A queue grows without bound if so large a share of those who come is added to it."""
_FULL = 0.99
_PRECISION = 0.03
_FASTEST = 1024.0
_MOST_ROUNDS, _USUAL_ROUNDS = 24, 8
_BUDGET_USED = 0.95
_CACHE_USED = 0.9
_SEEDS = 3


@attrs.frozen(kw_only=True)
class Load:
    """A request rate that was tried."""

    requests_per_s: float
    growth: float
    """Requests by which the queue grows for each that comes, in the second half of the arrivals."""
    saturated: bool
    mean_waiting: float
    kv_cache_peak: float
    num_preemptions: int
    ttft_p95_ms: float
    model_busy: float
    limit: Limit
    """What those who waited were waiting for, most of the time; `model` if nobody did."""


@attrs.frozen(kw_only=True)
class Capacity:
    """What was found by replays."""

    recorded_requests_per_s: float
    sustained_requests_per_s: float
    """The highest rate that was tried at which the queue does not grow."""
    saturated_requests_per_s: float
    """The lowest rate that was tried at which it does."""
    low: float
    high: float
    """The lowest and the highest `sustained_requests_per_s` of several draws of the fit."""
    kv_full_requests_per_s: float | None
    """The lowest rate that was tried at which the KV cache is full (99%); None if it never was."""
    preempting_requests_per_s: float | None
    """The lowest rate that was tried at which requests are preempted."""
    limit: Limit
    """What those who wait at saturation wait for."""
    loads: tuple[Load, ...]
    """All that was tried, by rate."""
    unseen: float
    """At saturation: share of the model's time in batches larger than any that was fitted."""
    assumed: tuple[str, ...] = ()
    """What was assumed of the engine, because no manifest tells it."""

    def to_json(self) -> str:
        """Return all fields as indented JSON; unknown is null."""
        told = {"kind": "replay", **plain(self)}
        return json.dumps(told, indent=2, allow_nan=False)

    def __str__(self) -> str:
        """Return a table of the rates that were tried, and what it comes to."""
        rows = [
            (
                "requests/s",
                "waiting",
                "grows by",
                "first token P95 ms",
                "KV peak",
                "preempted",
                "busy",
                "",
            )
        ]
        rows += [
            (
                f"{load.requests_per_s:,.2f}",
                f"{load.mean_waiting:,.1f}",
                f"{load.growth:.0%}",
                f"{load.ttft_p95_ms:,.0f}",
                f"{load.kv_cache_peak:.0%}",
                f"{load.num_preemptions:,}",
                f"{load.model_busy:.0%}",
                f"saturated: {load.limit}" if load.saturated else "",
            )
            for load in self.loads
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = "\n".join(
            "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
        )
        words = [*self.words, *(f"Assumed: {what}" for what in self.assumed)]
        return table + "\n\n" + "\n".join(f"- {line}" for line in words)

    @property
    def words(self) -> list[str]:
        """What it comes to, in sentences."""
        if not math.isfinite(self.saturated_requests_per_s):
            told = [
                f"At {self.sustained_requests_per_s:,.1f} requests/s, the fastest that was tried, "
                "the queue still does not grow."
            ]
        else:
            share = self.recorded_requests_per_s / self.sustained_requests_per_s
            told = [
                f"The queue grows without bound above {self.sustained_requests_per_s:,.2f} "
                f"requests/s ({self.low:,.2f} to {self.high:,.2f} by the draw of the fit); "
                f"the replayed ones came at {self.recorded_requests_per_s:,.2f}, "
                f"{share:.0%} of that.",
                _WAIT_FOR[self.limit],
            ]
            if share < _LIGHT:
                told.append(
                    "So light a load makes this rate too low rather than too high: an engine that "
                    "sleeps between requests is slower for each token. Record nearer to it."
                )
        if self.kv_full_requests_per_s is None:
            peak = max(load.kv_cache_peak for load in self.loads)
            told.append(f"The KV cache is never full: {peak:.0%} at most.")
        else:
            told.append(
                f"The KV cache is full from {self.kv_full_requests_per_s:,.2f} requests/s on."
            )
        if self.preempting_requests_per_s is not None:
            told.append(
                f"Requests are preempted from {self.preempting_requests_per_s:,.2f} requests/s on."
            )
        if self.unseen > _UNSEEN:
            told.append(
                f"At saturation {self.unseen:.0%} of the model's time is in batches larger than "
                "any that was measured: there the figures are extrapolated."
            )
        return told


@attrs.frozen(kw_only=True)
class CapacityEstimate:
    """What a log alone tells: a rough estimate, for want of a request trace."""

    recorded_requests_per_s: float
    model_busy: float
    """Share of the wall time in which the model ran."""
    engine_busy: float
    """Share in which the engine was at work for requests, the model or not."""
    engine_requests_per_s: float
    """The recorded rate / `engine_busy`."""
    seats_requests_per_s: float | None
    """The rate at which as many requests run as `max_num_seqs` allows, by Little's law."""
    kv_requests_per_s: float | None
    """The rate at which the KV cache is full, if it fills in proportion."""
    assumed: tuple[str, ...] = ()
    """What was assumed of the engine, because no manifest tells it."""

    def to_json(self) -> str:
        """Return all fields as indented JSON; unknown is null."""
        told = {"kind": "estimate", **plain(self)}
        return json.dumps(told, indent=2, allow_nan=False)

    def __str__(self) -> str:
        """Say what is estimated, and that it is."""
        lines = [
            "An estimate from the log alone; record a request trace "
            "(SCHED_PROFILER_REQUEST_TRACE=true) for one by replay.",
            f"Recorded: {self.recorded_requests_per_s:,.2f} requests/s, with the model busy for "
            f"{self.model_busy:.0%} and the engine for {self.engine_busy:.0%} of the time.",
            f"The engine would be busy all the time at {self.engine_requests_per_s:,.2f} "
            "requests/s. Larger batches cost less for each token, so it may well bear more.",
        ]
        if self.seats_requests_per_s is not None:
            lines.append(
                f"max_num_seqs would be reached at {self.seats_requests_per_s:,.2f} requests/s, if "
                "requests took no longer than now."
            )
        if self.kv_requests_per_s is not None:
            lines.append(
                f"The KV cache would be full at {self.kv_requests_per_s:,.2f} requests/s, if it "
                "filled in proportion."
            )
        lines += [f"Assumed: {what}" for what in self.assumed]
        return "\n".join(lines)


def find_capacity(
    arrivals: Sequence[Arrival],
    settings: EngineSettings,
    times: EngineTime,
    make_scheduler: Callable[[EngineSettings, int], ReplayScheduler],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Capacity:
    """Find the request rate at which the waiting queue begins to grow without bound.

    The times between arrivals are shortened or lengthened alike; a short trace is played several
    times over. The rate is doubled or halved until one is sustained and twice of it is not, and
    bisected to 3%. The bisection is done for several draws of the fit.

    Args:
        arrivals: at least two, in the order of their times.
        settings: of the engine.
        times: fitted to what it did.
        make_scheduler: makes a fresh scheduler, whose prefix cache holds so many tokens.
        progress: told how many requests were replayed, and about how many there will be.

    Raises:
        LogError: if all requests came at the same moment, one can never be scheduled, or the
            queue grows at any rate.
    """
    span = arrivals[-1].time - arrivals[0].time
    if len(arrivals) < 2 or span <= 0:  # noqa: PLR2004 - one has no rate
        raise LogError(
            f"{len(arrivals)} requests that came within {span:.3f} s have no rate; replay at least "
            "two that came one after the other"
        )
    rate = (len(arrivals) - 1) / span
    repeated = _repeated(arrivals)
    shared = max(arrival.num_cached_tokens for arrival in arrivals)
    tried: dict[float, tuple[Load, float]] = {}
    total, done = _USUAL_ROUNDS * _SEEDS * len(repeated), 0

    def saturates(seed: int, factor: float) -> bool:
        nonlocal done
        before = done
        one = replay(
            [attrs.evolve(a, time=a.time / factor) for a in repeated],
            make_scheduler(settings, shared),
            times.sampled(seed),
            max_in_flight=settings.max_in_flight,
            progress=None if progress is None else lambda n: progress(before + n, total),
        )
        done += len(repeated)
        load = _load(one, rate * factor, settings)
        if seed == 0:
            tried[factor] = load, times.unseen([one])
        return load.saturated

    found = [_bisected(partial(saturates, seed)) for seed in range(_SEEDS)]
    sustained, saturated = found[0]
    loads = tuple(tried[factor][0] for factor in sorted(tried))
    if not sustained:
        raise LogError(
            f"even at {rate * saturated:.3g} requests/s the queue grows: the logs do not fit the "
            "requests; name the logs of the engine that served them"
        )
    last = tried[saturated if math.isfinite(saturated) else sustained]
    return Capacity(
        recorded_requests_per_s=rate,
        sustained_requests_per_s=rate * sustained,
        saturated_requests_per_s=rate * saturated,
        low=rate * min(low for low, _ in found),
        high=rate * max(low for low, _ in found),
        kv_full_requests_per_s=_first(loads, lambda load: load.kv_cache_peak >= _FULL),
        preempting_requests_per_s=_first(loads, lambda load: load.num_preemptions > 0),
        limit=last[0].limit,
        loads=loads,
        unseen=last[1],
    )


def estimate_capacity(df: pd.DataFrame, *, max_num_seqs: int | None) -> CapacityEstimate:
    """Estimate from a log alone at what request rate an engine is full.

    Idle time in which the engine had nobody to serve is told from idle time of its own by the
    batches that follow it: if all requests in a batch are new, it waited for them.

    Args:
        df: the batches of one run, as `load` returns them.
        max_num_seqs: of the engine.

    Raises:
        LogError: if the log does not tell when requests came, or how long the model ran.
    """
    model = np.nansum(numbers(df, "model_run_duration_ms"))
    idle = np.nan_to_num(numbers(df, "idle_duration_ms"))
    new = numbers(df, "num_new_reqs")
    wall = float(model + idle.sum())
    if np.isnan(new).all() or not np.nansum(new) or not model:
        lacking = (
            "how long the model ran (model_run_duration_ms)"
            if not model
            else "how many requests were new (num_new_reqs)"
        )
        raise LogError(
            f"the log does not tell {lacking}, which an estimate needs; name the requests with "
            "--trace for a replay"
        )
    num_reqs = numbers(df, "num_prefill_reqs") + numbers(df, "num_decode_reqs")
    waited = float(idle[num_reqs == np.nan_to_num(new)].sum())
    rate = float(np.nansum(new)) / wall * 1e3
    weights = np.nan_to_num(numbers(df, "model_run_duration_ms")) + idle
    # While it waited for somebody, nobody ran.
    weights = weights - np.where(num_reqs == np.nan_to_num(new), idle, 0.0)
    running = float((numbers(df, "num_running_reqs") * weights).sum() / wall)
    usage = float(np.quantile(numbers(df, "kv_cache_usage"), 0.95))
    busy = (wall - waited) / wall
    return CapacityEstimate(
        recorded_requests_per_s=rate,
        model_busy=float(model) / wall,
        engine_busy=busy,
        engine_requests_per_s=rate / busy,
        seats_requests_per_s=rate * max_num_seqs / running if max_num_seqs and running else None,
        kv_requests_per_s=rate / usage if usage > 0 else None,
    )


def _repeated(arrivals: Sequence[Arrival]) -> list[Arrival]:
    first = arrivals[0].time
    span = arrivals[-1].time - first
    # As long after the last as one comes after another.
    period = span * len(arrivals) / (len(arrivals) - 1)
    times = math.ceil(_LEAST_REQUESTS / len(arrivals))
    return [
        attrs.evolve(arrival, time=arrival.time - first + number * period)
        for number in range(times)
        for arrival in arrivals
    ]


def _bisected(saturates: Callable[[float], bool]) -> tuple[float, float]:
    """Return the largest factor that is sustained and the smallest that is not, 3% apart."""
    low, high = 0.0, math.inf
    factor = 1.0
    for _ in range(_MOST_ROUNDS):
        if saturates(factor):
            high = factor
        else:
            low = factor
        if high <= low * (1 + _PRECISION) or low >= _FASTEST or high <= 1 / _FASTEST:
            break
        factor = 2 * low if math.isinf(high) else high / 2 if not low else math.sqrt(low * high)
    return low, high


def _load(one: Replay, rate: float, settings: EngineSettings) -> Load:
    return Load(
        requests_per_s=rate,
        growth=_growth(one),
        saturated=_growth(one) > _GROWS,
        mean_waiting=float(np.mean([plan.num_waiting_reqs for plan in one.plans])),
        kv_cache_peak=max(plan.kv_cache_usage for plan in one.plans),
        num_preemptions=sum(plan.num_preempted_reqs for plan in one.plans),
        ttft_p95_ms=float(np.quantile(1e3 * (one.first_token - one.arrival), 0.95)),
        model_busy=float(one.model_ms.sum()) / 1e3 / one.makespan_s,
        limit=_limit(one.plans, settings),
    )


def _growth(one: Replay) -> float:
    """Return by how many requests the queue grows for each that comes.

    That is seen from the middle arrival to the last. Those who are served are counted as well, but
    they are no more at the end than in the middle.
    """
    half, last = one.arrival[len(one.arrival) // 2], one.arrival[-1]
    came = np.count_nonzero((one.arrival > half) & (one.arrival <= last))
    there = [
        np.count_nonzero((one.arrival <= moment) & (one.end > moment)) for moment in (half, last)
    ]
    return float(there[1] - there[0]) / max(1, int(came))


def _limit(plans: Sequence[Plan], settings: EngineSettings) -> Limit:
    """Return what those who wait wait for, most often."""
    counts: dict[Limit, int] = {"token budget": 0, "max_num_seqs": 0, "KV cache": 0}
    for plan in plans:
        if not plan.num_waiting_reqs:
            continue
        if plan.num_tokens >= _BUDGET_USED * settings.max_num_batched_tokens:
            counts["token budget"] += 1
        elif plan.num_running_reqs >= settings.max_num_seqs:
            counts["max_num_seqs"] += 1
        elif plan.kv_cache_usage >= _CACHE_USED or plan.num_preempted_reqs:
            counts["KV cache"] += 1
    most = max(counts, key=lambda limit: counts[limit])
    return most if counts[most] else "model"


def _first(loads: Sequence[Load], holds: Callable[[Load], bool]) -> float | None:
    return next((load.requests_per_s for load in loads if holds(load)), None)
