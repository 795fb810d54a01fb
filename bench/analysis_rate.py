"""How fast `sched-profiler analyze` is, and how much memory it takes, beside other ways.

`make bench` runs it. Every way is a process of its own, its start and its imports included. On the
shortest log the ways take turns, and the median of several rounds counts; what is longer is
measured once. The log is one of the seeded stand-in for an engine that the tests use: 20 to 90
decodes a batch. Longer logs have the same run again, later and under other names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
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
_IN_PANDAS = {
    "json.loads into pandas": (_SNIPPET, list[str]()),
    "the same, with statistics": (_SNIPPET + _STATISTICS, list[str]()),
}
_WAYS = _IN_PANDAS | {
    "analyze": (_COMMAND, ["analyze"]),
    "analyze --out": (_COMMAND, ["analyze", "--out", "{folder}/out"]),
    "convert": (_COMMAND, ["convert"]),
    "analyze, of Parquet": (_COMMAND, ["analyze"]),
}
# Whoever installs a package has it compiled at the latest when it is used for the second time.
_ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
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
        env=_ENVIRONMENT,
    )
    wall, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"wall_s": wall, "cpu_s": cpu, "peak_mb": int(done.stderr.split()[-1]) / 1024}


def write_log(path: Path, num_runs: int) -> None:
    """Write a log of so many runs, one after the other."""
    # The last five digits of the seconds are enough for a run.
    start = 17_900
    lines = b"".join(
        map(encode, records(_RECORDS_OF_A_RUN, seed=0, run_id="run", start=start * 1e5))
    )
    with path.open("wb") as stream:
        for run in range(num_runs):
            later = lines.replace(b'"run_id":"run"', b'"run_id":"run%d"' % run)
            stream.write(
                later.replace(b'"timestamp":%d' % start, b'"timestamp":%d' % (start + run))
            )


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 3, 10, 34])
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=list(_WAYS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for num_runs in options.runs:
            log = Path(folder) / f"{num_runs}.jsonl"
            write_log(log, num_runs)
            # All of a long log in pandas would not fit into the memory.
            ways = [way for way in options.ways if num_runs == 1 or way not in _IN_PANDAS]
            rounds = [
                {way: measure(way, log) for way in ways}
                for _ in range(_ROUNDS if num_runs == 1 else 1)
            ]
            for way in ways:
                median = {
                    key: statistics.median(one[way][key] for one in rounds)
                    for key in rounds[0][way]
                }
                row = {"records": num_runs * _RECORDS_OF_A_RUN, "way": way, **median}
                row["megabytes"] = log.stat().st_size / 1e6
                rows.append(row)
                print(
                    f"{row['records']:>10,} records, {row['megabytes']:>5,.0f} MB: {way:<26}"
                    f"{row['wall_s']:>7.2f} s, {row['cpu_s']:>6.2f} s of cores, "
                    f"{row['peak_mb']:>5.0f} MB"
                )
            log.unlink()
    (options.out / "analysis_rate.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
