"""What a record costs the writer's thread, and how long it is in the file.

`make bench` runs it. Measurements as vLLM's probe leaves them go through the making of the record,
the encoding and the file sink, one thread doing nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sched_profiler import BatchProfiler, JsonlSink
from sched_profiler.engines.vllm_contents import contents_of

_BATCHES = 2000


def measurement(number: int, num_running: int) -> tuple[Any, ...]:
    """Return what a probe leaves of a decode-only batch in which two requests finished."""
    began = 1_000_000_000 + number * 20_000_000
    ended = began + 300_000
    scheduled = (
        *(began, ended, ended, 0),
        *(num_running, 3, 5000, num_running),
        [700 + i for i in range(num_running)],
        *(2, None, None, False),
    )
    result = began + 15_000_000
    previous, updated = began - 5_000_000, result + 200_000
    return (number, previous, result, result, updated, scheduled, num_running, None)


def measure(num_running: int, folder: Path) -> dict[str, Any]:
    """Return the cost of a record in µs and its length in bytes."""
    pool = SimpleNamespace(num_gpu_blocks=10_001)
    scheduler = SimpleNamespace(kv_cache_manager=SimpleNamespace(block_pool=pool))
    log = folder / f"{num_running}.jsonl"
    profiler = BatchProfiler(
        JsonlSink(log),
        dp_rank=0,
        token_budget=8192,
        background=False,
        contents_of=contents_of(scheduler),
        strict=True,
    )
    batches = [measurement(number, num_running) for number in range(_BATCHES)]
    best = float("inf")
    for _ in range(5):
        began = time.thread_time_ns()
        for batch in batches:
            profiler.writer.put(batch)
        profiler.flush()
        best = min(best, (time.thread_time_ns() - began) / _BATCHES / 1000)
    profiler.close()
    return {
        "running": num_running,
        "us_per_record": best,
        "bytes_per_record": log.stat().st_size / (5 * _BATCHES),
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(num_running, Path(folder)) for num_running in (1, 64, 256, 1024)]
    for row in rows:
        print(
            f"{row['running']:>5} running: {row['us_per_record']:>7.1f} µs of the writer's thread"
            f" and {row['bytes_per_record']:>6.0f} bytes a record"
        )
    (out / "writer_cost.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
