"""Sends every record to several sinks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sched_profiler.errors import SinkUnavailableError
from sched_profiler.messages import logger
from sched_profiler.sinks.base import RunSink
from sched_profiler.sinks.guarded import GuardedSink

if TYPE_CHECKING:
    from sched_profiler.manifest import Run
    from sched_profiler.record import BatchRecord
    from sched_profiler.sinks.base import Sink

__all__ = ["TeeSink"]


class TeeSink:
    """Sends every record to each of `sinks`; one that fails does not stop the others.

    What one of them loses is counted for it, in its manifest if it keeps one, and told in the log
    at the close.
    """

    def __init__(self, *sinks: Sink, strict: bool = False) -> None:
        """Write to `sinks` in this order; with `strict` let their failures through (tests)."""
        self._guarded = [GuardedSink(sink, strict=strict) for sink in sinks]
        self._num_refused_by_all = 0
        self._num_told = [0] * len(sinks)

    def begin_run(self, run: Run) -> None:
        """Tell the sinks that keep a manifest of the run, and each what it alone has lost."""
        for guarded in self._guarded:
            if isinstance(guarded.sink, RunSink):
                guarded.sink.begin_run(run.with_losses(partial(self._num_lost_alone, guarded)))

    def _num_lost_alone(self, guarded: GuardedSink) -> int:
        # Of what no sink took, whoever writes to this one knows.
        return guarded.num_lost - self._num_refused_by_all

    def write(self, record: BatchRecord) -> None:
        """Give the record to every sink that still works.

        Raises:
            Exception: why one of them did not take it, if none did: then the record is lost.
        """
        failures = [guarded.write(record) for guarded in self._guarded]
        reasons = [failure for failure in failures if failure is not None]
        if reasons and len(reasons) == len(failures):
            self._num_refused_by_all += 1
            # As long as one of them is to be asked again, so is the tee.
            unavailable = (why for why in reasons if isinstance(why, SinkUnavailableError))
            raise next(unavailable, reasons[-1])

    def flush(self) -> None:
        """Flush every sink that still works; see `num_unwritten`."""
        for guarded in self._guarded:
            guarded.flush()

    def close(self) -> None:
        """Close every sink that still works, and log what each of them has lost."""
        for number, guarded in enumerate(self._guarded):
            guarded.close()
            # What is not home now is lost, unless the engine goes on and a flush succeeds.
            lost = guarded.num_lost + guarded.num_unwritten
            if lost > self._num_told[number]:
                self._num_told[number] = lost
                logger.warning("%d records did not reach sink %r", lost, guarded.sink)

    @property
    def num_unwritten(self) -> int:
        """Records that one of the sinks took, has not brought home, and may still."""
        return max((guarded.num_unwritten for guarded in self._guarded), default=0)

    def __repr__(self) -> str:
        """Return the sinks behind it."""
        return f"TeeSink({', '.join(repr(guarded.sink) for guarded in self._guarded)})"
