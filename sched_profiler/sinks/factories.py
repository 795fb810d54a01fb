"""How each of our own sinks is made for an engine: what our entry points lead to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sched_profiler.errors import MissingExtraError
from sched_profiler.log_names import request_trace_of
from sched_profiler.redact import is_url
from sched_profiler.sinks.console import ConsoleSink
from sched_profiler.sinks.jsonl import BATCHES, JsonlSink
from sched_profiler.sinks.rotation import Rotation

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.settings import Settings
    from sched_profiler.sinks.base import Sink, SinkContext
    from sched_profiler.sinks.jsonl import Lines

__all__ = ["console", "jsonl", "otel", "prometheus", "request_trace"]

_MIB = 1 << 20


def jsonl(context: SinkContext) -> Sink:
    """Make the sink of the log: a file, or a store behind a URL.

    Each data-parallel rank has a file of its own: rank 0 the one that was asked for. What the
    settings leave open is as the sink has it.

    Raises:
        SettingError: if a package for it is not installed.
    """
    return _file_or_store(context, BATCHES, lambda log: log)


def request_trace(context: SinkContext) -> Sink:
    """Make the sink of the request trace, beside the log.

    Raises:
        SettingError: if a package for it is not installed.
    """
    # Needed only where it is asked for.
    from sched_profiler.request_trace import REQUESTS  # noqa: PLC0415

    return _file_or_store(context, REQUESTS, request_trace_of)


def _file_or_store(context: SinkContext, lines: Lines, beside: Callable[[str], str]) -> Sink:
    settings, dp_rank = context.settings, context.dp_rank
    if is_url(settings.log):
        # Loaded only for URLs: hardly anything of it is needed for a file.
        from sched_profiler.sinks.remote import REMOTE_ROTATION, RemoteSink  # noqa: PLC0415

        return RemoteSink(
            beside(settings.log),
            spool=settings.spool,
            rotation=_rotation(settings, REMOTE_ROTATION),
            lines=lines,
        )
    # The folder that the engine was started in may not be the one that it is in later.
    log = Path(settings.log).absolute()
    if dp_rank and "{dp_rank}" not in settings.log:
        log = log.with_name(f"{log.stem}.dp{dp_rank}{log.suffix}")
    return JsonlSink(beside(str(log)), rotation=_rotation(settings, Rotation()), lines=lines)


def _rotation(settings: Settings, default: Rotation) -> Rotation:
    compress = default.compress if settings.compress is None else settings.compress
    return Rotation(
        part_bytes=_bytes(settings.part_mib) or default.part_bytes,
        part_seconds=settings.part_seconds or default.part_seconds,
        keep_parts=settings.keep_parts or default.keep_parts,
        keep_bytes=_bytes(settings.keep_mib) or default.keep_bytes,
        compress=None if compress == "none" else compress,
    )


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib * _MIB


def console(context: SinkContext) -> Sink:
    """Make the sink that prints to the engine's own log."""
    return ConsoleSink(
        every=context.settings.console_every,
        print_line=context.print_line,
        colour=context.colour,
    )


def prometheus(context: SinkContext) -> Sink:
    """Make the sink that Prometheus scrapes.

    Raises:
        MissingExtraError: if the extra `prometheus` is not installed.
    """
    try:
        from sched_profiler.sinks.prometheus import (  # noqa: PLC0415 - an extra
            PrometheusSink,
        )
    except ModuleNotFoundError as error:
        raise MissingExtraError("sink prometheus", error, extra="prometheus") from None
    return PrometheusSink(port=context.settings.prometheus_port)


def otel(context: SinkContext) -> Sink:  # noqa: ARG001 - OpenTelemetry has variables of its own
    """Make the sink that sends to an OpenTelemetry collector.

    Raises:
        MissingExtraError: if the extra `otel` is not installed.
    """
    try:
        from sched_profiler.sinks.opentelemetry import (  # noqa: PLC0415 - an extra
            OpenTelemetrySink,
        )
    except ModuleNotFoundError as error:
        raise MissingExtraError("sink otel", error, extra="otel") from None
    return OpenTelemetrySink()
