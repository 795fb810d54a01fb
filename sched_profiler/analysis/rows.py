"""Reads the files of logs as rows, whatever they are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from sched_profiler.analysis.ahead import ahead
from sched_profiler.analysis.lines import parse
from sched_profiler.log_files import is_parquet
from sched_profiler.reader import Tally, read_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sched_profiler.log_files import LogFile
    from sched_profiler.reader import Span

__all__ = ["read_rows"]

_BLOCK_BYTES = 8 << 20
"""Long enough that what a block costs by itself does not count."""


def read_rows(
    file: LogFile,
    tally: Tally,
    columns: Sequence[str],
    *,
    skip_invalid: bool = False,
    span: Span | None = None,
) -> Iterator[pl.DataFrame]:
    """Yield a file as rows, a few thousand at a time, in their order.

    Args:
        file: lines of JSON or Parquet.
        tally: counts what is read and what of it is no record.
        columns: the fields to read; one that the file lacks is all null.
        skip_invalid: go on after a line that holds no record.
        span: read these lines only.

    Raises:
        LogError: if the file cannot be read, or holds something that is no record.
    """
    if is_parquet(file):
        from sched_profiler import parquet  # noqa: PLC0415 - it takes long to load

        for table in parquet.read_batches(file, tally, columns):
            rows = pl.from_arrow(table)
            assert isinstance(rows, pl.DataFrame)  # noqa: S101 - a table becomes nothing else
            yield rows
        return
    of_lines = Tally()
    for block in ahead(read_blocks(file, tally, span, block_bytes=_BLOCK_BYTES)):
        yield parse(block, of_lines, columns, skip_invalid=skip_invalid)
    # Now that the other thread no longer counts in it.
    tally.num_skipped_lines += of_lines.num_skipped_lines
    tally.num_half_written_lines += of_lines.num_half_written_lines
