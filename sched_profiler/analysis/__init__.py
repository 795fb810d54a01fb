"""Turns logs into numbers and charts.

    from sched_profiler.analysis import load, plot_overview, summarize

    df = load("scheduler_profiling.jsonl")
    print(summarize(df))
    plot_overview(df).savefig("overview.png")

Needs the extra `analysis`: `pip install "sched-profiler[analysis]"`.
"""

from __future__ import annotations

from sched_profiler.analysis.frame import COLUMNS, load
from sched_profiler.analysis.plots import (
    plot_model_run_histogram,
    plot_overview,
    plot_requests,
    plot_schedule_against_model_run,
    plot_schedule_histogram,
    plot_step_times,
    plot_tokens,
)
from sched_profiler.analysis.stats import Distribution, Summary, summarize

__all__ = [
    "COLUMNS",
    "Distribution",
    "Summary",
    "load",
    "plot_model_run_histogram",
    "plot_overview",
    "plot_requests",
    "plot_schedule_against_model_run",
    "plot_schedule_histogram",
    "plot_step_times",
    "plot_tokens",
    "summarize",
]
