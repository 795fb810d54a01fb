"""Sums up a log, with the command that users of the original feature know.

    python examples/scheduler_profiling_example.py analyze scheduler_profiling.jsonl

It is `sched-profiler analyze` under another name, and takes the same options. The same from a
program of your own:

    from sched_profiler.analysis import load, plot_overview, summarize

    df = load("scheduler_profiling.jsonl")
    print(summarize(df))
    plot_overview(df).savefig("overview.png")
"""

from __future__ import annotations

from pathlib import Path

from sched_profiler.cli import main

if __name__ == "__main__":
    raise SystemExit(main(prog=Path(__file__).name))
