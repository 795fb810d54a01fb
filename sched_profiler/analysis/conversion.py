"""Converts logs to Parquet, in bounded memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs
import numpy as np
import polars as pl
from pyarrow import parquet as pq

from sched_profiler.analysis.companions import Manifests, copy_request_traces
from sched_profiler.analysis.layout import SCHEMA
from sched_profiler.analysis.rows import read_rows
from sched_profiler.analysis.runs import starts_over
from sched_profiler.errors import SchedProfilerError
from sched_profiler.log_files import LogPath, find_logs, is_on_disk, is_parquet, logs_to_read
from sched_profiler.parquet import MOST_VALUES
from sched_profiler.parquet import SCHEMA as ARROW_SCHEMA
from sched_profiler.reader import Tally, empty_error
from sched_profiler.redact import is_url
from sched_profiler.whole_file import check_output, whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Conversion", "convert"]

_ROWS = 65_536
"""Rows in a group of a file; in a folder, most rows in a file."""
_HELD_ROWS = 4 * _ROWS
"""Most rows that are held for all files of a folder together."""


@attrs.define
class Conversion:
    """What was converted.

    Attributes:
        num_records: rows written.
        num_skipped_lines: lines that hold no record and were skipped because the caller asked.
        num_half_written_lines: lines that their writer had not finished.
        files: what was written.
        companions: run manifests and request traces that were written beside them.
    """

    num_records: int = 0
    num_skipped_lines: int = 0
    num_half_written_lines: int = 0
    files: list[Path] = attrs.field(factory=list)
    companions: list[Path] = attrs.field(factory=list)


def convert(
    *logs: LogPath,
    out: LogPath,
    skip_invalid: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Convert logs to Parquet, compressed with zstd.

    The columns are the fields of a record. Fields that this version does not know are left out. A
    file of Parquet does not say which log a row is from, so that a run without a `run_id` is given
    one: the name of its log and a number.

    The manifests of the runs, and their requests where there is a request trace, are written beside
    the files, unless they are there. Their names begin with `_`: what reads a folder of Parquet
    passes over them.

    Args:
        *logs: as for `scan`.
        out: a file whose name ends with `.parquet`; or a folder, which is there already or whose
            name ends with `/`, for a file for each run and rank, and more where a run is long:
            `run=.../rank=.../0.parquet`.
        skip_invalid: go on after a line that holds no record, and count it.
        progress: as for `scan`.

    Raises:
        LogError: as `scan` does; no file is left half-written.
        SchedProfilerError: if it cannot be written, or would replace one of the logs.
    """
    name = os.fspath(out)
    if is_url(name):
        raise SchedProfilerError(f"{name} is a URL; convert to a file or folder, and copy that")
    is_folder = name.endswith(("/", os.sep)) or Path(name).is_dir()
    _check(Path(name), logs, is_folder=is_folder)
    total = sum(file.num_bytes for file in find_logs(*logs)) if progress else 0
    done, tally = Conversion(), Tally()
    # First: a run that lives writes records before it says so.
    manifests = Manifests(*logs)
    places: dict[Any, Path] = {}

    def rows_of_all() -> Iterator[pl.DataFrame]:
        for number, file in enumerate(logs_to_read(*logs)):
            names = _Names(f"{Path(file.name).name.partition('.')[0]}-{number}")
            for rows in read_rows(file, tally, tuple(SCHEMA), skip_invalid=skip_invalid):
                done.num_records += len(rows)
                filled = names.fill(rows)
                for run in filled.select("run_id", "dp_rank").unique().iter_rows():
                    places[run] = _first_file(Path(name), *run) if is_folder else Path(name)
                yield filled
                if progress:
                    progress(tally.num_bytes, total)
        if not done.num_records:
            raise empty_error(logs, tally)

    try:
        if is_folder:
            _write_folder(Path(name), rows_of_all(), done.files)
        else:
            _write_file(Path(name), rows_of_all(), done.files)
        done.companions += manifests.copy(places)
        done.companions += copy_request_traces(logs, places, tally, skip_invalid=skip_invalid)
    except OSError as error:
        raise SchedProfilerError(
            f"cannot write {error.filename or name}: {error.strerror or error}; name another place"
        ) from None
    done.num_skipped_lines = tally.num_skipped_lines
    done.num_half_written_lines = tally.num_half_written_lines
    return done


def _check(out: Path, logs: tuple[LogPath, ...], *, is_folder: bool) -> None:
    """Check that no log is lost by what is written."""
    if not is_folder and out.suffix != ".parquet":
        raise SchedProfilerError(
            f"{out} is no name for Parquet, which is written; name it with .parquet, or a folder "
            "with /"
        )
    ours = [file for file in find_logs(*logs) if is_parquet(file)]
    if not is_folder:
        # Of several files of Parquet, the last may be a log too, and the output forgotten.
        check_output(out, logs=logs, may_replace_parquet=not ours)
        return
    for file in ours:
        if is_on_disk(file) and Path(file.path).resolve().is_relative_to(out.resolve()):
            raise SchedProfilerError(
                f"{file.path} is one of the logs that are read, and may be replaced by what is "
                f"written into {out}; name another folder"
            )


class _Names:
    """Names the runs of one log whose records have no `run_id`."""

    def __init__(self, log: str) -> None:
        self._log = log
        self._last: dict[int | None, tuple[int, float, int]] = {}

    def fill(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return rows that all have a `run_id`; they come next in the log."""
        nameless = rows["run_id"].is_null()
        if not nameless.any():
            return rows
        names = rows["run_id"].to_list()
        for (rank,), group in (
            rows.with_row_index("row").filter(nameless).group_by("dp_rank", maintain_order=True)
        ):
            ids, times = group["batch_id"].to_numpy(), group["timestamp"].to_numpy()
            life = 0
            if rank in self._last:
                last_id, last_time, life = self._last[rank]
                life += bool(
                    starts_over(np.array([last_id, ids[0]]), np.array([last_time, times[0]]))
                )
            lives = life + np.concatenate(([0], np.cumsum(starts_over(ids, times))))
            self._last[rank] = (int(ids[-1]), float(times[-1]), int(lives[-1]))
            for row, number in zip(group["row"], lives, strict=True):
                names[row] = f"{self._log}-{number}"
        return rows.with_columns(pl.Series("run_id", names, pl.String))


def _write_file(path: Path, rows: Iterator[pl.DataFrame], written: list[Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished, _writer(unfinished) as writer:
        held: list[pl.DataFrame] = []
        for some in rows:
            held.append(some)
            if sum(map(len, held)) >= _ROWS:
                _write(writer, held)
                held = []
        if held:
            _write(writer, held)
    written.append(path)


def _first_file(folder: Path, run_id: Any, dp_rank: Any) -> Path:
    # As dots alone it would be another folder.
    run = quote(str(run_id), safe="").replace(".", "%2E")
    return folder / f"run={run}" / f"rank={'none' if dp_rank is None else dp_rank}" / "0.parquet"


def _write_folder(folder: Path, rows: Iterator[pl.DataFrame], written: list[Path]) -> None:
    held: dict[Path, list[pl.DataFrame]] = {}
    num_held: dict[Path, int] = {}
    num_files: dict[Path, int] = {}

    def write(place: Path) -> None:
        number = num_files.get(place, 0)
        num_files[place] = number + 1
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{number}.parquet"
        with whole_file(path) as unfinished, _writer(unfinished) as writer:
            _write(writer, held.pop(place))
        del num_held[place]
        written.append(path)

    for some in rows:
        for (run_id, dp_rank), group in some.group_by("run_id", "dp_rank", maintain_order=True):
            place = _first_file(folder, run_id, dp_rank).parent
            held.setdefault(place, []).append(group)
            num_held[place] = num_held.get(place, 0) + len(group)
            if num_held[place] >= _ROWS:
                write(place)
        while sum(num_held.values()) > _HELD_ROWS:
            write(max(num_held, key=num_held.__getitem__))
    for place in list(held):
        write(place)


def _writer(path: Path) -> Any:
    return pq.ParquetWriter(path, ARROW_SCHEMA, compression="zstd")


def _write(writer: Any, held: list[pl.DataFrame]) -> None:
    rows = pl.concat(held)
    # Row groups with long lists are short: whoever reads one holds it.
    longest = max(
        rows.select(pl.col(name).list.len().max()).item() or 0
        for name, kind in rows.schema.items()
        if kind == pl.List
    )
    writer.write_table(
        rows.to_arrow().cast(ARROW_SCHEMA), row_group_size=max(1, MOST_VALUES // max(longest, 1))
    )
