"""Sends metrics to an OpenTelemetry collector, by OTLP over HTTP; needs the extra `otel`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from sched_profiler.sinks.metrics import METRICS

if TYPE_CHECKING:
    from sched_profiler.record import BatchRecord

__all__ = ["OpenTelemetrySink"]

_LAST_EXPORT_MS = 3000
"""How long the last export may take: whoever ends the engine does not wait for long."""

_Observe = tuple[Callable[["BatchRecord"], float | None], Callable[..., None]]


class OpenTelemetrySink:
    """Turns records into metrics named `sched_profiler.…`, with the attribute `dp_rank` alone.

    Where they go, how often and with which headers is said by OpenTelemetry's own variables, such
    as `OTEL_EXPORTER_OTLP_ENDPOINT` and `OTEL_METRIC_EXPORT_INTERVAL`. The SDK exports on a thread
    of its own; what it cannot deliver it logs itself. The provider is the sink's own: the
    application's is left alone.
    """

    def __init__(self) -> None:
        """Set nothing up yet; that is done at the first record."""
        self._provider: MeterProvider | None = None
        self._observers: list[_Observe] = []

    def write(self, record: BatchRecord) -> None:
        """Take the record into the metrics."""
        if self._provider is None:
            self._provider, self._observers = _set_up()
        attributes = {} if record.dp_rank is None else {"dp_rank": record.dp_rank}
        for value, observe in self._observers:
            measured = value(record)
            if measured is not None:
                observe(measured, attributes)

    def flush(self) -> None:
        """Do nothing: metrics are sent at the SDK's pace, and by `close`."""

    def close(self) -> None:
        """Send what is left, for at most 3 s."""
        if self._provider is not None:
            provider, self._provider = self._provider, None
            provider.shutdown(timeout_millis=_LAST_EXPORT_MS)

    def __repr__(self) -> str:
        """Return the name; where it sends to may hold a credential."""
        return "OpenTelemetrySink()"


def _set_up() -> tuple[MeterProvider, list[_Observe]]:
    # Its own hook at the exit of the interpreter would come after our close.
    provider = MeterProvider(
        [PeriodicExportingMetricReader(OTLPMetricExporter())], shutdown_on_exit=False
    )
    meter = provider.get_meter("sched_profiler")
    observers: list[_Observe] = []
    for metric in METRICS:
        named: dict[str, Any] = {
            "name": f"sched_profiler.{metric.name}",
            "unit": "s" if metric.unit == "seconds" else "1",
            "description": metric.description,
        }
        if metric.kind == "histogram":
            buckets = list(metric.buckets)
            histogram = meter.create_histogram(**named, explicit_bucket_boundaries_advisory=buckets)
            observers.append((metric.value, histogram.record))
        else:
            observers.append((metric.value, meter.create_gauge(**named).set))
    return provider, observers
