"""What a log comes down to: all that its summary, charts and findings need, of bounded size.

A digest takes a few dozen megabytes however long the log is, and digests of the parts of a log
merge into that of the whole: the same, but for the rounding of sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import polars as pl

from sched_profiler.analysis.columns import numbers
from sched_profiler.analysis.outline import SERIES, Outline
from sched_profiler.analysis.runs import Run, starts_over
from sched_profiler.analysis.sample import COLUMNS as SAMPLED
from sched_profiler.analysis.sample import FEWEST_BATCHES, Excerpt, share_out
from sched_profiler.analysis.sketch import Sketch
from sched_profiler.errors import SchedProfilerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray

    from sched_profiler.reader import Tally

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Mask = NDArray[np.bool_]

__all__ = ["COLUMNS", "Digest", "OverlapError", "Ratio"]

_DURATIONS = ("schedule", "model_run", "total_step")
_CHUNKS = ("prefill", "decode")
_NUMBERS = (
    "batch_id",
    "timestamp",
    *SERIES,
    "total_step_duration_ms",
    "queue_duration_ms",
    "token_budget",
    "num_dropped_records",
)
COLUMNS = (
    *dict.fromkeys((*_NUMBERS, *SAMPLED)),
    "run_id",
    "dp_rank",
    "prefill_chunk_sizes",
    "decode_chunk_sizes",
)
"""The fields of a record that are needed."""

_MS_PER_S = 1_000.0


class OverlapError(SchedProfilerError):
    """Two digests have batches in common, so that merging them would count those twice."""

    def __init__(self) -> None:
        """Say what to do."""
        super().__init__(
            "the digests have batches in common; scan their logs together, which counts each once"
        )


@attrs.define
class Ratio:
    """A sum over another, over the rows in which both are known."""

    part: float = 0.0
    whole: float = 0.0

    def add(self, part: Floats, whole: Floats) -> None:
        """Add rows."""
        known = ~np.isnan(part) & ~np.isnan(whole)
        self.part += float(part[known].sum())
        self.whole += float(whole[known].sum())

    def merge(self, other: Ratio) -> None:
        """Add the rows of another one."""
        self.part += other.part
        self.whole += other.whole

    @property
    def value(self) -> float | None:
        """The ratio, None where there is nothing to divide by."""
        return self.part / self.whole if self.whole else None


@attrs.define(eq=False)
class _Lives:
    """The runs of one log and rank whose records have no `run_id`, one after the other."""

    runs: list[Run]
    first: tuple[int, float]
    """batch_id and timestamp of the first row."""
    last: tuple[int, float]

    def goes_on(self, later: _Lives) -> bool:
        """Tell whether the last run goes on in what comes later in the same log."""
        ids, times = zip(self.last, later.first, strict=True)
        return not starts_over(np.array(ids), np.array(times))[0]

    def overlaps(self, later: _Lives) -> bool:
        """Tell whether the last run goes on and has a batch once more."""
        return self.goes_on(later) and self.runs[-1].seen.overlaps(later.runs[0].seen)

    def merge(self, later: _Lives) -> None:
        """Add what comes later in the same log."""
        if self.goes_on(later):
            self.runs[-1].merge(later.runs[0])
            self.runs += later.runs[1:]
        else:
            self.runs += later.runs
        self.last = later.last


@attrs.define(eq=False, repr=False)
class Digest:
    """All that the summary, the charts and the findings of some logs need; see `scan`."""

    num_batches: int = 0
    durations: dict[str, Sketch] = attrs.field(
        factory=lambda: {name: Sketch() for name in _DURATIONS}
    )
    chunks: dict[str, Sketch] = attrs.field(factory=lambda: {name: Sketch() for name in _CHUNKS})
    schedule_of_step: Ratio = attrs.field(factory=Ratio)
    critical_of_wall: Ratio = attrs.field(factory=Ratio)
    tokens_of_busy: Ratio = attrs.field(factory=Ratio)
    mean_prefill_reqs: Ratio = attrs.field(factory=Ratio)
    mean_decode_reqs: Ratio = attrs.field(factory=Ratio)
    total_tokens: Ratio = attrs.field(factory=Ratio)
    """The tokens, and in how many batches they are known."""
    max_waiting_reqs: float = -np.inf
    max_kv_cache_usage: float = -np.inf
    token_budgets: Sketch = attrs.field(factory=Sketch)
    _outline: Outline | None = attrs.field(factory=Outline)
    """None if no chart is wanted."""
    num_duplicates: int | None = None
    num_skipped_lines: int | None = None
    num_half_written_lines: int | None = None
    _named: dict[tuple[Any, ...], Run] = attrs.field(factory=dict)
    _nameless: dict[tuple[Any, ...], _Lives] = attrs.field(factory=dict)

    def __repr__(self) -> str:
        """Return what it is of: all it holds would fill pages."""
        return f"<Digest: {self.num_batches:,} batches, {len(self.runs):,} runs>"

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [
            *self._named.values(),
            *(run for one in self._nameless.values() for run in one.runs),
        ]

    @property
    def ordered_runs(self) -> list[Run]:
        """All runs in the order of their first batch: the numbers that `load` gives them."""
        return sorted(self.runs, key=lambda run: run.start)

    @property
    def outline(self) -> Outline:
        """What charts show.

        Raises:
            SchedProfilerError: if the log was scanned without it.
        """
        if self._outline is None:
            raise SchedProfilerError("this digest has no charts; scan the log with charts=True")
        return self._outline

    @property
    def num_sampled(self) -> int:
        """How many batches findings are concluded by."""
        return sum(len(run.sample) for run in self.runs)

    @property
    def num_runs_too_short(self) -> int:
        """How many runs have too few batches for findings."""
        return sum(run.num_batches < FEWEST_BATCHES for run in self.runs)

    def excerpts(self) -> Iterator[Excerpt]:
        """Yield the batches that are kept of each run, in the order of the runs' starts."""
        for number, run in enumerate(self.ordered_runs):
            yield Excerpt(
                run=number,
                run_id=run.run_id,
                dp_rank=run.dp_rank,
                num_batches=run.num_batches,
                rows=run.sample.rows(),
            )

    @classmethod
    def of_frame(cls, df: pd.DataFrame) -> Digest:
        """Return the digest of a loaded log, or of a selection of its rows.

        Columns that are missing count as not recorded; without a column `run`, all rows are of one
        run.
        """
        digest = cls(
            num_duplicates=df.attrs.get("num_duplicate_batches"),
            num_skipped_lines=df.attrs.get("num_skipped_lines"),
            num_half_written_lines=df.attrs.get("num_half_written_lines"),
        )
        columns = {name: numbers(df, name) for name in _NUMBERS}
        ids = numbers(df, "batch_id")
        which = df["run"].to_numpy() if "run" in df else np.zeros(len(df), dtype=np.int64)
        names, of_row = np.unique(which, return_inverse=True)
        for number, name in enumerate(names):
            rows = np.flatnonzero(of_row == number)
            run = digest._named[("run", name)] = Run(*_identity(df, rows[0]))
            run.add(rows, ids, columns)
        digest._add_columns(columns)
        for phase in _CHUNKS:
            name = f"{phase}_chunk_sizes"
            if name in df and len(df):
                digest.chunks[phase].add(*_counted(_flat(df[name])))
        return digest

    def add(self, rows: pl.DataFrame, log: str) -> None:
        """Add rows of `COLUMNS` that come next in a log, but no batch that is here already.

        Args:
            rows: the rows.
            log: name of the file they are from.
        """
        ids = rows["batch_id"].to_numpy()
        times = rows["timestamp"].to_numpy()
        is_new = np.ones(len(rows), dtype=bool)
        of_run = []
        for run, indices in self._runs_of(rows, log, ids, times):
            new = run.seen.add(ids[indices])
            if new is not None:
                is_new[indices] = new
                indices = indices[new]  # noqa: PLW2901 - the others are forgotten
            of_run.append((run, indices))
        if not is_new.all():
            rows = rows.filter(is_new)
            ids = ids[is_new]
            place = np.cumsum(is_new) - 1
            of_run = [(run, place[indices]) for run, indices in of_run]
        self.num_duplicates = (self.num_duplicates or 0) + int(np.count_nonzero(~is_new))
        columns = {name: rows[name].cast(pl.Float64).to_numpy() for name in {*_NUMBERS, *SAMPLED}}
        for run, indices in of_run:
            run.add(indices, ids, columns)
            run.sample.add(indices, ids, columns)
        share_out(run.sample for run in self.runs)
        self._add_columns(columns)
        for phase in _CHUNKS:
            sizes = rows[f"{phase}_chunk_sizes"].explode(empty_as_null=False)
            self.chunks[phase].add(*_counted(sizes.to_numpy()))

    def count_lines(self, tally: Tally) -> None:
        """Take over how many lines hold no record."""
        self.num_skipped_lines = (self.num_skipped_lines or 0) + tally.num_skipped_lines
        self.num_half_written_lines = (
            self.num_half_written_lines or 0
        ) + tally.num_half_written_lines

    def merge(self, later: Digest) -> None:
        """Add the digest of what comes later in the same logs, or of other logs.

        Raises:
            OverlapError: if they have batches in common; nothing was added then.
        """
        if self._overlaps(later):
            raise OverlapError
        for key, run in later._named.items():
            self._named.setdefault(key, Run(run.run_id, run.dp_rank)).merge(run)
        for key, lives in later._nameless.items():
            if key in self._nameless:
                self._nameless[key].merge(lives)
            else:
                self._nameless[key] = lives
        share_out(run.sample for run in self.runs)
        self.num_batches += later.num_batches
        for phase, sketch in later.chunks.items():
            self.chunks[phase].merge(sketch)
        for name, sketch in later.durations.items():
            self.durations[name].merge(sketch)
        for name in _RATIOS:
            getattr(self, name).merge(getattr(later, name))
        self.max_waiting_reqs = max(self.max_waiting_reqs, later.max_waiting_reqs)
        self.max_kv_cache_usage = max(self.max_kv_cache_usage, later.max_kv_cache_usage)
        self.token_budgets.merge(later.token_budgets)
        if self._outline is None or later._outline is None:
            self._outline = None
        else:
            self._outline.merge(later._outline)
        for name in ("num_duplicates", "num_skipped_lines", "num_half_written_lines"):
            known = [n for n in (getattr(self, name), getattr(later, name)) if n is not None]
            setattr(self, name, sum(known) if known else None)

    def _overlaps(self, later: Digest) -> bool:
        return any(
            key in self._named and self._named[key].seen.overlaps(run.seen)
            for key, run in later._named.items()
        ) or any(
            key in self._nameless and self._nameless[key].overlaps(lives)
            for key, lives in later._nameless.items()
        )

    def _runs_of(
        self, rows: pl.DataFrame, log: str, ids: Ints, times: Floats
    ) -> Iterator[tuple[Run, Ints]]:
        """Yield the runs that rows are of, each with the indices of its rows."""
        keys = rows.select("run_id", "dp_rank")
        different = keys.unique(maintain_order=True)
        if len(different) == 1:
            groups = [np.arange(len(rows))]
        else:
            numbered = different.with_row_index("number")
            number = keys.join(
                numbered, on=["run_id", "dp_rank"], nulls_equal=True, maintain_order="left"
            )["number"].to_numpy()
            groups = [np.flatnonzero(number == index) for index in range(len(different))]
        for (run_id, dp_rank), indices in zip(different.iter_rows(), groups, strict=True):
            if run_id is not None:
                yield self._named.setdefault((run_id, dp_rank), Run(run_id, dp_rank)), indices
                continue
            starts = np.flatnonzero(starts_over(ids[indices], times[indices])) + 1
            parts = np.split(indices, starts)
            lives = _Lives(
                [Run(None, dp_rank) for _ in parts],
                (int(ids[indices[0]]), float(times[indices[0]])),
                (int(ids[indices[-1]]), float(times[indices[-1]])),
            )
            if (log, dp_rank) in self._nameless:
                self._nameless[(log, dp_rank)].merge(lives)
            else:
                self._nameless[(log, dp_rank)] = lives
            # The first of them may have been here before.
            yield from zip(self._nameless[(log, dp_rank)].runs[-len(parts) :], parts, strict=True)

    def _add_columns(self, columns: dict[str, Floats]) -> None:
        """Add the numbers of rows, NaN where unknown."""
        schedule, model_run, total, queue, idle, tokens = (
            columns[name]
            for name in (
                "schedule_duration_ms",
                "model_run_duration_ms",
                "total_step_duration_ms",
                "queue_duration_ms",
                "idle_duration_ms",
                "total_scheduled_tokens",
            )
        )
        ones = np.ones(len(schedule))
        self.num_batches += len(schedule)
        for name, values in zip(_DURATIONS, (schedule, model_run, total), strict=True):
            self.durations[name].add(_known(values))
        self.schedule_of_step.add(schedule, total)
        waited = np.minimum(schedule, np.maximum(0.0, idle - queue))
        self.critical_of_wall.add(waited, model_run + idle)
        self.tokens_of_busy.add(tokens, model_run / _MS_PER_S)
        self.mean_prefill_reqs.add(columns["num_prefill_reqs"], ones)
        self.mean_decode_reqs.add(columns["num_decode_reqs"], ones)
        self.total_tokens.add(tokens, ones)
        self.max_waiting_reqs = max(self.max_waiting_reqs, _max(columns["num_waiting_reqs"]))
        self.max_kv_cache_usage = max(self.max_kv_cache_usage, _max(columns["kv_cache_usage"]))
        self.token_budgets.add(_known(columns["token_budget"]))
        if self._outline is not None:
            self._outline.add(columns)


_RATIOS = (
    "schedule_of_step",
    "critical_of_wall",
    "tokens_of_busy",
    "mean_prefill_reqs",
    "mean_decode_reqs",
    "total_tokens",
)


def _identity(df: pd.DataFrame, row: int) -> tuple[str | None, int | None]:
    """Return `run_id` and `dp_rank` of a row, None where unknown."""
    run_id = df["run_id"].iloc[row] if "run_id" in df else None
    dp_rank = numbers(df.iloc[[row]], "dp_rank")[0]
    return (
        run_id if isinstance(run_id, str) else None,
        None if np.isnan(dp_rank) else int(dp_rank),
    )


def _known(values: Floats) -> Floats:
    known: Floats = values[~np.isnan(values)]
    return known


def _max(values: Floats) -> float:
    return float(_known(values).max(initial=-np.inf))


def _flat(lists: pd.Series[Any]) -> Ints:
    import pyarrow as pa  # noqa: PLC0415 - it takes long to load, and pandas has loaded it
    import pyarrow.compute as pc  # noqa: PLC0415

    flat: Ints = pc.list_flatten(pa.array(lists)).cast(pa.int64()).to_numpy(zero_copy_only=False)
    return flat


_MAX_COUNTED_SIZE = 1 << 16


def _counted(sizes: Ints) -> tuple[Floats, Ints]:
    """Return the chunk sizes that occur, and how often each does.

    There are far more chunks than batches, but few different sizes.
    """
    if len(sizes) and sizes.min() >= 0 and sizes.max() < _MAX_COUNTED_SIZE:
        counts = np.bincount(sizes)
        different = np.flatnonzero(counts)
        counts = counts[different]
    else:
        different, counts = np.unique(sizes, return_counts=True)
    return different.astype(np.float64), counts
