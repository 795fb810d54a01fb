"""Why does the model stand still?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from sched_profiler.analysis.robust import spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sched_profiler.analysis.detectors.evidence import Evidence
    from sched_profiler.analysis.finding import Finding

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]

__all__ = ["critical_path", "gaps"]

_PATH = 0.10
_PATH_CRITICAL = 0.30

_GAP_SPREADS = 10.0
_GAP_OF_STEP = 0.5
_GAPS = 0.01
_GAPS_CRITICAL = 0.10
_FEWEST_GAPS = 3


@attrs.frozen(eq=False)
class _Idle:
    """The idle time before each batch by its cause, in ms; NaN where unknown."""

    schedule: Floats
    update: Floats
    rest: Floats
    """Neither, although there were requests to run; NaN where there were none."""

    @classmethod
    def of(cls, run: Evidence) -> _Idle:
        idle = run.column("idle_duration_ms")
        # The model was idle for no longer than schedule() ran because of it.
        waited = np.maximum(0.0, idle - run.column("queue_duration_ms"))
        schedule = np.minimum(run.column("schedule_duration_ms"), waited)
        # What was before a batch is known only where the one before it is.
        follows = np.diff(run.column("batch_id")) == 1
        update_before = _of_the_one_before(run.column("update_duration_ms"), follows)
        update = np.minimum(np.nan_to_num(update_before), idle - schedule)
        requests = run.column("num_running_reqs") + run.column("num_waiting_reqs")
        left = _of_the_one_before(requests, follows) - run.column("num_finished_reqs")
        rest = np.where(left > 0, idle - schedule - update, np.nan)
        return cls(schedule, update, rest)


def _of_the_one_before(values: Floats, follows: Mask) -> Floats:
    return np.concatenate(([np.nan], np.where(follows, values[:-1], np.nan)))


def critical_path(run: Evidence) -> Iterator[Finding]:
    """Look for a model that waits for the scheduler for a good part of the run."""
    idle = _Idle.of(run)
    schedule, update = (run.share(float(np.nansum(x))) for x in (idle.schedule, idle.update))
    if schedule + update < _PATH:
        return
    is_async = getattr(run.manifest, "async_scheduling", None)
    rest = run.share(float(np.nansum(idle.rest)))
    yield run.finding(
        "scheduler_on_critical_path",
        "critical" if schedule + update >= _PATH_CRITICAL else "warning",
        f"The model waits for the scheduler for {schedule + update:.0%} of the time: "
        f"{schedule:.1%} for schedule(), {update:.1%} for taking in results",
        numbers={
            "schedule_share_of_wall_time": schedule,
            "update_share_of_wall_time": update,
            "other_share_of_wall_time": rest,
            "schedule_ms_p50": float(np.median(run.column("schedule_duration_ms"))),
            "step_ms_p50": run.step_ms,
        },
        shown_by=(idle.schedule + idle.update) / np.maximum(run.wall_ms, 1e-3),
        remedy="Schedule while the model runs (--async-scheduling)."
        if is_async is False
        else "Let batches hold more, so that there are fewer of them, or schedule fewer requests "
        "at a time; asynchronous scheduling hides this time where the engine can do it.",
    )


def gaps(run: Evidence) -> Iterator[Finding]:
    """Look for long pauses of the model that neither the scheduler nor a lack of work explains."""
    rest = _Idle.of(run).rest
    known = ~np.isnan(rest)
    if not known.any():
        return
    usual = float(np.median(rest[known]))
    over = max(_GAP_SPREADS * spread(rest[known]), _GAP_OF_STEP * run.step_ms)
    gap = np.nan_to_num(rest) > usual + over
    count = int(gap.sum())
    lost = run.share(float(rest[gap].sum()))
    if count < _FEWEST_GAPS or lost < _GAPS:
        return
    if run.is_bad_luck(rest[gap] - usual, float(np.minimum(rest[known], usual + over).sum())):
        return
    typical, longest = float(np.median(rest[gap])), float(rest[gap].max())
    yield run.finding(
        "idle_gaps",
        "critical" if lost >= _GAPS_CRITICAL else "warning",
        f"The model stood still {count:,} times for {typical:.3g} ms (up to {longest:.3g} ms) "
        f"although there were requests to run: {lost:.1%} of the time",
        numbers={
            "num_gaps": count,
            "gap_ms_p50": typical,
            "gap_ms_max": longest,
            "usual_ms_p50": usual,
            "share_of_wall_time": lost,
        },
        shown_by=np.where(gap, rest, 0.0),
        remedy="Look at what else the engine's process does between steps: handing out answers, "
        "structured output, logging, garbage collection, or other processes on its cores.",
    )
