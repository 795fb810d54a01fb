"""Sums up a loaded log in the numbers that a performance engineer asks for first."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np

from sched_profiler.analysis.digest import Digest
from sched_profiler.analysis.markup import table
from sched_profiler.errors import counted

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from sched_profiler.analysis.runs import Run
    from sched_profiler.analysis.sketch import Sketch

    Floats = NDArray[np.float64]

__all__ = ["Distribution", "Summary", "summarize"]

WallTimeSource = Literal["model_run + idle", "timestamps", "mixed"]


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
    percentile_error: float
    """How far a percentile may be off, as a share of it: 0, or at most 0.001 where a log has so
    many different values that neighbours are taken together."""


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
        facts = [f"{label:<{_LABEL_WIDTH}}{fact}" for label, fact in _facts(self)]
        return "\n".join([_headline(self), "", *_table(self), "", *facts])

    def _repr_html_(self) -> str:
        header, *rows = _distributions(self)
        tables = table(rows, header) + table(_facts(self))
        return f"<p>{escape(_headline(self))}</p>{tables}"


def summarize(log: pd.DataFrame | Digest) -> Summary:
    """Sum up a log, or a selection of its rows.

    Args:
        log: as `scan` or `load` return it. Columns that a frame lacks count as not recorded;
            without a column `run`, all its rows are of one run.
    """
    digest = log if isinstance(log, Digest) else Digest.of_frame(log)
    runs = digest.runs
    walls = _wall_times(runs)
    tokens = int(digest.total_tokens.part) if digest.total_tokens.whole else None
    dropped = [int(run.num_dropped) for run in runs if np.isfinite(run.num_dropped)]
    missing = [run.num_missing for run in runs]
    prefill, decode = digest.chunks["prefill"], digest.chunks["decode"]
    return Summary(
        num_batches=digest.num_batches,
        num_runs=len(runs),
        schedule_duration_ms=_distribution(digest.durations["schedule"]),
        model_run_duration_ms=_distribution(digest.durations["model_run"]),
        total_step_duration_ms=_distribution(digest.durations["total_step"]),
        schedule_share_of_step=digest.schedule_of_step.value,
        critical_path_share=digest.critical_of_wall.value,
        mean_prefill_reqs=digest.mean_prefill_reqs.value,
        mean_decode_reqs=digest.mean_decode_reqs.value,
        prefill_chunk_size=_distribution(prefill),
        decode_chunk_size=_distribution(decode),
        total_scheduled_tokens=tokens,
        prefill_token_share=_ratio(prefill.total, prefill.total + decode.total),
        wall_time_s=walls.total_s,
        wall_time_source=walls.source,
        tokens_per_second=_ratio(tokens, walls.total_s),
        elapsed_time_s=walls.elapsed_s,
        combined_tokens_per_second=_ratio(tokens, walls.elapsed_s),
        busy_tokens_per_second=digest.tokens_of_busy.value,
        max_waiting_reqs=_as_int(_finite(digest.max_waiting_reqs)),
        max_kv_cache_usage=_finite(digest.max_kv_cache_usage),
        num_dropped_records=sum(dropped) if dropped else None,
        num_missing_batches=sum(n for n in missing if n is not None)
        if None not in missing
        else None,
        num_duplicate_batches=digest.num_duplicates,
        num_skipped_lines=digest.num_skipped_lines,
        num_half_written_lines=digest.num_half_written_lines,
    )


def _distribution(sketch: Sketch) -> Distribution | None:
    if not sketch.count:
        return None
    p50, p95, p99 = sketch.quantiles([0.50, 0.95, 0.99])
    return Distribution(
        count=sketch.count,
        mean=sketch.total / sketch.count,
        min=sketch.smallest,
        p50=p50,
        p95=p95,
        p99=p99,
        max=sketch.largest,
        percentile_error=sketch.relative_error,
    )


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _as_int(value: float | None) -> int | None:
    return None if value is None else int(value)


@attrs.frozen
class _WallTimes:
    """Wall time of the runs of a log."""

    total_s: float | None
    elapsed_s: float | None
    source: WallTimeSource | None


def _wall_times(runs: list[Run]) -> _WallTimes:
    """Return the wall time of all runs: see `Summary.wall_time_s`."""
    walls = [run.wall_time_s for run in runs]
    known = [wall for wall in walls if wall is not None]
    if not runs or len(known) < len(walls):
        return _WallTimes(None, None, None)
    measured = [run.is_measured for run in runs]
    source: WallTimeSource = "mixed"
    if all(measured):
        source = "model_run + idle"
    elif not any(measured):
        source = "timestamps"
    starts = np.array([run.start for run in runs])
    elapsed = _length_of_union(starts, starts + known) if np.isfinite(starts).all() else None
    return _WallTimes(sum(known), elapsed, source)


def _length_of_union(starts: Floats, ends: Floats) -> float:
    """Return how much of the time line the intervals cover together."""
    order = np.argsort(starts)
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    covered_until = np.concatenate((starts[:1], ends[:-1]))
    return float(np.maximum(0.0, ends - np.maximum(starts, covered_until)).sum())


def _headline(summary: Summary) -> str:
    line = f"{counted(summary.num_batches, 'batch', 'batches')} of "
    line += counted(summary.num_runs, "run")
    if summary.wall_time_s is None or summary.wall_time_source is None:
        return line
    how = _WALL_TIME_IS[summary.wall_time_source]
    return f"{line}, {summary.wall_time_s:,.3f} s of wall time ({how})"


_WALL_TIME_IS: dict[WallTimeSource, str] = {
    "model_run + idle": "the sum of model run and idle",
    "timestamps": "from the first timestamp to the end of the last step",
    "mixed": "of some runs the sum of model run and idle, of others from timestamps",
}


def _table(summary: Summary) -> list[str]:
    header, *rows = _distributions(summary)
    return [_line(label, cells) for label, *cells in (header, *rows)]


def _line(label: str, cells: list[str]) -> str:
    if len(cells) == 1:  # of a quantity that nothing is known of
        return f"{label:<{_LABEL_WIDTH}}{cells[0]}"
    return f"{label:<{_LABEL_WIDTH}}" + "".join(f"{cell:>{_CELL_WIDTH}}" for cell in cells)


def _distributions(summary: Summary) -> list[list[str]]:
    """Return a header and a row for each distribution."""
    columns = ("mean", "min", "p50", "p95", "p99", "max")
    rows = [["", *(name.upper() if name.startswith("p") else name for name in columns)]]
    for label, distribution, digits, nothing in (
        ("schedule, ms", summary.schedule_duration_ms, 3, _UNKNOWN),
        ("model run, ms", summary.model_run_duration_ms, 3, _UNKNOWN),
        ("total step, ms", summary.total_step_duration_ms, 3, _UNKNOWN),
        ("prefill chunk, tokens", summary.prefill_chunk_size, 1, "none"),
        ("decode chunk, tokens", summary.decode_chunk_size, 1, "none"),
    ):
        if distribution is None:
            rows.append([label, nothing])
            continue
        rows.append([label, *(f"{getattr(distribution, name):,.{digits}f}" for name in columns)])
    return rows


def _facts(summary: Summary) -> list[tuple[str, str]]:
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
    return facts


_UNKNOWN = "not recorded"
_LABEL_WIDTH = 24
_CELL_WIDTH = 12


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return _UNKNOWN if value is None else f"{value:,.{digits}f}{unit}"


def _percent(share: float | None, whole: str) -> str:
    return _UNKNOWN if share is None else f"{share:.2%}{whole}"
