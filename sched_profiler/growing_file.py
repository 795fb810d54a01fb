"""A file of a log that grows: read on from where reading stopped, whatever name it has by then."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from typing import TYPE_CHECKING, BinaryIO

import attrs

from sched_profiler.codec import decode
from sched_profiler.errors import RecordError
from sched_profiler.reader import Tally, is_json

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Content", "Tail", "first_line", "identity_of", "skip", "whole_lines"]

_CHUNK_BYTES = 4 << 20
_LONGEST_LINE_BYTES = 16 << 20
"""From here on, a line is no record: what is held of a log is bounded."""
_HEAD_BYTES = 4096
"""How much of its first line tells a file from others."""


@attrs.define(eq=False)
class Content:
    """What is in a file, whatever its name is and whether it is compressed."""

    head: bytes | None = None
    """Tells its first line from others; None until that is there."""
    position: int = 0
    """How much was read of it, in bytes without compression."""
    is_in_long_line: bool = False
    num_bytes: int | None = None
    """Size on the disk of the closed file that was read to its end."""
    num_failures: int = 0
    problem: str | None = None
    """Why it cannot be read."""


class Tail:
    """A file of this machine that may grow; held open, so that it is read to its end.

    Attributes:
        path: where it was found.
        identity: what the system knows it by.
        content: what is in it.
        left_at: monotonic time at which it was found under its name no longer.
        grown_at: monotonic time at which something was read of it.
    """

    def __init__(self, path: str) -> None:
        """Open it.

        Raises:
            OSError: if it cannot be opened.
        """
        self.path = path
        self.content = Content()
        self.left_at: float | None = None
        self.grown_at = time.monotonic()
        self._stream: BinaryIO | None = open(path, "rb")  # noqa: PTH123, SIM115 - see close
        self.identity = identity_of(os.fstat(self._stream.fileno()))

    @property
    def is_open(self) -> bool:
        """Whether it is held open; else it is opened when it is read."""
        return self._stream is not None

    def opened(self) -> BinaryIO:
        """Return what reads it.

        Raises:
            FileNotFoundError: if it was closed and is not there any more.
            OSError: if it cannot be opened.
        """
        if self._stream is None:
            if self.has_moved():
                raise FileNotFoundError(self.path)
            self._stream = open(self.path, "rb")  # noqa: PTH123, SIM115 - see close
        return self._stream

    def close(self) -> None:
        """Close it for now."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def has_moved(self) -> bool:
        """Tell whether its name is now that of another file, or of none."""
        try:
            return identity_of(os.stat(self.path)) != self.identity  # noqa: PTH116 - any name
        except OSError:
            return True

    def last_timestamp(self) -> float:
        """Return the Unix time of its last record; 0 without any."""
        stream = self.opened()
        size = stream.seek(0, os.SEEK_END)
        num_bytes = _HEAD_BYTES
        while True:
            stream.seek(max(0, size - num_bytes))
            for line in reversed(stream.read(num_bytes).split(b"\n")):
                with contextlib.suppress(RecordError):
                    return decode(line).timestamp
            if num_bytes >= min(size, _LONGEST_LINE_BYTES):
                return 0.0
            num_bytes *= 16

    def position_of(self, since: float) -> int:
        """Return where the records begin that are not older than a Unix time, or a bit before."""
        stream = self.opened()
        low, high = 0, stream.seek(0, os.SEEK_END)
        while high - low > _HEAD_BYTES * 16:
            middle = (low + high) // 2
            stream.seek(middle)
            stream.readline(_LONGEST_LINE_BYTES)
            start = stream.tell()
            try:
                is_older = decode(stream.readline(_LONGEST_LINE_BYTES)).timestamp < since
            except RecordError:
                is_older = False
            if is_older and start < high:
                low = start
            else:
                high = middle
        return low


def whole_lines(
    stream: BinaryIO,
    content: Content,
    tally: Tally,
    already: bytes = b"",
    *,
    is_closed: bool = False,
) -> Iterator[bytes]:
    """Yield what is left of a file, in blocks of whole lines; what is read is noted in `content`.

    Args:
        stream: stands where reading goes on.
        content: of the file.
        tally: counts bytes, and lines that are too long.
        already: what was read of it beyond `content.position`.
        is_closed: whether nothing will follow, also not after a line without a line feed.
    """
    rest = already
    while True:
        data = stream.read(_CHUNK_BYTES)
        rest += data
        end = rest.rfind(b"\n") + 1
        if not data and is_closed and is_json(rest):
            end = len(rest)
        lines, rest = rest[:end], rest[end:]
        if len(rest) > _LONGEST_LINE_BYTES:
            tally.num_skipped_lines += not content.is_in_long_line or bool(lines)
            end += len(rest)
        content.position += end
        tally.num_bytes += end
        if lines and content.is_in_long_line:
            content.is_in_long_line = False
            lines = lines.partition(b"\n")[2]
        if len(rest) > _LONGEST_LINE_BYTES:
            content.is_in_long_line, rest = True, b""
        if lines:
            yield lines
        if not data:
            return


def first_line(stream: BinaryIO) -> tuple[bytes, bytes | None]:
    """Read the first line of a file, or the beginning of a long one.

    Return it, and what tells the file from others by it: None until the line is there.
    """
    first = stream.readline(_HEAD_BYTES)
    if len(first) < _HEAD_BYTES and not first.endswith(b"\n"):
        return first, None
    return first, hashlib.blake2b(first, digest_size=16).digest()


def identity_of(status: os.stat_result) -> tuple[int, int]:
    """Return what the system knows a file by."""
    return status.st_dev, status.st_ino


def skip(stream: BinaryIO, num_bytes: int) -> None:
    """Pass over bytes of what cannot be sought in, such as a compressed file."""
    while num_bytes > 0 and (data := stream.read(min(num_bytes, _CHUNK_BYTES))):
        num_bytes -= len(data)
