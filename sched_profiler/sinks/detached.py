"""Gives a sink a thread of its own, so that whatever it does costs nobody but itself."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from sched_profiler.messages import logger
from sched_profiler.sinks.guarded import GuardedSink

if TYPE_CHECKING:
    from sched_profiler.record import BatchRecord
    from sched_profiler.sinks.base import Sink

__all__ = ["CAPACITY", "DetachedSink"]

CAPACITY = 5_000
"""How many records wait for a sink; what comes beyond that is lost to it."""


class DetachedSink:
    """A sink behind a bounded queue, and the thread that makes all its calls.

    Nothing here waits for the sink but `wait`. What it loses is counted, and told in the log once
    it does not keep up, and at each end.

    Attributes:
        sink: the sink itself.
    """

    def __init__(self, sink: Sink, *, strict: bool) -> None:
        """Give `sink` a thread from the first record on; with `strict` its failures end that."""
        self.sink = sink
        self._guarded = GuardedSink(sink, strict=strict)
        # Records to write and flush together; None asks to close.
        self._queue: queue.SimpleQueue[list[BatchRecord] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # Each is counted by one thread: given here, taken there.
        self._num_given = self._num_taken = 0
        self._num_overflowed = 0
        self._num_told = 0

    @property
    def num_waiting(self) -> int:
        """Records that the sink has not been given yet."""
        return self._num_given - self._num_taken

    @property
    def num_lost(self) -> int:
        """Records that never reach the sink."""
        return self._num_overflowed + self._guarded.num_lost

    @property
    def num_missing(self) -> int:
        """Records that the sink has not brought home, whether they may still get there or not."""
        return self.num_lost + self.num_waiting + self._guarded.num_unwritten

    def give(self, records: list[BatchRecord]) -> None:
        """Let the sink write and flush records soon, as far as there is room."""
        room = max(0, CAPACITY - self.num_waiting)
        if len(records) > room:
            if not self._num_overflowed:
                logger.warning(
                    "sink %r does not keep up: %d records wait for it, and newer ones are dropped "
                    "and counted",
                    self.sink,
                    CAPACITY,
                )
            self._num_overflowed += len(records) - room
            records = records[:room]
        if records:
            self._num_given += len(records)
            self._queue.put(records)
            self._see_to_thread()

    def end(self) -> None:
        """Let the sink close when it has written what it was given."""
        self._queue.put(None)
        self._see_to_thread()

    def wait(self, seconds: float) -> None:
        """Wait for that end, so long at most."""
        if self._thread is not None:
            self._thread.join(seconds)

    def tell(self) -> None:
        """Say what did not reach the sink, unless that was said."""
        if self.num_missing > self._num_told:
            self._num_told = self.num_missing
            logger.warning("%d records did not reach sink %r", self._num_told, self.sink)

    def _see_to_thread(self) -> None:
        # It ends with each close, after which the engine may go on all the same.
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._run, name="sched-profiler-sink", daemon=True
            )
            self._thread.start()

    def _run(self) -> None:
        while (records := self._queue.get()) is not None:
            for record in records:
                self._guarded.write(record)
                self._num_taken += 1
            self._guarded.flush()
        self._guarded.close()
