"""Loads logs into a pandas.DataFrame, one row a batch.

Blocks of lines go through a columnar parser, which is fast but laxer than the codec in a few
ways, each of which is looked for. A block that fails any check is read again line by line with
the codec: it alone decides what a record is, and it can name the line that is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args, get_origin

import attrs
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as arrow_json

from sched_profiler.errors import RecordError
from sched_profiler.log_files import LogFile, LogPath, logs_to_read
from sched_profiler.reader import Block, Tally, decode_block, empty_error, read_blocks
from sched_profiler.record import SCHEMA_VERSION, BatchRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

__all__ = ["COLUMNS", "load"]

_ARROW_TYPES = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    list[int]: pa.list_(pa.int32()),
    list[str]: pa.list_(pa.string()),
}
_PANDAS_TYPES = {
    pa.int64(): pd.Int64Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.string(): pd.StringDtype(storage="pyarrow", na_value=pd.NA),
    _ARROW_TYPES[list[int]]: pd.ArrowDtype(_ARROW_TYPES[list[int]]),
    _ARROW_TYPES[list[str]]: pd.ArrowDtype(_ARROW_TYPES[list[str]]),
}


def _split_type(annotation: Any) -> tuple[Any, bool]:
    """Return the type of a field without its None, and whether it had one."""
    kinds = [] if get_origin(annotation) is list else [*get_args(annotation)]
    if type(None) not in kinds:
        return annotation, False
    kinds.remove(type(None))
    return kinds[0], True


def _arrow_field(field: attrs.Attribute[Any]) -> Any:
    kind, nullable = _split_type(field.type)
    return pa.field(field.name, _ARROW_TYPES[kind], nullable=nullable)


_SCHEMA = pa.schema([_arrow_field(field) for field in attrs.fields(BatchRecord)])
# The parser takes a column that may not be null for a promise, not for a check.
_PARSE = arrow_json.ParseOptions(
    explicit_schema=pa.schema([pa.field(field.name, field.type) for field in _SCHEMA]),
    unexpected_field_behavior="ignore",
)
# Smaller pieces than a block, so that a block keeps all cores busy.
_READ = arrow_json.ReadOptions(block_size=512 << 10)


def _dtype(field: Any) -> Any:
    if field.nullable or pa.types.is_list(field.type):
        return _PANDAS_TYPES[field.type]
    return np.dtype(field.type.to_pandas_dtype())


_DTYPES = {field.name: _dtype(field) for field in _SCHEMA}

COLUMNS: dict[str, str] = {"run": "int64"} | {name: str(dtype) for name, dtype in _DTYPES.items()}
"""Every column of a loaded log and its dtype, in order.

`run` numbers the runs from 0 in the order of their first batch. The others are the fields of
`BatchRecord`, with its meanings and units: `int64` and `float64` where a record always has a
value, `Int64`, `Float64` and `string` where it may be unknown (`pandas.NA`), and Arrow-backed
lists for the chunk sizes and request ids.
"""

# Fields that the parser shows as null both where they are null and where they are missing,
# although a record must have them.
_NULL_BUT_REQUIRED = tuple(
    f'"{field.name}":'.encode()
    for field in attrs.fields(BatchRecord)
    if field.default is attrs.NOTHING
    and _SCHEMA.field(field.name).nullable
    and field.name not in ("model_run_duration_ms", "total_step_duration_ms")
)


def load(
    *logs: LogPath,
    skip_invalid: bool = False,
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Load one or several logs into one frame, a row a batch.

    The columns are those of `COLUMNS`, all of them always: one that the logs lack is all NA. Rows
    are in order of `run` and then `batch_id`. A run is one (`run_id`, `dp_rank`); in logs without
    `run_id`, each log and rank is a run of its own, and a `batch_id` that starts over later in it
    begins a new one. A log named twice is read once, and a batch found twice is kept once.

    What is not in the rows is in `df.attrs`: `num_logs`, `num_skipped_lines`,
    `num_half_written_lines` (see `Tally`), and `num_duplicate_batches`.

    Args:
        *logs: paths, folders, patterns with wildcards, or URLs of any of these; files may be
            compressed with gzip or zstd.
        skip_invalid: go on after a line that holds no record, and count it.
        progress: called with the number of bytes read so far, after each block.

    Raises:
        LogError: if a log is missing, a line holds no record, or the logs hold none at all.
    """
    tally = Tally()
    tables, sources, num_logs = [], [], 0
    for source, file in enumerate(logs_to_read(*logs)):
        num_logs += 1
        for table in _tables(file, tally, skip_invalid=skip_invalid):
            tables.append(table)
            sources.append(np.full(table.num_rows, source, dtype=np.int32))
            if progress:
                progress(tally.num_bytes)
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


def _tables(file: LogFile, tally: Tally, *, skip_invalid: bool) -> Iterator[Any]:
    """Yield a file as Arrow tables of `_SCHEMA`, one a block."""
    for block in read_blocks(file, tally):
        table = _parse(block)
        if table is None:
            rows = decode_block(block, tally, _row, skip_invalid=skip_invalid)
            table = pa.Table.from_pylist(list(rows), schema=_SCHEMA)
        yield table


def _parse(block: Block) -> Any | None:
    """Return the records of a block as a table, or None where only the codec can tell."""
    if not _is_plain(block):
        return None
    try:
        table = arrow_json.read_json(
            pa.BufferReader(block.data), read_options=_READ, parse_options=_PARSE
        )
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    if table.num_rows != block.num_lines or not _is_sound(table):
        return None
    return table.cast(_SCHEMA)


def _is_plain(block: Block) -> bool:
    r"""Tell whether a block is free of what the parser would take and the codec would not.

    - Several records in a line, or one over several lines: there are as many `{` and as many `}`
      at the end of a line as there are lines, so with as many rows every line is one flat object.
    - A required field that is missing: with flat objects, whose keys the parser holds to be
      unique, its key is there once a line.
    - A byte order mark, NaN and infinity (in fields that the parser ignores as well), and bytes
      that are not UTF-8.

    A log may have some of this and be valid, such as blank lines; it is then read more slowly.
    """
    data, num_lines = block.data, block.num_lines
    return (
        data.startswith(b"{")
        and data.count(b"{") == num_lines
        and data.count(b"}\n") == num_lines
        and all(data.count(key) == num_lines for key in _NULL_BUT_REQUIRED)
        # Looking for one byte first is far cheaper, and hardly any log has it.
        and not (b"N" in data and b"NaN" in data)
        and not (b"I" in data and b"Inf" in data)
        and _is_utf8(data)
    )


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_sound(table: Any) -> bool:
    """Tell whether the values are ones that the codec would take: no null in the wrong place."""
    for field in _SCHEMA:
        column = table[field.name]
        if column.null_count and not field.nullable:
            return False
        if pa.types.is_list(field.type) and pc.list_flatten(column).null_count:
            return False
    newest: int | None = pc.max(table["schema_version"]).as_py()
    return newest is None or newest <= SCHEMA_VERSION


def _row(record: BatchRecord) -> dict[str, Any]:
    """Return the fields of a record, all of which must fit their columns."""
    row = {field.name: getattr(record, field.name) for field in attrs.fields(BatchRecord)}
    for name, value in row.items():
        for number in value if isinstance(value, list) else (value,):
            bits = 31 if isinstance(value, list) else 63
            if isinstance(number, int) and not -(1 << bits) <= number < 1 << bits:
                raise RecordError(f"{name} is {number}; expected at most {(1 << bits) - 1}")
    return row


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
    for field in _SCHEMA:
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
    """Return how often `batch_id` had started over before each row, in its log and rank.

    It starts over where it does not go up although time does: lines that merely came out of order
    fall back in both, and a clock that was set back falls back in time alone.
    """
    source = [keys["source"], keys["run_id"], keys["dp_rank"]]
    starts_over = (batch_ids.groupby(source).diff() <= 0) & (timestamps.groupby(source).diff() >= 0)
    return starts_over.astype("int64").groupby(source).cumsum()


def _order(runs: NDArray[np.int64], batch_ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the rows in order, each batch once, or None where they already are."""
    later_run, same_run = np.diff(runs) > 0, np.diff(runs) == 0
    if np.all(later_run | (same_run & (np.diff(batch_ids) > 0))):
        return None
    order = np.lexsort((batch_ids, runs))
    again = (np.diff(runs[order]) == 0) & (np.diff(batch_ids[order]) == 0)
    return np.delete(order, np.flatnonzero(again) + 1)
