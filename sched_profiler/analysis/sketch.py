"""Counts of values of which only so many are told apart that memory is bounded.

Where there are too many different ones, neighbours are taken together, more and more of them, until
they are few enough. How many that are depends on nothing but the values: in whatever order they
come, and whatever parts are merged, the result is the same.

A `Sketch` is one quantity: its count, sum, smallest and largest value, and its distribution. Times
in a log are whole microseconds and counts are small, so that most quantities never have that many
different values, and their quantiles are exact. Where they are not, values are cut to fewer binary
digits, which bounds the relative error of a quantile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["MAX_VALUES", "CoarseCounts", "Sketch", "key_of", "middle_of", "value_of"]

MAX_VALUES = 65_536
"""Most different values that a sketch tells apart."""

_MANTISSA_BITS = 52


def key_of(values: Floats) -> Ints:
    """Return whole numbers in the same order as the values; `>>` cuts digits off them."""
    bits: Ints = values.view(np.int64)
    # A negative number has its sign beside its size; -0.0 comes right before 0.0.
    return bits ^ ((bits >> 63) & np.int64(2**63 - 1))


def value_of(keys: Ints) -> Floats:
    """Return the values that have these keys."""
    return (keys ^ ((keys >> 63) & np.int64(2**63 - 1))).view(np.float64)


def middle_of(keys: Ints, dropped_bits: int) -> Floats:
    """Return the middle of the values whose keys are these without their last bits."""
    if not dropped_bits:
        return value_of(keys)
    ends = value_of(keys << dropped_bits), value_of((keys + 1) << dropped_bits)
    return (ends[0] + ends[1]) / 2


def _count_equal(keys: Ints, counts: Ints | None = None) -> tuple[Ints, Ints]:
    """Return the different ones of some keys, in order, and how often each occurs."""
    if counts is None:
        return np.unique(keys, return_counts=True)
    # What is merged is in order already, which this way of sorting makes use of.
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.concatenate((keys[:1] == keys[:1], keys[1:] != keys[:-1])))
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts


class CoarseCounts(ABC):
    """How often keys occur; each level of coarseness takes some of them together."""

    def __init__(self) -> None:
        """Count nothing, as finely as possible."""
        self.level = 0
        self._keys = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)
        self._recent: list[tuple[Ints, Ints]] = []
        """What came since keys and counts were last brought together."""

    @abstractmethod
    def _coarser(self, keys: Ints, levels: int) -> Ints:
        """Return what becomes of keys that many levels on."""

    @abstractmethod
    def _are_few(self, keys: Ints) -> bool:
        """Tell whether different keys, in order, are few enough to be kept."""

    def _count(self, keys: Ints, counts: Ints | None = None, *, level: int = 0) -> None:
        """Add keys of some level, which is not beyond the one that was reached."""
        self._recent.append(_count_equal(self._coarser(keys, self.level - level), counts))
        if sum(len(recent) for recent, _ in self._recent) > max(MAX_VALUES, len(self._keys)):
            self._settle()

    def _merge(self, other: CoarseCounts) -> None:
        other._settle()
        self._coarsen(other.level - self.level)
        self._count(other._keys, other._counts, level=other.level)

    def _settle(self) -> tuple[Ints, Ints]:
        """Bring keys and counts together, make them few enough, and return them."""
        if self._recent:
            parts = [(self._keys, self._counts), *self._recent]
            self._recent = []
            self._keys, self._counts = _count_equal(
                np.concatenate([keys for keys, _ in parts]),
                np.concatenate([counts for _, counts in parts]),
            )
            while not self._are_few(self._keys):
                self._coarsen(1)
        return self._keys, self._counts

    def _coarsen(self, levels: int) -> None:
        if levels <= 0:
            return
        self._keys, self._counts = _count_equal(self._coarser(self._keys, levels), self._counts)
        self._recent = [(self._coarser(keys, levels), counts) for keys, counts in self._recent]
        self.level += levels


class Sketch(CoarseCounts):
    """One quantity: how many values there are, their sum, and how they are distributed."""

    def __init__(self, max_values: int | None = None) -> None:
        """Have no value, and never more different ones than so many, by default `MAX_VALUES`."""
        super().__init__()
        self._max_values = max_values or MAX_VALUES
        self.count = 0
        self.total = 0.0
        self.smallest = np.inf
        self.largest = -np.inf

    def add(self, values: Floats, counts: Ints | None = None) -> None:
        """Add values, none of which is NaN, and how often each occurs; by default once."""
        if not len(values):
            return
        self.count += len(values) if counts is None else int(counts.sum())
        self.total += float(values.sum() if counts is None else values @ counts)
        self.smallest = min(self.smallest, float(values.min()))
        self.largest = max(self.largest, float(values.max()))
        self._count(key_of(values), counts)

    def merge(self, other: Sketch) -> None:
        """Add what another sketch has."""
        self.count += other.count
        self.total += other.total
        self.smallest = min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)
        self._merge(other)

    @property
    def relative_error(self) -> float:
        """How far a quantile may be off, as a share of it; 0 where it is exact."""
        self._settle()
        return 2.0 ** (self.level - _MANTISSA_BITS - 1) if self.level else 0.0

    def values(self) -> tuple[Floats, Ints]:
        """Return the different values, in order, and how often each occurs.

        Where neighbours are taken together, the one in their middle stands for them.
        """
        keys, counts = self._settle()
        return np.clip(middle_of(keys, self.level), self.smallest, self.largest), counts

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Return quantiles, interpolated linearly between neighbours, as NumPy does."""
        values, counts = self.values()
        ends = np.cumsum(counts)
        positions = np.asarray(shares) * (self.count - 1)
        below, above = (
            values[np.searchsorted(ends, rounded(positions), side="right")]
            for rounded in (np.floor, np.ceil)
        )
        return [float(one) for one in below + (above - below) * (positions % 1)]

    def _coarser(self, keys: Ints, levels: int) -> Ints:
        return keys >> levels

    def _are_few(self, keys: Ints) -> bool:
        return len(keys) <= self._max_values
