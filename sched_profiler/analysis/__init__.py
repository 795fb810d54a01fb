"""Turns logs into numbers and charts.

    from sched_profiler.analysis import load, plot_overview, summarize

    df = load("scheduler_profiling.jsonl")
    print(summarize(df))
    plot_overview(df).savefig("overview.png")

`scan` takes the place of `load` for logs that are too long for the memory.

Needs the extra `analysis`: `pip install ".[analysis]"` in a checkout.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sched_profiler.analysis.anomalies import find_anomalies
    from sched_profiler.analysis.arrivals import (
        Arrival,
        arrivals_of,
        load_arrivals,
        load_requests,
    )
    from sched_profiler.analysis.capacity import (
        Capacity,
        CapacityEstimate,
        estimate_capacity,
        find_capacity,
    )
    from sched_profiler.analysis.comparison import Comparison, Difference, Estimate, Side, compare
    from sched_profiler.analysis.comparison_plot import plot_comparison
    from sched_profiler.analysis.conversion import convert
    from sched_profiler.analysis.cost_model import (
        CrossValidation,
        StepTimeModel,
        Term,
        fit_step_time,
    )
    from sched_profiler.analysis.cost_model_plot import plot_residuals
    from sched_profiler.analysis.digest import Digest
    from sched_profiler.analysis.engine_time import EngineTime, fit_engine_time
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
    from sched_profiler.analysis.recorded_run import RecordedRun, find_run
    from sched_profiler.analysis.report.page import write_report
    from sched_profiler.analysis.run_settings import common_settings, label_sides
    from sched_profiler.analysis.slow import Deviation, SlowBatch, slow_batches
    from sched_profiler.analysis.stats import Distribution, Summary, summarize
    from sched_profiler.analysis.stream import scan
    from sched_profiler.analysis.trace import write_trace
    from sched_profiler.analysis.tuning import Tuning, tune

__all__ = [
    "COLUMNS",
    "Arrival",
    "Capacity",
    "CapacityEstimate",
    "Comparison",
    "CrossValidation",
    "Deviation",
    "Difference",
    "Digest",
    "Distribution",
    "EngineTime",
    "Estimate",
    "Finding",
    "RecordedRun",
    "Side",
    "SlowBatch",
    "StepTimeModel",
    "Summary",
    "Term",
    "Tuning",
    "arrivals_of",
    "common_settings",
    "compare",
    "convert",
    "estimate_capacity",
    "find_anomalies",
    "find_capacity",
    "find_run",
    "fit_engine_time",
    "fit_step_time",
    "label_sides",
    "load",
    "load_arrivals",
    "load_manifests",
    "load_requests",
    "plot_comparison",
    "plot_model_run_histogram",
    "plot_overview",
    "plot_requests",
    "plot_residuals",
    "plot_schedule_against_model_run",
    "plot_schedule_histogram",
    "plot_step_times",
    "plot_tokens",
    "scan",
    "slow_batches",
    "summarize",
    "tune",
    "write_report",
    "write_trace",
]

_HOMES = {
    "anomalies": ("find_anomalies",),
    "arrivals": ("Arrival", "arrivals_of", "load_arrivals", "load_requests"),
    "capacity": ("Capacity", "CapacityEstimate", "estimate_capacity", "find_capacity"),
    "comparison": ("Comparison", "Difference", "Estimate", "Side", "compare"),
    "comparison_plot": ("plot_comparison",),
    "conversion": ("convert",),
    "cost_model": ("CrossValidation", "StepTimeModel", "Term", "fit_step_time"),
    "cost_model_plot": ("plot_residuals",),
    "digest": ("Digest",),
    "engine_time": ("EngineTime", "fit_engine_time"),
    "finding": ("Finding",),
    "frame": ("COLUMNS", "load"),
    "manifests": ("load_manifests",),
    "plots": (
        "plot_model_run_histogram",
        "plot_overview",
        "plot_requests",
        "plot_schedule_against_model_run",
        "plot_schedule_histogram",
        "plot_step_times",
        "plot_tokens",
    ),
    "recorded_run": ("RecordedRun", "find_run"),
    "report.page": ("write_report",),
    "run_settings": ("common_settings", "label_sides"),
    "slow": ("Deviation", "SlowBatch", "slow_batches"),
    "stats": ("Distribution", "Summary", "summarize"),
    "stream": ("scan",),
    "trace": ("write_trace",),
    "tuning": ("Tuning", "tune"),
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: a summary needs no matplotlib."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
