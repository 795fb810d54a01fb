"""What a sink is, and what one is made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.manifest import Run
    from sched_profiler.record import BatchRecord
    from sched_profiler.settings import Settings

__all__ = ["RunSink", "Sink", "SinkContext"]


@runtime_checkable
class Sink(Protocol):
    """A place for records.

    A sink does no I/O before its first `write`, so that it can be made before the process of the
    engine exists. All three methods are called from one thread. They may raise: the failure is
    logged once and counted, and a sink that fails several times in a row is switched off. One that
    raises `SinkUnavailableError` is not: it is asked again. A sink may have an attribute
    `num_unwritten`, the number of records that it took and has not brought home, and `num_lost`,
    of those that it took and never will: it then knows better than its caller what a failure has
    left.
    """

    def write(self, record: BatchRecord) -> None:
        """Take one record; it may be kept back until `flush`."""
        ...

    def flush(self) -> None:
        """Bring what was written to where it survives the end of the process."""
        ...

    def close(self) -> None:
        """Flush and let go of everything.

        It may be called twice. A sink that is closed in a hurry, at a signal, may be given more
        records if the engine goes on after all: it then opens again.
        """
        ...


@runtime_checkable
class RunSink(Sink, Protocol):
    """A sink that keeps a manifest of the run beside its records."""

    def begin_run(self, run: Run) -> None:
        """Take note of the run that the records will be from; no I/O yet."""
        ...


@attrs.frozen(kw_only=True)
class SinkContext:
    """What the vLLM adapter knows when it makes a sink.

    Who is profiled stands in every record: see `run_id` and `dp_rank` of `BatchRecord`. A plug-in
    reads settings of its own from the environment.

    Attributes:
        settings: what the environment asks for; its `log` may be a URL, with credentials in it.
        dp_rank: data-parallel rank of the engine.
        print_line: prints a line to the engine's own log, in its format and at its level.
        colour: whether that log is a terminal.
    """

    settings: Settings
    dp_rank: int | None
    print_line: Callable[[str], object]
    colour: bool = False
