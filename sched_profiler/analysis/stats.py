"""Sums up a loaded log in the numbers that a performance engineer asks for first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sched_profiler.analysis.columns import numbers

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["Distribution", "Summary", "summarize"]

WallTimeSource = Literal["model_run + idle", "timestamps", "mixed"]

_MS_PER_S = 1_000.0


@attrs.frozen(kw_only=True)
class Distribution:
    """How a quantity is distributed; percentiles are interpolated linearly between values."""

    count: int
    """How many values were recorded; the others are unknown and left out of everything else."""
    mean: float
    min: float
    p50: float
    p95: float
    p99: float
    max: float


@attrs.frozen(kw_only=True)
class Summary:
    """What a log says about its batches; `None` where the log did not record it, never 0.

    `str()` gives an aligned text, `to_dict()` and `to_json()` plain data.
    """

    num_batches: int
    num_runs: int
    """Lives of an engine: see `load` for what tells them apart."""

    schedule_duration_ms: Distribution | None
    model_run_duration_ms: Distribution | None
    total_step_duration_ms: Distribution | None
    schedule_share_of_step: float | None
    """Sum of schedule_duration_ms / sum of total_step_duration_ms, over the batches that have
    both: of the latency of a step, the share that is scheduling. Overlapping steps count the same
    second more than once."""
    critical_path_share: float | None
    """Share of wall time, from 0 to 1, for which the model waited for schedule(): the sum of
    min(schedule, max(0, idle - queue)) / the sum of (model_run + idle), over the batches that
    have all four. The model was idle before a batch for as long as nothing was scheduled, which
    is the fault of schedule() for no longer than it ran."""

    mean_prefill_reqs: float | None
    """Mean of num_prefill_reqs over batches."""
    mean_decode_reqs: float | None
    """Mean of num_decode_reqs over batches."""
    prefill_chunk_size: Distribution | None
    """Tokens of each prefill chunk, over chunks and not over batches."""
    decode_chunk_size: Distribution | None
    """Tokens of each decode chunk, over chunks and not over batches."""

    total_scheduled_tokens: int | None
    prefill_token_share: float | None
    """Share of the scheduled tokens that belong to prefill requests, from 0 to 1."""
    wall_time_s: float | None
    """Wall time of each run, summed over runs: two ranks that run for 10 s side by side make
    20 s. For a run, the sum of (model_run + idle) over its batches; where the log lacks these,
    the end of its last step minus the start of its first, where a step without a
    total_step_duration_ms ends with schedule()."""
    wall_time_source: WallTimeSource | None
    """Which of the two it was; `mixed` if not the same for all runs."""
    tokens_per_second: float | None
    """Scheduled tokens / wall_time_s: the mean throughput of one engine while it lived."""
    elapsed_time_s: float | None
    """Time for which at least one run was under way; less than wall_time_s where runs, such as
    data-parallel ranks, overlap. A run is under way from its first timestamp for its wall time."""
    combined_tokens_per_second: float | None
    """Scheduled tokens / elapsed_time_s: the throughput of all engines together. The same as
    tokens_per_second for one run and for runs one after the other; about N times as much for N
    ranks side by side."""
    busy_tokens_per_second: float | None
    """Scheduled tokens / sum of model_run_duration_ms, over the batches that have it: the
    throughput of one engine while its model runs."""

    max_waiting_reqs: int | None
    max_kv_cache_usage: float | None
    """From 0 to 1."""

    num_dropped_records: int | None
    """Records that the engine itself counted as dropped, as far as its last record tells."""
    num_missing_batches: int | None
    """Gaps in the batch_id of a run, between its first and its last record: batches that have no
    record, whatever the reason. Means nothing for a frame from which rows were taken out."""
    num_duplicate_batches: int | None
    """Records left out because the same batch of the same run had one already."""
    num_skipped_lines: int | None
    """Lines that hold no record and were skipped on demand."""
    num_half_written_lines: int | None
    """Last lines of a log that their writer had not finished."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data, distributions as nested dicts."""
        return attrs.asdict(self)

    def to_json(self) -> str:
        """Return all fields as indented JSON; what is unknown is null."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        """Return an aligned text of about 20 lines."""
        return "\n".join([_headline(self), "", *_table(self), "", *_facts(self)])


def summarize(df: pd.DataFrame) -> Summary:
    """Sum up a loaded log, or a selection of its rows.

    Columns that are missing count as not recorded.

    Args:
        df: as `load` returns it; without a column `run`, all rows are of one run.
    """
    schedule, model_run, total, queue, idle = (
        numbers(df, f"{name}_duration_ms")
        for name in ("schedule", "model_run", "total_step", "queue", "idle")
    )
    tokens = numbers(df, "total_scheduled_tokens")
    prefill, decode = (_chunk_counts(df, f"{phase}_chunk_sizes") for phase in ("prefill", "decode"))
    prefill_tokens, decode_tokens = (int(sizes @ counts) for sizes, counts in (prefill, decode))
    runs = _Runs.of(df)
    walls = runs.wall_times(df)
    total_tokens = None if np.isnan(tokens).all() else int(np.nansum(tokens))
    return Summary(
        num_batches=len(df),
        num_runs=runs.count,
        schedule_duration_ms=_distribution(schedule),
        model_run_duration_ms=_distribution(model_run),
        total_step_duration_ms=_distribution(total),
        schedule_share_of_step=_share(schedule, total),
        critical_path_share=_share(
            np.minimum(schedule, np.maximum(0.0, idle - queue)), model_run + idle
        ),
        mean_prefill_reqs=_mean(numbers(df, "num_prefill_reqs")),
        mean_decode_reqs=_mean(numbers(df, "num_decode_reqs")),
        prefill_chunk_size=_distribution_of_counts(*prefill),
        decode_chunk_size=_distribution_of_counts(*decode),
        total_scheduled_tokens=total_tokens,
        prefill_token_share=_ratio(prefill_tokens, prefill_tokens + decode_tokens),
        wall_time_s=walls.total_s,
        wall_time_source=walls.source,
        tokens_per_second=_ratio(total_tokens, walls.total_s),
        elapsed_time_s=walls.elapsed_s,
        combined_tokens_per_second=_ratio(total_tokens, walls.elapsed_s),
        busy_tokens_per_second=_share(tokens, model_run / _MS_PER_S),
        max_waiting_reqs=_as_int(_max(numbers(df, "num_waiting_reqs"))),
        max_kv_cache_usage=_max(numbers(df, "kv_cache_usage")),
        num_dropped_records=runs.num_dropped_records(df),
        num_missing_batches=runs.num_missing_batches(df),
        num_duplicate_batches=df.attrs.get("num_duplicate_batches"),
        num_skipped_lines=df.attrs.get("num_skipped_lines"),
        num_half_written_lines=df.attrs.get("num_half_written_lines"),
    )


def _distribution(values: Floats) -> Distribution | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    p50, p95, p99 = np.quantile(values, [0.50, 0.95, 0.99])
    return Distribution(
        count=len(values),
        mean=float(values.mean()),
        min=float(values.min()),
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        max=float(values.max()),
    )


def _chunk_counts(df: pd.DataFrame, name: str) -> tuple[Ints, Ints]:
    """Return the chunk sizes that occur, in ascending order, and how often each does.

    There are far more chunks than batches, but few different sizes.
    """
    empty = np.empty(0, dtype=np.int64)
    if name not in df or df.empty:
        return empty, empty
    counted = pc.value_counts(pc.list_flatten(pa.array(df[name])))
    sizes, counts = (
        counted.field(part).cast(pa.int64()).to_numpy(zero_copy_only=False)
        for part in ("values", "counts")
    )
    order = np.argsort(sizes)
    return sizes[order], counts[order]


def _distribution_of_counts(sizes: Ints, counts: Ints) -> Distribution | None:
    """Return what `_distribution` would of the sizes, each repeated as often as it occurs."""
    if not len(sizes):
        return None
    ends = np.cumsum(counts)
    count = int(ends[-1])
    positions = np.array([0.50, 0.95, 0.99]) * (count - 1)
    below, above = (
        sizes[np.searchsorted(ends, rounded(positions), side="right")].astype(float)
        for rounded in (np.floor, np.ceil)
    )
    p50, p95, p99 = below + (above - below) * (positions % 1)
    return Distribution(
        count=count,
        mean=float(sizes @ counts / count),
        min=float(sizes[0]),
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        max=float(sizes[-1]),
    )


def _share(part: Floats, whole: Floats) -> float | None:
    """Return sum of part / sum of whole, over the batches in which both are known."""
    known = ~np.isnan(part) & ~np.isnan(whole)
    return _ratio(float(part[known].sum()), float(whole[known].sum()))


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _mean(values: Floats) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _max(values: Floats) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.max()) if len(values) else None


def _as_int(value: float | None) -> int | None:
    return None if value is None else int(value)


@attrs.frozen
class _WallTimes:
    """Wall time of the runs of a log."""

    total_s: float | None
    elapsed_s: float | None
    source: WallTimeSource | None


@attrs.frozen(eq=False)
class _Runs:
    """Which rows of a frame belong to which run."""

    count: int
    of_row: Ints
    """Number of the run of each row, from 0 and without gaps."""

    @classmethod
    def of(cls, df: pd.DataFrame) -> _Runs:
        if "run" not in df:
            return cls(min(len(df), 1), np.zeros(len(df), dtype=np.int64))
        names, of_row = np.unique(df["run"].to_numpy(), return_inverse=True)
        return cls(len(names), of_row)

    def _sum(self, values: Floats) -> Floats:
        return np.bincount(self.of_row, weights=values, minlength=self.count).astype(np.float64)

    def _max(self, values: Floats) -> Floats:
        """Return the largest known value of each run, NaN where none is known."""
        largest = np.full(self.count, np.nan)
        np.fmax.at(largest, self.of_row, values)
        return largest

    def wall_times(self, df: pd.DataFrame) -> _WallTimes:
        """Return the wall time of all runs: see `Summary.wall_time_s`."""
        schedule, model_run, total, idle, timestamp = (
            numbers(df, name)
            for name in (
                "schedule_duration_ms",
                "model_run_duration_ms",
                "total_step_duration_ms",
                "idle_duration_ms",
                "timestamp",
            )
        )
        occupied = model_run + idle
        # One batch that ran but lacks its idle time would leave a hole in the sum.
        num_complete = self._sum(~np.isnan(occupied))
        measured = (num_complete > 0) & (num_complete == self._sum(~np.isnan(model_run)))
        step = np.where(np.isnan(total), schedule, total)
        start, end = -self._max(-timestamp), self._max(timestamp + step / _MS_PER_S)
        wall = np.where(measured, self._sum(np.nan_to_num(occupied)) / _MS_PER_S, end - start)
        if df.empty or np.isnan(wall).any():
            return _WallTimes(None, None, None)
        source: WallTimeSource = "mixed"
        if measured.all():
            source = "model_run + idle"
        elif not measured.any():
            source = "timestamps"
        return _WallTimes(float(wall.sum()), _length_of_union(start, start + wall), source)

    def num_dropped_records(self, df: pd.DataFrame) -> int | None:
        """Return how many records the engines dropped, None where no run counts them."""
        dropped = self._max(numbers(df, "num_dropped_records"))
        return None if np.isnan(dropped).all() else int(np.nansum(dropped))

    def num_missing_batches(self, df: pd.DataFrame) -> int | None:
        """Return how many batches have no record: see `Summary.num_missing_batches`."""
        batch_id = numbers(df, "batch_id")
        if np.isnan(batch_id).any():
            return None
        spans = self._max(batch_id) + self._max(-batch_id) + 1
        return int(spans.sum()) - len(df)


def _length_of_union(starts: Floats, ends: Floats) -> float:
    """Return how much of the time line the intervals cover together."""
    order = np.argsort(starts)
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    covered_until = np.concatenate((starts[:1], ends[:-1]))
    return float(np.maximum(0.0, ends - np.maximum(starts, covered_until)).sum())


def _headline(summary: Summary) -> str:
    line = f"{_count(summary.num_batches, 'batch', 'batches')} of "
    line += _count(summary.num_runs, "run", "runs")
    if summary.wall_time_s is None:
        return line
    return f"{line}, {summary.wall_time_s:,.3f} s of wall time (from {summary.wall_time_source})"


def _table(summary: Summary) -> list[str]:
    columns = ("mean", "min", "p50", "p95", "p99", "max")
    names = (name.upper() if name.startswith("p") else name for name in columns)
    lines = [" " * _LABEL_WIDTH + "".join(f"{name:>{_CELL_WIDTH}}" for name in names)]
    for label, distribution, digits, nothing in (
        ("schedule, ms", summary.schedule_duration_ms, 3, _UNKNOWN),
        ("model run, ms", summary.model_run_duration_ms, 3, _UNKNOWN),
        ("total step, ms", summary.total_step_duration_ms, 3, _UNKNOWN),
        ("prefill chunk, tokens", summary.prefill_chunk_size, 1, "none"),
        ("decode chunk, tokens", summary.decode_chunk_size, 1, "none"),
    ):
        if distribution is None:
            lines.append(f"{label:<{_LABEL_WIDTH}}{nothing}")
            continue
        cells = (f"{getattr(distribution, name):>{_CELL_WIDTH},.{digits}f}" for name in columns)
        lines.append(f"{label:<{_LABEL_WIDTH}}" + "".join(cells))
    return lines


def _facts(summary: Summary) -> list[str]:
    s = summary
    facts = [
        ("scheduling", _percent(s.schedule_share_of_step, " of the step")),
        ("on the critical path", _percent(s.critical_path_share, " of wall time")),
        ("prefill per batch", _number(s.mean_prefill_reqs, 2, " requests")),
        ("decode per batch", _number(s.mean_decode_reqs, 2, " requests")),
        ("scheduled tokens", _number(s.total_scheduled_tokens, 0)),
        ("prefill share", _percent(s.prefill_token_share, " of the tokens")),
        ("throughput", _number(s.tokens_per_second, 1, " tokens/s over wall time")),
        ("while the model runs", _number(s.busy_tokens_per_second, 1, " tokens/s")),
    ]
    if s.num_runs > 1:
        over = f" tokens/s over {_number(s.elapsed_time_s, 3)} s with a run under way"
        facts.append(("all runs together", _number(s.combined_tokens_per_second, 1, over)))
    facts += [
        ("waiting, peak", _number(s.max_waiting_reqs, 0, " requests")),
        ("KV cache, peak", _percent(s.max_kv_cache_usage, " in use")),
        ("dropped records", _number(s.num_dropped_records, 0)),
        ("gaps in batch_id", _number(s.num_missing_batches, 0, " batches")),
    ]
    facts += [
        (label, _number(number, 0, " left out"))
        for label, number in (
            ("invalid lines", s.num_skipped_lines),
            ("half-written lines", s.num_half_written_lines),
            ("duplicate batches", s.num_duplicate_batches),
        )
        if number
    ]
    return [f"{label:<{_LABEL_WIDTH}}{fact}" for label, fact in facts]


_UNKNOWN = "not recorded"
_LABEL_WIDTH = 24
_CELL_WIDTH = 12


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number:,} {singular if number == 1 else plural}"


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return _UNKNOWN if value is None else f"{value:,.{digits}f}{unit}"


def _percent(share: float | None, whole: str) -> str:
    return _UNKNOWN if share is None else f"{share:.2%}{whole}"
