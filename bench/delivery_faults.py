"""What goes wrong with delivery, round after round, while an engine in this process is profiled."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
from engine_in_process import InProcess, generate, heard, uploading
from machine import mounted
from s3_server import S3Server

from sched_profiler import lifetime
from sched_profiler.clock import SystemClock

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FAULTS", "TOKENS", "Bench", "Met", "is_on"]

TOKENS = 60
"""Of each request in a round: the writer comes round in it."""

Before = Callable[[int], object]
"""What happens before a round, given its number, and is not timed."""
Met = tuple[AbstractContextManager[Any], Before]
"""In what the engine is profiled, and what happens before each round."""


def is_on(number: int) -> bool:
    """Tell whether a round is one with a profiler."""
    return number % 4 in (0, 3)


def nothing(_number: int) -> None:
    """Let a round come."""


@attrs.frozen
class Bench:
    """One engine, a place for logs, and a store."""

    folder: Path
    one: InProcess
    server: S3Server

    def profile(self, *sinks: str) -> Any:
        """Return the context in which the engine is profiled into a file."""
        return self.one.profile(str(self.folder / "log.jsonl"), *sinks)

    def profile_remotely(self, environ: dict[str, str], bucket: str = "bucket") -> Any:
        """Return the context in which it is profiled into a store."""
        os.environ |= environ
        return self.one.profile(
            f"s3://{bucket}/{self.folder.name}/", spool=str(self.folder / "spool"), part_seconds=1
        )

    def meet(self, profiling: Any, message: str) -> None:
        """Generate, profiled, until our log says so."""
        with heard(message) as said:
            self.generate_until(said, profiling, message)

    def upload(self, profiling: Any) -> None:
        """Generate, profiled, until an upload begins."""
        with uploading() as began:
            self.generate_until(began, profiling, "an upload")

    def generate_until(self, event: threading.Event, profiling: Any, awaited: str) -> None:
        """Generate, profiled, until it is set."""
        deadline = time.monotonic() + 60
        with profiling:
            while not event.is_set():
                assert time.monotonic() < deadline, f"nothing was seen of {awaited!r}"
                generate(self.one.llm, TOKENS)

    @property
    def server_environ(self) -> dict[str, str]:
        """Return what a client finds that knows the store; it is started where it is not up."""
        if not self.server.is_up:
            self.server.start()
        return self.server.environ


@contextmanager
def none(bench: Bench) -> Iterator[Met]:
    """All is well."""
    yield bench.profile(), nothing


@contextmanager
def with_sink(name: str, bench: Bench) -> Iterator[Met]:
    """A sink beside the log fails in its way."""
    profiling = bench.profile("jsonl", name)
    with profiling:
        generate(bench.one.llm, TOKENS)
    yield profiling, nothing


@contextmanager
def queue_full(bench: Bench) -> Iterator[Met]:
    """Most batches find no room."""
    profiling = bench.profile()
    # There is no setting for it.
    profiling.profiler.writer._capacity = 4  # noqa: SLF001
    yield profiling, nothing
    assert profiling.profiler.writer.num_dropped


@contextmanager
def disk(bench: Bench, option: str) -> Iterator[Path]:
    """Yield a small disk, on which the log is going to be."""
    with mounted(bench.folder, option) as is_there:
        if not is_there:
            raise PermissionError("only root may mount a file system")
        yield bench.folder


@contextmanager
def disk_full(bench: Bench) -> Iterator[Met]:
    """Not even the first batch has room."""
    with disk(bench, "size=64k") as folder:
        fill(folder / "hog")
        profiling = bench.profile()
        bench.meet(profiling, "No space left on device")
        yield profiling, nothing


@contextmanager
def disk_freed(bench: Bench) -> Iterator[Met]:
    """It gets full before one round with a profiler, and has room again before the next.

    And so for rounds without one: what it does to the processor's caches meets both.
    """
    with disk(bench, "size=32m") as folder:
        hog = folder / "hog"

        def before(number: int) -> None:
            if number % 2:
                hog.unlink()
            else:
                fill(hog)

        with heard("can be written again") as freed:
            yield bench.profile(), before
        assert freed.is_set()


def fill(hog: Path) -> None:
    """Write until there is no room."""
    with suppress(OSError), hog.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@contextmanager
def read_only(bench: Bench) -> Iterator[Met]:
    """Nothing can be made there."""
    with disk(bench, "ro"):
        profiling = bench.profile()
        bench.meet(profiling, "Read-only file system")
        yield profiling, nothing


@contextmanager
def removed(bench: Bench) -> Iterator[Met]:
    """Somebody removes the folder in the middle of each round.

    In rounds without a profiler it is another folder: to remove one takes time as well.
    """
    timers: list[threading.Timer] = []
    logs, others = bench.folder / "logs", bench.folder / "others"
    profiling = bench.one.profile(str(logs / "log.jsonl"))

    def remove(folder: Path) -> None:
        with suppress(FileNotFoundError):  # it is made again with the next batch
            shutil.rmtree(folder.rename(bench.folder / f"away-{len(timers)}"))

    def before(number: int) -> None:
        others.mkdir(parents=True, exist_ok=True)
        (others / "log.jsonl").touch()
        folder = logs if is_on(number) else others
        timers.append(threading.Timer(0.05, remove, [folder]))
        timers[-1].start()

    yield profiling, before
    for timer in timers:
        timer.join()


@contextmanager
def killed(bench: Bench) -> Iterator[Met]:
    """The store dies in an upload and comes back, again and again."""
    profiling = bench.profile_remotely(bench.server_environ)
    num_kills = 0

    def before(number: int) -> None:
        nonlocal num_kills
        if number % 40 == 8:
            bench.upload(profiling)
            bench.server.kill()
            num_kills += 1
        elif number % 40 == 28:
            bench.server.start()

    yield profiling, before
    assert num_kills


@contextmanager
def stands_still(bench: Bench) -> Iterator[Met]:
    """The store keeps its connections, and says nothing any more."""
    profiling = bench.profile_remotely(bench.server_environ)
    bench.upload(profiling)
    bench.server.stand_still()
    yield profiling, nothing
    bench.server.kill()


@contextmanager
def refused(bench: Bench, bucket: str, **wrong: str) -> Iterator[Met]:
    """The store takes nothing."""
    profiling = bench.profile_remotely(bench.server_environ | wrong, bucket)
    bench.meet(profiling, f"records wait in {bench.folder / 'spool'}")
    yield profiling, nothing


@contextmanager
def hangs(bench: Bench) -> Iterator[Met]:
    """A server takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        profiling = bench.profile_remotely(S3Server.known(url))
        with profiling:
            generate(bench.one.llm, TOKENS)
            time.sleep(1.5)  # it is asked meanwhile
        yield profiling, nothing


@contextmanager
def forks(bench: Bench) -> Iterator[Met]:
    """The process forks before each round, and the child comes to its end during the round."""
    children: list[Any] = []
    profiling = bench.profile()
    with profiling:
        generate(bench.one.llm, TOKENS)

    def join() -> None:
        for child in children:
            child.join()
            assert child.exitcode == 0
        children.clear()

    def before(_number: int) -> None:
        join()
        fork = multiprocessing.get_context("fork")
        children.append(fork.Process(target=lifetime._close_all))  # noqa: SLF001 - what an end does
        children[0].start()

    yield profiling, before
    join()


_OTHER_ENGINE = """
import itertools, sys, time
from sched_profiler import JsonlSink
from sched_profiler.testing import make_record
sink = JsonlSink(sys.argv[1])
for number in itertools.count():
    sink.write(make_record(number))
    sink.flush()
    print(number, flush=True)
    time.sleep(0.01)
"""


@contextmanager
def same_path(bench: Bench) -> Iterator[Met]:
    """An engine in another process writes to that log already, a batch every 10 ms."""
    command = [sys.executable, "-c", _OTHER_ENGINE, str(bench.folder / "log.jsonl")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        threading.Thread(target=other.stdout.read, daemon=True).start()
        profiling = bench.profile()
        try:
            bench.meet(profiling, "another engine writes to")
            yield profiling, nothing
            assert other.poll() is None
        finally:
            other.kill()


@contextmanager
def clock_back(bench: Bench) -> Iterator[Met]:
    """The wall clock is an hour earlier in every round with a profiler, for this process."""
    seconds, nanoseconds, own = time.time, time.time_ns, SystemClock.time_ns
    hours = 0

    def before(number: int) -> None:
        nonlocal hours
        hours += is_on(number)

    time.time = lambda: seconds() - 3600 * hours
    time.time_ns = lambda: nanoseconds() - 3600 * 10**9 * hours
    SystemClock.time_ns = staticmethod(time.time_ns)  # type: ignore[assignment]
    yield bench.profile(), before
    time.time, time.time_ns = seconds, nanoseconds
    SystemClock.time_ns = staticmethod(own)  # type: ignore[assignment]


FAULTS: dict[str, Callable[[Bench], AbstractContextManager[Met]]] = {
    "none": none,
    "the disk is full": disk_full,
    "the disk gets full and is freed, again and again": disk_freed,
    "the folder is read-only": read_only,
    "the folder is removed, again and again": removed,
    "the store is killed in an upload and started again": killed,
    "the store stands still in an upload": stands_still,
    "the store takes connections and says nothing": hangs,
    "credentials are wrong": partial(
        refused, bucket="bucket", AWS_SECRET_ACCESS_KEY="not-the-secret"
    ),
    "the bucket is missing": partial(refused, bucket="no-such"),
    "a sink raises": partial(with_sink, "raising"),
    "a sink blocks for ever": partial(with_sink, "hanging"),
    "a sink takes 20 ms for a record": partial(with_sink, "slow"),
    "the queue is full": queue_full,
    "the process forks": forks,
    "two engines have the same path": same_path,
    "the clock is set back": clock_back,
}
