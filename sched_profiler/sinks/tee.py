"""Sends every record to several sinks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs

from sched_profiler.boundary import Boundary
from sched_profiler.errors import SchedProfilerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.record import BatchRecord
    from sched_profiler.sinks.base import Sink

__all__ = ["TeeSink"]

logger = logging.getLogger("sched_profiler")


class TeeSink:
    """Sends every record to each of `sinks`; one that fails does not stop the others.

    What one of them loses is counted for it and told in the log at the close.
    """

    def __init__(self, *sinks: Sink, strict: bool = False) -> None:
        """Write to `sinks` in this order; with `strict` let their failures through (tests)."""
        self._guarded = [
            _Guarded(sink, Boundary(f"sink {sink!r}", strict=strict)) for sink in sinks
        ]

    def write(self, record: BatchRecord) -> None:
        """Give the record to every sink that still works.

        Raises:
            Exception: the last failure, if no sink took it: then the record is lost.
        """
        failures = [guarded.write(record) for guarded in self._guarded]
        if failures and all(failures):
            raise next(failure for failure in reversed(failures) if failure)

    def flush(self) -> None:
        """Flush every sink that still works."""
        for guarded in self._guarded:
            guarded.bring_home(guarded.sink.flush)

    def close(self) -> None:
        """Close every sink that still works, and log what each of them has lost."""
        for guarded in self._guarded:
            guarded.bring_home(guarded.sink.close)
            guarded.tell()

    def __repr__(self) -> str:
        """Return the sinks behind it."""
        return f"TeeSink({', '.join(repr(guarded.sink) for guarded in self._guarded)})"


@attrs.define
class _Guarded:
    """A sink with the boundary around it and the count of what did not get through it."""

    sink: Sink
    boundary: Boundary
    num_unflushed: int = 0
    num_lost: int = 0
    num_told: int = 0

    def write(self, record: BatchRecord) -> Exception | None:
        """Give it the record; return why it did not take it, if it did not."""
        failure: Exception = SchedProfilerError(f"sink {self.sink!r} is switched off")
        if self.boundary.is_open:
            try:
                self.sink.write(record)
            except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
                self.boundary.failed(error)
                failure = error
            else:
                self.boundary.succeeded()
                self.num_unflushed += 1
                return None
        self.num_lost += 1
        self._count_unflushed()
        return failure

    def bring_home(self, call: Callable[[], None]) -> None:
        if self.boundary.guard(call):
            self.num_unflushed = 0
        else:
            self._count_unflushed()

    def _count_unflushed(self) -> None:
        """Count what a sink that is now switched off took and never brought home."""
        if not self.boundary.is_open:
            self.num_lost += self.num_unflushed
            self.num_unflushed = 0

    def tell(self) -> None:
        # What a close could not bring home is lost, unless the engine goes on and a flush succeeds.
        lost = self.num_lost + self.num_unflushed
        if lost > self.num_told:
            self.num_told = lost
            logger.warning("%d records did not reach sink %r", lost, self.sink)
