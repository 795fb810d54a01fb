"""Turns logs into numbers and charts.

    from sched_profiler.analysis import load, plot_overview, summarize

    df = load("scheduler_profiling.jsonl")
    print(summarize(df))
    plot_overview(df).savefig("overview.png")

Needs the extra `analysis`: `pip install "sched-profiler[analysis]"`.
"""

from __future__ import annotations

from sched_profiler.analysis.anomalies import find_anomalies
from sched_profiler.analysis.comparison import Comparison, Difference, Estimate, Side, compare
from sched_profiler.analysis.comparison_plot import plot_comparison
from sched_profiler.analysis.cost_model import (
    CrossValidation,
    StepTimeModel,
    Term,
    fit_step_time,
)
from sched_profiler.analysis.cost_model_plot import plot_residuals
from sched_profiler.analysis.finding import Finding
from sched_profiler.analysis.frame import COLUMNS, load
from sched_profiler.analysis.manifests import load_manifests
from sched_profiler.analysis.plots import (
    plot_model_run_histogram,
    plot_overview,
    plot_requests,
    plot_schedule_against_model_run,
    plot_schedule_histogram,
    plot_step_times,
    plot_tokens,
)
from sched_profiler.analysis.run_settings import common_settings, label_sides
from sched_profiler.analysis.slow import Deviation, SlowBatch, slow_batches
from sched_profiler.analysis.stats import Distribution, Summary, summarize
from sched_profiler.analysis.trace import write_trace

__all__ = [
    "COLUMNS",
    "Comparison",
    "CrossValidation",
    "Deviation",
    "Difference",
    "Distribution",
    "Estimate",
    "Finding",
    "Side",
    "SlowBatch",
    "StepTimeModel",
    "Summary",
    "Term",
    "common_settings",
    "compare",
    "find_anomalies",
    "fit_step_time",
    "label_sides",
    "load",
    "load_manifests",
    "plot_comparison",
    "plot_model_run_histogram",
    "plot_overview",
    "plot_requests",
    "plot_residuals",
    "plot_schedule_against_model_run",
    "plot_schedule_histogram",
    "plot_step_times",
    "plot_tokens",
    "slow_batches",
    "summarize",
    "write_trace",
]
