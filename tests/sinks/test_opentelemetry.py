"""An OpenTelemetry collector gets the metrics: OTLP over real HTTP.

Most tests decode it as a collector does; one has a real one between, which passes on what it takes.
"""

from __future__ import annotations

import gzip
import logging
import os
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from engine_under_test import serve, until
from machine import lacks
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from s3_server import free_ports

from sched_profiler import BatchProfiler, Sink
from sched_profiler.sinks.metrics import METRICS
from sched_profiler.sinks.opentelemetry import OpenTelemetrySink
from sched_profiler.testing import SinkContract, make_record


class Collector(ThreadingHTTPServer):
    """A receiver of OTLP metrics over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def metrics(self) -> list[Metric]:
        """Return every metric received, in order."""
        return [
            metric
            for request in self.requests
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/metrics"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append(ExportMetricsServiceRequest.FromString(body))
        self.server.headers.append(dict(self.headers))
        answer = ExportMetricsServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Run a collector and point OpenTelemetry's own variable at it."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        yield server
        server.shutdown()
        thread.join()


class TestOpenTelemetrySink(SinkContract):
    """Metrics keep no record, but they count; they leave at the SDK's pace."""

    arrives_at_flush = False

    @pytest.fixture(autouse=True)
    def _collector(self, collector: Collector) -> None:
        self.collector = collector

    def make_sink(self) -> Sink:
        self.collector.requests.clear()
        return OpenTelemetrySink()

    def arrived(self) -> int:
        return sum(
            point.count
            for metric in self.collector.metrics()
            if metric.name == "sched_profiler.schedule_duration"
            for point in metric.histogram.data_points
        )


def test_the_collector_gets_histograms_and_gauges(collector: Collector) -> None:
    """Names, units, buckets, sums and the rank arrive as they were measured."""
    sink = OpenTelemetrySink()
    for number, schedule_ms in enumerate((0.2, 30.0)):
        sink.write(
            make_record(
                number,
                dp_rank=3,
                schedule_duration_ms=schedule_ms,
                queue_duration_ms=0.0,
                token_budget=8192,
                num_inflight_batches=1,
                num_dropped_records=7,
            )
        )
    sink.close()
    metrics = {metric.name: metric for metric in collector.metrics()}
    assert set(metrics) <= {f"sched_profiler.{metric.name}" for metric in METRICS}
    schedule = metrics["sched_profiler.schedule_duration"]
    assert schedule.unit == "s"
    assert schedule.description
    (point,) = schedule.histogram.data_points
    assert point.count == 2
    assert point.sum == pytest.approx(0.0302)
    assert list(point.explicit_bounds[:3]) == [0.0001, 0.00025, 0.0005]
    assert sum(point.bucket_counts) == 2
    assert point.bucket_counts[1] == 1
    assert [(a.key, a.value.int_value) for a in point.attributes] == [("dp_rank", 3)]
    (gauge,) = metrics["sched_profiler.token_budget"].gauge.data_points
    assert (gauge.as_int or gauge.as_double) == 8192
    # Unknown is no zero.
    assert "sched_profiler.idle_duration" not in metrics
    assert metrics["sched_profiler.queue_duration"].histogram.data_points[0].count == 2


@pytest.fixture
def real_collector(collector: Collector, tmp_path: Path) -> Iterator[str]:
    """Run a collector of somebody else's that passes on what it gets; return its address."""
    package = find_spec("rotel")
    if package is None or package.origin is None:
        lacks("there is no rotel for this system")
    http, grpc = free_ports(2)
    # It is linked to Python's library, which is beside a Python that is not the system's.
    folders = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    with (tmp_path / "printed").open("wb") as printed:
        process = subprocess.Popen(
            [
                *(str(Path(package.origin).with_name("rotel-agent")), "start"),
                *("--otlp-http-endpoint", f"127.0.0.1:{http}"),
                *("--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"),
                *("--exporter", "otlp", "--otlp-exporter-protocol", "http"),
                *("--otlp-exporter-endpoint", collector.url),
            ],
            env=os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))},
            stdout=printed,
            stderr=printed,
        )
    try:
        until(lambda: is_open(http) or process.poll() is not None, 60)
        said = (tmp_path / "printed").read_text("utf-8")
        if process.poll() is not None and "error while loading shared libraries" in said:
            lacks(f"rotel needs a Python that has a shared library: {said}")
        assert process.poll() is None, said
        yield f"http://127.0.0.1:{http}"
    finally:
        process.kill()
        process.wait()


def is_open(port: int) -> bool:
    """Tell whether somebody answers there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_real_collector_takes_every_metric_and_passes_it_on(
    collector: Collector, real_collector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its rank, also at the end of an engine."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", real_collector)
    with BatchProfiler(OpenTelemetrySink(), dp_rank=3, token_budget=8192) as profiler:
        serve(profiler, 50)
    until(lambda: collector.requests, 60)
    metrics = {metric.name: metric for metric in collector.metrics()}
    (point,) = metrics["sched_profiler.schedule_duration"].histogram.data_points
    assert point.count == 50
    assert [(a.key, a.value.int_value) for a in point.attributes] == [("dp_rank", 3)]
    (gauge,) = metrics["sched_profiler.token_budget"].gauge.data_points
    assert (gauge.as_int or gauge.as_double) == 8192
    assert len(metrics) > 10


def test_it_sends_at_the_pace_that_opentelemetrys_variable_says(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the engine runs, not only at its end."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    sink = OpenTelemetrySink()
    sink.write(make_record())
    deadline = time.monotonic() + 10
    while not collector.requests and time.monotonic() < deadline:
        time.sleep(0.01)
    assert collector.requests
    sink.close()


def test_headers_and_the_service_come_from_opentelemetrys_variables(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing of ours to set, and the header is in no text of ours."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=s3cret")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "vllm-test")
    sink = OpenTelemetrySink()
    sink.write(make_record())
    sink.close()
    assert collector.headers[0]["x-api-key"] == "s3cret"
    resource = collector.requests[0].resource_metrics[0].resource
    attributes = {a.key: a.value.string_value for a in resource.attributes}
    assert attributes["service.name"] == "vllm-test"
    assert "s3cret" not in repr(sink)


def test_without_a_collector_neither_write_nor_close_waits_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK tells in the log what it could not deliver; nothing is raised."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    sink = OpenTelemetrySink()
    began = time.monotonic()
    for number in range(1000):
        sink.write(make_record(number))
    sink.close()
    assert time.monotonic() - began < 8
