"""Prometheus finds the metrics: on a port of ours, and where vLLM's own /metrics looks."""

from __future__ import annotations

import bisect
import random
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from machine import lacks
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_server import ROOT, dashboard_queries, is_installed, prometheus

from sched_profiler import JsonlSink, Sink, TeeSink
from sched_profiler.reader import read_records
from sched_profiler.sinks.metrics import METRICS
from sched_profiler.sinks.prometheus import PrometheusSink
from sched_profiler.testing import SinkContract, make_record

Samples = dict[tuple[str, str], float]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def parse(text: str) -> Samples:
    """Return samples by their name and their labels as Prometheus writes them, sorted."""
    return {
        (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(port: int) -> Samples:
    """Fetch the metrics as Prometheus does."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return parse(answer.read().decode())


class TestPrometheusSink(SinkContract):
    """The metrics keep no record, but they count."""

    def make_sink(self) -> Sink:
        self.registry = CollectorRegistry()
        return PrometheusSink(registry=self.registry)

    def arrived(self) -> int:
        return sum(
            int(value)
            for (name, _), value in parse(generate_latest(self.registry).decode()).items()
            if name == "sched_profiler_schedule_duration_seconds_count"
        )


class TestPrometheusSinkWithPort(TestPrometheusSink):
    """Nor does it open its port before the first record."""

    @pytest.fixture(autouse=True)
    def _port(self) -> None:
        self.port = free_port()

    def make_sink(self) -> Sink:
        self.registry = CollectorRegistry()
        return PrometheusSink(registry=self.registry, port=self.port)


def test_a_port_answers_with_the_metrics_of_the_records() -> None:
    """Seconds and counts, with the rank as the only label."""
    port = free_port()
    sink = PrometheusSink(port=port - 3, registry=CollectorRegistry())
    with pytest.raises(urllib.error.URLError):
        scrape(port)
    for number, schedule_ms in enumerate((0.2, 30.0)):
        sink.write(
            make_record(
                number,
                prefill=[100] * number,
                dp_rank=3,
                schedule_duration_ms=schedule_ms,
                token_budget=8192,
                num_inflight_batches=1,
                num_dropped_records=7,
            )
        )
    samples = scrape(port)
    name = "sched_profiler_schedule_duration_seconds"
    assert samples[f"{name}_count", "dp_rank=3"] == 2
    assert samples[f"{name}_sum", "dp_rank=3"] == pytest.approx(0.0302)
    assert samples[f"{name}_bucket", "dp_rank=3,le=0.0001"] == 0
    assert samples[f"{name}_bucket", "dp_rank=3,le=0.00025"] == 1
    assert samples[f"{name}_bucket", "dp_rank=3,le=0.05"] == 2
    assert samples["sched_profiler_model_run_duration_seconds_sum", "dp_rank=3"] == 0.019
    assert samples["sched_profiler_batch_prefill_tokens_bucket", "dp_rank=3,le=0.0"] == 1
    assert samples["sched_profiler_batch_prefill_tokens_sum", "dp_rank=3"] == 100
    assert samples["sched_profiler_batch_decode_reqs_sum", "dp_rank=3"] == 4
    assert samples["sched_profiler_token_budget", "dp_rank=3"] == 8192
    assert samples["sched_profiler_inflight_batches", "dp_rank=3"] == 1
    assert samples["sched_profiler_dropped_records", "dp_rank=3"] == 7
    # Unknown is no zero.
    assert samples["sched_profiler_idle_duration_seconds_count", "dp_rank=3"] == 0
    sink.close()
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_the_port_is_on_this_machine_only() -> None:
    """Metrics are no secret, but who may read them is for the operator to decide."""
    port = free_port()
    sink = PrometheusSink(port=port, registry=CollectorRegistry())
    sink.write(make_record())
    assert sink._server is not None
    assert sink._server.socket.getsockname()[0] == "127.0.0.1"
    sink.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it takes half a second")
def test_closing_the_port_does_not_keep_an_engine_from_its_end() -> None:
    """The sinks after it have their last words to say, and little time."""
    port = free_port()
    sink = PrometheusSink(port=port, registry=CollectorRegistry())
    took = []
    for _ in range(5):
        sink.write(make_record())
        scrape(port)
        began = time.monotonic()
        sink.close()
        took.append(time.monotonic() - began)
    assert min(took) < 0.1


def test_a_taken_port_is_an_error_that_names_it() -> None:
    """The boundary around a sink logs it and switches the sink off; the others go on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sink = PrometheusSink(port=port, registry=CollectorRegistry())
        with pytest.raises(OSError, match=f"127.0.0.1:{port}; choose another SCHED_PROFILER_"):
            sink.write(make_record())


def test_engines_in_one_process_share_the_metrics_and_differ_in_the_rank() -> None:
    """Each rank has its own sink and series."""
    registry = CollectorRegistry()
    for rank in (0, 1, 1):
        PrometheusSink(registry=registry).write(make_record(dp_rank=rank))
    samples = parse(generate_latest(registry).decode())
    counts = [
        samples["sched_profiler_schedule_duration_seconds_count", f"dp_rank={rank}"]
        for rank in (0, 1)
    ]
    assert counts == [1, 2]


def test_without_a_port_the_metrics_are_in_the_registry_of_the_process() -> None:
    """Where an application that embeds an engine exposes its own."""
    sink = PrometheusSink()
    sink.write(make_record(dp_rank=41))
    samples = parse(generate_latest(REGISTRY).decode())
    assert samples["sched_profiler_schedule_duration_seconds_count", "dp_rank=41"] == 1


ENGINE_CORE = """
import sys
from sched_profiler.sinks.prometheus import PrometheusSink
from sched_profiler.testing import make_record
rank, num_records = map(int, sys.argv[1:])
sink = PrometheusSink()
for number in range(num_records):
    sink.write(make_record(number, dp_rank=rank, schedule_duration_ms=1.5, token_budget=rank + 1))
sink.flush()
print("written", flush=True)
sys.stdin.read()
sink.close()
"""

API_SERVER = """
import sys
from wsgiref.simple_server import make_server
from prometheus_client import Counter, make_wsgi_app
from vllm_like import registry
Counter("vllm:prompt_tokens", "What the server itself counts.").inc(5)
server = make_server("127.0.0.1", 0, make_wsgi_app(registry()))
print(server.server_port, flush=True)
server.handle_request()
"""

# What vllm.v1.metrics.prometheus.get_prometheus_registry does when the folder is set.
VLLM_LIKE = """
from prometheus_client import CollectorRegistry, multiprocess
def registry():
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return registry
"""


def test_metrics_of_engine_processes_are_in_the_servers_own_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two engines and a server, three real processes that share PROMETHEUS_MULTIPROC_DIR."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    (tmp_path / "vllm_like.py").write_text(VLLM_LIKE)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    engines = [start(ENGINE_CORE, str(rank), str(num)) for rank, num in ((0, 10), (1, 25))]
    for engine in engines:
        assert engine.stdout is not None
        assert engine.stdout.readline() == "written\n"
    with start(API_SERVER) as server:
        assert server.stdout is not None
        samples = scrape(int(server.stdout.readline()))
    for engine in engines:
        engine.communicate()
        assert engine.returncode == 0
    assert samples["vllm:prompt_tokens_total", ""] == 5
    for rank, number in (("0", 10), ("1", 25)):
        name = "sched_profiler_schedule_duration_seconds"
        assert samples[f"{name}_count", f"dp_rank={rank}"] == number
        assert samples[f"{name}_sum", f"dp_rank={rank}"] == pytest.approx(0.0015 * number)
        assert samples["sched_profiler_token_budget", f"dp_rank={rank}"] == int(rank) + 1


LONELY = """
import logging, multiprocessing
from sched_profiler.sinks.prometheus import PrometheusSink
def engine_core():
    logging.basicConfig()
    PrometheusSink()
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=engine_core)
    process.start()
    process.join()
"""


@pytest.mark.parametrize("reachable", [True, False])
def test_an_engine_process_that_nobody_can_scrape_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, reachable: bool
) -> None:
    """Else the operator looks for metrics that are in no endpoint."""
    if reachable:
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    else:
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    script = tmp_path / "lonely.py"
    script.write_text(LONELY)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60
    )
    assert ("nobody can read the metrics" in done.stderr) != reachable


def test_names_and_units_are_what_prometheus_recommends() -> None:
    """Base units, one prefix, no name that vLLM has."""
    registry = CollectorRegistry()
    sink = PrometheusSink(registry=registry)
    sink.write(make_record(dp_rank=0))
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    names = {family.name for family in families if not family.name.endswith("_created")}
    assert len(names) == len(METRICS)
    for family in families:
        assert family.name.startswith("sched_profiler_")
        assert family.documentation
        assert ("_duration" not in family.name) or "_duration_seconds" in family.name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == {"dp_rank"}


def test_a_real_server_scrapes_the_port_and_tells_what_the_log_tells(tmp_path: Path) -> None:
    """Counts, sums, buckets, a percentile and gauges; with the configuration of the page."""
    if not is_installed():
        lacks("there is no Prometheus on this machine")
    page = (ROOT / "docs/how-to/see-it-in-grafana.md").read_text(encoding="utf-8")
    scrape, rules = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "rules.yml").write_text(rules, encoding="utf-8")
    port, log, name = (
        free_port(),
        tmp_path / "log.jsonl",
        "sched_profiler_schedule_duration_seconds",
    )
    scrape = scrape.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace(" 10s", " 100ms")
    draw = random.Random(1)
    sink = TeeSink(JsonlSink(log), PrometheusSink(port=port, registry=CollectorRegistry()))

    def write(first: int, last: int) -> None:
        for number in range(first, last):
            sink.write(
                make_record(
                    number,
                    prefill=[draw.randrange(1, 500)] * draw.randrange(3),
                    dp_rank=0,
                    schedule_duration_ms=round(draw.lognormvariate(-1, 1), 3),
                    queue_duration_ms=0.25,
                    update_duration_ms=0.5,
                    idle_duration_ms=1.5,
                    token_budget=8192,
                    num_inflight_batches=1,
                    num_dropped_records=7,
                )
            )
        sink.flush()

    with prometheus(tmp_path, f"rule_files: [rules.yml]\n{scrape}") as server:
        write(0, 100)
        server.wait_for(f"{name}_count == 100")
        write(100, 1000)
        server.wait_for(f"{name}_count == 1000")
        records = list(read_records(log))
        seconds = sorted(record.schedule_duration_ms / 1000 for record in records)
        assert server.value(f"{name}_count") == len(seconds)
        assert server.value(f"{name}_sum") == pytest.approx(sum(seconds))
        for labels, value in (buckets := server.query(f"{name}_bucket")):
            assert labels["job"] == "vllm"
            assert value == bisect.bisect_right(seconds, float(labels["le"]))
        bounds = sorted(float(labels["le"]) for labels, _ in buckets)
        median = server.value(f"histogram_quantile(0.5, sum by (le) ({name}_bucket))")
        place = bisect.bisect_left(bounds, statistics.median(seconds))
        assert bounds[place - 1] <= median <= bounds[place]
        tokens = sum(sum(record.prefill_chunk_sizes) for record in records)
        assert server.value("sched_profiler_batch_prefill_tokens_sum") == tokens > 0
        for gauge, number in (("token_budget", 8192), ("inflight_batches", 1)):
            assert server.value(f"sched_profiler_{gauge}") == number
        assert server.value("sched_profiler_dropped_records") == 7
        for query in dashboard_queries():
            # What a panel shows is a number: no division by nothing.
            assert server.value(query) >= 0, query
        assert server.ask("label/dp_rank/values") == ["0"]
        (group,) = server.ask("rules")["groups"]
        assert [rule["name"] for rule in group["rules"]] == re.findall(r"alert: (\w+)", rules)
        for rule in group["rules"]:
            assert server.query(rule["query"]) == [], "nothing is wrong"
    sink.close()
