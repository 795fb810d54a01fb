"""Keeps histograms and gauges for Prometheus to scrape; needs the extra `prometheus`.

The metrics are in the registry of the process. vLLM's `/metrics` is another process: it reads what
the engine's process writes into the folder `PROMETHEUS_MULTIPROC_DIR`, if that is set, and then
carries our metrics too. Otherwise, or as well, the sink answers on a port of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Gauge,
    Histogram,
    start_http_server,
    values,
)

from sched_profiler.messages import logger
from sched_profiler.sinks.metrics import METRICS, Metric

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from sched_profiler.record import BatchRecord

__all__ = ["PrometheusSink"]

_LOOPBACK = "127.0.0.1"


class PrometheusSink:
    """Turns records into metrics named `sched_profiler_…`, with the label `dp_rank` alone."""

    def __init__(self, *, port: int | None = None, registry: CollectorRegistry = REGISTRY) -> None:
        """Measure into `registry`.

        Args:
            port: also answer `GET /metrics` on the loopback address, at this port for rank 0 and
                at the n-th port after it for rank n; from the first record to the close.
            registry: where the metrics are registered, at the first record.
        """
        self._port = port
        self._registry = registry
        self._observe: dict[int | None, list[_Observe]] = {}
        self._server: WSGIServer | None = None
        if port is None and not _is_scraped_elsewhere():
            logger.warning(
                "sink prometheus: nobody can read the metrics of this process; set "
                "PROMETHEUS_MULTIPROC_DIR to an empty folder, so that vLLM's /metrics has them, "
                "or SCHED_PROFILER_PROMETHEUS_PORT"
            )

    def write(self, record: BatchRecord) -> None:
        """Take the record into the metrics.

        Raises:
            OSError: if the port is taken.
        """
        if self._port is not None and self._server is None:
            self._server = self._serve(self._port + (record.dp_rank or 0))
        observers = self._observe.get(record.dp_rank)
        if observers is None:
            observers = self._observe[record.dp_rank] = _observers(self._registry, record.dp_rank)
        for value, observe in observers:
            measured = value(record)
            if measured is not None:
                observe(measured)

    def flush(self) -> None:
        """Do nothing: a metric is in place at once."""

    def close(self) -> None:
        """Free the port; the metrics stay in the registry."""
        if self._server is not None:
            server, self._server = self._server, None
            ending = threading.Thread(target=server.shutdown)
            ending.start()
            # Else it would look only twice a second whether it is to end, and whoever ends an
            # engine does not wait so long. Not every system can wake it like this.
            with contextlib.suppress(OSError):
                server.socket.shutdown(socket.SHUT_RDWR)
            ending.join()
            server.server_close()

    def _serve(self, port: int) -> WSGIServer:
        try:
            server, _ = start_http_server(port, addr=_LOOPBACK, registry=self._registry)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror} ({_LOOPBACK}:{port}; choose another "
                "SCHED_PROFILER_PROMETHEUS_PORT)",
            ) from None
        return server

    def __repr__(self) -> str:
        """Return where the metrics can be read."""
        return f"PrometheusSink(port={self._port})"


def _is_scraped_elsewhere() -> bool:
    """Tell whether somebody can read this process's metrics without a port of ours."""
    is_child = multiprocessing.parent_process() is not None
    # prometheus_client looks at PROMETHEUS_MULTIPROC_DIR when it is imported, and not again.
    return not is_child or values.ValueClass is not values.MutexValue


_Observe = tuple[Callable[["BatchRecord"], float | None], Callable[[float], None]]
"""How to get a metric's value of a record, and where to put it."""


def _observers(registry: CollectorRegistry, dp_rank: int | None) -> list[_Observe]:
    """Return what to do with each record of a rank."""
    # To Prometheus an empty label is an absent one.
    rank = "" if dp_rank is None else str(dp_rank)
    observers: list[_Observe] = []
    for metric, collector in zip(METRICS, _registered(registry), strict=True):
        child = collector.labels(rank)
        put = child.observe if isinstance(child, Histogram) else child.set
        observers.append((metric.value, put))
    return observers


_collectors: dict[CollectorRegistry, list[Histogram | Gauge]] = {}
_collectors_lock = threading.Lock()


def _registered(registry: CollectorRegistry) -> list[Histogram | Gauge]:
    """Return the metrics in a registry; several engines in one process share them."""
    with _collectors_lock:
        if registry not in _collectors:
            _collectors[registry] = [_register(metric, registry) for metric in METRICS]
        return _collectors[registry]


def _register(metric: Metric, registry: CollectorRegistry) -> Histogram | Gauge:
    name = f"sched_profiler_{metric.name}"
    if metric.kind == "histogram":
        return Histogram(
            name,
            metric.description,
            ["dp_rank"],
            unit=metric.unit,
            buckets=metric.buckets,
            registry=registry,
        )
    return Gauge(
        name,
        metric.description,
        ["dp_rank"],
        unit=metric.unit,
        multiprocess_mode="mostrecent",
        registry=registry,
    )
