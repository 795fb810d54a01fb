"""Sends every record to several sinks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sched_profiler.boundary import Boundary
from sched_profiler.errors import SinkUnavailableError
from sched_profiler.sinks.base import RunSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.manifest import Run
    from sched_profiler.record import BatchRecord
    from sched_profiler.sinks.base import Sink

__all__ = ["TeeSink"]


class TeeSink:
    """Sends every record to each of `sinks`; one that fails does not stop the others."""

    def __init__(self, *sinks: Sink, strict: bool = False) -> None:
        """Write to `sinks` in this order; with `strict` let their failures through (tests)."""
        self._guarded = [(sink, Boundary(f"sink {sink!r}", strict=strict)) for sink in sinks]

    def begin_run(self, run: Run) -> None:
        """Tell the sinks that keep a manifest of the run."""
        for sink, _ in self._guarded:
            if isinstance(sink, RunSink):
                sink.begin_run(run)

    def write(self, record: BatchRecord) -> None:
        """Give the record to every sink that still works."""
        self._each(lambda sink: sink.write(record))

    def flush(self) -> None:
        """Flush every sink that still works."""
        self._each(lambda sink: sink.flush())

    def close(self) -> None:
        """Close every sink that still works."""
        self._each(lambda sink: sink.close())

    @property
    def num_unwritten(self) -> int:
        """Records that one of the sinks took and has not brought home."""
        return max((getattr(sink, "num_unwritten", 0) for sink, _ in self._guarded), default=0)

    def _each(self, call: Callable[[Sink], None]) -> None:
        unavailable: list[SinkUnavailableError] = []

        def attempt(sink: Sink) -> None:
            try:
                call(sink)
            except SinkUnavailableError as error:
                unavailable.append(error)

        for sink, boundary in self._guarded:
            boundary.guard(attempt, sink)
        if unavailable:
            # The others have their turn; who counts what is lost must know.
            raise unavailable[0]

    def __repr__(self) -> str:
        """Return the sinks behind it."""
        return f"TeeSink({', '.join(repr(sink) for sink, _ in self._guarded)})"
