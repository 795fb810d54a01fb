"""What a sink is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from sched_profiler.manifest import Run
    from sched_profiler.record import BatchRecord

__all__ = ["RunSink", "Sink"]


@runtime_checkable
class Sink(Protocol):
    """A place for records.

    A sink does no I/O before its first `write`, so that it can be made before the process of the
    engine exists. All three methods are called from one thread. They may raise: the failure is
    logged once and counted, and a sink that fails several times in a row is switched off. One that
    raises `SinkUnavailableError` is not: it is asked again.
    """

    def write(self, record: BatchRecord) -> None:
        """Take one record; it may be kept back until `flush`."""
        ...

    def flush(self) -> None:
        """Bring what was written to where it survives the end of the process."""
        ...

    def close(self) -> None:
        """Flush and let go of everything; the sink is not used again."""
        ...


@runtime_checkable
class RunSink(Sink, Protocol):
    """A sink that keeps a manifest of the run beside its records."""

    def begin_run(self, run: Run) -> None:
        """Take note of the run that the records will be from; no I/O yet."""
        ...
