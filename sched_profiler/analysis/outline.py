"""What charts show of a log: every batch of a short one, counts of a long one.

Of a log of up to `MAX_ROWS` batches the rows are kept. Of a longer one there is how often each
quantity had which value in which interval of time, and how often which schedule time met which
model-run time: values are cut to a relative precision of 0.4 %, and intervals are short enough that
a chart of a few hundred of them is none the worse. All of it can be merged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from sched_profiler.analysis.sketch import MAX_VALUES, CoarseCounts, key_of, middle_of, value_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["COLUMNS", "MAX_ROWS", "SERIES", "Density", "Outline", "Trend"]

MAX_ROWS = 5_000
"""Most batches that are kept one by one."""
MAX_INTERVALS = 1_024
"""Most intervals of time with a batch in them."""

SERIES = (
    "schedule_duration_ms",
    "model_run_duration_ms",
    "num_prefill_reqs",
    "num_decode_reqs",
    "total_scheduled_tokens",
    "num_waiting_reqs",
    "kv_cache_usage",
    "idle_duration_ms",
)
"""Quantities that are drawn over time; there is room for no more."""
COLUMNS = ("batch_id", "timestamp", *SERIES)
"""What is kept of a batch."""

_VALUE_BITS = 19  # 11 of the exponent, 8 of the mantissa; there is no sign
_DROPPED_BITS = 63 - _VALUE_BITS
_SERIES_BITS = 3
_LOW_BITS = _VALUE_BITS + _SERIES_BITS
_INTERVALS_PER_S = 512
_LATEST = (1 << (63 - _LOW_BITS)) - 1


def _cut(values: Floats) -> Ints:
    # Neither a time nor a number of requests is negative.
    return key_of(np.maximum(values, 0.0)) >> _DROPPED_BITS


class Trend(CoarseCounts):
    """How often each quantity had which value in which interval of time."""

    def add(self, columns: Mapping[str, Floats]) -> None:
        """Add rows."""
        timestamp = columns["timestamp"]
        keys = []
        for number, name in enumerate(SERIES):
            known = ~np.isnan(columns[name]) & ~np.isnan(timestamp)
            time = np.clip(timestamp[known] * _INTERVALS_PER_S, 0, _LATEST).astype(np.int64)
            key = (time << _SERIES_BITS) | number
            keys.append((key << _VALUE_BITS) | _cut(columns[name][known]))
        self._count(np.concatenate(keys))

    def merge(self, other: Trend) -> None:
        """Add the counts of other rows."""
        self._merge(other)

    def counts(self, series: str) -> tuple[Floats, Floats, Ints]:
        """Return when a quantity had which value, as Unix time in s, and how often."""
        keys, counts = self._settle()
        chosen = (keys >> _VALUE_BITS) & ((1 << _SERIES_BITS) - 1) == SERIES.index(series)
        keys, counts = keys[chosen], counts[chosen]
        width = (1 << self.level) / _INTERVALS_PER_S
        # The lowest of the values that are taken together: small whole numbers stay what they are.
        values = value_of((keys & ((1 << _VALUE_BITS) - 1)) << _DROPPED_BITS)
        return ((keys >> _LOW_BITS) + 0.5) * width, values, counts

    def _coarser(self, keys: Ints, levels: int) -> Ints:
        low = (1 << _LOW_BITS) - 1
        return ((keys >> (_LOW_BITS + levels)) << _LOW_BITS) | (keys & low)

    def _are_few(self, keys: Ints) -> bool:
        intervals = keys >> _LOW_BITS
        return bool(np.count_nonzero(np.diff(intervals)) < MAX_INTERVALS)


class Density(CoarseCounts):
    """How often which pairs of values occur."""

    def add(self, x: Floats, y: Floats) -> None:
        """Add pairs, of which either may be NaN."""
        known = ~np.isnan(x) & ~np.isnan(y)
        self._count((_cut(x[known]) << _VALUE_BITS) | _cut(y[known]))

    def merge(self, other: Density) -> None:
        """Add the counts of other pairs."""
        self._merge(other)

    def counts(self) -> tuple[Floats, Floats, Ints]:
        """Return the pairs, and how often each occurs."""
        keys, counts = self._settle()
        x, y = keys >> _VALUE_BITS, keys & ((1 << _VALUE_BITS) - 1)
        dropped = _DROPPED_BITS + self.level
        return _value(x, dropped), _value(y, dropped), counts

    def _coarser(self, keys: Ints, levels: int) -> Ints:
        x, y = keys >> _VALUE_BITS, keys & ((1 << _VALUE_BITS) - 1)
        return ((x >> levels) << _VALUE_BITS) | (y >> levels)

    def _are_few(self, keys: Ints) -> bool:
        return len(keys) <= MAX_VALUES


def _value(keys: Ints, dropped_bits: int) -> Floats:
    # A time of 0 is common, and is no small number.
    return np.where(keys == 0, 0.0, middle_of(keys, dropped_bits))


def _no_rows() -> dict[str, Floats]:
    return {name: np.empty(0) for name in COLUMNS}


@attrs.define(eq=False)
class Outline:
    """What charts show of some rows."""

    num_rows: int = 0
    rows: dict[str, Floats] | None = attrs.field(factory=_no_rows)
    """The rows by their columns, None of a long log."""
    trend: Trend = attrs.field(factory=Trend)
    density: Density = attrs.field(factory=Density)
    """Model-run times with the schedule times of the same batches."""

    def add(self, columns: Mapping[str, Floats]) -> None:
        """Add rows."""
        self._keep(columns)
        self.trend.add(columns)
        self.density.add(columns["model_run_duration_ms"], columns["schedule_duration_ms"])

    def merge(self, other: Outline) -> None:
        """Add the rows of another outline."""
        self._keep(other.rows, other.num_rows)
        self.trend.merge(other.trend)
        self.density.merge(other.density)

    def over_time(self, series: str) -> tuple[Floats, Floats, Ints]:
        """Return when a quantity had which value, as Unix time in s, and how often.

        Of a short log these are its rows, and an unknown value is NaN.
        """
        if self.rows is None:
            return self.trend.counts(series)
        values = self.rows[series]
        return self.rows["timestamp"], values, np.ones(len(values), dtype=np.int64)

    def pairs(self) -> tuple[Floats, Floats, Ints]:
        """Return model-run times with the schedule times of the same batches, and how often.

        Of a short log these are its rows, and one in which either is unknown counts 0 times.
        """
        if self.rows is None:
            return self.density.counts()
        x, y = self.rows["model_run_duration_ms"], self.rows["schedule_duration_ms"]
        return x, y, (~np.isnan(x) & ~np.isnan(y)).astype(np.int64)

    def _keep(self, columns: Mapping[str, Floats] | None, num_rows: int | None = None) -> None:
        self.num_rows += len(columns["timestamp"]) if columns is not None else num_rows or 0
        if self.rows is None or columns is None or self.num_rows > MAX_ROWS:
            self.rows = None
            return
        self.rows = {
            name: np.concatenate((values, columns[name])) for name, values in self.rows.items()
        }
