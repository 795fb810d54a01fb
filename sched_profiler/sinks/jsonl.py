"""Appends records to a file, one JSON object a line; may go on in a new file now and then."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import secrets
import stat
import threading
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sched_profiler import compression
from sched_profiler.boundary import Boundary
from sched_profiler.clock import SYSTEM_CLOCK, Clock
from sched_profiler.codec import encode
from sched_profiler.errors import SinkUnavailableError
from sched_profiler.log_names import (
    MANIFEST_SUFFIX,
    NS_PER_MS,
    LogNames,
    check_placeholders,
    placeholder_values,
)
from sched_profiler.manifest import count_removed, write_manifest
from sched_profiler.messages import logger
from sched_profiler.sinks.locks import RunLocks, not_for_forks
from sched_profiler.sinks.parts import PartsKeeper
from sched_profiler.sinks.rotation import Rotation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sched_profiler.log_names import Part
    from sched_profiler.manifest import Run, RunManifest
    from sched_profiler.record import BatchRecord

__all__ = ["BATCHES", "JsonlSink", "Lines"]

_FLUSH_BYTES = 1 << 20
_KEPT_BYTES = 8 << 20
"""How much is kept in memory while the file cannot be written."""
_MANIFEST_NS = 10_000_000_000
_NO_ROTATION = Rotation()


@attrs.frozen
class Lines:
    """How what a file holds becomes its lines."""

    encode: Callable[[Any], bytes]
    """Returns a line, with its line feed."""
    number_of: Callable[[Any], int]
    """Returns the number by which what was lost shows as a gap."""


BATCHES = Lines(encode, attrgetter("batch_id"))
"""The lines of a log."""


class JsonlSink:
    """Appends to a file; makes its parent folders; never truncates what is there.

    Whole lines are handed to the operating system in one call, in append mode: what was flushed
    survives the death of the process by any signal. No two engines share a file: if another one
    writes to the file that was asked for, the run's name becomes part of the file's, as it does
    with a `Rotation`.

    While the file cannot be written (a full disk, a folder that is read-only or gone), the sink
    keeps 8 MiB of lines, and writes them as soon as it can. What comes beyond that is lost, and
    counted.
    """

    _label = "{run_id}"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rotation: Rotation = _NO_ROTATION,
        clock: Clock = SYSTEM_CLOCK,
        lines: Lines = BATCHES,
    ) -> None:
        """Append to `path`; the file is made at the first record.

        Args:
            path: may hold the placeholders `{run_id}`, `{dp_rank}`, `{host}`, `{pid}` and `{date}`
                (UTC), which are filled in at the first record.
            rotation: when to go on in a new file, and what becomes of the old ones.
            clock: the source of all times.
            lines: what the file holds.

        Raises:
            SettingError: if `path` has another placeholder, or a package that `rotation` needs is
                not installed.
        """
        self.path = Path(path).absolute()
        check_placeholders(str(self.path))
        if rotation.compress is not None:
            compression.require(rotation.compress)
        self._rotation = rotation
        self._clock = clock
        self._layout = lines
        self._run: Run | None = None
        self._manifest: RunManifest | None = None
        self._manifest_boundary = Boundary(f"the run manifest of {self}", limit=None)
        self._manifest_due_ns = 0
        self.locks = RunLocks()
        not_for_forks(self)
        self._keeper: PartsKeeper | None = None
        # The keeper closes a part that is old enough, also while no record comes.
        self._lock = threading.RLock()
        self._names: LogNames | None = None
        self._log_name = ""
        self._file: _OpenFile | None = None
        self._is_failing = False
        # Another engine writes to the file that was asked for.
        self._is_taken = False
        # What is not written yet: lines, the first of which may be the rest of one whose head is.
        self._lines: list[bytes] = []
        self._num_bytes = 0
        self._num_lines = 0
        self._head = b""
        # Of the part that grows:
        self._size = 0
        self._began_ns = 0
        self._began_monotonic_ns = 0
        self._first_batch_id = 0
        self._newest_ns = 0
        # Of the run:
        self._num_written = 0
        self._num_removed = 0
        self._num_batches = 0
        self._has_ended = False

    def begin_run(self, run: Run) -> None:
        """Keep a manifest of this run, from the first record on."""
        self._run = run

    def write(self, record: BatchRecord) -> None:
        """Take a record; it reaches the file at `flush`, or when 1 MiB has come together.

        Raises:
            SinkUnavailableError: if the file cannot be written and no more lines can be kept; the
                record is lost.
        """
        line = self._layout.encode(record)
        number = self._layout.number_of(record)
        with self._lock:
            if self._names is None:
                self._begin(record)
            self._has_ended = False
            # Each batch has its number, also one that was lost on its way here.
            self._num_batches = max(self._num_batches, number + 1)
            self._make_room(len(line))
            if not self._size and not self._num_bytes:
                self._began_ns = self._clock.time_ns()
                self._began_monotonic_ns = self._clock.monotonic_ns()
                self._first_batch_id = number
            self._lines.append(line)
            self._num_bytes += len(line)
            self._num_lines += 1

    def flush(self) -> None:
        """Hand all lines to the operating system.

        Raises:
            SinkUnavailableError: if the file cannot be made or written; the lines are kept for the
                next flush.
        """
        with self._lock:
            self._bring_out()
            if self._clock.monotonic_ns() >= self._manifest_due_ns:
                self._write_manifest()

    def close(self) -> None:
        """Flush and close the file; with rotation, close the last part as any other.

        Raises:
            SinkUnavailableError: if lines are left that cannot be written.
        """
        try:
            with self._lock:
                self._bring_out()
                self._close_part()
        finally:
            self._end()

    @property
    def num_unwritten(self) -> int:
        """Records taken that are not with the operating system yet."""
        return self._num_lines

    @property
    def shown(self) -> str:
        """Where the records go, for a message: the file that grows, as far as that is known."""
        names = self._names
        if names is None and self._run is not None:
            names = self._names_of(self._run.run_id, self._run.dp_rank)[0]
        return str(self.path if names is None else names.current(rotates=self._has_own_file))

    @property
    def names(self) -> LogNames | None:
        """Names of the files, once the first record came."""
        return self._names

    def __repr__(self) -> str:
        """Return where the records go."""
        return f"JsonlSink({str(self.path)!r})"

    def _begin(self, record: BatchRecord) -> None:
        run_id = record.run_id or secrets.token_hex(6)
        self._names, values = self._names_of(run_id, record.dp_rank)
        self._log_name = self._log_name_of(values)

    def _names_of(self, run_id: str, dp_rank: int | None) -> tuple[LogNames, Mapping[str, str]]:
        values = placeholder_values(
            run_id=run_id, dp_rank=dp_rank, pid=os.getpid(), time_ns=self._clock.time_ns()
        )
        return LogNames.of_run(str(self.path), label=self._label, values=values), values

    def _log_name_of(self, values: Mapping[str, str]) -> str:  # noqa: ARG002 - for subclasses
        """Return what the manifest calls the log."""
        return self._current().name

    def _make_room(self, num_bytes: int) -> None:
        limit = self._rotation.part_bytes
        filled = self._size + self._num_bytes
        is_full = limit is not None and filled > 0 and filled + num_bytes > limit
        if not is_full and self._num_bytes < _FLUSH_BYTES:
            return
        try:
            self._bring_out()
            if is_full:
                self._close_part()
        except SinkUnavailableError:
            if self._num_bytes + num_bytes > _KEPT_BYTES:
                raise

    def _bring_out(self) -> None:
        # After a failure it is tried again with every record, and many are kept: one line will do.
        least = 1 if self._is_failing else _FLUSH_BYTES
        while self._lines:
            self._write_block(least)
            least = _FLUSH_BYTES
        if self._is_failing:
            self._is_failing = False
            logger.warning("%s can be written again", self._current())

    def _write_block(self, least: int) -> None:
        """Write as many of the first lines as have so many bytes, or all."""
        block, num_pieces, written = b"", 0, 0
        try:
            file = self._opened().number
            sizes = itertools.accumulate(map(len, self._lines))
            num_pieces = 1 + sum(1 for _ in itertools.takewhile(least.__gt__, sizes))
            block = b"".join(self._lines[:num_pieces])
            # A short write (a full disk, a signal) is gone on with where it stopped.
            while written < len(block):
                written += os.write(file, block[written:] if written else block)
        except OSError as error:
            self._is_failing = True
            where = str(self._current())
            raise SinkUnavailableError(error.errno, error.strerror, where) from error
        finally:
            if written:
                self._note_written(block, num_pieces, written)

    def _note_written(self, block: bytes, num_pieces: int, written: int) -> None:
        rest = block[written:]
        num_lines = block.count(b"\n") - rest.count(b"\n")
        self._num_written += num_lines
        self._num_lines -= num_lines
        self._num_bytes -= written
        self._lines[:num_pieces] = [rest] if rest else []
        begun = block.rfind(b"\n", 0, written) + 1
        self._head = block[begun:written] if begun else self._head + block[:written]
        self._size += written

    def _opened(self) -> _OpenFile:
        """Return the file to write to, made anew if somebody took it away."""
        if self._file is not None and not self._file.is_at_its_path():
            self._close_file()
        if self._file is None:
            self._file = self._open(self._current())
            self._size = os.fstat(self._file.number).st_size
            if self._head:
                self._lines.insert(0, self._head)
                self._num_bytes += len(self._head)
                self._head = b""
            # What was beside the file may be gone as well.
            self._manifest_due_ns = 0
            if self._rotation.is_on:
                self._look_after_parts()
        return self._file

    def _open(self, path: Path) -> _OpenFile:
        self._make_folder(path.parent)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if not self._has_own_file and not _is_free(file):
            os.close(file)
            self._is_taken = True
            own = self._current()
            self._log_name = own.name
            if self._manifest is not None:
                self._manifest = attrs.evolve(self._manifest, log=own.name)
            logger.warning("another engine writes to %s: this run goes to %s", path, own)
            return self._open(own)
        size = os.fstat(file).st_size
        try:
            if size and os.pread(file, 1, size - 1) != b"\n":
                # A writer died in the middle of a line: end that line, or it would swallow ours.
                os.write(file, b"\n")
        except OSError:
            os.close(file)
            raise
        return _OpenFile(path, file)

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file.number)
            self._file = None

    def forget_files(self) -> None:
        """Leave the file to the parent, in a process that was forked."""
        self._lock = threading.RLock()
        self._close_file()

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def _current(self) -> Path:
        if self._names is None:
            return self.path
        return self._names.current(rotates=self._has_own_file)

    @property
    def _has_own_file(self) -> bool:
        """Whether the run is part of the file's name."""
        return self._rotation.is_on or self._is_taken

    def _look_after_parts(self) -> None:
        assert self._names is not None  # noqa: S101 - for the type checker: a record has come
        self.locks.take(self._names.lock)
        if self._keeper is None:
            self._keeper = PartsKeeper(
                self._names,
                self._rotation,
                self.locks,
                close_aged=self._close_aged,
                removed=self._removed,
            )

    def _close_part(self) -> None:
        """Give the part that grew the name of a closed one."""
        if self._names is None or not self._rotation.is_on or not self._size:
            return
        self._close_file()
        self._newest_ns = max(self._began_ns, self._newest_ns + NS_PER_MS)
        try:
            self._current().rename(self._names.closed(self._newest_ns, self._first_batch_id))
        except FileNotFoundError:
            pass  # somebody took it away
        except OSError as error:
            raise SinkUnavailableError(error.errno, error.strerror, str(self._current())) from error
        self._size = 0
        self._manifest_due_ns = 0
        if self._keeper is not None:
            self._keeper.wake()

    def _close_aged(self) -> None:
        """Close the part that grows if it is old enough; called by the keeper."""
        limit = self._rotation.part_seconds
        with self._lock:
            age_ns = self._clock.monotonic_ns() - self._began_monotonic_ns
            if limit is not None and self._size and age_ns >= limit * 1e9:
                # If that does not go now, it will later.
                with contextlib.suppress(SinkUnavailableError):
                    self._bring_out()
                    self._close_part()
                    self._write_manifest()

    def _removed(self, part: Part, num_records: int) -> None:
        """Count what gave way to a limit; called by the keeper."""
        assert self._names is not None  # noqa: S101 - for the type checker: there are parts
        if part.own == self._names.own:
            with self._lock:
                self._num_removed += num_records
                self._manifest_due_ns = 0
                if self._has_ended:
                    # Nobody would write it any more.
                    self._write_manifest(ended=True)
        else:
            count_removed(part.path.with_name(part.own + MANIFEST_SUFFIX), num_records)

    def _end(self) -> None:
        with self._lock:
            self._close_file()
        if self._has_ended:
            return
        self._has_ended = True
        # Without the lock, which the keeper may want.
        keeper, self._keeper = self._keeper, None
        all_done = keeper is None or keeper.close()
        with self._lock:
            self._write_manifest(ended=True)
        if all_done:
            # Else the lock stays behind, and tells the next run that there is something to do.
            self._let_go()

    def _let_go(self) -> None:
        """Leave the files to whoever comes next."""
        self.locks.release_all()

    def _write_manifest(self, *, ended: bool = False) -> None:
        self._manifest_due_ns = self._clock.monotonic_ns() + _MANIFEST_NS
        if self._run is None or self._names is None:
            return
        if not self._manifest_boundary.guard(self._renew_manifest, self._run, self._names, ended):
            # The next flush tries again: without one nobody knows where a run is bound for.
            self._manifest_due_ns = 0

    def _renew_manifest(self, run: Run, names: LogNames, ended: bool) -> None:  # noqa: FBT001 - passed on by the boundary
        now = self._clock.time_ns() / 1e9
        if self._manifest is None:
            self._manifest = run.manifest(log=self._log_name, started=now, updated=now)
        # What was lost on its way here has a batch_id too, unless it was the last; and what is
        # still to be written at the end never will be.
        num_lost = self._num_batches - self._num_written - (0 if ended else self._num_lines)
        num_told = run.num_dropped() + (self._num_lines if ended else 0)
        manifest = attrs.evolve(
            self._manifest,
            updated=now,
            ended=now if ended else None,
            clean_end=ended and not self._lines,
            num_written_records=self._num_written,
            num_dropped_records=max(num_lost, num_told),
            num_removed_records=self._num_removed,
            num_missing_elsewhere=run.missing_elsewhere(),
        )
        self._make_folder(names.folder)
        write_manifest(names.manifest, manifest)


class _OpenFile:
    """An open file, and where it was found.

    It is asked for in every flush. Each system call lets the engine's thread have the interpreter,
    which then is to be waited for: so this is one, and what it compares with is kept.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.number = number
        self._path = os.fspath(path)
        self._identity = _identity(os.fstat(number))

    def is_at_its_path(self) -> bool:
        try:
            return _identity(os.stat(self._path)) == self._identity  # noqa: PTH116 - a third of the time of a Path
        except FileNotFoundError:
            return False


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _is_free(file: int) -> bool:
    """Tell whether nobody else writes to a file, and keep it so as long as it is open."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        return True  # such as /dev/null, which is everybody's
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # a file system without locks
    return True
