"""Real vLLM servers with real HTTP clients: three variables, and the log is whole."""

from __future__ import annotations

import ast
import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
from engine_in_process import LENGTHS, MANY_TOKENS
from faulty_vllm import Answer, Faults
from machine import lacks
from offline import prompts
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from prometheus_server import dashboard_queries, is_installed, prometheus
from real_vllm import read
from vllm_server import Server, serve

from sched_profiler import BatchRecord, cli, schema

pytestmark = pytest.mark.vllm

FLAGS = ("--max-model-len=2048", "--max-num-batched-tokens=256", "--max-num-seqs=16")
MODULE = "vllm.entrypoints.openai.api_server"
EXAMPLES = Path(__file__).parents[2] / "examples"
NUM_REQUESTS = 60


@attrs.frozen
class Served:
    """What the demo left: a server was put under load and then stopped by SIGTERM."""

    folder: Path
    records: list[BatchRecord]
    told: str
    """By the demo to its user."""
    printed: str
    """By the server."""

    @property
    def log(self) -> Path:
        """Where the log is."""
        return self.folder / "scheduler_profiling.jsonl"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Run the demo as `make demo` does, with fewer requests, in an empty folder."""
    cwd = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), "--requests", str(NUM_REQUESTS)],
        cwd=cwd,
        env=os.environ | {"VLLM_LOGGING_LEVEL": "INFO"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    folder = cwd / ".demo"
    (records,) = read(folder / "scheduler_profiling.jsonl")
    return Served(folder, records, done.stdout, (folder / "server.log").read_text())


def test_the_demo_ends_with_a_log_a_picture_and_a_report(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says where they are; nothing is missing from the log, and the picture can be opened."""
    places = dict(re.findall(r"^(log|picture|report): +(.+)$", served.told, re.MULTILINE))
    picture, page = served.folder / "overview.png", served.folder / "report.html"
    assert places == {
        "log": ".demo/scheduler_profiling.jsonl",
        "picture": ".demo/overview.png",
        "report": page.as_uri(),
    }
    assert cli.main(["verify", str(served.log)]) == 0
    told = capsys.readouterr().out
    assert re.search(rf" {len(served.records)}( +0)+ +clean$", told, re.MULTILINE), told
    with Image.open(picture) as image:
        image.load()
        assert min(image.size) > 500
    text = page.read_text(encoding="utf-8")
    assert re.search(r"<title>.*Demo: chats, documents, both", text)
    assert text.rstrip().endswith("</html>")
    # The summary of the log that it tells its user about.
    assert f"\n{len(served.records):,} batches of 1 run" in served.told
    assert f"Each of the {len(served.records)} lines of the log fits the schema." in served.told


def test_the_demo_shows_the_whole_command_that_starts_the_server(served: Served) -> None:
    """Who copies it gives vLLM all that the demo gave it, but for the port."""
    (shown,) = re.findall(r"^ +(\S+/vllm serve .+)$", served.told, re.MULTILINE)
    program, _, model, *flags = shlex.split(shown)
    assert Path(program).is_file()
    (told,) = re.findall(r"non-default args: (\{.+\})", served.printed)
    given = ast.literal_eval(told)
    assert model == given.pop("model_tag") == given.pop("model")
    assert given.pop("port")
    names = [flag.partition("=")[0].removeprefix("--").replace("-", "_") for flag in flags]
    assert sorted(names) == sorted(given)


def test_the_log_holds_the_tokens_that_the_answers_tell(served: Served) -> None:
    """Prompt - cached + generated - 1 per request: SIGTERM right after the last answer lost none.

    Computed from what the server told its clients, and from nothing else.
    """
    told = re.search(
        r"(\d+) answers: (\d+) prompt tokens, (\d+) of them cached, and (\d+) generated tokens",
        served.told,
    )
    assert told
    answers, prompt, cached, generated = map(int, told.groups())
    records = served.records
    assert sum(record.num_new_reqs or 0 for record in records) == answers == NUM_REQUESTS
    computed = prompt - cached + generated - answers
    assert sum(record.total_scheduled_tokens for record in records) == computed
    assert sum(record.num_generated_tokens or 0 for record in records) == generated
    assert sum(record.num_cached_tokens or 0 for record in records) == cached > 0


def test_no_batch_is_missing_and_every_line_validates(served: Served) -> None:
    """Identifiers have no gap; each line fits the schema that ships with the package."""
    records = served.records
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
    records = served.records
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


@attrs.frozen
class Stopped:
    """A server that was stopped by SIGTERM while it served, at the time `told`.

    A scheduler of our own counted `num_counted` batches. Prometheus was asked the `queries` when
    the first `num_batches` were all. `loaded` is what the example that puts a server under load
    printed, and `received` what clients were streamed that were there until the end.
    """

    records: list[BatchRecord]
    num_counted: int
    num_batches: int
    queries: dict[str, float]
    metrics: dict[tuple[str, str], float]
    loaded: str
    received: list[Answer]
    told: float
    printed: str


@pytest.fixture(scope="module")
def stopped(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """Serve, look at the metrics, and stop under load; started in the other of vLLM's two ways."""
    folder = tmp_path_factory.mktemp("stopped")
    log, server_log = folder / "profile.jsonl", folder / "server.log"
    (folder / "metrics").mkdir()
    environ = {
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": str(log),
        "VLLM_LOGGING_LEVEL": "INFO",
        "SCHED_PROFILER_SINKS": "jsonl,console,prometheus",
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "BATCHES": str(folder / "batches"),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    flags = (*FLAGS, "--scheduler-cls=counting.Counting")
    with (
        ThreadPoolExecutor(8) as clients,
        serve(model, log=server_log, environ=environ, flags=flags, module=MODULE) as server,
    ):
        num_batches, queries = scraped(server, log)
        loaded = put_under_load(server)
        received: list[Answer] = []
        for number in range(8):
            clients.submit(keep_asking, server, number, received)
        deadline = time.monotonic() + 150
        # The load before had no more than three clients.
        while num_running(log) < 5 or sum(len(tokens) for _, tokens in received) < 500:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        metrics = scrape(server)
        told = time.time()
        server.process.terminate()
        while "engine manager stopped" not in server_log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # vLLM's HTTP server would now wait for clients that nobody will answer any more.
        os.killpg(server.process.pid, signal.SIGKILL)
    (records,) = read(log)
    return Stopped(
        records,
        (folder / "batches").read_bytes().count(b"\n"),
        num_batches,
        queries,
        metrics,
        loaded,
        received,
        told,
        server_log.read_text(),
    )


def keep_asking(server: Server, number: int, received: list[Answer]) -> None:
    """Have answers streamed, one after another, for as long as the server gives any."""
    body = {
        "model": server.model,
        "prompt": prompts(LENGTHS)[number]["prompt_token_ids"],
        "seed": number,
        "temperature": 1.0,
        "ignore_eos": True,
        # Of different lengths: answers to several clients do not come to their end together.
        "max_tokens": MANY_TOKENS - 25 * number,
        "stream": True,
        "return_token_ids": True,
    }
    with suppress(OSError, http.client.HTTPException):
        while True:
            tokens: list[int] = []
            received.append((number, tokens))
            for chunk in streamed(server, body):
                for choice in chunk.get("choices", ()):
                    tokens += choice["token_ids"]


def streamed(server: Server, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the pieces of an answer as they come."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=150)
    with closing(connection):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))


def num_running(log: Path) -> int:
    """Return how many requests ran in the newest batch of the log that is written in full."""
    written = log.read_bytes() if log.exists() else b""
    *_, newest, _ = [b"", *written.split(b"\n")]
    return int(json.loads(newest)["num_running_reqs"]) if newest else 0


def put_under_load(server: Server) -> str:
    """Run the example as a user does, in a terminal beside the server; return what it prints."""
    url = f"http://127.0.0.1:{server.port}"
    done = subprocess.run(
        [
            *(sys.executable, str(EXAMPLES / "client_load.py"), url),
            *("--requests", "9", "--clients", "3"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def scraped(server: Server, log: Path) -> tuple[int, dict[str, float]]:
    """Serve a request while Prometheus scrapes; return what the log holds and what it was asked."""
    name = "sched_profiler_schedule_duration_seconds"
    if not is_installed():
        return 0, {}
    config = f"""
        global: {{scrape_interval: 200ms}}
        scrape_configs:
          - {{job_name: vllm, static_configs: [{{targets: ["127.0.0.1:{server.port}"]}}]}}
    """
    with prometheus(log.parent, config) as scraping:
        # Rates are of what grows from one scrape to another, a batch for each token.
        for most in (150, 300):
            server.complete("a", 150)
            scraping.wait_for(f"{name}_count >= {most}")
        deadline = time.monotonic() + 60
        while scraping.value(f"{name}_count") != (num_batches := log.read_bytes().count(b"\n")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        names = (f"{name}_count", f"{name}_sum", "sched_profiler_token_budget")
        asked = (*names, "vllm:prompt_tokens_total", *dashboard_queries())
        return num_batches, {query: scraping.value(query) for query in asked}


def scrape(server: Server) -> dict[tuple[str, str], float]:
    """Return the samples of the server's own endpoint, by name and rank."""
    status, answer = server._ask("GET", "/metrics", None, timeout=30)
    assert status == 200
    return {
        (sample.name, sample.labels.get("dp_rank", "")): sample.value
        for family in text_string_to_metric_families(answer.decode())
        for sample in family.samples
    }


def test_sigterm_under_load_keeps_all_batches_but_those_of_the_last_moment(
    stopped: Stopped,
) -> None:
    """Requests are in flight, and vLLM kills its engine core a moment after it asks it to end.

    No identifier is missing, and the batch that got no result is the last and says so. Not in the
    log may be the one that was being scheduled as the engine was killed. A machine without a free
    processor may take away the moment in which the rest is written: then it is that of 0.2 s.
    """
    records = stopped.records
    last_ones = sum(r.timestamp > records[-1].timestamp - 0.4 for r in records)
    assert 0 <= stopped.num_counted - len(records) <= last_ones
    assert [record.batch_id for record in records] == list(range(len(records)))
    without_result = [r.batch_id for r in records if r.model_run_duration_ms is None]
    assert without_result in ([], [records[-1].batch_id])
    in_flight = [r for r in records if r.timestamp < stopped.told][-1].num_running_reqs
    # Clients that share two processors with others are slow to ask.
    assert in_flight is not None
    assert in_flight >= 1
    # The engine went on until its own SIGTERM, which comes after that of the API server.
    assert records[-1].timestamp > stopped.told - 0.5
    assert "failed; serving goes on" not in stopped.printed


def test_tokens_until_sigterm_are_those_of_an_unprofiled_engine(
    stopped: Stopped, faults: Faults
) -> None:
    """All that clients were streamed until their server was gone, each with a seed of its own."""
    assert len({number for number, tokens in stopped.received if tokens}) == len(LENGTHS)
    assert sum(len(tokens) for _, tokens in stopped.received) >= 500
    assert faults.differing(stopped.received) == []


def test_the_load_of_the_example_is_answered_and_is_in_the_log(stopped: Stopped) -> None:
    """Its 9 requests with 20 tokens each, of which some are cached; others run until the end."""
    assert stopped.loaded == "9 answers with 180 tokens\n"
    num_new = sum(record.num_new_reqs or 0 for record in stopped.records)
    assert num_new >= 9 + 5 + (2 if stopped.queries else 0)
    assert any(record.num_cached_tokens for record in stopped.records)


def test_the_servers_own_metrics_carry_ours(stopped: Stopped) -> None:
    """With PROMETHEUS_MULTIPROC_DIR: those of the batches up to that moment, give or take one."""
    metrics, name = stopped.metrics, "sched_profiler_schedule_duration_seconds"
    num_batches = round(metrics[f"{name}_count", "0"])
    assert stopped.num_batches + 60 <= num_batches <= len(stopped.records)
    seconds = [record.schedule_duration_ms / 1000 for record in stopped.records]
    least, most = sum(seconds[: num_batches - 1]), sum(seconds[: num_batches + 1])
    assert least - 1e-9 <= metrics[f"{name}_sum", "0"] <= most + 1e-9
    prefilled = [record.num_prefill_tokens or 0 for record in stopped.records]
    least, most = sum(prefilled[: num_batches - 1]), sum(prefilled[: num_batches + 1])
    assert 1000 < least <= metrics["sched_profiler_batch_prefill_tokens_sum", "0"] <= most
    assert metrics["sched_profiler_token_budget", "0"] == 256
    # And what vLLM itself tells is there as ever.
    assert metrics["vllm:prompt_tokens_total", ""] >= 1


def test_a_real_prometheus_tells_what_the_log_tells(stopped: Stopped) -> None:
    """It scrapes the server's own endpoint; each panel of the dashboard gets a number."""
    if not stopped.queries:
        lacks("there is no Prometheus on this machine")
    name = "sched_profiler_schedule_duration_seconds"
    seconds = [r.schedule_duration_ms / 1000 for r in stopped.records[: stopped.num_batches]]
    assert stopped.queries[f"{name}_count"] == len(seconds) >= 300
    assert stopped.queries[f"{name}_sum"] == pytest.approx(sum(seconds))
    assert stopped.queries["sched_profiler_token_budget"] == 256
    assert stopped.queries["vllm:prompt_tokens_total"] == 2
    assert {query: value for query, value in stopped.queries.items() if not value >= 0} == {}
