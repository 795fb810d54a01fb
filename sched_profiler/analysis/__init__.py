"""Turns logs into numbers and charts.

    from sched_profiler.analysis import load, plot_overview, summarize

    df = load("scheduler_profiling.jsonl")
    print(summarize(df))
    plot_overview(df).savefig("overview.png")

`scan` takes the place of `load` for logs that are too long for the memory.

Needs the extra `analysis`: `pip install "sched-profiler[analysis]"`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sched_profiler.analysis.conversion import convert
    from sched_profiler.analysis.digest import Digest
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
    from sched_profiler.analysis.stream import scan

__all__ = [
    "COLUMNS",
    "Digest",
    "Distribution",
    "Summary",
    "convert",
    "load",
    "plot_model_run_histogram",
    "plot_overview",
    "plot_requests",
    "plot_schedule_against_model_run",
    "plot_schedule_histogram",
    "plot_step_times",
    "plot_tokens",
    "scan",
    "summarize",
]

_HOMES = {
    "conversion": ("convert",),
    "digest": ("Digest",),
    "frame": ("COLUMNS", "load"),
    "plots": tuple(name for name in __all__ if name.startswith("plot_")),
    "stats": ("Distribution", "Summary", "summarize"),
    "stream": ("scan",),
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: a summary needs no matplotlib."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
