"""What all detectors look at: one run, as arrays, without its first batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from sched_profiler.analysis.columns import numbers, occupied_ms, prefill_tokens
from sched_profiler.analysis.composition import cells, expected
from sched_profiler.analysis.finding import Finding
from sched_profiler.analysis.robust import chance_of_as_many
from sched_profiler.analysis.sample import FEWEST_BATCHES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sched_profiler.analysis.finding import Kind, Severity
    from sched_profiler.analysis.sample import Excerpt
    from sched_profiler.manifest import RunManifest

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Mask = NDArray[np.bool_]

__all__ = ["Evidence"]

_WARM_UP = 10
"""The first batches of a run load code and fill caches; they say nothing of the rest."""
_SHOWN = 5
_RARE = 1e-4
_ALL_GOES_WELL = 0.1
"""Of batches that hold the same, one in ten goes as well as that, or better."""


@attrs.frozen(eq=False)
class Evidence:
    """One run as a detector sees it; every array has a number a batch, NaN where unknown."""

    excerpt: Excerpt
    """All of it but the first batches of the run."""
    manifest: RunManifest | None
    wall_ms: Floats
    """Wall time of each batch: see `occupied_ms`."""
    cell: Ints
    """Batches with the same number hold about the same tokens."""
    looked_at: float
    """See `Finding`."""

    @classmethod
    def of(cls, excerpt: Excerpt, manifest: RunManifest | None) -> Evidence | None:
        """Return the evidence of a run, or None where it is too short to tell."""
        if len(excerpt.rows) < FEWEST_BATCHES:
            return None
        rows = excerpt.rows[_WARM_UP:]
        looked_at = len(excerpt.rows) / excerpt.num_batches
        excerpt = attrs.evolve(excerpt, rows=rows)
        return cls(excerpt, manifest, occupied_ms(rows), cells(rows), looked_at)

    def column(self, name: str) -> Floats:
        """Return a column of the log."""
        return numbers(self.excerpt.rows, name)

    @property
    def prefill_tokens(self) -> Floats:
        """Tokens of prefill in each batch."""
        return prefill_tokens(self.excerpt.rows)

    @property
    def step_ms(self) -> float:
        """Median wall time of a batch."""
        return float(np.median(self.wall_ms))

    def limit(self, name: str) -> float | None:
        """Return a limit of the scheduler from the manifest, None where unknown."""
        value = getattr(self.manifest, name, None)
        return None if value is None else float(value)

    def share_of_wall(self, chosen: Mask) -> float:
        """Return the share of the wall time that the chosen batches take."""
        return self.share(float(self.wall_ms[chosen].sum()))

    def share(self, milliseconds: float) -> float:
        """Return what share of the wall time so many milliseconds are."""
        total = float(self.wall_ms.sum())
        return milliseconds / total if total else 0.0

    def is_bad_luck(self, excess: Floats, of_ms: float) -> bool:
        """Tell whether the machine, and not the engine, may have made times longer so often.

        A machine that does something else for a while does so whatever runs on it. So what it does
        to the model's time, beside batches that hold the same when all goes well, is what it does
        to any other. The median would not do: on a busy machine hold-ups are usual.

        Args:
            excess: by how many ms each time was longer than is usual, of those that stand out.
            of_ms: the sum of all those times, as they usually are.
        """
        model = self.column("model_run_duration_ms")
        known = ~np.isnan(model)
        if not known.any():
            return False
        longer = np.maximum(0.0, model - expected(model, self.cell, _ALL_GOES_WELL))[known]
        share = of_ms / float(model[known].sum())

        def chance(over: float) -> float:
            num_longer = float((longer // max(over, 1e-3)).sum())
            return chance_of_as_many(int((excess >= over).sum()), (num_longer + 1) * share)

        # Many small ones may be beyond chance, or few large ones among them.
        return min(chance(float(over)) for over in np.quantile(excess, (0.0, 0.5, 0.75))) > _RARE

    def finding(
        self,
        kind: Kind,
        severity: Severity,
        title: str,
        *,
        numbers: dict[str, float],
        shown_by: Floats,
        remedy: str,
    ) -> Finding:
        """Return a finding of this run.

        Args:
            kind: see `Finding`.
            severity: see `Finding`.
            title: see `Finding`.
            numbers: see `Finding`; what is NaN is left out.
            shown_by: how clearly each batch shows it; not above 0 where it does not.
            remedy: see `Finding`.
        """
        strength = np.nan_to_num(shown_by)
        clearest = np.argsort(-strength, kind="stable")[:_SHOWN]
        rows = np.sort(clearest[strength[clearest] > 0])
        return Finding(
            kind=kind,
            severity=severity,
            title=title,
            numbers={
                name: _rounded(value) for name, value in numbers.items() if not np.isnan(value)
            },
            run=self.excerpt.run,
            dp_rank=self.dp_rank,
            batch_ids=tuple(map(int, self.column("batch_id")[rows])),
            remedy=remedy,
            looked_at=self.looked_at,
        )

    @property
    def dp_rank(self) -> int | None:
        """Data-parallel rank of the engine, if it has one."""
        return self.excerpt.dp_rank


def _rounded(value: Any) -> float:
    number = float(value)
    return int(number) if number.is_integer() else float(f"{number:.4g}")
