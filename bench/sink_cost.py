"""What each sink costs the writer's thread for a record, beside the making of the record.

`make bench` runs it. Each sink has a process of its own: the Prometheus client decides when it is
imported whether it shares its metrics with other processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sched_profiler.settings import Settings
from sched_profiler.sinks.base import SinkContext
from sched_profiler.sinks.registry import find_sinks, make_sinks
from sched_profiler.testing import make_record

_RECORDS = 2000
_SHARED = "prometheus, shared"
_SINKS = ("jsonl", "console", "prometheus", _SHARED, "otel")


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Return the cost of a record in µs, by the number of requests that decode."""
    settings = Settings(log=str(folder / "log.jsonl"))
    context = SinkContext(settings=settings, dp_rank=0, print_line=lambda _: None)
    (sink,) = make_sinks(find_sinks([name.partition(",")[0]]), context).values()
    row: dict[str, Any] = {"sink": name}
    for num_decodes in (64, 1024):
        record = make_record(
            prefill=(),
            decode=[1] * num_decodes,
            dp_rank=0,
            token_budget=8192,
            num_inflight_batches=1,
            num_dropped_records=0,
            queue_duration_ms=0.1,
            update_duration_ms=0.2,
            idle_duration_ms=0.3,
        )
        best = float("inf")
        for _ in range(5):
            began = time.thread_time_ns()
            for _ in range(_RECORDS):
                sink.write(record)
            best = min(best, (time.thread_time_ns() - began) / _RECORDS / 1000)
        row[f"{num_decodes}_decodes_us"] = best
    return row


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--sink", choices=_SINKS, help="measure this one, in this process")
    options = parser.parse_args()
    if options.sink is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(options.sink, Path(folder))), flush=True)
        # A collector that is not there is not waited for.
        os._exit(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in _SINKS:
            environ = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
            if name == _SHARED:
                environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            done = subprocess.run(
                [sys.executable, __file__, "--sink", name],
                env=environ,
                stdout=subprocess.PIPE,
                check=True,
            )
            rows.append(json.loads(done.stdout))
    for row in rows:
        print(
            f"{row['sink']:<20} {row['64_decodes_us']:>6.1f} µs with 64 decodes,"
            f" {row['1024_decodes_us']:>6.1f} µs with 1024"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "sink_cost.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
