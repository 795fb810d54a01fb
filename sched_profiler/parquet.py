"""Logs as Parquet: the fields of a record as columns, for those who keep or share many of them.

Needs pyarrow, which the extra `analysis` brings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args, get_origin

import attrs
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet as pq

from sched_profiler.errors import LogError
from sched_profiler.log_files import open_file
from sched_profiler.record import SCHEMA_VERSION, BatchRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sched_profiler.log_files import LogFile
    from sched_profiler.reader import Tally

__all__ = ["MOST_VALUES", "SCHEMA", "read_batches", "read_parquet_records"]

_TYPES: dict[Any, Any] = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    list[int]: pa.list_(pa.int32()),
    list[str]: pa.list_(pa.string()),
}


def _field(field: attrs.Attribute[Any]) -> Any:
    kinds = [] if get_origin(field.type) is list else [*get_args(field.type)]
    nullable = type(None) in kinds
    return pa.field(field.name, _TYPES[kinds[0] if nullable else field.type], nullable=nullable)


SCHEMA: Any = pa.schema([_field(field) for field in attrs.fields(BatchRecord)])
"""The columns, in order: an Arrow schema."""

_ROWS = 32_768
"""How many rows are held at a time."""
MOST_VALUES = 1 << 24
"""Most values that a column may have in a row group: a list of many ones takes no place in a file,
but a place for each in memory."""
_MOST_TEXT = 256 << 20
"""Most bytes of text in the rows that are held at a time; in a file, the same text is there once.
"""

_REMEDY = "write it again with `sched-profiler convert`"


def read_batches(file: LogFile, tally: Tally, columns: Sequence[str]) -> Iterator[Any]:
    """Yield some columns of a file, all null where it lacks an optional one, as Arrow tables.

    Raises:
        LogError: if it is no Parquet, lacks a column or has a value that cannot be in it.
    """
    already = tally.num_bytes
    with open_file(file) as stream:
        try:
            source = pq.ParquetFile(stream)
            # Text stays what it is in the file until it is known how much of it there is.
            source = pq.ParquetFile(
                stream, metadata=source.metadata, read_dictionary=_text_columns(source)
            )
            present = set(source.schema_arrow.names)
            missing = [f.name for f in SCHEMA if not f.nullable and f.name not in present]
            if missing:
                raise LogError(f"{file.name} lacks the columns {', '.join(missing)}; {_REMEDY}")
            num_rows, total = 0, max(source.metadata.num_rows, 1)
            # Of a newer version, no column can be trusted.
            wanted = {*columns, "schema_version"} & present
            for group in range(source.metadata.num_row_groups):
                _check_size(source.metadata.row_group(group), wanted, file.name)
                for batch in source.iter_batches(_ROWS, row_groups=[group], columns=sorted(wanted)):
                    yield _checked(pa.Table.from_batches([batch]), file.name, columns, num_rows)
                    num_rows += batch.num_rows
                    tally.num_bytes = already + file.num_bytes * num_rows // total
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise LogError(f"{file.name} is no Parquet ({reason:.200}); {_REMEDY}") from None
    tally.num_bytes = already + file.num_bytes


def _text_columns(source: Any) -> list[str]:
    columns = map(source.schema.column, range(len(source.schema)))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _check_size(group: Any, columns: set[str], name: str) -> None:
    for column in map(group.column, range(group.num_columns)):
        path = column.path_in_schema
        if path.partition(".")[0] in columns and column.num_values > MOST_VALUES:
            raise LogError(
                f"{name} has {column.num_values:,} values of {path} in a row group; "
                f"{_REMEDY}, or with row groups of at most {MOST_VALUES:,} values"
            )


def _check_text(column: Any, name: str, first_row: int) -> None:
    for chunk in column.chunks:
        is_list = pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)
        values = chunk.flatten() if is_list else chunk
        if not pa.types.is_dictionary(values.type):
            continue
        num_bytes = pc.sum(pc.binary_length(values.dictionary).take(values.indices)).as_py() or 0
        if num_bytes > _MOST_TEXT:
            raise LogError(
                f"{name} holds {num_bytes:,} bytes of text in the {len(column):,} rows from "
                f"row {first_row + 1}; this is no log of a scheduler"
            )


def _checked(table: Any, name: str, columns: Sequence[str], first_row: int) -> Any:
    if "schema_version" in table.column_names:
        newest = pc.max(_column(table, "schema_version", name, first_row)).as_py()
        if newest is not None and newest > SCHEMA_VERSION:
            raise LogError(
                f"{name}: schema_version {newest} is newer than {SCHEMA_VERSION}; "
                "upgrade sched-profiler"
            )
    found = [_column(table, column, name, first_row) for column in columns]
    return pa.table(found, names=list(columns))


def _column(table: Any, column: str, name: str, first_row: int) -> Any:
    field = SCHEMA.field(column)
    if column not in table.column_names:
        return pa.nulls(table.num_rows, field.type)
    values = table[column]
    _check_text(values, name, first_row)
    try:
        cast = values.cast(field.type)
    except pa.ArrowException:
        is_text = pa.types.is_dictionary(values.type)
        kind = values.type.value_type if is_text else values.type
        raise LogError(
            f"{name}: the column {column} is of {kind}, not {field.type}; {_REMEDY}"
        ) from None
    if cast.null_count and not field.nullable:
        row = first_row + pc.index(pc.is_null(cast), True).as_py() + 1
        raise LogError(f"row {row} of {name}: {column} is null, which it never is; {_REMEDY}")
    return cast


def read_parquet_records(file: LogFile, tally: Tally) -> Iterator[BatchRecord]:
    """Yield the records of a file.

    Raises:
        LogError: as `read_batches` does.
    """
    for table in read_batches(file, tally, SCHEMA.names):
        for row in table.to_pylist():
            yield BatchRecord(**row)
