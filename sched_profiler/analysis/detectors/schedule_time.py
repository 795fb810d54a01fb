"""Does schedule() take longer now and then, or longer and longer?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sched_profiler.analysis.robust import change_point, period, rolling_median

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sched_profiler.analysis.detectors.evidence import Evidence
    from sched_profiler.analysis.finding import Finding

    Ints = NDArray[np.int64]
    Mask = NDArray[np.bool_]

__all__ = ["drift", "spikes"]

_WINDOW = 101
_SPIKE_TIMES = 5.0
_SPIKE_OF_STEP = 0.25
_FEWEST_SPIKES = 3
_SPIKES = 0.003
_SPIKES_CRITICAL = 0.05

_BLOCKS = 40
_DRIFT_RANK = 0.2
_DRIFT_TIMES = 1.4
_DRIFT_NOISE = 2.5
_DRIFT_OF_STEP = 0.02
_DRIFT_CRITICAL = 0.10
_FEWEST_TO_RANK = 10
_FEWEST_ALIKE = 5
_RESOLUTION_MS = 0.001


def spikes(run: Evidence) -> Iterator[Finding]:
    """Look for batches whose schedule() took far longer than that of the batches around them."""
    schedule = run.column("schedule_duration_ms")
    usual = rolling_median(schedule, _WINDOW)
    excess = schedule - usual
    spike = (schedule > _SPIKE_TIMES * usual) & (excess > _SPIKE_OF_STEP * run.step_ms)
    if int(spike.sum()) < _FEWEST_SPIKES:
        return
    batch_ids = run.column("batch_id").astype(np.int64)
    every = period(batch_ids[spike])
    if every is None:
        # The smaller ones may be those of a busy machine, and hide what the larger ones keep to.
        large = spike & (excess >= np.median(excess[spike]))
        every = period(batch_ids[large])
        spike = spike if every is None else large
    count = int(spike.sum())
    lost = run.share(float(excess[spike].sum()))
    if lost < _SPIKES:
        return
    # What the machine does knows nothing of batches.
    if every is None and run.is_bad_luck(excess[spike], float(usual.sum())):
        return
    when, counts = "", ""
    if every is not None:
        which = "" if every.count == count else f"{every.count:,} of them "
        when = f", {which}every {every.length:,} batches"
        counts = f"Look for what counts to {every.length:,} in the scheduler or a plug-in of it. "
    typical, largest = float(np.median(schedule[spike])), float(schedule[spike].max())
    yield run.finding(
        "schedule_spikes",
        "critical" if lost >= _SPIKES_CRITICAL else "warning",
        f"schedule() took {typical:.3g} ms (up to {largest:.3g} ms) in {count:,} of "
        f"{len(schedule):,} batches{when}; {float(np.median(usual)):.3g} ms is usual",
        numbers={
            "num_spikes": count,
            "spike_ms_p50": typical,
            "spike_ms_max": largest,
            "usual_ms_p50": float(np.median(usual)),
            "share_of_wall_time": lost,
            "period_batches": np.nan if every is None else every.length,
        },
        shown_by=np.where(spike, excess, 0.0),
        remedy=f"{counts}See who was in these batches (sched-profiler slow), and what else ran on "
        "the engine's thread at their timestamps: garbage collection, logging, a plug-in.",
    )


def drift(run: Evidence) -> Iterator[Finding]:
    """Look for a schedule() that takes longer than earlier in the run for the same batch.

    Among batches that hold about the same, each has a rank by its schedule time, from 0 to 1.
    Where nothing changes, the ranks are the same all along, however the load may change.
    """
    batches = pl.DataFrame(
        {"schedule": run.column("schedule_duration_ms"), "cell": run.cell}, nan_to_null=True
    )
    schedule = pl.col("schedule")
    rank = batches.select((schedule.rank() / schedule.count()).over("cell")).to_series().to_numpy()
    # Among few, a rank says nothing.
    enough = batches.select((pl.len() >= _FEWEST_TO_RANK).over("cell")).to_series()
    rows = np.flatnonzero(enough.to_numpy())
    if len(rows) < _BLOCKS * _FEWEST_ALIKE:
        return
    blocks = np.array_split(rows, _BLOCKS)
    change = change_point(np.array([np.median(rank[block]) for block in blocks]))
    rise = change.after - change.before
    if rise < _DRIFT_RANK or rise < _DRIFT_NOISE * change.noise:
        return
    row = int(blocks[change.index][0])
    is_after = np.arange(len(batches)) >= row
    before, after = _before_and_after(batches.with_columns(is_after=is_after))
    added = (after - before) / run.step_ms if run.step_ms else 0.0
    if after < _DRIFT_TIMES * before or added < _DRIFT_OF_STEP:
        return
    where = int(run.column("batch_id")[row])
    how = f"since batch {where:,}" if change.is_step else "by and by"
    yield run.finding(
        "schedule_drift",
        "critical" if added >= _DRIFT_CRITICAL else "warning",
        f"schedule() takes {after / before:.2g} times as long for the same batch as earlier in "
        f"the run, {how}: {before:.3g} ms became {after:.3g} ms",
        numbers={
            "before_ms": before,
            "after_ms": after,
            "times_as_long": after / before,
            "change_batch_id": where,
            "is_step": change.is_step,
            "share_of_step": added,
        },
        shown_by=np.where(is_after, rank, 0.0),
        remedy="Look for what grows with the age of the engine: queues that are never emptied, "
        "requests that are never freed, prefix-cache bookkeeping, or a slower processor clock.",
    )


def _before_and_after(batches: pl.DataFrame) -> tuple[float, float]:
    """Return what a batch took on either side of a change, in ms, for the same mix of batches."""
    schedule, is_after = pl.col("schedule"), pl.col("is_after")
    before, after = schedule.filter(~is_after), schedule.filter(is_after)
    alike = (
        batches.group_by("cell", maintain_order=True)
        .agg(
            before.median().alias("before"),
            after.median().alias("after"),
            pl.min_horizontal(before.len(), after.len()).alias("weight"),
        )
        .filter(pl.col("weight") >= _FEWEST_ALIKE)
    )
    if alike.is_empty():
        return 1.0, 1.0
    weights = alike["weight"].to_numpy()
    took = (
        float(np.average(alike[side].to_numpy(), weights=weights)) for side in ("before", "after")
    )
    return max(next(took), _RESOLUTION_MS), next(took)
