"""Puts real engines through what can go wrong with delivery, and tells what they generate.

A script for a process of its own: `python faulty.py MODEL_DIR FOLDER in_process` runs one engine in
its process, and its records meet one fault after the other; with `workers` the engine's core is a
process of its own and is killed, and the next waits for the test to interrupt it. The output is
JSON, a line for each thing told.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from offline import engine, forking, prompts
from vllm import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler

from sched_profiler import BatchRecord
from sched_profiler.engines.vllm import _log_where_vllm_logs, _start
from sched_profiler.messages import logger
from sched_profiler.settings import Settings

# All in one batch: where a prompt is cut, vLLM for the CPU knows no seed of a request.
LENGTHS = [5, 40, 90, 17, 29, 1, 64, 8]
MAX_TOKENS = 24


def tell(**what: Any) -> None:
    """Print a line for the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def generate(llm: Any, max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    """Generate from an empty prefix cache, and return the tokens: each request has its seed."""
    llm.reset_prefix_cache()
    batch = prompts(LENGTHS)
    parameters = [
        SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=1.0, seed=number)
        for number in range(len(batch))
    ]
    outputs = llm.generate(batch, parameters, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


class Raising:
    """A sink that fails, and says more than it should."""

    def write(self, record: BatchRecord) -> None:
        raise RuntimeError(
            "no answer from https://planted-user:planted-password@host/?k=planted-key"
        )

    flush = close = lambda self: None


class Hanging(Raising):
    """A sink that never comes back."""

    def write(self, record: BatchRecord) -> None:
        threading.Event().wait()


class Slow(Raising):
    """A sink that takes far longer for a batch than the model."""

    def write(self, record: BatchRecord) -> None:
        time.sleep(0.03)


def raising(_context: object) -> Raising:
    """Make one: what entry points lead to."""
    return Raising()


def hanging(_context: object) -> Hanging:
    """Make one."""
    return Hanging()


def slow(_context: object) -> Slow:
    """Make one."""
    return Slow()


class _Storage(BaseHTTPRequestHandler):
    """As much of S3 as an upload needs, once it has stopped to refuse."""

    refusal: tuple[int, str] | None = None
    objects: dict[str, bytes] = {}  # noqa: RUF012 - shared by all requests
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._refuse():
            _Storage.objects[self.path.partition("?")[0]] = body
            self._answer(200)

    def do_HEAD(self) -> None:
        if not self._refuse():
            found = _Storage.objects.get(self.path)
            self._answer(404 if found is None else 200, length=len(found or b""))

    def do_GET(self) -> None:
        if not self._refuse():
            self._answer(404)

    def _refuse(self) -> bool:
        if _Storage.refusal is None:
            return False
        status, code = _Storage.refusal
        text = f"<Error><Code>{code}</Code><Message>not now</Message></Error>".encode()
        self._answer(status, text)
        return True

    def _answer(self, status: int, text: bytes = b"", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text) if length is None else length))
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Tue, 24 Nov 2026 12:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def storage() -> Iterator[str]:
    """Run a server that refuses or takes uploads, as `_Storage.refusal` says; yield its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Storage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


class InProcess:
    """One engine, whose scheduler is profiled into one sink after the other."""

    def __init__(self, model: str) -> None:
        _log_where_vllm_logs()
        self.llm = engine(model)
        self._scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        self._closing: list[threading.Thread] = []

    def profile(self, log: str, *sinks: str, **settings: Any) -> Callable[[], Any]:
        """Make a profiler; return what makes a context in which it profiles the engine."""
        before = vars(self._scheduler).copy()
        asked = Settings(enabled=True, log=log, sinks=sinks or ("jsonl",), **settings)
        close = _start(self._scheduler, asked)
        assert close is not None
        attached = {
            name: value for name, value in vars(self._scheduler).items() if name not in before
        }
        self._detach(attached)
        self._closing.append(threading.Thread(target=close))

        @contextmanager
        def profiling() -> Iterator[None]:
            vars(self._scheduler).update(attached)
            yield
            self._detach(attached)

        return profiling

    def _detach(self, attached: dict[str, Any]) -> None:
        for name in attached:
            delattr(self._scheduler, name)

    def run(self, fault: str, log: str, *sinks: str, **settings: Any) -> None:
        """Generate with a fault, and tell the tokens."""
        with self.profile(log, *sinks, **settings)():
            tell(fault=fault, tokens=generate(self.llm))

    def compare(self, rounds: int, modes: dict[str, Callable[[], Any]]) -> None:
        """Time the same load in each mode, one after the other, again and again; tell s."""
        times: dict[str, list[float]] = {mode: [] for mode in modes}
        for number in range(rounds):
            for mode in list(modes) if number % 2 else reversed(modes):
                with modes[mode]():
                    began = time.perf_counter()
                    generate(self.llm)
                    times[mode].append(time.perf_counter() - began)
        tell(times=times)

    def finish(self) -> None:
        """Close all profilers, side by side: some sinks take all the time that they are given."""
        for thread in self._closing:
            thread.start()
        for thread in self._closing:
            thread.join()


def in_process(model: str, folder: Path) -> None:
    """Go through the faults that do not end the process."""
    one = InProcess(model)
    tell(fault="not profiled", tokens=generate(one.llm))
    one.run("none", str(folder / "none.jsonl"))
    one.run("sink raises", str(folder / "raises.jsonl"), "raising", "jsonl")
    one.run("sink is slow", str(folder / "slow.jsonl"), "jsonl", "slow")
    one.run("sink hangs", str(folder / "hangs.jsonl"), "jsonl", "hanging")
    for name in ("read-only", "full"):
        # Small disks of the test, if it may mount any.
        if (folder / name).exists():
            one.run(name, str(folder / name / "log.jsonl"))
    with socket.create_server(("127.0.0.1", 0)) as deaf, storage() as url:
        remote(one, folder, deaf.getsockname()[1], url)
        one.finish()
    for path, content in _Storage.objects.items():
        (folder / "uploaded" / Path(path).name).write_bytes(content)


def remote(one: InProcess, folder: Path, deaf: int, url: str) -> None:
    """Go through what storage does, and compare throughput meanwhile."""
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "planted-access-key-id",
        "AWS_SECRET_ACCESS_KEY": "planted-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }

    def store(name: str) -> Callable[[], Any]:
        return one.profile(f"s3://bucket/{name}/", spool=str(folder / name), part_seconds=1)

    with socket.create_server(("127.0.0.1", 0)) as nobody:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with store("gone")():
        tell(fault="store is gone", tokens=generate(one.llm))
        time.sleep(1.5)  # it is asked meanwhile
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{deaf}"
    deaf_store = store("deaf")
    with deaf_store():
        tell(fault="store hangs", tokens=generate(one.llm))
        time.sleep(1.5)
    well, hanging = str(folder / "well.jsonl"), str(folder / "hanging.jsonl")
    one.compare(
        12,
        {
            "not profiled": contextlib.nullcontext,
            "well": one.profile(well),
            "sink hangs": one.profile(hanging, "hanging"),
            "store hangs": deaf_store,
        },
    )
    os.environ["AWS_ENDPOINT_URL"] = url
    for fault, refusal in (
        ("store throttles", (503, "SlowDown")),
        ("credentials have expired", (400, "ExpiredToken")),
    ):
        _Storage.refusal = refusal
        with store(refusal[1])(), heard(f"records wait in {folder / refusal[1]}") as refused:
            tell(fault=fault, tokens=generate(one.llm))
            assert refused.wait(60)
            _Storage.refusal = None
            tell(fault=f"{fault}, and no longer", tokens=generate(one.llm))


@contextmanager
def heard(message: str) -> Iterator[threading.Event]:
    """Yield what is set when our log says so."""
    event = threading.Event()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if message in record.getMessage():
                event.set()

    ear = Ear()
    logger.addHandler(ear)
    yield event
    logger.removeHandler(ear)


class Counting(Scheduler):  # type: ignore[misc]  # vLLM ships no types
    """Notes the time of each batch where it survives the process, whatever kills it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._batches = os.open(os.environ["BATCHES"], flags, 0o666)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        output = super().schedule(*args, **kwargs)
        if output.total_num_scheduled_tokens:
            os.write(self._batches, f"{time.time()}\n".encode())
        return output


def workers(model: str, folder: Path) -> None:
    """Kill an engine core under load; then serve until somebody interrupts."""
    llm = served(model, folder, "killed")
    (core,) = (child for child in multiprocessing.active_children() if "EngineCore" in child.name)
    # Whether vLLM notices in the end that its core is gone is its affair.
    threading.Thread(target=serve_for_ever, args=(llm,), daemon=True).start()
    while (folder / "killed.batches").read_bytes().count(b"\n") < 400:
        time.sleep(0.05)
    core.kill()
    core.join()
    serve_for_ever(served(model, folder, "interrupted"))


def served(model: str, folder: Path, name: str) -> Any:
    """Make an engine whose core is a process of its own and is profiled, and tell its tokens."""
    os.environ["BATCHES"] = str(folder / f"{name}.batches")
    with forking():
        llm = engine(model, scheduler_cls="faulty.Counting")
    tell(fault=name, tokens=generate(llm))
    return llm


def serve_for_ever(llm: Any) -> None:
    """Put it under load."""
    while True:
        generate(llm, 400)


if __name__ == "__main__":
    {"in_process": in_process, "workers": workers}[sys.argv[3]](sys.argv[1], Path(sys.argv[2]))
