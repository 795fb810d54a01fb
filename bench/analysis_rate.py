"""How fast `sched-profiler analyze` is, and how much memory it takes, beside other ways.

`make bench` runs it. Every way is a process of its own, its start and its imports included, and the
best of several rounds counts. The log is one of the seeded stand-in for an engine that the tests
use: 20 to 90 decodes a batch. Longer logs have more runs of the same length.
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

from synthetic import records

from sched_profiler import encode

_RECORDS_OF_A_RUN = 300_000
_ROUNDS = 3

_SNIPPET = """
import json, sys
import pandas as pd
df = pd.DataFrame([json.loads(line) for line in open(sys.argv[1])])
"""
_STATISTICS = """
times = ["schedule_duration_ms", "model_run_duration_ms", "total_step_duration_ms"]
print(df[times].describe(percentiles=[0.5, 0.95, 0.99]))
for phase in ("prefill", "decode"):
    chunks = df[f"{phase}_chunk_sizes"].explode().dropna().astype(int)
    print(chunks.describe(percentiles=[0.5, 0.95, 0.99]))
"""
_COMMAND = "from sched_profiler.cli import main; main(sys.argv[1:])"
_PEAK = """
import pathlib, re, sys
{code}
peak = re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())
print(peak[1], file=sys.stderr)
"""
_WAYS: dict[str, tuple[str, list[str]]] = {
    "json.loads into pandas": (_SNIPPET, []),
    "the same, with statistics": (_SNIPPET + _STATISTICS, []),
    "analyze": (_COMMAND, ["analyze"]),
    "analyze --out": (_COMMAND, ["analyze", "--out", "{folder}/out"]),
    "analyze, of Parquet": (_COMMAND, ["analyze"]),
    "convert": (_COMMAND, ["convert"]),
}


def measure(way: str, log: Path) -> dict[str, float]:
    """Return the time of the clock, the time of all cores, in s, and the most memory, in MB."""
    code, arguments = _WAYS[way]
    target = log.with_suffix(".parquet") if way == "analyze, of Parquet" else log
    words = [word.format(folder=log.parent) for word in arguments] + [str(target)]
    if way == "convert":
        words.append(str(log.with_suffix(".parquet")))
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _PEAK.format(code=code), *words],
        capture_output=True,
        check=True,
        text=True,
    )
    wall, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"wall_s": wall, "cpu_s": cpu, "peak_mb": int(done.stderr.split()[-1]) / 1024}


def write_log(path: Path, num_runs: int) -> None:
    """Write a log of so many runs, one after the other."""
    with path.open("wb") as stream:
        for run in range(num_runs):
            of_run = records(
                _RECORDS_OF_A_RUN, seed=run, run_id=f"run{run}", start=1.79e9 + 4_000.0 * run
            )
            stream.writelines(map(encode, of_run))


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 10])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for num_runs in options.runs:
            log = Path(folder) / f"{num_runs}.jsonl"
            write_log(log, num_runs)
            # All of a long log in pandas would not fit into the memory.
            ways = ["convert", *(way for way in _WAYS if way != "convert")]
            ways = [
                way for way in ways if num_runs == 1 or ("json" not in way and "same" not in way)
            ]
            rounds = [{way: measure(way, log) for way in ways} for _ in range(_ROUNDS)]
            for way in ways:
                best = {key: min(one[way][key] for one in rounds) for key in rounds[0][way]}
                row = {"records": num_runs * _RECORDS_OF_A_RUN, "way": way, **best}
                row["megabytes"] = log.stat().st_size / 1e6
                rows.append(row)
                print(
                    f"{row['records']:>10,} records, {row['megabytes']:>5,.0f} MB: {way:<26}"
                    f"{best['wall_s']:>7.2f} s, {best['cpu_s']:>6.2f} s of cores, "
                    f"{best['peak_mb']:>5.0f} MB"
                )
    (options.out / "analysis_rate.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
