"""The time axis of a chart: when the engines ran, without the time between runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sched_profiler.analysis.digest import Digest

    Floats = NDArray[np.float64]

__all__ = ["TimeAxis"]

_ENOUGH_OF_A_UNIT = 5
_MAX_RUN_STARTS = 20
"""With more lines than this, a chart shows nothing else."""


class TimeAxis:
    """Places Unix times on an axis that begins with the first batch of a log.

    Attributes:
        num_batches: of the log.
        unit: `s`, `min` or `h`.
        without: what to add where pauses are left out, else empty.
        label: what to write at the axis.
        run_starts: where the runs start that begin after the first one; empty if they are too many
            to show.
    """

    def __init__(self, digest: Digest) -> None:
        """Make the axis of a log."""
        spans = sorted((run.start, run.last) for run in digest.runs if run.start <= run.last)
        starts, lasts = (
            (np.array(ends, dtype=np.float64) for ends in zip(*spans, strict=True))
            if (spans)
            else (np.zeros(1), np.zeros(1))
        )
        covered_until = np.concatenate((starts[:1], np.maximum.accumulate(lasts)[:-1]))
        # Each pause begins where all runs before have ended, and lasts until the next one starts.
        self._begins = covered_until
        self._lengths = np.maximum(0.0, starts - covered_until)
        self._start = starts[0]
        self.unit, self._length = "s", 1.0
        for longer, its_length in (("min", 60.0), ("h", 3600.0)):
            if lasts.max() - starts[0] - self._lengths.sum() > _ENOUGH_OF_A_UNIT * its_length:
                self.unit, self._length = longer, its_length
        self.num_batches = digest.num_batches
        self.without = ", without the time between runs" if self._lengths.any() else ""
        self.label = f"time since the first batch ({self.unit}{self.without})"
        run_starts = self.of(starts)[1:]
        self.run_starts = run_starts if len(run_starts) <= _MAX_RUN_STARTS else run_starts[:0]

    def of(self, timestamp: Floats) -> Floats:
        """Return where on the axis Unix times are."""
        pauses = np.flatnonzero(self._lengths)
        ends = (self._begins + self._lengths)[pauses]
        passed = np.concatenate(([0.0], np.cumsum(self._lengths[pauses])))
        index = np.searchsorted(ends, timestamp, side="right")
        # An interval of time may reach into a pause.
        begins = np.append(self._begins[pauses], np.inf)[index]
        on_axis: Floats = np.minimum(timestamp, begins) - self._start - passed[index]
        return on_axis / self._length
