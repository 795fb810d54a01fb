"""What tests of delivery share: batches, waiting, and engines in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sched_profiler import BatchProfiler

__all__ = ["engine", "only_file", "serve", "until"]


def serve(profiler: BatchProfiler, num_batches: int, *, num_decodes: int = 20) -> None:
    """Let so many batches pass, as fast as they come."""
    for _ in range(num_batches):
        batch = profiler.begin()
        batch.scheduled(
            prefill_chunk_sizes=[3],
            decode_chunk_sizes=[1] * num_decodes,
            num_waiting_reqs=0,
            num_running_reqs=num_decodes + 1,
            kv_cache_usage=0.25,
        )
        batch.finished()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def only_file(folder: Path, pattern: str) -> Path:
    """Return the one file that matches."""
    (path,) = folder.glob(pattern)
    return path


# Prints how many batches were handed over, every so often; ends when its input ends.
ENGINE = """
import logging, select, sys, time
sys.path.insert(0, {tests!r})
from engine_under_test import serve
from sched_profiler import BatchProfiler, JsonlSink, RemoteSink, Rotation

logging.basicConfig(level=logging.INFO)
sink = {sink}
profiler = BatchProfiler(sink, dp_rank=0)
count = 0
period = {period}
print("started", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    began = time.monotonic()
    serve(profiler, {burst})
    count += {burst}
    print(count, flush=True)
    time.sleep(max(0.0, period - (time.monotonic() - began)))
took = time.monotonic()
complete = profiler.close()
print("closed", complete, round(time.monotonic() - took, 1), flush=True)
"""


class Engine:
    """A process that profiles itself until it is told to end, or is killed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ended(self, seconds: float = 60.0) -> tuple[str, str]:
        """Tell it to end in order; return what it printed, and what it logged."""
        return self.process.communicate("end\n", timeout=seconds)

    def killed(self) -> int:
        """Kill it with SIGKILL; return how many batches it had handed over at least."""
        self.process.kill()
        printed, _ = self.process.communicate(timeout=60)
        return int(printed.split("\n")[-2])


@contextmanager
def engine(
    sink: str, *, burst: int = 20, period: float = 0.001, environ: dict[str, str] | None = None
) -> Iterator[Engine]:
    """Run an engine with the sink that an expression makes, in a process of its own."""
    code = ENGINE.format(tests=str(Path(__file__).parent), sink=sink, burst=burst, period=period)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environ or {}),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield Engine(process)
    finally:
        process.kill()
        process.communicate()
