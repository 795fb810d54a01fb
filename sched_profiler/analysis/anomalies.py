"""Finds what is wrong in a log, in plain language and with the batches that show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sched_profiler.analysis.columns import numbers
from sched_profiler.analysis.detectors import (
    idle,
    kv_cache,
    prefill,
    queueing,
    ranks,
    schedule_time,
)
from sched_profiler.analysis.detectors.evidence import Evidence
from sched_profiler.analysis.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sched_profiler.analysis.finding import Finding
    from sched_profiler.manifest import RunManifest

    _Identity = tuple[str | None, int | None]

__all__ = ["find_anomalies"]

_DETECTORS: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    queueing.queue_blocked,
    kv_cache.saturation,
    kv_cache.preemption_storm,
    idle.critical_path,
    idle.gaps,
    schedule_time.spikes,
    schedule_time.drift,
    prefill.interference,
)


def find_anomalies(
    log: pd.DataFrame | Digest, manifests: Iterable[RunManifest] = ()
) -> list[Finding]:
    """Return what is noteworthy in a log: critical findings first, none in a steady run.

    Each run is looked at by itself, without its first 10 batches; one of fewer than 100 others is
    too short to tell anything. Ranks that ran side by side are compared as well. What needs a
    column that the log lacks is not looked for.

    A digest of a log of more than 131,072 batches has so many of them at most, in stretches of 512
    that are spread evenly over each run: as many of one run as of another, where they are that
    long. `Finding.looked_at` tells what share of the run that is.

    Args:
        log: as `scan` or `load` return it; without a column `run`, all rows of a frame are of one
            run.
        manifests: of its runs, as `load_manifests` returns them; they tell the limits of the
            scheduler.
    """
    known: dict[_Identity, RunManifest] = {
        (manifest.run_id, manifest.dp_rank): manifest for manifest in manifests
    }
    runs = []
    for run, num_batches in _runs_of(log):
        evidence = Evidence.of(run, known.get(_identity(run)), num_batches)
        if evidence is not None:
            runs.append(evidence)
    found = [finding for run in runs for detect in _DETECTORS for finding in detect(run)]
    for group in _side_by_side(runs):
        found += ranks.slow_rank(group)
    return sorted(found, key=lambda finding: finding.severity != "critical")


def _runs_of(log: pd.DataFrame | Digest) -> Iterator[tuple[pd.DataFrame, int]]:
    """Yield the runs of a log, and how many batches each has."""
    if isinstance(log, Digest):
        for columns, num_batches in log.samples():
            yield pd.DataFrame(columns), num_batches
        return
    for _, run in log.groupby(np.asarray(log["run"]) if "run" in log else np.zeros(len(log))):
        yield run, len(run)


def _identity(run: pd.DataFrame) -> _Identity:
    name = run["run_id"].iloc[0] if "run_id" in run else None
    rank = numbers(run, "dp_rank")[0]
    return (name if isinstance(name, str) else None, None if np.isnan(rank) else int(rank))


def _side_by_side(runs: list[Evidence]) -> Iterator[list[Evidence]]:
    """Yield groups of ranks whose times overlap."""
    group: list[Evidence] = []
    end = -np.inf
    ranked = [run for run in runs if run.dp_rank is not None]
    for run in sorted(ranked, key=lambda run: float(run.column("timestamp")[0])):
        if run.column("timestamp")[0] > end:
            yield group
            group = []
        group.append(run)
        end = max(end, float(run.column("timestamp")[-1]))
    yield group
