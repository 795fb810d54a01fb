"""Loads logs into a pandas.DataFrame, one row a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sched_profiler.analysis.rows import read_rows
from sched_profiler.analysis.runs import starts_over
from sched_profiler.log_files import LogPath, find_logs, logs_to_read
from sched_profiler.parquet import SCHEMA
from sched_profiler.reader import Tally, empty_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["COLUMNS", "load"]

_TEXT = pd.StringDtype(storage="pyarrow", na_value=pd.NA)
_PANDAS_TYPES = {pa.int64(): pd.Int64Dtype(), pa.float64(): pd.Float64Dtype(), pa.string(): _TEXT}
_PANDAS_TYPES |= {
    field.type: pd.ArrowDtype(field.type) for field in SCHEMA if pa.types.is_list(field.type)
}


def _dtype(field: Any) -> Any:
    if field.nullable or pa.types.is_list(field.type):
        return _PANDAS_TYPES[field.type]
    return np.dtype(field.type.to_pandas_dtype())


_DTYPES = {field.name: _dtype(field) for field in SCHEMA}

COLUMNS: dict[str, str] = {"run": "int64"} | {name: str(dtype) for name, dtype in _DTYPES.items()}
"""Every column of a loaded log and its dtype, in order.

`run` numbers the runs from 0 in the order of their first batch. The others are the fields of
`BatchRecord`, with its meanings and units: `int64` and `float64` where a record always has a
value, `Int64`, `Float64` and `string` where it may be unknown (`pandas.NA`), and Arrow-backed
lists for the chunk sizes and request ids.
"""


def load(
    *logs: LogPath,
    skip_invalid: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Load one or several logs into one frame, a row a batch.

    All rows are held in memory, at about half a kilobyte each; `scan` takes logs of any length.

    The columns are those of `COLUMNS`, all of them always: one that the logs lack is all NA. Rows
    are in order of `run` and then `batch_id`. A run is one (`run_id`, `dp_rank`); in logs without
    `run_id`, each log and rank is a run of its own, and a `batch_id` that starts over later in it
    begins a new one. A log named twice is read once, and a batch found twice is kept once.

    What is not in the rows is in `df.attrs`: `num_logs`, `num_skipped_lines`,
    `num_half_written_lines` (see `Tally`), and `num_duplicate_batches`.

    Args:
        *logs: paths, folders, patterns with wildcards, or URLs of any of these; files may be
            Parquet, or compressed with gzip or zstd.
        skip_invalid: go on after a line that holds no record, and count it.
        progress: called again and again with the number of bytes read so far and of all bytes, as
            they are on the disk.

    Raises:
        LogError: if a log is missing, a line holds no record, or the logs hold none at all.
    """
    total = sum(file.num_bytes for file in find_logs(*logs)) if progress else 0
    tally = Tally()
    tables, sources, num_logs = [], [], 0
    for source, file in enumerate(logs_to_read(*logs)):
        num_logs += 1
        for rows in read_rows(file, tally, SCHEMA.names, skip_invalid=skip_invalid):
            tables.append(rows.to_arrow().cast(SCHEMA))
            sources.append(np.full(len(rows), source, dtype=np.int32))
            if progress:
                progress(tally.num_bytes, total)
    if not any(map(len, sources)):
        raise empty_error(logs, tally)
    frame, num_duplicates = _assemble(tables, np.concatenate(sources))
    frame.attrs = {
        "num_logs": num_logs,
        "num_skipped_lines": tally.num_skipped_lines,
        "num_half_written_lines": tally.num_half_written_lines,
        "num_duplicate_batches": num_duplicates,
    }
    return frame


def _assemble(tables: list[Any], sources: NDArray[np.int32]) -> tuple[pd.DataFrame, int]:
    """Put tables together, rows in order; return the frame and how many batches came twice.

    Empties `tables`: what is no longer needed must not stay in memory beside its copy.
    """
    table = pa.concat_tables(tables)
    tables.clear()
    runs = _number_runs(table, sources)
    order = _order(runs, table["batch_id"].to_numpy())
    num_duplicates = 0
    if order is not None:
        num_duplicates = len(runs) - len(order)
        table, runs = table.take(order), runs[order]
    columns: dict[str, Any] = {"run": runs}
    for field in SCHEMA:
        column = table[field.name]
        table = table.drop_columns(field.name)
        dtype = _DTYPES[field.name]
        if isinstance(dtype, np.dtype):
            columns[field.name] = np.array(column.to_numpy())
        else:
            columns[field.name] = column.to_pandas(types_mapper=_PANDAS_TYPES.get)
    return pd.DataFrame(columns, copy=False), num_duplicates


def _number_runs(table: Any, sources: NDArray[np.int32]) -> NDArray[np.int64]:
    """Number the runs in the order of their first batch; return that of each row.

    `sources` are the numbers of the logs that the rows are from.
    """
    run_id = table["run_id"].combine_chunks().dictionary_encode().indices
    keys = pd.DataFrame(
        {
            "run_id": run_id.fill_null(-1).to_numpy(zero_copy_only=False),
            "dp_rank": table["dp_rank"].fill_null(-1).to_numpy(),
            "source": sources,
            "life": 0,
        }
    )
    timestamps = pd.Series(table["timestamp"].to_numpy())
    nameless = keys["run_id"] < 0
    keys.loc[~nameless, "source"] = 0  # a named run may go on in another log
    if nameless.any():
        keys["life"] = _number_lives(keys, pd.Series(table["batch_id"].to_numpy()), timestamps)
        keys.loc[~nameless, "life"] = 0
    run = keys.groupby(list(keys), sort=False).ngroup()
    by_first_batch = timestamps.groupby(run).min().rank(method="first").astype("int64") - 1
    return np.asarray(by_first_batch)[run]


def _number_lives(keys: pd.DataFrame, batch_ids: pd.Series, timestamps: pd.Series) -> pd.Series:
    """Return how often `batch_id` had started over before each row, in its log and rank."""
    lives = np.zeros(len(keys), dtype=np.int64)
    for rows in keys.groupby(["source", "run_id", "dp_rank"], sort=False).indices.values():
        begins = starts_over(batch_ids.to_numpy()[rows], timestamps.to_numpy()[rows])
        lives[rows[1:]] = np.cumsum(begins)
    return pd.Series(lives)


def _order(runs: NDArray[np.int64], batch_ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the rows in order, each batch once, or None where they already are."""
    later_run, same_run = np.diff(runs) > 0, np.diff(runs) == 0
    if np.all(later_run | (same_run & (np.diff(batch_ids) > 0))):
        return None
    order = np.lexsort((batch_ids, runs))
    again = (np.diff(runs[order]) == 0) & (np.diff(batch_ids[order]) == 0)
    return np.delete(order, np.flatnonzero(again) + 1)
