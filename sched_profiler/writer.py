"""Moves measurements off the engine's thread: a bounded queue and the thread that empties it."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from sched_profiler.boundary import Boundary
from sched_profiler.lifetime import at_process_end
from sched_profiler.messages import logger
from sched_profiler.sinks.guarded import GuardedSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.record import BatchRecord
    from sched_profiler.sinks.base import Sink

__all__ = ["BackgroundWriter", "DirectWriter", "Writer"]


_HURRIED_POLL_S = 0.001
_POLL_S = 0.2


_ROOM = 512


class Writer(Protocol):
    """What a profiler hands its measurements to.

    Attributes:
        queue: what is put and not yet written. A caller in a hurry may append to it what it would
            `put`, while there is `room`.
        room: as long as the queue is shorter, `put` would do nothing but append to it. It is 0
            before the first `put`, after `close`, and in a writer without a queue.
    """

    queue: deque[Any]
    room: int

    @property
    def num_dropped(self) -> int:
        """Batches without a record: the queue was full, none could be made, or the sink failed."""
        ...

    def put(self, measurement: Any) -> None:
        """Take a measurement; never waits."""
        ...

    def wake(self) -> None:
        """Have what was put written at once; does not wait for it."""
        ...

    def drop(self) -> None:
        """Count a batch that could not be measured."""
        ...

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is written; tell whether that was so in `timeout` s."""
        ...

    def close(self, timeout: float | None = None) -> bool:
        """Write what is left and close the sink; tell whether that was so in `timeout` s."""
        ...


class _RecordMaker:
    """Makes a record of a measurement and gives it to the sink; failures stay inside.

    Attributes:
        sink: the sink, to be flushed; and to be closed, where the engine may go on.
        num_unmade: batches of which no record could be made.
        num_lost: batches of which no record reached the sink, those among them.
    """

    def __init__(
        self, sink: Sink, to_record: Callable[[Any, int], BatchRecord], *, what: str, strict: bool
    ) -> None:
        self.sink = GuardedSink(sink, strict=strict)
        self._to_record = to_record
        # One malformed measurement says nothing about the next: this one is never switched off.
        self._boundary = Boundary(f"making the record of {what}", limit=None, strict=strict)
        self._is_closed = False
        self.num_unmade = 0

    @property
    def num_lost(self) -> int:
        # Nobody asks the sink again once it is closed.
        never_home = self.sink.num_unwritten if self._is_closed else 0
        return self.num_unmade + self.sink.num_lost + never_home

    def write(self, measurement: Any, num_overflowed: int = 0) -> None:
        try:
            record = self._to_record(measurement, self.num_lost + num_overflowed)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            self.num_unmade += 1
            self._boundary.failed(error)
            return
        self.sink.write(record)

    def close(self) -> bool:
        is_home = self.sink.close()
        self._is_closed = True
        return is_home


class DirectWriter:
    """Writes on the caller's thread: for tests, and for engines that step slowly anyway."""

    def __init__(
        self,
        sink: Sink,
        to_record: Callable[[Any, int], BatchRecord],
        *,
        what: str = "batches",
        strict: bool = False,
    ) -> None:
        """Write to `sink` what `to_record(measurement, num_dropped)` makes, records of `what`."""
        self._maker = _RecordMaker(sink, to_record, what=what, strict=strict)
        self._closed = False
        self.queue: deque[Any] = deque()
        self.room = 0

    @property
    def num_dropped(self) -> int:
        """Batches of which no record reached the sink."""
        return self._maker.num_lost

    def put(self, measurement: Any) -> None:
        """Write a record at once."""
        self._maker.write(measurement)

    def wake(self) -> None:
        """Do nothing: what was put is written."""

    def drop(self) -> None:
        """Count a batch that could not be measured."""
        self._maker.num_unmade += 1

    def flush(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - nothing to wait for
        """Flush the sink; tell whether that went well."""
        return self._maker.sink.flush()

    def close(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - nothing to wait for
        """Close the sink, once; tell whether that went well."""
        if self._closed:
            return True
        self._closed = True
        return self._maker.close()


class BackgroundWriter:
    """Writes on a thread of its own, so that the engine never encodes, waits or does I/O.

    `put` is an append to a deque: no lock is taken and no thread woken. The writer polls,
    every 0.2 s: to wake it costs the engine more than its work does. All calls of the sink come
    from that one thread, so a sink needs no lock. A full queue drops the newest measurement and
    counts it.
    """

    def __init__(
        self,
        sink: Sink,
        to_record: Callable[[Any, int], BatchRecord],
        *,
        capacity: int = 10_000,
        what: str = "batches",
        strict: bool = False,
        at_end: Callable[[], object] | None = None,
        at_signal: Callable[[], object] | None = None,
    ) -> None:
        """Write to `sink` what `to_record(measurement, num_dropped)` makes, records of `what`.

        No thread starts and the sink is not touched before the first `put`. When the process ends
        before `close` was called, `at_end` is, by default `close`; when somebody handles a signal
        to end it, `at_signal` is called first, by default `hurry`.
        """
        self._maker = _RecordMaker(sink, to_record, what=what, strict=strict)
        self._what = what
        self.queue: deque[Any] = deque()
        self.room = 0
        self._capacity = capacity
        self._at_end = at_end or self.close
        self._at_signal = at_signal or self.hurry
        self._num_overflowed = 0
        self._has_warned = False
        # Reentrant: a signal handler may close the profiler while its thread is in here.
        self._overflow_lock = threading.RLock()
        # A simple queue is what a signal handler may use; the lock of an event it may not.
        self._wake: queue.SimpleQueue[_Flush | None] = queue.SimpleQueue()
        self._closing = False
        self._has_closed = False
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._has_ended = False
        self._close_sink_soon = False
        self._is_home = True
        self._poll_s = _POLL_S
        self._thread: threading.Thread | None = None
        self._forget_exit: Callable[[], None] | None = None
        # Of the thread, for whoever waits for it: only with `strict` does one come that far.
        self._failure: Exception | None = None

    @property
    def num_dropped(self) -> int:
        """Batches without a record: the queue was full, none could be made, or the sink failed."""
        # What came too late for the thread waits for ever.
        num_late = len(self.queue) if self._closing and not self._is_alive() else 0
        return self._num_overflowed + self._maker.num_lost + num_late

    def put(self, measurement: Any) -> None:
        """Queue a measurement, or drop and count it when the queue is full; never waits."""
        if self._thread is None:
            self._start()
        if len(self.queue) >= self._capacity or self._closing:
            self.drop()
            if not self._closing:
                self._warn_of_overflow()
            return
        self.queue.append(measurement)

    def drop(self) -> None:
        """Count a batch that could not be measured."""
        # Several engine threads may end up here; a lost count would be a loss unseen.
        with self._overflow_lock:
            self._num_overflowed += 1

    def flush(self, timeout: float | None = None) -> bool:
        """Write all that was put; tell whether that went well within `timeout` seconds.

        With `strict`, raise what went wrong.
        """
        if not self._is_alive():
            return not self.queue
        flush = _Flush()
        self._wake.put(flush)
        is_done = flush.done.wait(timeout)
        self._raise_failure()
        return is_done and flush.succeeded

    def hurry(self, *, close_sink: bool = False) -> None:
        """Write what is there at once, and from now on without delay; does not wait for it.

        For a process that may end at any time. With `close_sink` the sink is closed as well, so
        that it can say its last word; what comes after that is written all the same.
        """
        self._poll_s = _HURRIED_POLL_S
        self._close_sink_soon = close_sink
        self._wake.put(None)

    def wake(self) -> None:
        """Write what is there at once; does not wait for it."""
        self._wake.put(None)

    def close(self, timeout: float | None = 10.0) -> bool:
        """Write what is left, close the sink and end the thread; tell whether that went well.

        A sink that blocks for ever is left behind after `timeout` seconds: the process may end.
        With `strict`, raise what went wrong.
        """
        if self._has_closed:
            return self._is_home and self.num_dropped == 0 and not self.queue
        self._closing = True
        self.room = 0
        if self._thread is not None:
            self._wake.put(None)
            self._wait_for_end(timeout)
        self._has_closed = True
        if self._forget_exit is not None:
            self._forget_exit()
        if self._thread is None:
            return self._maker.close()
        if not self._has_ended:
            logger.error(
                "the sink still blocks after %s s; records of %d %s are not written",
                timeout,
                len(self.queue),
                self._what,
            )
            return False
        self._raise_failure()
        if self.num_dropped:
            logger.warning("%d %s have no record", self.num_dropped, self._what)
        return self._is_home and self.num_dropped == 0

    def _wait_for_end(self, timeout: float | None) -> None:
        """Wait for the end of the thread, at most so long.

        A signal may end this: then whoever ends the process calls again, and waits as well. After a
        KeyboardInterrupt in it, `Thread.join` waits for a thread no more.
        """
        if not self._has_ended:
            with contextlib.suppress(queue.Empty):
                self._ended.put(self._ended.get(timeout=timeout))

    def _warn_of_overflow(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the sink does not keep up: %d %s wait to be written, and newer ones are"
                " dropped and counted",
                self._capacity,
                self._what,
            )

    def _is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self) -> None:
        self.room = min(_ROOM, self._capacity)
        self._thread = threading.Thread(target=self._run, name="sched-profiler", daemon=True)
        self._forget_exit = at_process_end(self._at_end, hurry=self._at_signal, wake=self.wake)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._write_until_closed()
        finally:
            self._has_ended = True
            self._ended.put(None)

    def _write_until_closed(self) -> None:
        flushes: list[_Flush] = []
        while True:
            # Read before draining: what was put before close() or flush() is then drained too.
            closing = self._closing
            written = self._drain()
            succeeded = self._succeeds(self._maker.sink.flush) if written or flushes else True
            if self._close_sink_soon:
                self._close_sink_soon = False
                self._succeeds(self._maker.sink.close)
            for flush in flushes:
                flush.succeeded = succeeded
                flush.done.set()
            if closing:
                self._is_home = self._succeeds(self._maker.close)
                return
            flushes = self._wait(self._poll_s)

    def _wait(self, seconds: float) -> list[_Flush]:
        """Wait for a wake-up, at most so long; return the flushes that were asked for."""
        try:
            asked = [self._wake.get(timeout=seconds)]
            while not self._wake.empty():
                asked.append(self._wake.get())
        except queue.Empty:
            return []
        return [flush for flush in asked if flush is not None]

    def _drain(self) -> int:
        count = len(self.queue)
        for _ in range(count):
            try:
                self._maker.write(self.queue.popleft(), self._num_overflowed)
            except Exception as error:  # noqa: BLE001 - raised where somebody waits
                self._failure = self._failure or error
        return count

    def _succeeds(self, call: Callable[[], bool]) -> bool:
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - raised where somebody waits
            self._failure = self._failure or error
            return False

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


class _Flush:
    """Somebody waits until all that was put is written."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.succeeded = False
