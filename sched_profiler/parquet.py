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

__all__ = ["SCHEMA", "read_batches", "read_parquet_records"]

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
            present = set(source.schema_arrow.names)
            missing = [f.name for f in SCHEMA if not f.nullable and f.name not in present]
            if missing:
                raise LogError(f"{file.name} lacks the columns {', '.join(missing)}; {_REMEDY}")
            num_rows, total = 0, max(source.metadata.num_rows, 1)
            # Of a newer version, no column can be trusted.
            wanted = {*columns, "schema_version"} & present
            for batch in source.iter_batches(_ROWS, columns=sorted(wanted)):
                yield _checked(pa.Table.from_batches([batch]), file.name, columns, num_rows)
                num_rows += batch.num_rows
                tally.num_bytes = already + file.num_bytes * num_rows // total
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise LogError(f"{file.name} is no Parquet ({reason:.200}); {_REMEDY}") from None
    tally.num_bytes = already + file.num_bytes


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
    try:
        cast = values.cast(field.type)
    except pa.ArrowException:
        raise LogError(
            f"{name}: the column {column} is of {values.type}, not {field.type}; {_REMEDY}"
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
