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
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from counting import Counting
from engine_in_process import (
    LENGTHS,
    MANY_TOKENS,
    InProcess,
    Profiling,
    generate,
    heard,
    sampling,
    uploading,
)
from offline import engine, forking, prompts
from refusing_storage import Storage, storage
from s3_server import S3Server
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError

from sched_profiler import BatchRecord, lifetime
from sched_profiler.clock import SystemClock

# Before an engine under load comes to its end.
ENOUGH_BATCHES = 250


def tell(**what: Any) -> None:
    """Print a line for the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


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


class Telling(InProcess):
    """Tells what it generates."""

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


def in_process(model: str, folder: Path) -> None:
    """Go through the faults that do not end the process, and compare throughput in them."""
    seaweed = S3Server(folder / "seaweed")
    starting = threading.Thread(target=seaweed.start)
    starting.start()
    one = Telling(model)
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
    for path, content in Storage.objects.items():
        (folder / "uploaded" / Path(path).name).write_bytes(content)
    os.environ |= seaweed.environ
    for path in (client := seaweed.client()).glob("bucket/restarted/*"):
        client.get_file(path, str(folder / "restarted-uploaded" / Path(path).name))
    seaweed.kill()


def disks(one: Telling, folder: Path, modes: dict[str, AbstractContextManager[Any]]) -> None:
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


def fork(one: Telling, folder: Path) -> None:
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


def clock(one: Telling, folder: Path) -> None:
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
    one: Telling,
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
    waits, again = f"records wait in {folder / 'restarted'}", "s3://bucket/restarted/ is reached"
    with (
        uploading("/restarted/") as began,
        store(one, folder, "restarted"),
        heard(waits) as waiting,
        heard(again) as reached,
    ):
        one.generate("store is well")
        assert began.wait(60)
        seaweed.kill()
        one.generate("store is killed")
        assert waiting.wait(60)
        seaweed.start()
        one.generate("store is started again")
        assert reached.wait(60)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    modes["store is gone"] = store(one, folder, "gone")
    with modes["store is gone"], heard(f"records wait in {folder / 'gone'}") as asked:
        one.generate("store is gone")
        assert asked.wait(60)


def store(one: Telling, folder: Path, name: str) -> Profiling:
    """Profile into a bucket."""
    return one.profile(f"s3://bucket/{name}/", spool=str(folder / name), part_seconds=1)


def hanging_store(
    one: Telling, folder: Path, deaf: int, modes: dict[str, AbstractContextManager[Any]]
) -> None:
    """Send to a server that takes connections and says nothing."""
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{deaf}"
    modes["store hangs"] = store(one, folder, "deaf")
    with modes["store hangs"]:
        one.generate("store hangs")
        time.sleep(1.5)  # it is asked meanwhile


def refusals(one: Telling, folder: Path, url: str) -> None:
    """Go through what a server says that is busy, or wants other credentials."""
    os.environ["AWS_ENDPOINT_URL"] = url
    for fault, refusal in (
        ("store throttles", (503, "SlowDown")),
        ("credentials have expired", (400, "ExpiredToken")),
    ):
        Storage.refusal = refusal
        waits = f"records wait in {folder / refusal[1]}"
        with store(one, folder, refusal[1]), heard(waits) as refused:
            one.generate(fault)
            assert refused.wait(60)
            Storage.refusal = None
            one.generate(f"{fault}, and no longer")


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
