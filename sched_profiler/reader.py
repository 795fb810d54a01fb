"""Finds the lines of logs and turns them into records, without pandas.

A log is lines of JSON, one record each. Two things are no fault of a log: blank lines, which are
passed over, and a last line that its writer has not finished, which is counted.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import attrs
import orjson

from sched_profiler.codec import decode
from sched_profiler.errors import LogError, RecordError, SchemaVersionError
from sched_profiler.log_files import LogFile, LogPath, logs_to_read, open_log
from sched_profiler.redact import without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sched_profiler.record import BatchRecord

__all__ = [
    "Block",
    "LogPath",
    "Tally",
    "decode_block",
    "empty_error",
    "read_blocks",
    "read_records",
    "was_cut_by_a_crash",
]

_BLOCK_BYTES = 4 << 20
"""How much of a log is held at a time, in bytes; a block has whole lines, so it may be longer."""

_LONGEST_LINE_BYTES = 16 << 20
"""From here on, a line is no record: what is held of a log is bounded, whatever the file is."""

_T = TypeVar("_T")


@attrs.define
class Tally:
    """What was read of all logs together, and what of them is no record."""

    num_bytes: int = 0
    """Bytes read so far, uncompressed."""
    num_skipped_lines: int = 0
    """Lines that hold no record and were skipped because the caller asked for it."""
    num_half_written_lines: int = 0
    """Last lines that their writer had not finished: at most one a log."""


@attrs.frozen
class Block:
    """Some whole lines of a log, each with its line feed."""

    log: str
    """Name of the file."""
    first_line: int
    """Number of the first of these lines in the log, counted from 1."""
    num_lines: int
    data: bytes


def read_blocks(log: LogPath | LogFile, tally: Tally) -> Iterator[Block]:
    """Yield a log in blocks of whole lines, and count in `tally` what was read.

    A last line without a line feed is taken for a record if it is complete JSON, and counted as
    half-written otherwise; so is one in the middle to which a new run was appended.

    Raises:
        LogError: if the log does not exist or cannot be read, or a line is longer than 16 MiB.
    """
    if not isinstance(log, LogFile):
        for file in logs_to_read(log):
            yield from read_blocks(file, tally)
        return
    name = log.name
    first_line, rest = 1, b""
    with open_log(log) as stream:
        while chunk := stream.read(_BLOCK_BYTES):
            tally.num_bytes += len(chunk)
            end = chunk.rfind(b"\n") + 1
            if not end:
                rest += chunk
                if len(rest) > _LONGEST_LINE_BYTES:
                    raise LogError(
                        f"line {first_line} of {name} is longer than "
                        f"{_LONGEST_LINE_BYTES >> 20} MiB; this is no log of a scheduler"
                    )
                continue
            data, rest = rest + chunk[:end], chunk[end:]
            num_lines = data.count(b"\n")
            yield Block(name, first_line, num_lines, data)
            first_line += num_lines
    if rest and _is_json(rest):
        yield Block(name, first_line, 1, rest + b"\n")
    elif rest.strip():
        tally.num_half_written_lines += 1


def _is_json(line: bytes) -> bool:
    # No part of a JSON object is JSON: a line that parses was written to its end.
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def decode_block(
    block: Block, tally: Tally, convert: Callable[[BatchRecord], _T], *, skip_invalid: bool = False
) -> Iterator[_T]:
    """Yield what `convert` makes of each record of a block.

    Args:
        block: lines of a log.
        tally: counts the skipped lines.
        convert: what to make of a record; may raise `RecordError` for one it cannot take.
        skip_invalid: go on after a line that holds no record.

    Raises:
        LogError: naming log, line, value and remedy, if a line holds no record.
    """
    lines = block.data.split(b"\n")
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            converted = convert(decode(line))
        except RecordError as error:
            if was_cut_by_a_crash(line, lines[index + 1]):
                tally.num_half_written_lines += 1
                continue
            if not skip_invalid:
                number = block.first_line + index
                raise LogError(_broken_line(number, block.log, error)) from None
            tally.num_skipped_lines += 1
        else:
            yield converted


def was_cut_by_a_crash(line: bytes, following: bytes) -> bool:
    """Tell whether a line was once the half-written last one, and a new run was appended to it.

    A writer ends such a line before it begins its own, which start with batch 0.
    """
    if not line.startswith(b"{") or _is_json(line):
        return False
    try:
        return decode(following).batch_id == 0
    except RecordError:
        return False


def _broken_line(number: int, log: str, error: RecordError) -> str:
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
        for block in read_blocks(file, tally):
            for record in decode_block(
                block, tally, lambda record: record, skip_invalid=skip_invalid
            ):
                found = True
                yield record
    if not found:
        raise empty_error(logs, tally)


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
