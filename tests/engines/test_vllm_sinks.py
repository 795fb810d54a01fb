"""vLLM's real scheduler with the sinks that a variable names."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import real_scheduler
from prometheus_client import REGISTRY
from real_scheduler import make_request, make_scheduler, model_output
from real_vllm import read
from vllm.v1.core.sched.scheduler import Scheduler

from sched_profiler.engines.vllm import profiled_class
from sched_profiler.settings import Settings

pytestmark = pytest.mark.vllm

NAME = "sched_profiler_schedule_duration_seconds_count"


def step_three_times(model: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a real scheduler form three batches and shut it down, which closes its sinks."""
    monkeypatch.setattr(real_scheduler, "Scheduler", profiled_class(Scheduler, settings))
    scheduler = make_scheduler(model)
    scheduler.add_request(make_request(list(range(10, 50)), 3))
    while scheduler.has_requests():
        output = scheduler.schedule()
        sampled = [[7] for _ in output.num_scheduled_tokens]
        scheduler.update_from_output(output, model_output(output, sampled))
    scheduler.shutdown()


def test_every_sink_that_is_named_gets_every_batch(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says where records go."""
    caplog.set_level("INFO", logger="sched_profiler")
    log = tmp_path / "profile.jsonl"
    before = REGISTRY.get_sample_value(NAME, {"dp_rank": "0"}) or 0
    settings = Settings(enabled=True, log=str(log), sinks=("jsonl", "prometheus", "console"))
    step_three_times(model, settings, monkeypatch)
    (records,) = read(log)
    assert len(records) == 3
    assert REGISTRY.get_sample_value(NAME, {"dp_rank": "0"}) == before + 3
    assert f"goes to {log}, prometheus, console" in caplog.text
    assert "scheduler profile: 3 batches" in caplog.text


def test_a_sink_that_fails_does_not_stop_the_others(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its port is taken: it is named in the log and switched off, and the log is whole."""
    log = tmp_path / "profile.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sinks = ("prometheus", "jsonl")
        settings = Settings(enabled=True, log=str(log), sinks=sinks, prometheus_port=port)
        step_three_times(model, settings, monkeypatch)
    (records,) = read(log)
    assert [record.batch_id for record in records] == [0, 1, 2]
    assert "choose another SCHED_PROFILER_PROMETHEUS_PORT" in caplog.text
