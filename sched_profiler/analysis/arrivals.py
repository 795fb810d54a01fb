"""Requests as a replay needs them: from request traces, or from a CSV file."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING

import attrs

from sched_profiler.errors import LogError, RecordError, shown
from sched_profiler.log_files import find_request_traces, open_log
from sched_profiler.reader import Tally, broken_line
from sched_profiler.request_record import RequestRecord, decode_request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sched_profiler.log_files import LogFile, LogPath

__all__ = ["Arrival", "arrivals_of", "load_arrivals", "load_requests", "request_lines"]

_NEEDED = ("arrival_time", "num_prompt_tokens", "num_output_tokens")
_CACHED = "num_cached_tokens"


@attrs.frozen(kw_only=True)
class Arrival:
    """A request that comes."""

    time: float
    """In seconds, from any moment on."""
    num_prompt_tokens: int
    num_output_tokens: int
    """At least 1."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that the prefix cache held."""


def load_requests(
    *logs: LogPath, skip_invalid: bool = False, tally: Tally | None = None
) -> dict[tuple[str, int | None], list[RequestRecord]]:
    """Return the requests in the traces beside logs, by run and rank, in the order they came.

    Args:
        *logs: paths, folders, patterns or URLs.
        skip_invalid: go on after a line that holds no request, and count it.
        tally: filled with counts of what was skipped.

    Raises:
        LogError: if a trace cannot be read, or a line holds no request; it names file and line.
    """
    tally = tally if tally is not None else Tally()
    runs: dict[tuple[str, int | None], dict[int, RequestRecord]] = {}
    for _, _, record in request_lines(*logs, tally=tally, skip_invalid=skip_invalid):
        run = runs.setdefault((record.run_id, record.dp_rank), {})
        run[record.request_number] = record
    return {key: [run[number] for number in sorted(run)] for key, run in runs.items()}


def request_lines(
    *logs: LogPath, tally: Tally, skip_invalid: bool
) -> Iterator[tuple[LogFile, bytes, RequestRecord]]:
    """Yield the lines of the traces beside logs, each with its file and what it holds.

    Raises:
        LogError: as `load_requests` does.
    """
    for file in find_request_traces(*logs):
        with open_log(file) as (stream, _):
            for number, line in enumerate(stream, 1):
                # Of a run that goes on, the last line may be half written.
                if not line.endswith(b"\n"):
                    tally.num_half_written_lines += 1
                    continue
                try:
                    record = decode_request(line)
                except RecordError as error:
                    if not skip_invalid:
                        raise LogError(broken_line(number, file.name, error)) from None
                    tally.num_skipped_lines += 1
                else:
                    yield file, line, record


def arrivals_of(records: Sequence[RequestRecord]) -> list[Arrival]:
    """Return requests as they came, without those that got no token."""
    arrivals = [
        Arrival(
            time=record.arrival_time,
            num_prompt_tokens=record.num_prompt_tokens,
            num_output_tokens=record.num_output_tokens,
            num_cached_tokens=min(record.num_cached_tokens or 0, record.num_prompt_tokens - 1),
        )
        for record in records
        if record.num_output_tokens and record.num_prompt_tokens
    ]
    return sorted(arrivals, key=lambda arrival: arrival.time)


def load_arrivals(path: Path) -> list[Arrival]:
    """Return the requests of a CSV file, in the order of their times.

    It has a heading with `arrival_time` (seconds), `num_prompt_tokens` and `num_output_tokens`, and
    may have `num_cached_tokens`; other columns are ignored.

    Raises:
        LogError: naming file, line, column, value and what it may be.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            lacking = [name for name in _NEEDED if name not in (rows.fieldnames or ())]
            if lacking:
                raise LogError(
                    f"line 1 of {path} has no column {', '.join(lacking)}; a trace has the columns "
                    f"{', '.join(_NEEDED)}, and may have {_CACHED}"
                )
            arrivals = [_arrival(row, f"line {rows.line_num} of {path}") for row in rows]
    except OSError as error:
        raise LogError(f"{path} cannot be read: {error.strerror}; name another file") from None
    except UnicodeDecodeError:
        raise LogError(f"{path} is no text in UTF-8; save it as CSV") from None
    except csv.Error as error:
        raise LogError(
            f"line {rows.line_num} of {path} is no CSV: {error}; save it as CSV again"
        ) from None
    if not arrivals:
        raise LogError(f"{path} has no request below its heading; add a line for each")
    return sorted(arrivals, key=lambda arrival: arrival.time)


def _arrival(row: Mapping[str | None, str | None], where: str) -> Arrival:
    prompt = _count(row, "num_prompt_tokens", where, least=1)
    cached = _count(row, _CACHED, where, least=0) if row.get(_CACHED) else 0
    if cached >= prompt:
        raise LogError(
            f"{where}: {_CACHED} is {cached}; it must be below num_prompt_tokens, {prompt}: the "
            "last token is always computed"
        )
    return Arrival(
        time=_time(row, where),
        num_prompt_tokens=prompt,
        num_output_tokens=_count(row, "num_output_tokens", where, least=1),
        num_cached_tokens=cached,
    )


def _time(row: Mapping[str | None, str | None], where: str) -> float:
    text = row["arrival_time"]
    try:
        time = float(text or "")
    except ValueError:
        time = math.nan
    if not math.isfinite(time):
        raise LogError(f"{where}: arrival_time is {shown(text)}; expected seconds, such as 12.5")
    return time


def _count(row: Mapping[str | None, str | None], name: str, where: str, *, least: int) -> int:
    text = row[name]
    try:
        count = int(text or "")
    except ValueError:
        count = -1
    # No context is that long; what is, is a mistake, and would not fit any array.
    if not least <= count <= 2**40:
        raise LogError(f"{where}: {name} is {shown(text)}; expected a whole number from {least} on")
    return count
