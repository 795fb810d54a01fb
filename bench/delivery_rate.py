"""How many records a second the file sink takes, and whether its memory stays flat meanwhile.

Records are paced; one process writes through the whole profiler, rotates, compresses and keeps a
limit. `python bench/delivery_rate.py --rate 50000 --seconds 30 --compress zstd`
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from sched_profiler import BatchRecord, JsonlSink, Rotation, chunk_statistics


def record(number: int) -> BatchRecord:
    """Return a batch of 20 decodes and a prefill chunk."""
    prefill, decode = [64], [1] * 20
    average, largest, smallest = chunk_statistics(prefill)
    return BatchRecord(
        batch_id=number,
        timestamp=1_700_000_000.25 + number * 2e-5,
        schedule_duration_ms=0.5,
        model_run_duration_ms=10.0,
        total_step_duration_ms=10.5,
        num_prefill_reqs=1,
        num_decode_reqs=20,
        total_scheduled_tokens=84,
        prefill_chunk_sizes=prefill,
        decode_chunk_sizes=decode,
        avg_prefill_chunk_size=average,
        max_prefill_chunk_size=largest,
        min_prefill_chunk_size=smallest,
        avg_decode_chunk_size=1.0,
        num_waiting_reqs=4,
        num_running_reqs=21,
        kv_cache_usage=0.25,
        schema_version=1,
        run_id="0123456789ab",
        dp_rank=0,
    )


def resident_mib() -> float:
    """Return the memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def main() -> None:
    """Write at the rate asked for, and print what was reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=50_000, help="records a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--compress", choices=["none", "gzip", "zstd"], default="gzip")
    options = parser.parse_args()
    rotation = Rotation(
        part_bytes=32 << 20,
        keep_bytes=256 << 20,
        compress=None if options.compress == "none" else options.compress,
    )
    with tempfile.TemporaryDirectory() as folder:
        sink = JsonlSink(Path(folder) / "log.jsonl", rotation=rotation)
        began, written, memory = time.monotonic(), 0, []
        while (elapsed := time.monotonic() - began) < options.seconds:
            due = int(elapsed * options.rate)
            for number in range(written, due):
                sink.write(record(number))
            sink.flush()
            written = due
            if len(memory) < elapsed:
                memory.append(round(resident_mib(), 1))
            time.sleep(0.01)  # as the writer polls
        took = time.monotonic() - began
        cpu = time.process_time()
        sink.close()
        disk = sum(path.stat().st_size for path in Path(folder).iterdir()) >> 20
    half = memory[len(memory) // 2 :]
    print(
        json.dumps(
            {
                "rate_asked": options.rate,
                "rate_reached": round(written / took),
                "compress": options.compress,
                "memory_mib_after_1_s": memory[1],
                "memory_mib_second_half_min_max": [min(half), max(half)],
                "cpu_share": round(cpu / took, 2),
                "disk_mib_at_end": disk,
            }
        )
    )


if __name__ == "__main__":
    main()
