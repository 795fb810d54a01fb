"""Puts real engines through what can go wrong with delivery, and tells what they generate.

A script for a process of its own: `python faulty.py MODEL_DIR FOLDER in_process` runs one engine in
its process, and its records meet one fault after the other; with `workers` the cores of engines are
processes of their own, and each comes to another end: the last when the test interrupts it. The
output is JSON, a line for each thing told.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from offline import engine, forking, prompts
from s3_server import S3Server
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.exceptions import EngineDeadError

from sched_profiler import BatchProfiler, BatchRecord, lifetime
from sched_profiler.clock import SystemClock
from sched_profiler.engines.vllm import _log_where_vllm_logs, _start
from sched_profiler.messages import logger
from sched_profiler.settings import Settings
from sched_profiler.store import Store

# All in one batch: where a prompt is cut, vLLM for the CPU knows no seed of a request.
LENGTHS = [5, 40, 90, 17, 29, 1, 64, 8]
MAX_TOKENS = 24
MANY_TOKENS = 300
# Before an engine under load comes to its end.
ENOUGH_BATCHES = 250


def tell(**what: Any) -> None:
    """Print a line for the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def sampling(max_tokens: int, **options: Any) -> list[SamplingParams]:
    """Return how the requests are answered: each has its seed."""
    return [
        SamplingParams(
            max_tokens=max_tokens, ignore_eos=True, temperature=1.0, seed=number, **options
        )
        for number in range(len(LENGTHS))
    ]


def generate(llm: Any, max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    """Generate from an empty prefix cache, and return the tokens."""
    llm.reset_prefix_cache()
    outputs = llm.generate(prompts(LENGTHS), sampling(max_tokens), use_tqdm=False)
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
        time.sleep(0.02)


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

    def profile(self, log: str, *sinks: str, **settings: Any) -> Profiling:
        """Make a profiler; return the context in which it profiles the engine."""
        before = vars(self._scheduler).copy()
        asked = Settings(enabled=True, log=log, sinks=sinks or ("jsonl",), **settings)
        close: Any = _start(self._scheduler, asked)
        assert close is not None
        profiling = Profiling(self._scheduler, close.__self__, before)
        self._closing.append(threading.Thread(target=close))
        return profiling

    def run(self, fault: str, log: str, *sinks: str, **settings: Any) -> Profiling:
        """Generate with a fault, and tell the tokens."""
        with (profiling := self.profile(log, *sinks, **settings)):
            self.generate(fault)
        return profiling

    def generate(self, fault: str) -> None:
        """Generate, and tell the tokens."""
        tell(fault=fault, tokens=generate(self.llm))

    def compare(self, rounds: int, modes: dict[str, AbstractContextManager[Any]]) -> None:
        """Time the same load in each mode, one after the other, again and again; tell s."""
        times: dict[str, list[float]] = {mode: [] for mode in modes}
        for number in range(rounds):
            for mode in list(modes) if number % 2 else reversed(modes):
                with modes[mode]:
                    began = time.perf_counter()
                    generate(self.llm)
                    times[mode].append(time.perf_counter() - began)
        tell(times=times)

    def finish(self) -> None:
        """Close all profilers, side by side: some sinks take all the time that they are given."""
        closing, self._closing = self._closing, []
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()


class Profiling:
    """Profiles a scheduler while it is entered, again and again.

    Attributes:
        profiler: what does so.
    """

    def __init__(self, scheduler: Any, profiler: BatchProfiler, before: dict[str, Any]) -> None:
        self.profiler = profiler
        self._scheduler = scheduler
        now = vars(scheduler)
        self._attached = {name: now[name] for name in now if name not in before}
        self.__exit__()

    def __enter__(self) -> BatchProfiler:
        vars(self._scheduler).update(self._attached)
        return self.profiler

    def __exit__(self, *_: object) -> None:
        for name in self._attached:
            delattr(self._scheduler, name)


def in_process(model: str, folder: Path) -> None:
    """Go through the faults that do not end the process, and compare throughput in them."""
    seaweed = S3Server(folder / "seaweed")
    starting = threading.Thread(target=seaweed.start)
    starting.start()
    one = InProcess(model)
    one.generate("not profiled")
    tell(unprofiled=generate(one.llm, MANY_TOKENS))
    one.run("none", str(folder / "none.jsonl"))
    modes: dict[str, AbstractContextManager[Any]] = {
        "not profiled": contextlib.nullcontext(),
        "well": one.profile(str(folder / "well.jsonl")),
        "sink raises": one.run("sink raises", str(folder / "raises.jsonl"), "raising", "jsonl"),
        "sink is slow": one.run("sink is slow", str(folder / "slow.jsonl"), "jsonl", "slow"),
        "sink hangs": one.run("sink hangs", str(folder / "hangs.jsonl"), "jsonl", "hanging"),
    }
    queue = modes["queue is full"] = one.profile(str(folder / "queue.jsonl"))
    # There is no setting for it.
    queue.profiler.writer._capacity = 4  # type: ignore[attr-defined]
    with queue:
        one.generate("queue is full")
    disks(one, folder, modes)
    fork(one, folder)
    clock(one, folder)
    starting.join()
    with socket.create_server(("127.0.0.1", 0)) as deaf, storage() as url:
        remote(one, folder, seaweed, modes)
        hanging_store(one, folder, deaf.getsockname()[1], modes)
        one.compare(8, modes)
        refusals(one, folder, url)
        # The clients that are to reach it at last have known its address for long.
        one.finish()
    for path, content in _Storage.objects.items():
        (folder / "uploaded" / Path(path).name).write_bytes(content)
    os.environ |= seaweed.environ
    for path in (client := seaweed.client()).glob("bucket/restarted/*"):
        client.get_file(path, str(folder / "restarted-uploaded" / Path(path).name))
    seaweed.kill()


def disks(one: InProcess, folder: Path, modes: dict[str, AbstractContextManager[Any]]) -> None:
    """Go through what a disk does."""
    # Small disks of the test, if it may mount any.
    if (folder / "full").exists():
        modes["disk is full"] = one.run("disk is full", str(folder / "full" / "log.jsonl"))
        one.run("disk is read-only", str(folder / "read-only" / "log.jsonl"))
        hog = folder / "freed" / "hog"
        hog.write_bytes(b"x" * (60 << 10))
        log = str(folder / "freed" / "log.jsonl")
        with one.profile(log), heard(f"[Errno 28] No space left on device: '{log}'") as full:
            one.generate("disk gets full")
            assert full.wait(60)
            with heard(f"{log} can be written again") as freed:
                hog.unlink()
                one.generate("disk has room again")
                assert freed.wait(60)
    logs = folder / "removed"
    with one.profile(str(logs / "log.jsonl")) as profiler:
        one.generate("folder is there")
        assert profiler.flush(60)
        removing = threading.Timer(0.02, lambda: shutil.rmtree(logs.rename(folder / "away")))
        removing.start()
        one.generate("folder is removed")
        removing.join()
        one.generate("folder was removed")


def fork(one: InProcess, folder: Path) -> None:
    """Fork in the middle, and let the child do what it does at its end."""
    with one.profile(str(folder / "fork.jsonl")) as profiler:
        one.generate("before a fork")
        child = multiprocessing.get_context("fork").Process(target=lifetime._close_all)
        child.start()
        one.generate("after a fork")
        child.join()
        assert child.exitcode == 0
        # Before the clock is set back: the time of a record is known when it is written.
        assert profiler.flush(60)


def clock(one: InProcess, folder: Path) -> None:
    """Step the wall clock back by an hour, as far as this process is concerned."""
    seconds, nanoseconds = time.time, time.time_ns
    with one.profile(str(folder / "clock.jsonl")) as profiler:
        one.generate("before the clock is set back")
        assert profiler.flush(60)
        time.time = lambda: seconds() - 3600
        time.time_ns = lambda: nanoseconds() - 3600 * 10**9
        SystemClock.time_ns = staticmethod(time.time_ns)  # type: ignore[assignment]  # as the real one
        one.generate("after the clock was set back")
        assert profiler.flush(60)
    time.time, time.time_ns = seconds, nanoseconds
    SystemClock.time_ns = staticmethod(nanoseconds)


def remote(
    one: InProcess,
    folder: Path,
    seaweed: S3Server,
    modes: dict[str, AbstractContextManager[Any]],
) -> None:
    """Go through what a real server does: no credentials, no bucket, killed and started again."""
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "planted-access-key-id",
        "AWS_SECRET_ACCESS_KEY": "planted-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }

    os.environ["AWS_ENDPOINT_URL"] = seaweed.url
    for fault, bucket in (("credentials are wrong", "bucket"), ("bucket is missing", "no-such")):
        name = fault.partition(" ")[0]
        modes[fault] = one.profile(
            f"s3://{bucket}/{name}/", spool=str(folder / name), part_seconds=1
        )
        with modes[fault], heard(f"records wait in {folder / name}") as refused:
            one.generate(fault)
            assert refused.wait(60)
        os.environ |= seaweed.environ
    began = threading.Event()
    put = Store.put

    def put_and_tell(self: Store, file: Path, name: str) -> None:
        if "/restarted/" in self.url:
            began.set()
        put(self, file, name)

    Store.put = put_and_tell  # type: ignore[method-assign]
    waits, again = f"records wait in {folder / 'restarted'}", "s3://bucket/restarted/ is reached"
    with store(one, folder, "restarted"), heard(waits) as waiting, heard(again) as reached:
        one.generate("store is well")
        assert began.wait(60)
        seaweed.kill()
        one.generate("store is killed")
        assert waiting.wait(60)
        seaweed.start()
        one.generate("store is started again")
        assert reached.wait(60)
    Store.put = put  # type: ignore[method-assign]
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    modes["store is gone"] = store(one, folder, "gone")
    with modes["store is gone"], heard(f"records wait in {folder / 'gone'}") as asked:
        one.generate("store is gone")
        assert asked.wait(60)


def store(one: InProcess, folder: Path, name: str) -> Profiling:
    """Profile into a bucket."""
    return one.profile(f"s3://bucket/{name}/", spool=str(folder / name), part_seconds=1)


def hanging_store(
    one: InProcess, folder: Path, deaf: int, modes: dict[str, AbstractContextManager[Any]]
) -> None:
    """Send to a server that takes connections and says nothing."""
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{deaf}"
    modes["store hangs"] = store(one, folder, "deaf")
    with modes["store hangs"]:
        one.generate("store hangs")
        time.sleep(1.5)  # it is asked meanwhile


def refusals(one: InProcess, folder: Path, url: str) -> None:
    """Go through what a server says that is busy, or wants other credentials."""
    os.environ["AWS_ENDPOINT_URL"] = url
    for fault, refusal in (
        ("store throttles", (503, "SlowDown")),
        ("credentials have expired", (400, "ExpiredToken")),
    ):
        _Storage.refusal = refusal
        waits = f"records wait in {folder / refusal[1]}"
        with store(one, folder, refusal[1]), heard(waits) as refused:
            one.generate(fault)
            assert refused.wait(60)
            _Storage.refusal = None
            one.generate(f"{fault}, and no longer")


@contextmanager
def heard(message: str) -> Iterator[threading.Event]:
    """Yield what is set when our log says so."""
    event = threading.Event()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if message in f"{record.getMessage()} {record.exc_text}":
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
        self.num_batches = 0

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        output = super().schedule(*args, **kwargs)
        if output.total_num_scheduled_tokens:
            os.write(self._batches, f"{time.time()}\n".encode())
            self.num_batches += 1
        return output


class Failing(Counting):
    """Raises under load."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        if self.num_batches == ENOUGH_BATCHES:
            raise RuntimeError("the scheduler fails, says the test")
        return super().schedule(*args, **kwargs)


ENDS = {
    "killed": ("Counting", signal.SIGKILL),
    "failed": ("Failing", None),
    "interrupted": ("Counting", signal.SIGINT),
    # Together with this process, by the test.
    "interrupted twice": ("Counting", None),
}
"""The scheduler of each engine, and the signal that its core gets under load."""


def workers(model: str, folder: Path) -> None:
    """Make engines that have the same log; put one after the other under load until it ends."""
    engines = {name: served(model, folder, name) for name in ENDS}
    for name, (llm, core) in engines.items():
        # Whether vLLM notices in the end that its core is gone is its affair.
        threading.Thread(
            target=serve_for_ever, args=(llm, folder / f"{name}.received"), daemon=True
        ).start()
        while (folder / f"{name}.batches").read_bytes().count(b"\n") < ENOUGH_BATCHES:
            time.sleep(0.05)
        if signum := ENDS[name][1]:
            os.kill(core.pid, signum)
        tell(ending=name)
        core.join()


def served(model: str, folder: Path, name: str) -> tuple[Any, Any]:
    """Make a profiled engine and tell its tokens; return it and its core, a process of its own."""
    os.environ["BATCHES"] = str(folder / f"{name}.batches")
    others = multiprocessing.active_children()
    with forking():
        llm = engine(model, scheduler_cls=f"faulty.{ENDS[name][0]}")
    tell(fault=name, tokens=generate(llm))
    (core,) = (
        child
        for child in multiprocessing.active_children()
        if "EngineCore" in child.name and child not in others
    )
    return llm, core


def serve_for_ever(llm: Any, path: Path) -> None:
    """Put it under load, and note what comes where it survives the process, whatever kills it."""
    with path.open("w", buffering=1) as received, suppress(EngineDeadError):
        for turn in itertools.count():
            llm.reset_prefix_cache()
            asked = zip(
                prompts(LENGTHS),
                sampling(MANY_TOKENS, output_kind=RequestOutputKind.DELTA),
                strict=True,
            )
            for number, request in enumerate(asked):
                llm.llm_engine.add_request(f"{turn} {number}", *request)
            while llm.llm_engine.has_unfinished_requests():
                for output in llm.llm_engine.step():
                    tokens = list(output.outputs[0].token_ids)
                    received.write(json.dumps([output.request_id, tokens]) + "\n")


if __name__ == "__main__":
    {"in_process": in_process, "workers": workers}[sys.argv[3]](sys.argv[1], Path(sys.argv[2]))
