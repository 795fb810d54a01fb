"""vLLM's real scheduler, and real servers, with the sinks that a variable names."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import real_scheduler
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from real_scheduler import make_request, make_scheduler, model_output
from real_vllm import read
from vllm.v1.core.sched.scheduler import Scheduler
from vllm_server import Server, serve

from sched_profiler.engines.vllm import profiled_class
from sched_profiler.settings import Settings

pytestmark = pytest.mark.vllm

FLAGS = ("--max-model-len=2048", "--max-num-batched-tokens=256", "--max-num-seqs=16")


def environ(log: Path, **variables: str) -> dict[str, str]:
    """Return what profiles into `log`, and more."""
    return {
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": str(log),
        **variables,
    }


def scrape(server: Server) -> dict[tuple[str, str], float]:
    """Return the samples of the server's own endpoint, by name and rank."""
    status, answer = server._ask("GET", "/metrics", None, timeout=30)
    assert status == 200
    return {
        (sample.name, sample.labels.get("dp_rank", "")): sample.value
        for family in text_string_to_metric_families(answer.decode())
        for sample in family.samples
    }


def test_every_sink_that_is_named_gets_every_batch(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a real scheduler, whose shutdown closes them; the log says where records go."""
    caplog.set_level("INFO", logger="sched_profiler")
    log = tmp_path / "profile.jsonl"
    settings = Settings(enabled=True, log=str(log), sinks=("jsonl", "prometheus", "console"))
    monkeypatch.setattr(real_scheduler, "Scheduler", profiled_class(Scheduler, settings))
    name = "sched_profiler_schedule_duration_seconds_count"
    before = REGISTRY.get_sample_value(name, {"dp_rank": "0"}) or 0
    scheduler = make_scheduler(model)
    scheduler.add_request(make_request(list(range(10, 50)), 3))
    while scheduler.has_requests():
        output = scheduler.schedule()
        sampled = [[7] for _ in output.num_scheduled_tokens]
        scheduler.update_from_output(output, model_output(output, sampled))
    scheduler.shutdown()
    (records,) = read(log)
    assert len(records) == 3
    assert REGISTRY.get_sample_value(name, {"dp_rank": "0"}) == before + 3
    assert f"goes to {log}, prometheus, console" in caplog.text
    assert "scheduler profile: 3 batches" in caplog.text


def test_the_servers_own_metrics_carry_ours(model: Path, tmp_path: Path) -> None:
    """With PROMETHEUS_MULTIPROC_DIR, for as many batches as the log has records."""
    log, metrics = tmp_path / "profile.jsonl", tmp_path / "metrics"
    metrics.mkdir()
    variables = environ(
        log,
        SCHED_PROFILER_SINKS="jsonl,prometheus",
        PROMETHEUS_MULTIPROC_DIR=str(metrics),
    )
    with serve(model, log=tmp_path / "server.log", environ=variables, flags=FLAGS) as server:
        for length in (3, 400, 900):
            server.complete("a" * length, 20)
        time.sleep(1)  # the writer is done with what is finished
        samples = scrape(server)
    (records,) = read(log)
    name = "sched_profiler_schedule_duration_seconds"
    assert samples[f"{name}_count", "0"] == len(records)
    total = sum(record.schedule_duration_ms for record in records) / 1000
    assert samples[f"{name}_sum", "0"] == pytest.approx(total)
    assert samples["sched_profiler_batch_prefill_tokens_sum", "0"] > 0
    assert samples["sched_profiler_token_budget", "0"] == 256
    # And what vLLM itself tells is there as ever.
    assert samples["vllm:prompt_tokens_total", ""] > 0


def test_an_unknown_sink_turns_profiling_off_and_serving_goes_on(
    model: Path, tmp_path: Path
) -> None:
    """The error names the variable, the value and the known names."""
    log, server_log = tmp_path / "profile.jsonl", tmp_path / "server.log"
    variables = environ(log, SCHED_PROFILER_SINKS="jsonl,prometeus")
    with serve(model, log=server_log, environ=variables, flags=FLAGS) as server:
        assert server.complete("a", 5)["usage"]["completion_tokens"] == 5
    assert not log.exists()
    printed = server_log.read_text()
    assert "scheduler profiling is off: SCHED_PROFILER_SINKS='jsonl,prometeus' asks for" in printed
    assert "known are console, jsonl, otel, prometheus" in printed


def test_a_sink_that_fails_does_not_stop_the_others(model: Path, tmp_path: Path) -> None:
    """Its port is taken: it is named in the log and switched off, and the log is whole."""
    log, server_log = tmp_path / "profile.jsonl", tmp_path / "server.log"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        variables = environ(
            log,
            SCHED_PROFILER_SINKS="prometheus,jsonl",
            SCHED_PROFILER_PROMETHEUS_PORT=str(taken.getsockname()[1]),
        )
        with serve(model, log=server_log, environ=variables, flags=FLAGS) as server:
            server.complete("a" * 400, 20)
    (records,) = read(log)
    assert [record.batch_id for record in records] == list(range(len(records)))
    assert len(records) >= 20
    assert "choose another SCHED_PROFILER_PROMETHEUS_PORT" in server_log.read_text()
