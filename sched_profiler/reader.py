"""Finds the lines of logs and turns them into records, without pandas.

A log is lines of JSON, one record each. Two things are no fault of a log: blank lines, which are
passed over, and a last line that its writer has not finished, which is counted.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import attrs
import orjson

from sched_profiler.codec import decode
from sched_profiler.errors import (
    LogError,
    MissingExtraError,
    RecordError,
    SchemaVersionError,
)
from sched_profiler.log_files import LogFile, LogPath, is_parquet, logs_to_read, open_log
from sched_profiler.redact import without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sched_profiler.record import BatchRecord

__all__ = [
    "Block",
    "LogPath",
    "Span",
    "Tally",
    "broken_line",
    "decode_block",
    "decode_lines",
    "empty_error",
    "file_records",
    "is_json",
    "read_blocks",
    "read_records",
    "was_cut_by_a_crash",
]

_BLOCK_BYTES = 4 << 20
"""How much of a log is held at a time, in bytes; a block has whole lines, so it may be longer."""

_LONGEST_LINE_BYTES = 16 << 20
"""From here on, a line is no record: what is held of a log is bounded, whatever the file is."""
_TOO_LONG = _LONGEST_LINE_BYTES + 1

_T = TypeVar("_T")


@attrs.define
class Tally:
    """What was read of all logs together, and what of them is no record."""

    num_bytes: int = 0
    """Bytes read so far, as they are on the disk."""
    num_skipped_lines: int = 0
    """Lines that hold no record and were skipped because the caller asked for it."""
    num_half_written_lines: int = 0
    """Last lines that their writer had not finished: at most one a log."""


@attrs.frozen
class Span:
    """The lines of a file that begin between two of its bytes."""

    start: int = 0
    end: int | None = None
    """The first byte that is no longer in it; None for the end of the file."""


@attrs.frozen
class Block:
    """Some whole lines of a log, each with its line feed."""

    log: str
    """Name of the file."""
    first_line: int
    """Number of the first of these lines in the span that is read, counted from 1."""
    num_lines: int
    data: bytes
    following: bytes = b""
    """The line after them, without its line feed; empty after the last one."""
    num_lines_before: Callable[[], int] = lambda: 0
    """Counts the lines before the span, which takes long."""

    def line_number(self, index: int) -> int:
        """Return the number in the file of one of these lines."""
        return self.num_lines_before() + self.first_line + index


def read_blocks(
    log: LogPath | LogFile,
    tally: Tally,
    span: Span | None = None,
    *,
    block_bytes: int | None = None,
) -> Iterator[Block]:
    """Yield a log in blocks of whole lines, and count in `tally` what was read.

    A last line without a line feed is taken for a record if it is complete JSON, and counted as
    half-written otherwise; so is one in the middle to which a new run was appended.

    Args:
        log: a file, or what stands for several.
        tally: counts the bytes, and the half-written last line.
        span: read these lines only, of a file that is not compressed.
        block_bytes: how long a block is, about.

    Raises:
        LogError: if the log does not exist or cannot be read, or a line is longer than 16 MiB.
    """
    if not isinstance(log, LogFile):
        for file in logs_to_read(log):
            yield from read_blocks(file, tally)
        return
    if is_parquet(log):
        raise LogError(f"{log.name} is Parquet, which has no lines; name the log it was made from")
    span = span or Span()
    before = functools.partial(_num_lines, log, span.start)
    first_line, following = 1, b""
    with open_log(log) as (stream, position):
        already = tally.num_bytes - position()
        if span.start:
            # With the byte before, to see whether a line begins with the first byte of the span.
            stream.seek(span.start - 1)
            stream.readline()
        while True:
            data = _read_lines(stream, span, following, block_bytes or _BLOCK_BYTES)
            begins_inside = span.end is None or stream.tell() < span.end
            # What comes after an unfinished line was written after that was read.
            following = stream.readline(_TOO_LONG) if data.endswith(b"\n") else b""
            tally.num_bytes = already + position()
            num_lines = data.count(b"\n")
            if max(len(following), len(data) - data.rfind(b"\n", 0, -1) - 1) >= _TOO_LONG:
                # Of the two, the one that follows comes after all whole lines.
                number = (
                    first_line + num_lines - (len(following) < _TOO_LONG and data[-1:] == b"\n")
                )
                raise LogError(
                    f"line {before() + number} of {log.name} is longer than "
                    f"{_LONGEST_LINE_BYTES >> 20} MiB; this is no log of a scheduler"
                )
            if data and not data.endswith(b"\n"):
                data = _without_half_line(data, tally)
                num_lines = data.count(b"\n")
            if data:
                after = following.removesuffix(b"\n")
                yield Block(log.name, first_line, num_lines, data, after, before)
            first_line += num_lines
            if not following or not begins_inside:
                return


def _without_half_line(data: bytes, tally: Tally) -> bytes:
    """Return lines of which the last one has no line feed, so that all have one."""
    start = data.rfind(b"\n") + 1
    if is_json(data[start:]):
        return data + b"\n"
    tally.num_half_written_lines += bool(data[start:].strip())
    return data[:start]


def _read_lines(stream: BinaryIO, span: Span, already: bytes, num_bytes: int) -> bytes:
    """Return what was read already and about as much more as is asked for, up to a line's end."""
    if span.end is not None:
        num_bytes = max(0, min(num_bytes, span.end - stream.tell()))
    data = stream.read(num_bytes)
    # Put together once, because it is long.
    rest = b"" if data.endswith(b"\n") or not data else stream.readline(_TOO_LONG)
    return b"".join((already, data, rest))


def _num_lines(file: LogFile, end: int) -> int:
    """Count the lines of a file that begin before one of its bytes."""
    count, at, last = 0, 0, b"\n"
    with open_log(file) as (stream, _):
        while at < end and (chunk := stream.read(min(_BLOCK_BYTES, end - at))):
            count, at, last = count + chunk.count(b"\n"), at + len(chunk), chunk[-1:]
    return count + (last != b"\n")


def is_json(line: bytes) -> bool:
    """Tell whether a line was written to its end: no part of a JSON object is JSON."""
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def decode_block(
    block: Block, tally: Tally, *, skip_invalid: bool = False
) -> Iterator[BatchRecord]:
    """Yield the records of a block: see `decode_lines`."""
    lines = range(block.num_lines)
    for _, record in decode_lines(block, lines, tally, _itself, skip_invalid=skip_invalid):
        yield record


def _itself(record: BatchRecord) -> BatchRecord:
    return record


def decode_lines(
    block: Block,
    indices: Iterable[int],
    tally: Tally,
    convert: Callable[[BatchRecord], _T],
    *,
    skip_invalid: bool = False,
) -> Iterator[tuple[int, _T]]:
    """Yield what `convert` makes of the records of some lines of a block, with their indices.

    Args:
        block: lines of a log.
        indices: which of them, in order, counted from 0.
        tally: counts the skipped lines.
        convert: what to make of a record; may raise `RecordError` for one it cannot take.
        skip_invalid: go on after a line that holds no record.

    Raises:
        LogError: naming log, line, value and remedy, if a line holds no record.
    """
    lines = block.data.split(b"\n")
    lines[-1] = block.following
    for index in indices:
        line = lines[index]
        if not line.strip():
            continue
        try:
            converted = convert(decode(line))
        except RecordError as error:
            if was_cut_by_a_crash(line, lines[index + 1]):
                tally.num_half_written_lines += 1
                continue
            if not skip_invalid:
                number = block.line_number(index)
                raise LogError(broken_line(number, block.log, error)) from None
            tally.num_skipped_lines += 1
        else:
            yield index, converted


def was_cut_by_a_crash(line: bytes, following: bytes) -> bool:
    """Tell whether a line was once the half-written last one, and a new run was appended to it.

    A writer ends such a line before it begins its own, which start with batch 0.
    """
    if not line.startswith(b"{") or is_json(line):
        return False
    try:
        return decode(following).batch_id == 0
    except RecordError:
        return False


def broken_line(number: int, log: str, error: RecordError) -> str:
    """Return what to say of a line that holds no record: where it is, and what to do about it."""
    message = f"line {number} of {log}: {error}"
    # Skipping what a newer version wrote is rarely what is wanted, and that error has a remedy.
    if isinstance(error, SchemaVersionError):
        return message
    return f"{message}; --skip-invalid goes on without such lines"


def read_records(
    *logs: LogPath, skip_invalid: bool = False, tally: Tally | None = None
) -> Iterator[BatchRecord]:
    """Yield the records of logs, one by one, in the order of the lines.

    Args:
        *logs: paths, folders, patterns or URLs.
        skip_invalid: go on after a line that holds no record, and count it.
        tally: filled with counts of what was read and skipped.

    Raises:
        LogError: if a log is missing, a line holds no record, or no log holds any.
    """
    tally = tally if tally is not None else Tally()
    found = False
    for file in logs_to_read(*logs):
        for record in file_records(file, tally, skip_invalid=skip_invalid):
            found = True
            yield record
    if not found:
        raise empty_error(logs, tally)


def file_records(
    file: LogFile, tally: Tally, *, skip_invalid: bool = False
) -> Iterator[BatchRecord]:
    """Yield the records of a file, in their order.

    Args:
        file: lines of JSON or Parquet.
        tally: counts what is read and what of it is no record.
        skip_invalid: go on after a line that holds no record.

    Raises:
        LogError: if a line holds no record.
        MissingExtraError: if Parquet cannot be read here.
    """
    if is_parquet(file):
        try:
            from sched_profiler.parquet import read_parquet_records  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            raise MissingExtraError(file.name, error, extra="analysis") from None
        yield from read_parquet_records(file, tally)
        return
    for block in read_blocks(file, tally):
        yield from decode_block(block, tally, skip_invalid=skip_invalid)


def empty_error(logs: tuple[LogPath, ...], tally: Tally) -> LogError:
    """Return the error for logs that hold no record at all: what to check, in one line."""
    names = ", ".join(without_credentials(os.fspath(log)) for log in logs)
    left_out = [
        f"{count} {kind}"
        for count, kind in (
            (tally.num_skipped_lines, "invalid"),
            (tally.num_half_written_lines, "half-written"),
        )
        if count
    ]
    but = f" (lines left out: {', '.join(left_out)})" if left_out else ""
    return LogError(
        f"no record in {names}{but}; check that (1) the server process itself sees "
        "VLLM_ENABLE_SCHEDULER_PROFILING=true and VLLM_SCHEDULER_PROFILING_LOG, "
        "(2) it may write to the folder of the log, and (3) anything was scheduled: "
        "no request, no batch"
    )
