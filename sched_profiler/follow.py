"""Reads logs that grow: what they hold, and then what comes, as records.

A log may not be there yet, end in the middle of a line, go on in a new file, have its closed parts
compressed and removed, and be continued by a new run. A file is told by its first line, whatever
name it gets, so that no record is read twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import posixpath
import time
from collections import deque
from typing import TYPE_CHECKING, BinaryIO

import attrs

from sched_profiler.codec import decode
from sched_profiler.errors import LogError, RecordError
from sched_profiler.log_files import (
    find_logs,
    is_compressed,
    is_on_disk,
    is_parquet,
    open_log,
    plain_path,
)
from sched_profiler.log_names import beginning_of_part, is_part
from sched_profiler.reader import Tally, is_json
from sched_profiler.redact import is_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sched_profiler.log_files import LogFile, LogPath
    from sched_profiler.record import BatchRecord

__all__ = ["Follower", "follow"]

_CHUNK_BYTES = 4 << 20
_LONGEST_LINE_BYTES = 16 << 20
"""From here on, a line is no record: what is held of a log is bounded."""
_HEAD_BYTES = 4096
"""How much of its first line tells a file from others."""

_LOOK_S = 1.0
"""How often new files are looked for on this machine."""
_LOOK_IN_STORE_S = 5.0
"""How often a store is asked for new objects: each time costs a request or more."""
_LINGER_S = 10.0
"""How long a file that lost its name is read on: somebody may still write to it."""
_MOST_OPEN = 128
_MOST_LISTS = 10
_MOST_FAILURES = 3
"""How often a file is tried that cannot be read."""


def follow(
    *logs: LogPath,
    last_s: float | None = None,
    poll_s: float = 0.2,
    quiet_s: float | None = None,
    tally: Tally | None = None,
) -> Iterator[BatchRecord]:
    """Yield the records of logs that grow, and wait for more of them.

    The records of a run come in their order. Lines that hold no record are left out and counted.
    What a log may do meanwhile, see `Follower`.

    Args:
        *logs: files, folders, patterns or URLs; they need not exist yet.
        last_s: begin so many seconds before the newest record that is there, or earlier: a closed
            part is read whole. By default, begin with the oldest.
        poll_s: how often to look for more, in seconds. A store is asked every 5 s at most.
        quiet_s: end when nothing came for so many seconds; by default, never.
        tally: filled with counts of what was read and left out.

    Raises:
        SettingError: if a URL needs a package that is not installed.
    """
    quiet_since = time.monotonic()
    with contextlib.closing(Follower(*logs, last_s=last_s, tally=tally)) as follower:
        while True:
            for record in follower.poll():
                yield record
                quiet_since = time.monotonic()
            if quiet_s is not None and time.monotonic() - quiet_since >= quiet_s:
                return
            time.sleep(poll_s)


class Follower:
    """Reads what came to logs since it looked last.

    It survives what happens to a log meanwhile: the part that grows is closed, renamed, compressed,
    removed or truncated, another one begins, another run begins. It never waits, and what it holds
    of a log is bounded.

    Attributes:
        tally: counts of what was read and left out.
        problem: why nothing can be read at the moment, such as a log that does not exist yet;
            None if all is well.
        last_invalid: what is wrong with the last line that holds no record; None without any.
    """

    def __init__(
        self, *logs: LogPath, last_s: float | None = None, tally: Tally | None = None
    ) -> None:
        """Follow logs; nothing is read before the first `poll`.

        Args:
            *logs: files, folders, patterns or URLs; they need not exist yet.
            last_s: begin so many seconds before the newest record that is there, or earlier: a
                closed part is read whole. By default, begin with the oldest.
            tally: counts what is read and left out.

        Raises:
            SettingError: if a URL needs a package that is not installed.
        """
        self._logs = [os.fspath(log) for log in logs]
        urls = [log for log in self._logs if is_url(log)]
        if urls:
            from sched_profiler.store import require  # noqa: PLC0415 - only for URLs

            for url in urls:
                require(url)
        self._look_s = _LOOK_IN_STORE_S if len(urls) == len(self._logs) else _LOOK_S
        self._last_s = last_s
        self.tally = Tally() if tally is None else tally
        self.problem: str | None = None
        self.last_invalid: str | None = None
        self._look_due = 0.0
        self._contents: dict[str, _Content] = {}
        """What was read of each file, by its name when it is not compressed."""
        self._tails: dict[tuple[int, int], _Tail] = {}
        """Files that may grow, by what the system knows them by."""
        self._truncated: deque[_Content] = deque(maxlen=_MOST_OPEN)
        """What was read of files before they were begun anew."""

    def poll(self) -> Iterator[BatchRecord]:
        """Yield what came since the last time; ends when that is read."""
        has_moved = False
        for tail in list(self._tails.values()):
            yield from self._read_tail(tail)
            has_moved = has_moved or (tail.left_at is None and tail.has_moved())
        now = time.monotonic()
        if has_moved or now >= self._look_due:
            self._look_due = now + self._look_s
            yield from self._look(now)

    def close(self) -> None:
        """Close all files, also while another thread is in `poll`."""
        for tail in list(self._tails.values()):
            tail.close()

    def _look(self, now: float) -> Iterator[BatchRecord]:
        files = self._find()
        if self._open_new(files):
            # What was closed before they were opened comes before what they hold. What gets another
            # name just then may be in no list, so two of them must agree.
            for _ in range(_MOST_LISTS):
                before, files = files, self._find()
                if before.keys() == files.keys():
                    break
        for key, tail in list(self._tails.items()):
            if tail.left_at is None and tail.has_moved():
                tail.left_at = now
            if tail.left_at is not None and now - tail.left_at > _LINGER_S:
                tail.close()
                del self._tails[key]
        closed = [file for file in files.values() if not self._is_followed(file)]
        if self._last_s is not None and files:
            self._skip_old(closed, self._last_s)
            self._last_s = None
        for file in closed:
            yield from self._read_closed(file)
        for tail in list(self._tails.values()):
            yield from self._read_tail(tail)
        self._forget(files)

    def _find(self) -> dict[str, LogFile]:
        """Return the files that there are, and note why there are none."""
        found: dict[str, LogFile] = {}
        self.problem = None
        for log in self._logs:
            try:
                for file in find_logs(log):
                    if is_on_disk(file) and not os.path.exists(file.path):  # noqa: PTH110 - any name
                        self.problem = f"{file.name} does not exist yet"
                    elif is_parquet(file):
                        self.problem = f"{file.name} is Parquet, which does not grow"
                    else:
                        found[_key(file)] = file
            except LogError as error:
                self.problem = str(error)
        return found

    def _open_new(self, files: dict[str, LogFile]) -> bool:
        """Open the files that may grow and are new; tell whether there are any."""
        is_any = False
        for key, file in files.items():
            if not is_on_disk(file) or is_compressed(file):
                continue
            try:
                status = os.stat(file.path)  # noqa: PTH116 - any name
                known = self._tails.get((status.st_dev, status.st_ino))
                if known is None and not is_part(posixpath.basename(file.path)):
                    known = _Tail(file.path)
                    self._tails[known.identity] = known
                    self._close_some()
                    is_any = True
            except FileNotFoundError:
                continue  # it has another name by now
            except OSError as error:
                self.problem = f"{file.name} cannot be read: {error.strerror}"
                continue
            if known is not None:
                self._contents[key] = known.content
        return is_any

    def _close_some(self) -> None:
        """Keep no more files open than a process may: those that grew last."""
        opened = [tail for tail in self._tails.values() if tail.is_open]
        for tail in sorted(opened, key=lambda tail: tail.grown_at)[:-_MOST_OPEN]:
            tail.close()

    def _is_followed(self, file: LogFile) -> bool:
        content = self._contents.get(_key(file))
        return content is not None and any(
            tail.content is content and tail.left_at is None for tail in self._tails.values()
        )

    def _skip_old(self, closed: list[LogFile], last_s: float) -> None:
        """Begin a while before the newest record: find out where that is in each file."""
        parts = [
            (file, begun)
            for file in closed
            if (begun := beginning_of_part(posixpath.basename(file.path)))
        ]
        newest = max(
            [
                *(tail.last_timestamp() for tail in self._tails.values()),
                *(begins for _, (_, begins) in parts),
            ],
            default=0.0,
        )
        since = newest - last_s
        for tail in self._tails.values():
            tail.content.position = tail.position_of(since)
        next_begins: dict[str, float] = {}
        for file, (run, begins) in sorted(parts, key=lambda part: part[1], reverse=True):
            # All that is in a part was recorded before the next one began.
            if next_begins.get(run, since) < since:
                self._contents[_key(file)] = _Content(num_bytes=file.num_bytes)
            next_begins[run] = begins

    def _read_tail(self, tail: _Tail) -> Iterator[BatchRecord]:
        try:
            stream = tail.opened()
            if os.fstat(stream.fileno()).st_size < tail.content.position:
                # Truncated, by somebody who has copied it.
                self._truncated.append(tail.content)
                tail.content = _Content()
            if tail.content.head is None:
                stream.seek(0)
                head = _head(stream.readline(_HEAD_BYTES))
                tail.content = self._same(head) or tail.content
                tail.content.head = head
            stream.seek(tail.content.position)
            for lines in _whole_lines(stream, tail.content, self.tally):
                tail.grown_at = time.monotonic()
                yield from self._records(lines)
        except FileNotFoundError:
            pass  # it was removed while it was not open
        except OSError as error:
            self.problem = f"{tail.path} cannot be read: {error.strerror}"

    def _read_closed(self, file: LogFile) -> Iterator[BatchRecord]:
        content = self._contents.setdefault(_key(file), _Content())
        if content.num_failures >= _MOST_FAILURES:
            self.problem = content.problem
            return
        if content.num_bytes == file.num_bytes:
            return
        try:
            with open_log(file) as (stream, _):
                first = stream.readline(_HEAD_BYTES)
                head = _head(first)
                content = self._contents[_key(file)] = self._same(head) or content
                content.head = head
                if content.position:
                    _skip(stream, content.position - len(first))
                    first = b""
                for lines in _whole_lines(stream, content, self.tally, first, is_closed=True):
                    yield from self._records(lines)
            content.num_bytes = file.num_bytes
        except LogError as error:
            if not is_on_disk(file) or os.path.exists(file.path):  # noqa: PTH110 - any name
                content.num_failures += 1
                self.problem = content.problem = str(error)

    def _same(self, head: bytes | None) -> _Content | None:
        """Return what is known of a file with this first line, under whatever name."""
        if head is None:
            return None
        tails = (tail.content for tail in self._tails.values())
        known = itertools.chain(self._contents.values(), tails, self._truncated)
        return next((content for content in known if content.head == head), None)

    def _records(self, lines: bytes) -> Iterator[BatchRecord]:
        for line in lines.split(b"\n"):
            if not line.strip():
                continue
            try:
                record = decode(line)
            except RecordError as error:
                self.tally.num_skipped_lines += 1
                self.last_invalid = str(error)
                continue
            yield record

    def _forget(self, files: dict[str, LogFile]) -> None:
        """Forget what was read of files that are gone."""
        followed = {id(tail.content) for tail in self._tails.values()}
        self._contents = {
            key: content
            for key, content in self._contents.items()
            if key in files or id(content) in followed
        }


@attrs.define(eq=False)
class _Content:
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


class _Tail:
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
        self.content = _Content()
        self.left_at: float | None = None
        self.grown_at = time.monotonic()
        self._stream: BinaryIO | None = open(path, "rb")  # noqa: PTH123, SIM115 - see close
        self.identity = _identity(os.fstat(self._stream.fileno()))

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
            return _identity(os.stat(self.path)) != self.identity  # noqa: PTH116 - any name
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


def _whole_lines(
    stream: BinaryIO,
    content: _Content,
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


def _key(file: LogFile) -> str:
    return plain_path(os.path.realpath(file.path) if is_on_disk(file) else file.name)


def _head(first: bytes) -> bytes | None:
    """Return what tells a file from others by its first line, or the beginning of that."""
    if len(first) < _HEAD_BYTES and not first.endswith(b"\n"):
        return None
    return hashlib.blake2b(first, digest_size=16).digest()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _skip(stream: BinaryIO, num_bytes: int) -> None:
    while num_bytes > 0 and (data := stream.read(min(num_bytes, _CHUNK_BYTES))):
        num_bytes -= len(data)
