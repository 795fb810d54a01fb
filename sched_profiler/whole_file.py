"""Files that appear when they are whole, and in place of no log."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import orjson

from sched_profiler import compression
from sched_profiler.errors import LogError, SchedProfilerError
from sched_profiler.log_names import COMPRESSED, MANIFEST_SUFFIX
from sched_profiler.redact import is_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sched_profiler.log_files import LogPath

__all__ = ["check_output", "whole_file"]

_NAMES = (*(f".jsonl{end}" for end in ("", *COMPRESSED)), MANIFEST_SUFFIX)
_MARKS = ("batch_id", "request_number", "manifest_version")
"""A record, a request and a manifest have these, and nothing else that we write has."""
_LOOK_BYTES = 1 << 20
_LOOK_LINES = 20
_PARQUET = b"PAR1"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield where to write a file, so that it appears under its name only when it is whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_output(
    *paths: Path, logs: Sequence[LogPath] = (), may_replace_parquet: bool = False
) -> None:
    """Check that writing some files destroys no log, run manifest or request trace.

    Args:
        *paths: what is to be written; what is there may be replaced if it is something else.
        logs: what is read meanwhile; none of their files is written.
        may_replace_parquet: also replace a file of Parquet, if it is not read.

    Raises:
        SchedProfilerError: naming the file and why it stays as it is.
        LogError: if a log does not exist.
    """
    from sched_profiler.log_files import find_logs  # noqa: PLC0415 - --help needs no codec

    for path in paths:
        if not path.name:
            raise SchedProfilerError(f"{path} is a folder; name a file to write to")
    there = [path for path in paths if path.exists() and not path.is_dir()]
    # Whatever is behind a URL is no file to be written here.
    files = find_logs(*(log for log in logs if not is_url(os.fspath(log)))) if there else []
    for path in there:
        if any(_is_same(path, file.path) for file in files):
            reason = "is one of the logs that are read"
        elif not path.is_file():
            reason = "is no file"  # but a device, which a file must not take the place of
        elif _belongs_to_log(path, may_be_parquet=may_replace_parquet):
            reason = "belongs to a log, which would be lost"
        else:
            continue
        raise SchedProfilerError(f"{path} {reason}; name another file to write to")


def _is_same(path: Path, other: str) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _belongs_to_log(path: Path, *, may_be_parquet: bool) -> bool:
    # By its name also where it is empty or damaged.
    if path.name.endswith(_NAMES):
        return True
    try:
        with path.open("rb") as file, compression.read_errors(path.name):
            start = compression.decompressed(file, path.name).read(_LOOK_BYTES)
    except LogError:
        return False  # what is no gzip file, whatever it is called
    except OSError as error:
        raise SchedProfilerError(
            f"cannot look into {path}, which may be a log: {error.strerror or error}; "
            "name another file to write to"
        ) from None
    if start.startswith(_PARQUET):
        return not may_be_parquet
    return any(map(_is_ours, (start, *start.split(b"\n", _LOOK_LINES)[:_LOOK_LINES])))


def _is_ours(text: bytes) -> bool:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(fields, dict) and any(mark in fields for mark in _MARKS)
