"""How much the writer's thread takes from the engine's: both share one interpreter lock.

`make bench` runs it. vLLM's real scheduler goes through a live loop, block by block in balanced
order: without a hook, with the hook and a writer that throws everything away, and with the whole
way to the file. What a step takes longer with the writer than without it is its share. Once the
model takes no time at all, so that the engine never lets go of the lock: the worst case, which no
real engine is. Once the engine waits 5 ms for the model in every step, as it does for a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from hook_cost import Loop, nothing
from tiny_model import make_tiny_model

from sched_profiler import BatchProfiler, JsonlSink, MemorySink
from sched_profiler.engines.vllm_contents import contents_of
from sched_profiler.engines.vllm_probe import Probe

_STEPS_IN_BLOCK = 60


class _Nowhere:
    """A writer that throws everything away."""

    def __init__(self) -> None:
        self.queue: deque[Any] = deque(maxlen=1)
        self.room = 2
        self.num_dropped = 0

    def put(self, measurement: Any) -> None:
        self.queue.append(measurement)

    def drop(self) -> None:
        self.num_dropped += 1

    def flush(self, _timeout: float | None = None) -> bool:
        return True

    def close(self, _timeout: float | None = None) -> bool:
        return True


def block(loop: Loop, way: str, log: Path) -> float:
    """Return the mean time of a step over a block, in µs, less the wait for the model."""
    scheduler = loop.scheduler
    profiler = None
    if way != "none":
        sink = JsonlSink(log) if way == "whole" else MemorySink()
        profiler = BatchProfiler(sink, contents_of=contents_of(scheduler))
        if way == "hook":
            profiler.writer = _Nowhere()
        probe = Probe(scheduler, profiler)
        probe.attach()
    hook, _ = nothing(scheduler, log)
    spent = 0
    for _ in range(_STEPS_IN_BLOCK):
        spent += loop.step(hook)[0]
        loop.refill()
    if profiler is not None:
        probe.detach()
        profiler.close()
    return spent / _STEPS_IN_BLOCK / 1000


def measure(model: Path, num_running: int, model_s: float, blocks: int) -> dict[str, Any]:
    """Return the times of a step, and what the hook and the writer add to it."""
    loop = Loop(model, num_running, mixed=False, model_s=model_s)
    log = model.parent / "share.jsonl"
    ways = ("none", "hook", "whole")
    times: dict[str, list[float]] = {way: [] for way in ways}
    block(loop, "none", log)
    for number in range(blocks):
        for way in ways[number % 3 :] + ways[: number % 3]:
            times[way].append(block(loop, way, log))
    middle = {way: statistics.median(times[way]) for way in ways}
    return {
        "running": num_running,
        "model_ms": model_s * 1000,
        "step_us": middle["none"],
        "hook": middle["hook"] / middle["none"] - 1,
        "whole": middle["whole"] / middle["none"] - 1,
        "spread": statistics.stdev(times["none"]) / middle["none"],
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--running", type=int, nargs="*", default=[64, 256])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "model")
        for num_running in arguments.running:
            for model_s in (0, 0.005):
                began = time.perf_counter()
                row = measure(model, num_running, model_s, arguments.blocks)
                rows.append(row | {"seconds": time.perf_counter() - began})
                print(
                    f"{num_running:>5} running, model {row['model_ms']:.0f} ms:"
                    f" schedule + update {row['step_us']:>6.0f} µs,"
                    f" with the hook {row['hook']:>+7.2%}, with the writer {row['whole']:>+7.2%}"
                    f" (from block to block {row['spread']:.1%})",
                    flush=True,
                )
    (arguments.out / "writer_share.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
