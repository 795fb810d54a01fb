"""Calls a sink so that its failures stay ours, and counts what it loses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sched_profiler.boundary import Boundary

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.record import BatchRecord
    from sched_profiler.sinks.base import Sink

__all__ = ["GuardedSink"]


class GuardedSink:
    """A sink with the boundary around it.

    Attributes:
        sink: the sink itself.
    """

    def __init__(self, sink: Sink, *, strict: bool) -> None:
        """Guard `sink`; with `strict` let its failures through (tests)."""
        self.sink = sink
        self._boundary = Boundary(f"sink {sink!r}", strict=strict)
        self._num_refused = 0
        self._num_away = 0

    @property
    def num_unwritten(self) -> int:
        """Records that the sink took, has not brought home, and may still."""
        return self._num_away if self._boundary.is_open else 0

    @property
    def num_lost(self) -> int:
        """Records that the sink did not take, or took and, now switched off, never brought home.

        And those of which it says itself that it lost them.
        """
        never_home = 0 if self._boundary.is_open else self._num_away
        return self._num_refused + never_home + getattr(self.sink, "num_lost", 0)

    def write(self, record: BatchRecord) -> Exception | None:
        """Give it a record; return why it did not take it, if it did not."""
        failure = self._boundary.attempt(self.sink.write, record)
        if failure is None:
            self._num_away += 1
        else:
            self._num_refused += 1
        return failure

    def flush(self) -> bool:
        """Flush it; tell whether all that it took is home."""
        return self._bring_home(self.sink.flush)

    def close(self) -> bool:
        """Close it; tell whether all that it took is home."""
        return self._bring_home(self.sink.close)

    def _bring_home(self, call: Callable[[], None]) -> bool:
        failure = self._boundary.attempt(call)
        # A file may have taken a part of them before the disk was full; a sink that knows says so.
        at_most = 0 if failure is None else self._num_away
        self._num_away = getattr(self.sink, "num_unwritten", at_most)
        return failure is None and not self._num_away
