"""Reads logs that grow: what they hold, and then what comes, as records.

A log may not be there yet, end in the middle of a line, go on in a new file, have its closed parts
compressed and removed, and be continued by a new run. A file is told by its first line, whatever
name it gets, so that no record is read twice.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import time
from collections import deque
from typing import TYPE_CHECKING

from sched_profiler.codec import decode
from sched_profiler.errors import LogError, RecordError
from sched_profiler.growing_file import (
    Content,
    Tail,
    first_line,
    identity_of,
    skip,
    whole_lines,
)
from sched_profiler.log_files import (
    find_logs,
    is_compressed,
    is_on_disk,
    is_parquet,
    open_log,
    plain_path,
)
from sched_profiler.log_names import beginning_of_part, is_part
from sched_profiler.reader import Tally
from sched_profiler.redact import is_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sched_profiler.log_files import LogFile, LogPath
    from sched_profiler.record import BatchRecord

__all__ = ["Follower", "follow"]

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
        self._contents: dict[str, Content] = {}
        """What was read of each file, by its name when it is not compressed."""
        self._tails: dict[tuple[int, int], Tail] = {}
        """Files that may grow, by what the system knows them by."""
        self._truncated: deque[Content] = deque(maxlen=_MOST_OPEN)
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
                known = self._tails.get(identity_of(status))
                if known is None and not is_part(posixpath.basename(file.path)):
                    known = Tail(file.path)
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
                self._contents[_key(file)] = Content(num_bytes=file.num_bytes)
            next_begins[run] = begins

    def _read_tail(self, tail: Tail) -> Iterator[BatchRecord]:
        try:
            stream = tail.opened()
            if os.fstat(stream.fileno()).st_size < tail.content.position:
                # Truncated, by somebody who has copied it.
                self._truncated.append(tail.content)
                tail.content = Content()
            if tail.content.head is None:
                stream.seek(0)
                _, head = first_line(stream)
                tail.content = self._same(head) or tail.content
                tail.content.head = head
            stream.seek(tail.content.position)
            for lines in whole_lines(stream, tail.content, self.tally):
                tail.grown_at = time.monotonic()
                yield from self._records(lines)
        except FileNotFoundError:
            pass  # it was removed while it was not open
        except OSError as error:
            self.problem = f"{tail.path} cannot be read: {error.strerror}"

    def _read_closed(self, file: LogFile) -> Iterator[BatchRecord]:
        content = self._contents.setdefault(_key(file), Content())
        if content.num_failures >= _MOST_FAILURES:
            self.problem = content.problem
            return
        if content.num_bytes == file.num_bytes:
            return
        try:
            with open_log(file) as (stream, _):
                first, head = first_line(stream)
                content = self._contents[_key(file)] = self._same(head) or content
                content.head = head
                if content.position:
                    skip(stream, content.position - len(first))
                    first = b""
                for lines in whole_lines(stream, content, self.tally, first, is_closed=True):
                    yield from self._records(lines)
            content.num_bytes = file.num_bytes
        except LogError as error:
            if not is_on_disk(file) or os.path.exists(file.path):  # noqa: PTH110 - any name
                content.num_failures += 1
                self.problem = content.problem = str(error)

    def _same(self, head: bytes | None) -> Content | None:
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


def _key(file: LogFile) -> str:
    return plain_path(os.path.realpath(file.path) if is_on_disk(file) else file.name)
