"""Is one rank of many slower than the others?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sched_profiler.analysis.composition import usual
from sched_profiler.analysis.robust import spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from sched_profiler.analysis.detectors.evidence import Evidence
    from sched_profiler.analysis.finding import Finding

    Floats = NDArray[np.float64]

__all__ = ["slow_rank"]

_TIMES = 1.10
_CRITICAL = 1.30
_FEWEST = 100
_FEWEST_ALIKE = 10
_BLOCKS = 10
_SPREADS = 4.0


def slow_rank(runs: Sequence[Evidence]) -> Iterator[Finding]:
    """Look for ranks whose model takes longer than that of the others for the same batch.

    Args:
        runs: ranks that ran side by side.
    """
    if len({run.dp_rank for run in runs}) < 2:  # noqa: PLR2004 - one has nobody beside it
        return
    for run in runs:
        others = [other for other in runs if other is not run]
        relative = _relative(run, others)
        known = relative[~np.isnan(relative)]
        if len(known) < _FEWEST:
            continue
        blocks = [np.median(block) for block in np.array_split(known, _BLOCKS)]
        times = float(np.median(blocks))
        # How far the other ranks are from each other.
        if times < _TIMES or times - 1 < _SPREADS * spread(np.array(blocks)):
            continue
        if len(others) > 1 and times - 1 < 2 * _apart(others):
            continue
        model = run.column("model_run_duration_ms")
        yield run.finding(
            "slow_rank",
            "critical" if times >= _CRITICAL else "warning",
            f"Rank {run.dp_rank} takes {times:.3g} times as long as the other "
            f"{len(others)} for the same batch",
            numbers={
                "times_as_long": times,
                "model_run_ms_p50": float(np.nanmedian(model)),
                "num_other_ranks": len(others),
                "others_apart": _apart(others) if len(others) > 1 else 0.0,
            },
            shown_by=np.nan_to_num(relative),
            remedy="Look at this rank's device: clock and temperature, power limit, another "
            "process on it, its link, and the processor cores its worker is bound to.",
        )


def _relative(run: Evidence, others: Sequence[Evidence]) -> Floats:
    """Return how many times as long each batch took as batches of others that hold the same.

    Each of the others counts the same, and the median of them is what is usual.
    """
    model = run.column("model_run_duration_ms")
    table = np.vstack(
        [
            usual(other.column("model_run_duration_ms"), other.cell, run.cell, _FEWEST_ALIKE)
            for other in others
        ]
    )
    known = ~np.isnan(table).all(axis=0)
    beside = np.full(len(model), np.nan)
    beside[known] = np.nanmedian(table[:, known], axis=0)
    return np.asarray(model / np.maximum(beside, 1e-3))


def _apart(runs: Sequence[Evidence]) -> float:
    """Return how far the slowest of these ranks is from the rest of them, as a ratio less 1."""
    distances = [
        np.nanmedian(_relative(run, [other for other in runs if other is not run])) - 1
        for run in runs
    ]
    return max(0.0, float(np.nanmax(distances)))
