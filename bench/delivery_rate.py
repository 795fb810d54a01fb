"""How many batches a second reach the file, and whether memory stays flat meanwhile.

`make bench` runs it. A thread hands over measurements as vLLM's probe leaves them, many times as
fast as any engine; the writer makes records of them, writes, rotates and compresses in
the same process. What it cannot keep up with is given up and counted: at the end what was
written and what was counted are together what was handed over.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from writer_cost import measurement

from sched_profiler import BatchProfiler, JsonlSink, Rotation
from sched_profiler.engines.vllm_contents import contents_of
from sched_profiler.verify import verify

_NUM_RUNNING = 64
_TICK_S = 0.01


def resident_mib() -> float:
    """Return the memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def deliver(rate: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Hand over `rate` batches a second for so long; return what became of them."""
    pool = SimpleNamespace(num_gpu_blocks=10_001)
    scheduler = SimpleNamespace(kv_cache_manager=SimpleNamespace(block_pool=pool))
    rotation = Rotation(part_bytes=32 << 20, compress="gzip")
    profiler = BatchProfiler(
        JsonlSink(folder / "log.jsonl", rotation=rotation), contents_of=contents_of(scheduler)
    )
    scheduled = measurement(0, _NUM_RUNNING)[1:]
    memory, handed_over = [], 0
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        for number in range(handed_over, int(elapsed * rate)):
            profiler.writer.put((number, *scheduled))
        handed_over = int(elapsed * rate)
        if len(memory) < elapsed:
            memory.append(resident_mib())
        time.sleep(_TICK_S)
    took = time.monotonic() - began
    profiler.close(timeout=60)
    # Counted in the files.
    (run,) = verify(folder).runs
    half = memory[len(memory) // 2 :]
    return {
        "rate": rate,
        "seconds": round(took, 1),
        "handed_over": handed_over,
        "written": run.num_records,
        "dropped": run.num_dropped,
        "unexplained": run.num_unexplained,
        "written_per_s": round(run.num_records / took),
        "memory_mib_after_a_tenth": round(memory[len(memory) // 10], 1),
        "memory_mib_in_the_second_half": [round(min(half), 1), round(max(half), 1)],
    }


def main() -> None:
    """Measure at several rates and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rates", type=int, nargs="*", default=[10_000, 50_000])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for rate in arguments.rates:
        with tempfile.TemporaryDirectory() as folder:
            row = deliver(rate, arguments.seconds, Path(folder))
        rows.append(row)
        print(
            f"{rate:>6} batches/s for {row['seconds']} s: {row['written']} written"
            f" ({row['written_per_s']}/s) and {row['dropped']} counted as lost of"
            f" {row['handed_over']}; memory {row['memory_mib_after_a_tenth']} MiB after a tenth,"
            f" {row['memory_mib_in_the_second_half']} in the second half"
        )
    (arguments.out / "delivery_rate.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
