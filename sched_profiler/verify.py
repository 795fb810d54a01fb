"""Checks that a log is complete: what was written is there, and what is not there is accounted for.

A batch gets its `batch_id` before any queue, so a record that is missing leaves a gap. A gap is
explained where the run itself counted it: as dropped (no record could be written) or as removed (it
gave way to a limit of size or count). The manifest of the run tells both, and also what is missing
after the last record. Of a run that lives and writes to a store, that is not missing but on its
way: it waits in the spool of its machine.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

from sched_profiler.clock import SYSTEM_CLOCK
from sched_profiler.errors import counted, printable
from sched_profiler.log_files import find_logs, find_manifests, logs_to_read
from sched_profiler.manifest import RunManifest, parse_manifest
from sched_profiler.reader import Tally, empty_error, file_records
from sched_profiler.redact import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sched_profiler.log_files import LogPath
    from sched_profiler.record import BatchRecord

__all__ = ["Report", "RunReport", "verify"]

_ALIVE_S = 600.0
"""For so long after its last sign of life a run without an end may yet upload what it wrote."""


class _Ranges:
    """A set of whole numbers that mostly come in order, in little memory."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []  # each is the last number of its range
        self.count = 0

    def add(self, number: int) -> bool:
        """Add a number; tell whether it is new."""
        if self._ends and number == self._ends[-1] + 1:
            self._ends[-1] = number
            self.count += 1
            return True
        index = bisect_right(self._starts, number)
        if index and number <= self._ends[index - 1]:
            return False
        self.count += 1
        joins_left = index > 0 and self._ends[index - 1] + 1 == number
        joins_right = index < len(self._starts) and self._starts[index] - 1 == number
        if joins_left and joins_right:
            self._ends[index - 1] = self._ends.pop(index)
            self._starts.pop(index)
        elif joins_left:
            self._ends[index - 1] = number
        elif joins_right:
            self._starts[index] = number
        else:
            self._starts.insert(index, number)
            self._ends.insert(index, number)
        return True

    @property
    def end(self) -> int:
        """One more than the largest number; 0 without any."""
        return self._ends[-1] + 1 if self._ends else 0

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Yield the first and the last number of each gap below the largest number."""
        next_number = 0
        for start, end in zip(self._starts, self._ends, strict=True):
            if start > next_number:
                yield next_number, start - 1
            next_number = end + 1


@attrs.frozen(kw_only=True)
class RunReport:
    """What is there of one run, and what is not.

    Attributes:
        run_id: identifier of the run; None in a log of the original feature.
        dp_rank: data-parallel rank of the engine; None where unknown.
        num_records: batches with a record in the logs, each counted once.
        num_duplicates: records of a batch that another record in the logs is of as well.
        num_waiting: batches after the last record that a run which lives has written and not
            uploaded yet.
        num_missing: other batches that were scheduled and have no record in the logs.
        num_dropped: batches of which the run says that it wrote no record.
        num_removed: records of which the run says that they gave way to a limit.
        num_unexplained: missing batches that are neither dropped nor removed.
        gaps: first and last `batch_id` of each gap between records.
        end: `clean`, `incomplete` (the run ended, and could not write all it had), `none` (it goes
            on, or was killed) or `unknown` (no manifest was found).
        last_batch_id: of the last batch with a record; None without records.
        last_timestamp: Unix time in seconds of the last batch; None without records.
    """

    run_id: str | None
    dp_rank: int | None
    num_records: int
    num_duplicates: int
    num_waiting: int
    num_missing: int
    num_dropped: int
    num_removed: int
    num_unexplained: int
    gaps: list[tuple[int, int]]
    end: str
    last_batch_id: int | None
    last_timestamp: float | None


@attrs.frozen(kw_only=True)
class Report:
    """What `verify` found out.

    Attributes:
        runs: one report a run, in the order in which they were met.
        num_skipped_lines: lines that hold no record and were left out.
        num_half_written_lines: lines whose writer did not finish them.
    """

    runs: list[RunReport]
    num_skipped_lines: int
    num_half_written_lines: int

    @property
    def num_unexplained(self) -> int:
        """Missing batches of all runs that nothing accounts for."""
        return sum(run.num_unexplained for run in self.runs)

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(attrs.asdict(self) | {"num_unexplained": self.num_unexplained}, indent=2)

    def __str__(self) -> str:
        """Return the report as a table, and below it the gaps that nothing accounts for."""
        header = ("run", "rank", "records", "duplicated", "waiting", "missing", "dropped")
        rows: list[tuple[str, ...]] = [(*header, "removed", "unexplained", "end")]
        rows += [_row(run) for run in self.runs]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if number in (0, len(row) - 1) else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines += [_gaps(run) for run in self.runs if run.num_unexplained]
        lines += [_no_end(run) for run in self.runs if run.end == "none" and run.num_records]
        for number, kind in (
            (self.num_skipped_lines, "invalid"),
            (self.num_half_written_lines, "half-written"),
        ):
            if number:
                lines.append(f"lines left out: {number} {kind}")
        return "\n".join(lines)


_SHOWN_GAPS = 10


def _row(run: RunReport) -> tuple[str, ...]:
    numbers = (
        run.num_records,
        run.num_duplicates,
        run.num_waiting,
        run.num_missing,
        run.num_dropped,
        run.num_removed,
        run.num_unexplained,
    )
    rank = "-" if run.dp_rank is None else str(run.dp_rank)
    return (_name(run), rank, *map(str, numbers), run.end)


def _name(run: RunReport) -> str:
    return printable(run.run_id or "-")


def _gaps(run: RunReport) -> str:
    shown = [
        str(first) if first == last else f"{first}-{last}" for first, last in run.gaps[:_SHOWN_GAPS]
    ]
    if len(run.gaps) > _SHOWN_GAPS:
        shown.append("and " + counted(len(run.gaps) - _SHOWN_GAPS, "more gap"))
    num_between = sum(last - first + 1 for first, last in run.gaps)
    told = []
    if shown:
        told.append(f"{'batch' if num_between == 1 else 'batches'} {', '.join(shown)}")
    if after := run.num_missing - num_between:
        told.append(counted(after, "batch", "batches") + " after the last record")
    return f"missing of run {_name(run)}: {', and '.join(told)}"


def _no_end(run: RunReport) -> str:
    try:
        moment = datetime.fromtimestamp(run.last_timestamp or 0, UTC)
    except (OverflowError, OSError, ValueError):
        # Far from any time that a calendar has.
        last = str(run.last_timestamp)
    else:
        last = moment.isoformat(" ", "milliseconds")
    return (
        f"no end of run {_name(run)}: it goes on, or was killed after batch {run.last_batch_id} "
        f"({last}) with what it had not written yet, as a rule the batches of 0.2 s"
    )


class _Seen:
    """What the records of one run show."""

    def __init__(self, record: BatchRecord) -> None:
        self.run_id = record.run_id
        self.dp_rank = record.dp_rank
        self.batches = _Ranges()
        self.num_duplicates = 0
        self.num_dropped = 0
        self.last_timestamp = record.timestamp

    def add(self, record: BatchRecord) -> None:
        self.num_duplicates += not self.batches.add(record.batch_id)
        self.num_dropped = max(self.num_dropped, record.num_dropped_records or 0)
        self.last_timestamp = max(self.last_timestamp, record.timestamp)


def verify(
    *logs: LogPath,
    skip_invalid: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check that logs are complete.

    Args:
        *logs: paths, folders, patterns or URLs. Name all parts of a log: what is not named is
            missing. Manifests are looked for in the folders of the logs.
        skip_invalid: go on after a line that holds no record, and count it.
        progress: called again and again with the number of bytes read so far and of all bytes, as
            they are on the disk.

    Raises:
        LogError: if a log is missing, a line holds no record, or the logs hold none at all.
    """
    # First: a run that lives writes records before it says so.
    manifests = _manifests(*logs)
    total = sum(file.num_bytes for file in find_logs(*logs)) if progress else 0
    tally, num_told = Tally(), 0
    seen: dict[Any, _Seen] = {}
    names = set()
    for file in logs_to_read(*logs):
        names.add(file.name.rpartition("/")[2])
        lives = 0
        for record in file_records(file, tally, skip_invalid=skip_invalid):
            key: Any = (record.run_id, record.dp_rank)
            if record.run_id is None:
                # A log of the original feature: each start of the engine begins at 0.
                lives += record.batch_id == 0
                key = (None, record.dp_rank, file.name, lives)
            if key not in seen:
                seen[key] = _Seen(record)
            seen[key].add(record)
            if progress and tally.num_bytes != num_told:
                num_told = tally.num_bytes
                progress(num_told, total)
    found = {run.run_id for run in seen.values()}
    # A run none of whose records is here is ours to miss only if it wrote to one of these files.
    silent = [m for m in manifests.values() if m.run_id not in found and _belongs(m, logs, names)]
    if not seen and not silent:
        raise empty_error(logs, tally)
    return Report(
        runs=[
            *(_report(run, manifests.get(run.run_id or "")) for run in seen.values()),
            *(_report(None, manifest) for manifest in silent),
        ],
        num_skipped_lines=tally.num_skipped_lines,
        num_half_written_lines=tally.num_half_written_lines,
    )


def _manifests(*logs: LogPath) -> dict[str, RunManifest]:
    parsed = (parse_manifest(text, name) for name, text in find_manifests(*logs))
    return {manifest.run_id: manifest for manifest in parsed}


def _belongs(manifest: RunManifest, logs: tuple[LogPath, ...], names: set[str]) -> bool:
    """Tell whether a run wrote to one of the files, or into a folder that was named as a whole."""
    named = {os.fspath(log).rpartition("/")[2] for log in logs}
    return not named <= names or manifest.log.rpartition("/")[2] in names


def _is_on_its_way(manifest: RunManifest) -> bool:
    """Tell whether what a run wrote may arrive later than the manifest that counts it."""
    age = SYSTEM_CLOCK.time_ns() / 1e9 - manifest.updated
    return is_url(manifest.log) and manifest.ended is None and age < _ALIVE_S


def _report(seen: _Seen | None, manifest: RunManifest | None) -> RunReport:
    batches = seen.batches if seen else _Ranges()
    num_dropped = seen.num_dropped if seen else 0
    num_removed = num_expected = num_waiting = 0
    end = "unknown"
    if manifest is not None:
        num_dropped = max(num_dropped, manifest.num_dropped_records)
        num_removed = manifest.num_removed_records
        num_expected = manifest.num_written_records + manifest.num_dropped_records
        end = manifest.end
        if _is_on_its_way(manifest):
            num_waiting = max(0, num_expected - batches.end)
    num_missing = max(num_expected, batches.end) - batches.count - num_waiting
    source: Any = seen or manifest
    return RunReport(
        run_id=source.run_id,
        dp_rank=source.dp_rank,
        num_records=batches.count,
        num_duplicates=seen.num_duplicates if seen else 0,
        num_waiting=num_waiting,
        num_missing=num_missing,
        num_dropped=num_dropped,
        num_removed=num_removed,
        num_unexplained=max(0, num_missing - num_dropped - num_removed),
        gaps=list(batches.gaps()),
        end=end,
        last_batch_id=batches.end - 1 if seen else None,
        last_timestamp=seen.last_timestamp if seen else None,
    )
