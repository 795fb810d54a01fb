"""How each of our own sinks is made for an engine: what our entry points lead to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sched_profiler.errors import MissingExtraError
from sched_profiler.sinks.console import ConsoleSink
from sched_profiler.sinks.jsonl import JsonlSink

if TYPE_CHECKING:
    from sched_profiler.sinks.base import Sink, SinkContext

__all__ = ["console", "jsonl", "otel", "prometheus"]


def jsonl(context: SinkContext) -> Sink:
    """Make the sink that appends to the log."""
    return JsonlSink(context.settings.log)


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
