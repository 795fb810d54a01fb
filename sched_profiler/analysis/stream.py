"""Reads logs of any length into a digest, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sched_profiler.analysis.ahead import ahead
from sched_profiler.analysis.digest import COLUMNS, Digest
from sched_profiler.analysis.rows import read_rows
from sched_profiler.log_files import LogPath, find_logs, logs_to_read
from sched_profiler.reader import Tally, empty_error

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["scan"]


def scan(
    *logs: LogPath,
    skip_invalid: bool = False,
    charts: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Digest:
    """Read one or several logs into a digest, which `summarize` and the charts take.

    It is what `load` is for logs that are too long for the memory: what a run is, and which rows
    are left out, is the same.

    Args:
        *logs: paths, folders, patterns with wildcards, or URLs of any of these; files may be
            Parquet, or compressed with gzip or zstd.
        skip_invalid: go on after a line that holds no record, and count it.
        charts: also keep what charts show, which takes a tenth of the time.
        progress: called again and again with the number of bytes read so far and of all bytes, as
            they are on the disk.

    Raises:
        LogError: if a log is missing, a line holds no record, or the logs hold none at all.
    """
    total = sum(file.num_bytes for file in find_logs(*logs)) if progress else 0
    digest, tally = Digest() if charts else Digest(outline=None), Tally()
    for file in logs_to_read(*logs):
        for rows in ahead(read_rows(file, tally, COLUMNS, skip_invalid=skip_invalid)):
            digest.add(rows, file.name)
            if progress:
                progress(tally.num_bytes, total)
    digest.count_lines(tally)
    if not digest.num_batches:
        raise empty_error(logs, tally)
    return digest
