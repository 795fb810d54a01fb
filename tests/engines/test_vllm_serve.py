"""Real vLLM servers with real HTTP clients: three variables, and the log is whole."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import string
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families
from real_vllm import read
from vllm_server import Server, serve

from sched_profiler import BatchRecord, schema

pytestmark = pytest.mark.vllm

FLAGS = ("--max-model-len=2048", "--max-num-batched-tokens=256", "--max-num-seqs=16")
MODULE = "vllm.entrypoints.openai.api_server"


@attrs.frozen
class Served:
    """A server that was put under load and then stopped by SIGTERM."""

    answers: list[dict[str, Any]]
    metrics: dict[tuple[str, str], float]
    runs: list[list[BatchRecord]]
    log: Path
    printed: str


def put_under_load(server: Server, num_requests: int) -> list[dict[str, Any]]:
    """Send requests of mixed lengths from concurrent clients; some prompts share a beginning."""
    rng = random.Random(5)
    text = "".join(rng.choices(string.ascii_lowercase, k=4000))
    lengths = itertools.cycle([3, 900, 40, 300, 1300, 64])
    starts = itertools.cycle([0, 0, 700, 1500])
    prompts = [
        text[start : start + length]
        for start, length in itertools.islice(zip(starts, lengths, strict=False), num_requests)
    ]
    with ThreadPoolExecutor(12) as clients:
        return list(clients.map(lambda prompt: server.complete(prompt, 20), prompts))


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Serve, load, look at the metrics, load again, and stop at once after the last answer."""
    folder = tmp_path_factory.mktemp("server")
    log, server_log = folder / "logs" / "profile.jsonl", folder / "server.log"
    (folder / "metrics").mkdir()
    environ = {
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": str(log),
        "SCHED_PROFILER_SINKS": "jsonl,console,prometheus",
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    with serve(model, log=server_log, environ=environ, flags=FLAGS) as server:
        answers = put_under_load(server, 30)
        time.sleep(0.5)  # the writer is through
        metrics = scrape(server)
        answers += put_under_load(server, 30)
    return Served(answers, metrics, read(log), log, server_log.read_text())


def scrape(server: Server) -> dict[tuple[str, str], float]:
    """Return the samples of the server's own endpoint, by name and rank."""
    status, answer = server._ask("GET", "/metrics", None, timeout=30)
    assert status == 200
    return {
        (sample.name, sample.labels.get("dp_rank", "")): sample.value
        for family in text_string_to_metric_families(answer.decode())
        for sample in family.samples
    }


def test_the_log_holds_the_tokens_that_the_answers_tell(served: Served) -> None:
    """Prompt - cached + generated - 1 per request: SIGTERM right after the last answer lost none.

    Computed from what the server told its clients, and from nothing else.
    """
    (records,) = served.runs
    usages = [answer["usage"] for answer in served.answers]
    expected = sum(
        usage["prompt_tokens"]
        - usage["prompt_tokens_details"]["cached_tokens"]
        + usage["completion_tokens"]
        - 1
        for usage in usages
    )
    assert sum(record.total_scheduled_tokens for record in records) == expected
    generated = sum(usage["completion_tokens"] for usage in usages)
    assert sum(record.num_generated_tokens or 0 for record in records) == generated == 60 * 20
    assert sum(record.num_new_reqs or 0 for record in records) == 60
    assert any(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)


def test_no_batch_is_missing_and_every_line_validates(served: Served) -> None:
    """Identifiers have no gap; each line fits the schema that ships with the package."""
    (records,) = served.runs
    assert [record.batch_id for record in records] == list(range(len(records)))
    validator = jsonschema.Draft202012Validator(schema())
    for line in served.log.read_bytes().splitlines():
        validator.validate(json.loads(line))
    assert any(record.num_prefill_reqs and record.num_decode_reqs for record in records)


def test_the_console_lines_appear_where_operators_look(served: Served) -> None:
    """In vLLM's own log, in its format, from the engine core, without escape codes.

    They come after the records; vLLM may kill its engine core before the last of them, which are
    at most as old as the writer's poll.
    """
    (records,) = served.runs
    lines = [line for line in served.printed.splitlines() if "| schedule " in line]
    # One line a second at most, and none stands for a batch that another stands for.
    assert 1 <= len(lines) <= records[-1].timestamp - records[0].timestamp + 2
    told = [re.search(r"1 of (\d+) batches$", line) for line in lines]
    assert sum(int(match[1]) if match else 1 for match in told) <= len(records)
    assert all("EngineCore" in line and " INFO " in line for line in lines)
    assert not any("\x1b[36m" in line for line in lines)
    assert "scheduler profiling is on: run " + (records[0].run_id or "?") in served.printed
    # vLLM's own shutdown may leave a traceback; ours would begin with these words.
    assert "failed; serving goes on" not in served.printed


def test_the_servers_own_metrics_carry_ours(served: Served) -> None:
    """With PROMETHEUS_MULTIPROC_DIR: those of the first batches of the log, up to that moment."""
    (records,) = served.runs
    metrics, name = served.metrics, "sched_profiler_schedule_duration_seconds"
    num_batches = round(metrics[f"{name}_count", "0"])
    assert 10 < num_batches < len(records)
    total = sum(record.schedule_duration_ms for record in records[:num_batches]) / 1000
    assert metrics[f"{name}_sum", "0"] == pytest.approx(total)
    assert metrics["sched_profiler_batch_prefill_tokens_sum", "0"] > 0
    assert metrics["sched_profiler_token_budget", "0"] == 256
    # And what vLLM itself tells is there as ever.
    assert metrics["vllm:prompt_tokens_total", ""] > 0


def test_sigterm_under_load_keeps_every_batch(model: Path, tmp_path: Path) -> None:
    """Requests are in flight, and vLLM kills its engine core a moment after it asks it to end.

    No identifier is missing, and the batch that got no result is the last and says so. The server
    is started in the other of vLLM's two ways.
    """
    log, server_log = tmp_path / "profile.jsonl", tmp_path / "server.log"
    environ = {
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": str(log),
        "VLLM_SCHEDULER_PROFILING_CONSOLE": "true",
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    with (
        ThreadPoolExecutor(8) as clients,
        serve(model, log=server_log, environ=environ, flags=FLAGS, module=MODULE) as server,
    ):
        for _ in range(8):
            clients.submit(server.complete, "a", 1900)
        deadline = time.monotonic() + 60
        while not log.exists() or log.read_bytes().count(b"\n") < 50:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        told = time.time()
        server.process.terminate()
        while "engine manager stopped" not in server_log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # vLLM's HTTP server would now wait for clients that nobody will answer any more.
        os.killpg(server.process.pid, signal.SIGKILL)
    (records,) = read(log)
    assert [record.batch_id for record in records] == list(range(len(records)))
    without_result = [r.batch_id for r in records if r.model_run_duration_ms is None]
    assert without_result in ([], [records[-1].batch_id])
    # The engine went on until its own SIGTERM, which comes after that of the API server.
    assert records[-1].timestamp > told - 0.5
    assert "failed; serving goes on" not in server_log.read_text()
