"""Some batches of a run, by which its findings are concluded: all of a short run.

A run is cut into stretches of 512 batches. Of those of a long run as many are kept as there is
room for, spread evenly over it: first every 1024th, say, then those half-way between them, and so
on. Which ones they are depends on nothing but their `batch_id`s, so that samples of parts of a run
merge into that of the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["COLUMNS", "FEWEST_BATCHES", "MAX_STRETCHES", "Excerpt", "Sample", "share_out"]

COLUMNS = (
    "timestamp",
    "schedule_duration_ms",
    "model_run_duration_ms",
    "total_step_duration_ms",
    "queue_duration_ms",
    "update_duration_ms",
    "idle_duration_ms",
    "num_prefill_reqs",
    "num_decode_reqs",
    "total_scheduled_tokens",
    "num_prefill_tokens",
    "avg_prefill_chunk_size",
    "prefill_context_tokens",
    "decode_context_tokens",
    "num_cached_tokens",
    "num_draft_tokens",
    "num_accepted_tokens",
    "num_waiting_reqs",
    "num_running_reqs",
    "num_finished_reqs",
    "num_preempted_reqs",
    "kv_cache_usage",
    "token_budget",
)
"""What findings need to know of a batch, beside its `batch_id`."""

FEWEST_BATCHES = 110
"""A run of fewer is too short for findings: without the first ones, nobody knows what is usual."""

MAX_STRETCHES = 256
"""Most stretches that are kept of all runs of a log together, but one of each run in any case."""

_STRETCH_BITS = 9
_NUMBER_BITS = 63 - _STRETCH_BITS


@attrs.frozen(kw_only=True, eq=False)
class Excerpt:
    """Some batches of a run, or all of them."""

    run: int
    """Number of the run, as `load` counts them."""
    run_id: str | None
    dp_rank: int | None
    num_batches: int
    """How many the run has."""
    rows: pl.DataFrame
    """`batch_id` and `COLUMNS`, all of them numbers, NaN where unknown."""


def share_out(samples: Iterable[Sample]) -> None:
    """Cut samples so that all together have no more than `MAX_STRETCHES`.

    Runs of fewer stretches than the others may have keep all of theirs.
    """
    runs = list(samples)
    most = max((run.num_stretches for run in runs), default=0)
    while most > 1 and sum(min(run.num_stretches, most) for run in runs) > MAX_STRETCHES:
        most -= 1
    for run in runs:
        run.cut(most)


class Sample:
    """The batches that are kept of a run."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._stretches: dict[int, list[Floats]] = {}
        """By their ranks; a row a batch: its `batch_id` and `COLUMNS`, NaN where unknown."""
        self._limit = 1 << _NUMBER_BITS
        """Stretches of this rank, and later ones, were cut."""

    @property
    def num_stretches(self) -> int:
        """How many stretches are kept."""
        return len(self._stretches)

    def __len__(self) -> int:
        """Return how many batches are kept."""
        return sum(len(part) for parts in self._stretches.values() for part in parts)

    def add(self, rows: Ints, batch_ids: Ints, columns: Mapping[str, Floats]) -> None:
        """Add some rows of what `batch_ids` and `columns` hold, none of which was added before."""
        if not len(rows):
            return
        numbers = batch_ids[rows] >> _STRETCH_BITS
        if np.any(np.diff(numbers) < 0):
            order = np.argsort(numbers, kind="stable")
            rows, numbers = rows[order], numbers[order]
        different, starts = np.unique(numbers, return_index=True)
        for number, of_stretch in zip(different, np.split(rows, starts[1:]), strict=True):
            if (rank := _rank(int(number))) < self._limit:
                values = (columns[name][of_stretch] for name in COLUMNS)
                part = np.column_stack([batch_ids[of_stretch], *values])
                self._stretches.setdefault(rank, []).append(part)

    def merge(self, other: Sample) -> None:
        """Add the sample of another part of the same run."""
        for rank, parts in other._stretches.items():
            self._stretches.setdefault(rank, []).extend(parts)
        self._cut_at(min(self._limit, other._limit))

    def cut(self, most: int) -> None:
        """Keep so many stretches at most."""
        if len(self._stretches) > most:
            self._cut_at(sorted(self._stretches)[most])

    def rows(self) -> pl.DataFrame:
        """Return `batch_id` and `COLUMNS` of the batches that are kept, in their order."""
        parts = [part for parts in self._stretches.values() for part in parts]
        rows = np.concatenate([np.empty((0, 1 + len(COLUMNS))), *parts])
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        return pl.DataFrame(rows, schema=["batch_id", *COLUMNS])

    def _cut_at(self, limit: int) -> None:
        self._limit = limit
        self._stretches = {rank: part for rank, part in self._stretches.items() if rank < limit}


def _rank(number: int) -> int:
    """Return the number read backwards in binary.

    Numbers whose ranks are the lowest are spread evenly (the sequence of van der Corput).
    """
    return int(f"{number:0{_NUMBER_BITS}b}"[::-1], 2)
