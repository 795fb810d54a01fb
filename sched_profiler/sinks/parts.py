"""Looks after the closed parts of a log: compresses them, and lets the oldest give way.

All of that happens on a thread of its own, so that neither the engine nor the writer waits for it.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from typing import TYPE_CHECKING

import orjson

from sched_profiler import compression
from sched_profiler.boundary import Boundary
from sched_profiler.log_names import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sched_profiler.log_names import LogNames, Part
    from sched_profiler.sinks.locks import RunLocks
    from sched_profiler.sinks.rotation import Rotation

__all__ = ["PartsKeeper", "compress_parts", "settle"]

_LOOK_S = 0.5
_LOOKS_BETWEEN_SETTLING = 60
_CLOSE_S = 3.0
_LONGEST_LINE_BYTES = 16 << 20


def settle(names: LogNames, *, compress: str | None) -> None:
    """Bring the files of a run that was killed into the state of one that ended in order.

    The part that grew is closed, and what was left uncompressed is compressed. The caller holds the
    run's lock.

    Raises:
        OSError: if a file cannot be read or written.
    """
    current = names.current(rotates=True)
    with contextlib.suppress(FileNotFoundError):
        with current.open("rb") as file:
            first = file.readline(_LONGEST_LINE_BYTES)
        if first:
            began_ns, batch_id = _beginning(first, current)
            newest_ns = max((part.time_ns for part in names.parts()), default=0)
            current.rename(names.closed(max(began_ns, newest_ns + NS_PER_MS), batch_id))
        else:
            current.unlink()
    compress_parts(names, compress)


def _beginning(line: bytes, path: Path) -> tuple[int, int]:
    """Return when the first batch of a part began, and its identifier."""
    try:
        fields = orjson.loads(line)
        return round(fields["timestamp"] * 1e9), int(fields["batch_id"])
    except (KeyError, TypeError, ValueError):
        return path.stat().st_mtime_ns, 0


def compress_parts(names: LogNames, way: str | None) -> None:
    """Compress the parts of a run that are not yet.

    Raises:
        OSError: if a file cannot be read or written.
    """
    if way is None:
        return
    for part in names.parts():
        if not part.is_compressed:
            # A part that gave way in the meantime is no failure.
            with contextlib.suppress(FileNotFoundError):
                compression.compress(part.path, way)


class PartsKeeper:
    """The thread that looks after the parts of one log.

    Attributes:
        locks: held for this run and for the ended ones that it looks after.
    """

    def __init__(
        self,
        names: LogNames,
        rotation: Rotation,
        locks: RunLocks,
        *,
        close_aged: Callable[[], None],
        removed: Callable[[Part, int], None],
    ) -> None:
        """Look after the parts of `names`.

        Args:
            names: names of the run's files.
            rotation: what is asked for.
            locks: takes the locks of other runs that have ended.
            close_aged: called now and then, to close a part that is old enough.
            removed: called with a part that gave way, and the number of its records.
        """
        self.locks = locks
        self._names = names
        self._rotation = rotation
        self._close_aged = close_aged
        self._removed = removed
        self._boundary = Boundary("looking after the parts of a log", limit=None)
        self._woken = threading.Event()
        self._woken.set()
        self._closing = False
        self._thread = threading.Thread(
            target=self._look_after, name="sched-profiler-parts", daemon=True
        )
        self._see_to_thread()

    def wake(self) -> None:
        """A part was closed."""
        self._woken.set()
        self._see_to_thread()

    def close(self, timeout: float = _CLOSE_S) -> bool:
        """Do what is left to do; tell whether that was done in `timeout` seconds."""
        self._closing = True
        self._woken.set()
        if self._thread.ident is None:
            self._look_after()
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _see_to_thread(self) -> None:
        if self._thread.ident is None:
            # Python 3.12 starts none once the main thread has ended; then the close does it all.
            with contextlib.suppress(RuntimeError):
                self._thread.start()

    def _look_after(self) -> None:
        for look in itertools.count():
            closing = self._closing
            if look % _LOOKS_BETWEEN_SETTLING == 0:
                self._boundary.guard(self._settle_killed_runs)
            self._boundary.guard(self._close_aged)
            if self._woken.is_set() or closing:
                self._woken.clear()
                self._boundary.guard(compress_parts, self._names, self._rotation.compress)
                self._boundary.guard(self._keep_limits)
            if closing:
                return
            self._woken.wait(_LOOK_S)

    def _settle_killed_runs(self) -> None:
        for names in self._names.other_runs():
            # Whoever ends in order, and in time, leaves no lock and nothing to compress.
            unfinished = names.lock.exists() or not all(p.is_compressed for p in names.parts())
            if unfinished and self.locks.take(names.lock):
                settle(names, compress=self._rotation.compress)
                self._woken.set()

    def _keep_limits(self) -> None:
        rotation = self._rotation
        if rotation.keep_parts is None and rotation.keep_bytes is None:
            return
        sizes = {
            part: size
            for part in self._names.parts_of_all_runs()
            if (size := _size(part.path)) and self._may_remove(part)
        }
        total = sum(sizes.values()) + _size(self._names.current(rotates=True))
        for number, part in zip(range(len(sizes), 0, -1), sorted(sizes), strict=True):
            too_many = rotation.keep_parts is not None and number > rotation.keep_parts
            too_large = rotation.keep_bytes is not None and total > rotation.keep_bytes
            if not too_many and not too_large:
                return
            # One that is on its way to a store stays: it would be counted as removed, and arrive.
            num_records = compression.num_lines(part.path)
            with contextlib.suppress(FileNotFoundError):
                if not self.locks.remove(part.path):
                    continue
                self._removed(part, num_records)
            total -= sizes[part]

    def _may_remove(self, part: Part) -> bool:
        lock = part.path.with_name(f".{part.own}.lock")
        return part.own == self._names.own or self.locks.take(lock)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
