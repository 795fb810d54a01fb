"""Appends records to a file, one JSON object a line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sched_profiler.codec import encode

if TYPE_CHECKING:
    from sched_profiler.record import BatchRecord

__all__ = ["JsonlSink"]

_FLUSH_BYTES = 1 << 20


class JsonlSink:
    """Appends to a file; makes its parent folders; never truncates what is there.

    Whole lines are handed to the operating system in one call, in append mode: several engines
    may share a file without mixing their lines, and what was flushed survives the death of the
    process by any signal.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Append to `path`; the file is made at the first record."""
        self.path = Path(path)
        self._file: int | None = None
        self._lines: list[bytes] = []
        self._num_bytes = 0

    def write(self, record: BatchRecord) -> None:
        """Take a record; it reaches the file at `flush`, or when 1 MiB has come together."""
        line = encode(record)
        self._lines.append(line)
        self._num_bytes += len(line)
        if self._num_bytes >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand all lines to the operating system.

        Raises:
            OSError: if the file cannot be made or written; the lines are kept for the next flush.
        """
        if not self._lines:
            return
        if self._file is None:
            self._file = self._open()
        block = b"".join(self._lines)
        written = 0
        try:
            # A short write (a full disk, a signal) is gone on with where it stopped.
            while written < len(block):
                written += os.write(self._file, block[written:] if written else block)
        finally:
            rest = block[written:]
            self._lines = [rest] if rest else []
            self._num_bytes = len(rest)

    def close(self) -> None:
        """Flush and close the file."""
        try:
            self.flush()
        finally:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            # A writer died in the middle of a line: end that line, or it would swallow ours.
            os.write(file, b"\n")
        return file

    def __repr__(self) -> str:
        """Return where the records go."""
        return f"JsonlSink({str(self.path)!r})"
