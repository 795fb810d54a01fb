"""How much the writer's thread takes from the engine's: both share one interpreter lock.

`make bench` runs it. vLLM's real scheduler goes through a live loop, block by block by turns:
without a hook, with the hook and a writer that throws everything away, and with the whole way to
the file. A block is as long as the writer's interval, and the writer comes round once in it. Each
block is set against the one without a hook of the same turn. Once the model takes no time at all,
so that the engine never lets go of the lock: the worst case, which no real engine is. Once the
engine waits 5 ms for the model in every step, as it does for a GPU.
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

from end_to_end import ratio
from hook_cost import Loop, nothing
from tiny_model import make_tiny_model

from sched_profiler import BatchProfiler, JsonlSink, MemorySink
from sched_profiler.engines.vllm_contents import contents_of
from sched_profiler.engines.vllm_probe import Probe

_BLOCK_S = 0.2
"""How often the writer comes round."""
_WRITES_AT = 0.2
"""When it does, as a part of the block: what it has to do is done before the end."""


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


class Ways:
    """A live loop, and the ways to profile it."""

    def __init__(self, model: Path, num_running: int, model_s: float) -> None:
        self.loop = Loop(model, num_running, mixed=False, model_s=model_s)
        scheduler = self.loop.scheduler
        contents = contents_of(scheduler)
        self.profilers = {
            "hook": BatchProfiler(MemorySink(), contents_of=contents),
            "whole": BatchProfiler(JsonlSink(model.parent / "share.jsonl"), contents_of=contents),
        }
        self.profilers["hook"].writer = _Nowhere()
        self.profilers["whole"].writer._poll_s = 1e6  # type: ignore[attr-defined]  # noqa: SLF001 - see top
        self.plain = nothing(scheduler, model.parent)[0]

    def block(self, way: str, num_steps: int) -> float:
        """Return the mean time of a step over a block, in µs, less the wait for the model."""
        profiler = self.profilers.get(way)
        if profiler is not None:
            probe = Probe(self.loop.scheduler, profiler)
            probe.attach()
        spent = 0
        for number in range(num_steps):
            if way == "whole" and number == int(_WRITES_AT * num_steps):
                profiler.writer.wake()  # type: ignore[union-attr]  # it has one
            spent += self.loop.step(self.plain)[0]
            self.loop.refill()
        if profiler is not None:
            probe.detach()
        return spent / num_steps / 1000


def measure(model: Path, num_running: int, model_s: float, rounds: int) -> dict[str, Any]:
    """Return the time of a step, and by how much hook and writer lengthen it, with intervals."""
    ways = Ways(model, num_running, model_s)
    names = ("none", "hook", "whole")
    step_us = ways.block("none", 40)
    num_steps = max(10, round(_BLOCK_S / (step_us / 1e6 + model_s)))
    for name in names:
        ways.block(name, num_steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % 3 :] + names[: number % 3]:
            times[name].append(ways.block(name, num_steps))
    for profiler in ways.profilers.values():
        profiler.close()
    return {
        "running": num_running,
        "model_ms": model_s * 1000,
        "step_us": statistics.median(times["none"]),
        **{
            name: [value - 1 for value in ratio(list(zip(times[name], times["none"], strict=True)))]
            for name in ("hook", "whole")
        },
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--running", type=int, nargs="*", default=[64, 256, 1024])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "model")
        for num_running in arguments.running:
            for model_s in (0, 0.005):
                began = time.perf_counter()
                row = measure(model, num_running, model_s, arguments.rounds)
                rows.append(row | {"seconds": time.perf_counter() - began})
                print(
                    f"{num_running:>5} running, model {row['model_ms']:.0f} ms:"
                    f" schedule + update {row['step_us']:>6.0f} µs,"
                    " with the hook {:+.2%} ({:+.2%} to {:+.2%}),".format(*row["hook"])
                    + " and the writer {:+.2%} ({:+.2%} to {:+.2%})".format(*row["whole"]),
                    flush=True,
                )
    (arguments.out / "writer_share.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
