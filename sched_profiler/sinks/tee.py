"""Sends every record to several sinks."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from sched_profiler.sinks.base import RunSink
from sched_profiler.sinks.detached import CAPACITY, DetachedSink
from sched_profiler.sinks.guarded import GuardedSink

if TYPE_CHECKING:
    from sched_profiler.manifest import Run
    from sched_profiler.record import BatchRecord
    from sched_profiler.sinks.base import Sink

__all__ = ["TeeSink"]

_CLOSE_S = 4.0
_GRACE_S = 0.1
"""Time for the others to end before the log says in its manifest what they lack."""


class TeeSink:
    """Sends every record to each of `sinks`; none of them waits for another, or can stop it.

    The log comes first: the first of them that keeps a manifest, such as a `JsonlSink`. What it is
    given is brought home before the others hear of it. Each of the others has a thread of its own
    and gets what was flushed: one that hangs, is slow or fails loses its own records, which are
    counted in the manifest of the log and told at the close.
    """

    def __init__(self, *sinks: Sink, strict: bool = False) -> None:
        """Write to `sinks`; with `strict` let their failures through (tests)."""
        self._sinks = sinks
        log = next((sink for sink in sinks if isinstance(sink, RunSink)), None)
        self._log = None if log is None else GuardedSink(log, strict=strict)
        self._others = [DetachedSink(sink, strict=strict) for sink in sinks if sink is not log]
        self._pending: list[BatchRecord] = []

    def begin_run(self, run: Run) -> None:
        """Tell the sinks that keep a manifest of the run, and each what it alone has lost."""
        if self._log is not None and isinstance(self._log.sink, RunSink):
            self._log.sink.begin_run(run.with_others(self._missing_of_others))
        for other in self._others:
            if isinstance(other.sink, RunSink):
                other.sink.begin_run(run.with_losses(partial(self._num_lost_alone, other)))

    def _missing_of_others(self) -> dict[str, int]:
        """Return how many records have not reached the others, of those that lack any."""
        missing = Counter[str]()
        for other in self._others:
            if num_missing := other.num_missing:
                missing[type(other.sink).__name__] += num_missing
        return dict(missing)

    def _num_lost_alone(self, other: DetachedSink) -> int:
        # Whoever writes to the tee knows what its log has lost, and takes it for lost to all.
        return other.num_lost - self.num_lost

    def write(self, record: BatchRecord) -> None:
        """Give the record to the log, and keep it for the others until `flush`."""
        if self._log is not None:
            self._log.write(record)
        if self._others:
            self._pending.append(record)
            if len(self._pending) == CAPACITY:
                self._hand_over()

    def flush(self) -> None:
        """Bring home what the log has, and let the others have it; does not wait for them."""
        if self._log is not None:
            self._log.flush()
        self._hand_over()

    def close(self) -> None:
        """Close all of them, the log once the others had 0.1 s; they get 4 s together.

        What each of them lacks then is told in the log.
        """
        self.flush()
        for other in self._others:
            other.end()
        began = time.monotonic()
        self._wait(began + _GRACE_S)
        if self._log is not None:
            self._log.close()
        self._wait(began + _CLOSE_S)
        for other in self._others:
            other.tell()

    def _wait(self, deadline: float) -> None:
        for other in self._others:
            other.wait(max(0.0, deadline - time.monotonic()))

    @property
    def num_unwritten(self) -> int:
        """Records that the log took, has not brought home, and may still."""
        return 0 if self._log is None else self._log.num_unwritten

    @property
    def num_lost(self) -> int:
        """Records that never reach the log."""
        return 0 if self._log is None else self._log.num_lost

    def _hand_over(self) -> None:
        records, self._pending = self._pending, []
        for other in self._others:
            other.give(records)

    def __repr__(self) -> str:
        """Return the sinks behind it."""
        return f"TeeSink({', '.join(map(repr, self._sinks))})"
