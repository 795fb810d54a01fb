"""Tells the runs of logs apart, and knows which of their batches were seen.

A run is one life of an engine. Its records carry `run_id` and `dp_rank`; in logs without `run_id`,
each log and rank is a run of its own, and a `batch_id` that starts over later in it begins a new
one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from sched_profiler.analysis.sample import Sample
from sched_profiler.analysis.sketch import Sketch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["Ranges", "Run", "starts_over"]


def starts_over(batch_ids: Ints, timestamps: Floats) -> NDArray[np.bool_]:
    """Tell for each row of a log but the first whether a new run begins with it.

    One does where `batch_id` does not go up although time does: lines that merely came out of order
    fall back in both, and a clock that was set back falls back in time alone.
    """
    begins: NDArray[np.bool_] = (np.diff(batch_ids) <= 0) & (np.diff(timestamps) >= 0)
    return begins


class Ranges:
    """A set of whole numbers, most of which come in order."""

    def __init__(self) -> None:
        """Make an empty set."""
        self._starts = np.empty(0, dtype=np.int64)
        self._ends = np.empty(0, dtype=np.int64)  # each is the last number of its range

    def add(self, numbers: Ints) -> NDArray[np.bool_] | None:
        """Add numbers; tell for each whether it is new, None if all are."""
        if not len(numbers):
            return None
        is_new = None
        if np.all(np.diff(numbers) > 0):
            ordered = numbers
        else:
            ordered, first = np.unique(numbers, return_index=True)
            if len(ordered) < len(numbers):
                is_new = np.zeros(len(numbers), dtype=bool)
                is_new[first] = True
        inside = self._has(ordered)
        if inside.any():
            # Of several that are equal, the first was the one to be new.
            known = np.isin(numbers, ordered[inside])
            is_new = ~known if is_new is None else is_new & ~known
            ordered = ordered[~inside]
        breaks = np.flatnonzero(np.diff(ordered) > 1)
        starts = ordered[np.concatenate(([0], breaks + 1))] if len(ordered) else ordered
        ends = ordered[np.concatenate((breaks, [-1]))] if len(ordered) else ordered
        self._unite(starts, ends)
        return is_new

    def overlaps(self, other: Ranges) -> bool:
        """Tell whether the sets have a number in common."""
        # A range of one meets a range of the other exactly if either begins inside the other.
        return bool(self._has(other._starts).any() or other._has(self._starts).any())

    def update(self, other: Ranges) -> None:
        """Add all numbers of a set that has none in common with this one."""
        self._unite(other._starts, other._ends)

    def _has(self, numbers: Ints) -> NDArray[np.bool_]:
        if not len(self._starts):
            return np.zeros(len(numbers), dtype=bool)
        index = np.searchsorted(self._starts, numbers, side="right") - 1
        inside: NDArray[np.bool_] = (index >= 0) & (numbers <= self._ends[np.maximum(index, 0)])
        return inside

    def _unite(self, starts: Ints, ends: Ints) -> None:
        """Add ranges that meet none of those that are here."""
        if not len(starts):
            return
        if len(self._starts) and starts[0] <= self._ends[-1]:
            starts, ends = (
                np.concatenate((self._starts, starts)),
                np.concatenate((self._ends, ends)),
            )
            order = np.argsort(starts)
            starts, ends = starts[order], ends[order]
        elif len(self._starts):
            starts = np.concatenate((self._starts, starts))
            ends = np.concatenate((self._ends, ends))
        apart = starts[1:] - ends[:-1] > 1
        self._starts = starts[np.concatenate(([True], apart))]
        self._ends = ends[np.concatenate((apart, [True]))]


_DURATIONS = ("schedule_duration_ms", "model_run_duration_ms")
_FEW_VALUES = 4_096
"""There may be thousands of runs; a quantile of theirs may be off by less than half a percent."""


@attrs.define(eq=False)
class Run:
    """What is known of one run: when it was, how it went, and what it had to say of its records."""

    run_id: str | None = None
    dp_rank: int | None = None
    seen: Ranges = attrs.field(factory=Ranges)
    num_batches: int = 0
    num_measured: int = 0
    """Batches that have a model_run_duration_ms."""
    num_complete: int = 0
    """Batches that have an idle_duration_ms as well."""
    occupied_ms: float = 0.0
    """Sum of both, over those."""
    start: float = np.inf
    """Unix time of the first batch, in s; infinite where none has one."""
    last: float = -np.inf
    """Unix time of the last batch."""
    end: float = -np.inf
    """When the last step ended, as far as is known."""
    first_batch: int | None = None
    last_batch: int | None = None
    num_unnumbered: int = 0
    """Batches without a batch_id."""
    num_dropped: float = -np.inf
    """Records that the engine itself counted as dropped; infinitely few if it counts none."""
    durations: dict[str, Sketch] = attrs.field(
        factory=lambda: {name: Sketch(_FEW_VALUES) for name in _DURATIONS}
    )
    """Of `schedule_duration_ms` and `model_run_duration_ms`."""
    num_tokens: float = 0.0
    max_waiting_reqs: float = -np.inf
    max_kv_cache_usage: float = -np.inf
    sample: Sample = attrs.field(factory=Sample)
    """Batches by which its findings are concluded."""

    def add(self, rows: Ints, batch_ids: NDArray[Any], columns: Mapping[str, Floats]) -> None:
        """Add some rows of what `batch_ids` and `columns` hold; NaN is unknown."""
        if not len(rows):
            return
        schedule, model_run, total, idle, timestamp, dropped = (
            columns[name][rows]
            for name in (
                "schedule_duration_ms",
                "model_run_duration_ms",
                "total_step_duration_ms",
                "idle_duration_ms",
                "timestamp",
                "num_dropped_records",
            )
        )
        self.num_batches += len(rows)
        occupied = model_run + idle
        self.num_measured += int(np.count_nonzero(~np.isnan(model_run)))
        self.num_complete += int(np.count_nonzero(~np.isnan(occupied)))
        self.occupied_ms += float(np.nansum(occupied))
        self.start = min(self.start, _least(timestamp))
        self.last = max(self.last, -_least(-timestamp))
        step = np.where(np.isnan(total), schedule, total)
        self.end = max(self.end, -_least(-(timestamp + step / 1e3)))
        self.num_dropped = max(self.num_dropped, -_least(-dropped))
        for name, sketch in self.durations.items():
            values = columns[name][rows]
            sketch.add(values[~np.isnan(values)])
        self.num_tokens += float(np.nansum(columns["total_scheduled_tokens"][rows]))
        self.max_waiting_reqs = max(
            self.max_waiting_reqs, -_least(-columns["num_waiting_reqs"][rows])
        )
        self.max_kv_cache_usage = max(
            self.max_kv_cache_usage, -_least(-columns["kv_cache_usage"][rows])
        )
        ids = batch_ids[rows]
        numbered = ids[ids == ids]  # noqa: PLR0124 - NaN is not equal to itself
        self.num_unnumbered += len(ids) - len(numbered)
        if len(numbered):
            self._widen(int(numbered.min()), int(numbered.max()))

    def _widen(self, first: int | None, last: int | None) -> None:
        if first is not None and last is not None:
            self.first_batch = first if self.first_batch is None else min(self.first_batch, first)
            self.last_batch = last if self.last_batch is None else max(self.last_batch, last)

    @property
    def num_missing(self) -> int | None:
        """Gaps between the first and the last batch_id; None where a row has none."""
        if self.num_unnumbered or self.first_batch is None or self.last_batch is None:
            return None
        return self.last_batch - self.first_batch + 1 - self.num_batches

    @property
    def is_measured(self) -> bool:
        """Whether model_run + idle tells its wall time."""
        # One batch that ran but lacks its idle time would leave a hole in the sum.
        return 0 < self.num_complete == self.num_measured

    @property
    def wall_time_s(self) -> float | None:
        """Its wall time; None where it has no time at all."""
        wall = self.occupied_ms / 1e3 if self.is_measured else self.end - self.start
        return wall if np.isfinite(wall) else None

    def merge(self, other: Run) -> None:
        """Add another part of the same run, which has no batch in common with this one."""
        self.seen.update(other.seen)
        self.num_batches += other.num_batches
        self.num_measured += other.num_measured
        self.num_complete += other.num_complete
        self.occupied_ms += other.occupied_ms
        self.start = min(self.start, other.start)
        self.last = max(self.last, other.last)
        self.end = max(self.end, other.end)
        self._widen(other.first_batch, other.last_batch)
        self.num_unnumbered += other.num_unnumbered
        self.num_dropped = max(self.num_dropped, other.num_dropped)
        for name, sketch in other.durations.items():
            self.durations[name].merge(sketch)
        self.num_tokens += other.num_tokens
        self.max_waiting_reqs = max(self.max_waiting_reqs, other.max_waiting_reqs)
        self.max_kv_cache_usage = max(self.max_kv_cache_usage, other.max_kv_cache_usage)
        self.sample.merge(other.sample)


def _least(values: Floats) -> float:
    """Return the smallest of the values that are known, infinity where none is."""
    return float(np.fmin.reduce(values, initial=np.inf))
