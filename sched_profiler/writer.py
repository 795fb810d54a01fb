"""Moves measurements off the engine's thread: a bounded queue and the thread that empties it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from sched_profiler.boundary import Boundary
from sched_profiler.lifetime import at_process_end

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.record import BatchRecord
    from sched_profiler.sinks.base import Sink

__all__ = ["BackgroundWriter", "DirectWriter", "Writer"]

logger = logging.getLogger("sched_profiler")

_HURRIED_POLL_S = 0.001
_BUSY_POLL_S = 0.01
_IDLE_POLL_S = 0.2


class Writer(Protocol):
    """What a profiler hands its measurements to."""

    @property
    def num_dropped(self) -> int:
        """Measurements given up since the start: the queue was full, or no record could be made."""
        ...

    def put(self, measurement: Any) -> None:
        """Take a measurement; never waits."""
        ...

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is written; tell whether that was so in `timeout` s."""
        ...

    def close(self, timeout: float | None = None) -> bool:
        """Write what is left and close the sink; tell whether that was so in `timeout` s."""
        ...


class _RecordMaker:
    """Makes a record of a measurement and gives it to the sink; failures stay inside."""

    def __init__(
        self, sink: Sink, to_record: Callable[[Any, int], BatchRecord], *, strict: bool
    ) -> None:
        self._sink = sink
        self._to_record = to_record
        self._sink_boundary = Boundary(f"sink {sink!r}", strict=strict)
        # One malformed measurement says nothing about the next: this one is never switched off.
        self._record_boundary = Boundary("making a batch record", limit=None, strict=strict)
        self.num_malformed = 0

    def write(self, measurement: Any, num_overflowed: int = 0) -> None:
        try:
            record = self._to_record(measurement, self.num_malformed + num_overflowed)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            self.num_malformed += 1
            self._record_boundary.failed(error)
            return
        self._sink_boundary.guard(self._sink.write, record)

    def flush(self) -> None:
        self._sink_boundary.guard(self._sink.flush)

    def close(self) -> None:
        self._sink_boundary.guard(self._sink.close)


class DirectWriter:
    """Writes on the caller's thread: for tests, and for engines that step slowly anyway."""

    def __init__(
        self,
        sink: Sink,
        to_record: Callable[[Any, int], BatchRecord],
        *,
        strict: bool = False,
    ) -> None:
        """Write to `sink` what `to_record(measurement, num_dropped)` makes."""
        self._maker = _RecordMaker(sink, to_record, strict=strict)
        self._closed = False

    @property
    def num_dropped(self) -> int:
        """Measurements of which no record could be made."""
        return self._maker.num_malformed

    def put(self, measurement: Any) -> None:
        """Write a record at once."""
        self._maker.write(measurement)

    def flush(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - nothing to wait for
        """Flush the sink."""
        self._maker.flush()
        return True

    def close(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - nothing to wait for
        """Close the sink; once."""
        if not self._closed:
            self._closed = True
            self._maker.close()
        return True


class BackgroundWriter:
    """Writes on a thread of its own, so that the engine never encodes, waits or does I/O.

    `put` is an append to a deque: no lock is taken and no thread woken. The writer polls: every
    10 ms while batches come, more and more rarely (up to 0.2 s) while none do. All calls of the
    sink come from that one thread, so a sink needs no lock. A full queue drops the newest
    measurement and counts it.
    """

    def __init__(
        self,
        sink: Sink,
        to_record: Callable[[Any, int], BatchRecord],
        *,
        capacity: int = 10_000,
        strict: bool = False,
        at_end: Callable[[], object] | None = None,
        at_signal: Callable[[], object] | None = None,
    ) -> None:
        """Write to `sink` what `to_record(measurement, num_dropped)` makes.

        No thread starts and the sink is not touched before the first `put`. When the process ends
        before `close` was called, `at_end` is, by default `close`; when somebody handles a signal
        to end it, `at_signal` is called first, by default `hurry`.
        """
        self._maker = _RecordMaker(sink, to_record, strict=strict)
        self._queue: deque[Any] = deque()
        self._capacity = capacity
        self._at_end = at_end or self.close
        self._at_signal = at_signal or self.hurry
        self._num_overflowed = 0
        self._overflow_lock = threading.Lock()
        self._flushes: deque[threading.Event] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._poll_s = _BUSY_POLL_S
        self._thread: threading.Thread | None = None
        self._forget_exit: Callable[[], None] | None = None

    @property
    def num_dropped(self) -> int:
        """Measurements given up since the start."""
        return self._num_overflowed + self._maker.num_malformed

    def put(self, measurement: Any) -> None:
        """Queue a measurement, or drop and count it when the queue is full; never waits."""
        if self._thread is None:
            self._start()
        if len(self._queue) >= self._capacity:
            # Several engine threads may end up here; a lost count would be a loss unseen.
            with self._overflow_lock:
                self._num_overflowed += 1
            return
        self._queue.append(measurement)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is written; tell whether that was so in `timeout` s."""
        if self._thread is None or not self._thread.is_alive():
            return not self._queue
        done = threading.Event()
        self._flushes.append(done)
        self._wake.set()
        return done.wait(timeout)

    def hurry(self) -> None:
        """Write what is there now, and from now on without delay: the end may come at any time."""
        self._poll_s = _HURRIED_POLL_S
        self.flush(timeout=1.0)

    def close(self, timeout: float | None = 10.0) -> bool:
        """Write what is left, close the sink and end the thread; tell whether it was in time.

        A sink that blocks for ever is left behind after `timeout` seconds: the process may end.
        """
        if self._closing:
            return not self._queue
        self._closing = True
        if self._forget_exit is not None:
            self._forget_exit()
        if self._thread is None:
            self._maker.close()
            return True
        self._wake.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.error(
                "the sink still blocks after %s s; %d batch records are not written",
                timeout,
                len(self._queue),
            )
            return False
        return True

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="sched-profiler", daemon=True)
        self._forget_exit = at_process_end(self._at_end, hurry=self._at_signal)
        self._thread.start()

    def _run(self) -> None:
        poll = self._poll_s
        while True:
            # Read before draining: what was put before close() or flush() is then drained too.
            closing = self._closing
            flushes = [self._flushes.popleft() for _ in range(len(self._flushes))]
            if self._drain() or flushes:
                self._maker.flush()
                poll = self._poll_s
            else:
                poll = min(2 * poll, _IDLE_POLL_S)
            for done in flushes:
                done.set()
            if closing:
                self._maker.close()
                return
            self._wake.wait(poll)
            self._wake.clear()

    def _drain(self) -> int:
        count = len(self._queue)
        for _ in range(count):
            self._maker.write(self._queue.popleft(), self._num_overflowed)
        return count
