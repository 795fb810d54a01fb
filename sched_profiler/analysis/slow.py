"""The slow batches of a log: who was in them, and how they differ from others like them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import pandas as pd

from sched_profiler.analysis.columns import numbers, prefill_tokens
from sched_profiler.analysis.composition import features
from sched_profiler.analysis.robust import spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Deviation", "SlowBatch", "slow_batches"]

NUM_NEIGHBOURS = 50
"""With so many batches, those most like it in the same run, a slow batch is compared."""
_ALIKE = 1.0
"""Batches farther apart than a factor of two in what they hold are not alike."""
_FEWEST = 5
_NOISE = 0.02
"""No time is more regular than this; else a batch would stand out by a hair."""
_RESOLUTION_MS = 0.001
_STANDS_OUT = 3.5
_WITH_A_DECIMAL = 100.0

_HELD = {
    "prefill": (0, 2),
    "decode": (1, 3),
    "prefill context": (4,),
    "decode context": (5,),
}
"""What a batch may hold more or less of than others, by the columns of `features`."""

_TIMES = {
    "schedule": "schedule_duration_ms",
    "queue": "queue_duration_ms",
    "model run": "model_run_duration_ms",
    "total step": "total_step_duration_ms",
    "update": "update_duration_ms",
    "idle": "idle_duration_ms",
}
_COUNTS = {
    "waiting": "num_waiting_reqs",
    "new": "num_new_reqs",
    "resumed": "num_resumed_reqs",
    "preempted": "num_preempted_reqs",
    "finished": "num_finished_reqs",
    "in flight": "num_inflight_batches",
}


@attrs.frozen(kw_only=True)
class Deviation:
    """One quantity of a batch beside what is usual for batches like it."""

    value: float
    usual: float
    """Median of the batches like it."""
    z: float
    """How many times farther from the median than the others stray: 0 is usual, beyond 3.5 is
    not. The spread of the others is their MAD, scaled to a standard deviation; for a time at least
    2% of the median, for a count at least 1."""

    @property
    def shown_z(self) -> str:
        """`z` in three digits at most: more mean nothing."""
        if abs(self.z) < _WITH_A_DECIMAL:
            return f"{self.z:+.1f}"
        return f"{float(f'{self.z:.3g}'):+,.0f}"


@attrs.frozen(kw_only=True)
class SlowBatch:
    """A slow batch; what the log lacks is None."""

    run: int
    """Number of the run in the frame."""
    dp_rank: int | None
    batch_id: int
    timestamp: float
    """Unix time in seconds at which schedule() began."""
    over: tuple[str, ...]
    """The limits that it exceeds: `schedule`, `model run`, `total step`; empty without limits."""
    num_prefill_reqs: int
    num_decode_reqs: int
    prefill_tokens: int
    decode_tokens: int
    prefill_chunk_sizes: tuple[int, ...]
    num_running_reqs: int
    num_waiting_reqs: int
    kv_cache_usage: float
    request_ids: tuple[str, ...] | None
    num_alike: int
    """Batches that it is compared with: up to 50 of its run, none of which differs by more than a
    factor of two in prefill or decode requests, tokens or context. With fewer than 5 there is
    nothing to compare with."""
    set_apart_by: str | None
    """Where there is nothing to compare with: `prefill`, `decode`, `prefill context` or `decode
    context`, if there are 5 batches of its run that differ in that alone; else None."""
    durations_ms: dict[str, float]
    """By `schedule`, `queue`, `model run`, `total step`, `update`, `idle`; without what is unknown.
    """
    deviations: dict[str, Deviation]
    """By `schedule`, `queue`, `model run`, `total step`, `update`, `idle` in ms, and `waiting`,
    `new`, `resumed`, `preempted`, `finished`, `in flight` in requests or batches."""

    @property
    def why_not_compared(self) -> str:
        """Why there is nothing to compare with, where there is not."""
        few = f"only {self.num_alike}" if self.num_alike else "no other"
        why = f"{few} of its run {'hold' if self.num_alike > 1 else 'holds'} about the same"
        if self.set_apart_by is None:
            return why
        return f"{why}; what sets it apart is {self.set_apart_by} alone"

    @property
    def unusual(self) -> dict[str, Deviation]:
        """The deviations that stand out, the largest first."""
        found = {name: c for name, c in self.deviations.items() if abs(c.z) > _STANDS_OUT}
        return dict(sorted(found.items(), key=lambda item: -abs(item[1].z)))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data."""
        return attrs.asdict(self)


def slow_batches(
    df: pd.DataFrame,
    *,
    schedule_over_ms: float | None = None,
    model_run_over_ms: float | None = None,
    total_over_ms: float | None = None,
    top: int = 20,
) -> list[SlowBatch]:
    """Return the slow batches of a loaded log, the slowest first.

    A batch is slow if one of its times is over its limit; it is the slower the more often that
    time holds the limit. Without limits, those with the longest total step are returned, or the
    longest schedule() where the log has no total.

    Args:
        df: as `load` returns it.
        schedule_over_ms: limit of schedule_duration_ms.
        model_run_over_ms: limit of model_run_duration_ms.
        total_over_ms: limit of total_step_duration_ms.
        top: how many to return at most.
    """
    limits = {
        "schedule": schedule_over_ms,
        "model run": model_run_over_ms,
        "total step": total_over_ms,
    }
    chosen = {name: limit for name, limit in limits.items() if limit is not None}
    times = {name: np.nan_to_num(numbers(df, _TIMES[name])) for name in limits}
    if chosen:
        slowness = np.max(
            [times[name] / max(limit, _RESOLUTION_MS) for name, limit in chosen.items()], axis=0
        )
        is_slow = np.any([times[name] > limit for name, limit in chosen.items()], axis=0)
    else:
        slowness = times["total step"] if times["total step"].any() else times["schedule"]
        is_slow = np.ones(len(df), dtype=np.bool_)
    rows = np.flatnonzero(is_slow)
    rows = rows[np.argsort(-slowness[rows], kind="stable")][:top]
    run = np.asarray(df["run"]) if "run" in df else np.zeros(len(df), dtype=np.int64)
    members = {number: np.flatnonzero(run == number) for number in np.unique(run[rows])}
    held = features(df)
    found = []
    for row in rows:
        over = tuple(name for name, limit in chosen.items() if times[name][row] > limit)
        alike = _alike(held, int(row), members[run[row]])
        apart = _set_apart_by(held, int(row), members[run[row]]) if len(alike) < _FEWEST else None
        found.append(_describe(df, int(row), int(run[row]), over, (alike, apart)))
    return found


def _set_apart_by(held: Floats, row: int, members: NDArray[np.int64]) -> str | None:
    """Return in what alone a batch differs from the most others, None if not from 5 of them."""
    counts = {}
    for name, columns in _HELD.items():
        others = np.delete(held, columns, axis=1)
        counts[name] = len(_alike(others, row, members))
    name = max(counts, key=lambda name: counts[name])
    return name if counts[name] >= _FEWEST else None


def _alike(held: Floats, row: int, members: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of the batches that are most like one, of several equal ones the nearest."""
    distance = np.abs(held[members] - held[row]).max(axis=1)
    order = np.lexsort((np.abs(members - row), distance))
    nearest = members[order][distance[order] <= _ALIKE]
    return np.asarray(nearest[nearest != row][:NUM_NEIGHBOURS])


def _describe(
    df: pd.DataFrame,
    row: int,
    run: int,
    over: tuple[str, ...],
    compared: tuple[NDArray[np.int64], str | None],
) -> SlowBatch:
    alike, set_apart_by = compared
    one, others = df.iloc[[row]], df.iloc[alike]
    deviations = {}
    for names, is_time in ((_TIMES, True), (_COUNTS, False)):
        for name, column in names.items():
            value, usual = float(numbers(one, column)[0]), numbers(others, column)
            usual = usual[~np.isnan(usual)]
            if not np.isnan(value) and len(usual) >= _FEWEST:
                deviations[name] = _compare(value, usual, is_time=is_time)

    def count(name: str) -> int:
        return int(np.nan_to_num(numbers(one, name)[0]))

    rank = numbers(one, "dp_rank")[0]
    prefill = int(prefill_tokens(one)[0])
    durations = {name: float(numbers(one, column)[0]) for name, column in _TIMES.items()}
    return SlowBatch(
        run=run,
        dp_rank=None if np.isnan(rank) else int(rank),
        batch_id=count("batch_id"),
        timestamp=float(numbers(one, "timestamp")[0]),
        over=over,
        num_prefill_reqs=count("num_prefill_reqs"),
        num_decode_reqs=count("num_decode_reqs"),
        prefill_tokens=prefill,
        decode_tokens=count("total_scheduled_tokens") - prefill,
        prefill_chunk_sizes=tuple(map(int, _items(one, "prefill_chunk_sizes") or ())),
        num_running_reqs=count("num_running_reqs"),
        num_waiting_reqs=count("num_waiting_reqs"),
        kv_cache_usage=float(numbers(one, "kv_cache_usage")[0]),
        request_ids=_items(one, "request_ids"),
        num_alike=len(alike),
        set_apart_by=set_apart_by,
        durations_ms={name: time for name, time in durations.items() if not np.isnan(time)},
        deviations=deviations,
    )


def _compare(value: float, usual: Floats, *, is_time: bool) -> Deviation:
    middle = float(np.median(usual))
    least = max(_NOISE * middle, _RESOLUTION_MS) if is_time else 1.0
    z = (value - middle) / max(spread(usual), least)
    return Deviation(value=value, usual=middle, z=round(z, 2))


def _items(one: pd.DataFrame, name: str) -> tuple[Any, ...] | None:
    """Return the list in a column of the one row, None where there is none."""
    items = one[name].iloc[0] if name in one else None
    return None if items is None or items is pd.NA else tuple(items)
