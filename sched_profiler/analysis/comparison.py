"""Compares runs: what differs by more than chance, and by more than a run differs from itself."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np

from sched_profiler.analysis.bootstrap import block_length, blocks, draw, interval, quantiles
from sched_profiler.analysis.markup import preformatted
from sched_profiler.analysis.plain_data import plain
from sched_profiler.analysis.run_metrics import METRICS, QUANTILES, RATIOS, Series
from sched_profiler.errors import LogError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from sched_profiler.analysis.run_metrics import Metric

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["Comparison", "Difference", "Estimate", "Side", "compare"]

Verdict = Literal["better", "worse", "higher", "lower", "within noise", "too short", "unknown"]

_NUM_BINS = 1_024
_FEWEST_BATCHES = 100
"""Fewer do not show for how long a side remembers, and have no P99: intervals mean nothing."""
_FEWEST_BLOCKS = 30
_SHARE_APART = 0.10
_TIMES_APART = 2.0
_SAME_TOKENS = 1.1
"""Sides of about the same tokens have done the same work, in however many batches."""


@attrs.frozen(kw_only=True)
class Estimate:
    """A value and the interval in which the truth is, at the confidence asked for."""

    value: float
    low: float
    high: float


@attrs.frozen(kw_only=True)
class Side:
    """One of the things compared: the runs of one frame."""

    label: str
    num_batches: int
    num_runs: int
    batches_per_block: int
    """Batches that are drawn together because they depend on each other."""
    num_blocks: int
    estimates: dict[str, Estimate]
    """By the name of the metric; without those that the log does not have."""


@attrs.frozen(kw_only=True)
class Difference:
    """One metric of one side against the first side."""

    metric: str
    side: str
    change: Estimate
    """See `Metric.kind`."""
    noise_floor: float
    """How much the halves of a side differ from each other, in the mean of both sides. In the same
    measure and direction as the change: a factor of 2 is 1.0 beside a change above 0, and 0.5
    beside one below."""
    verdict: Verdict
    """`within noise` if the interval holds 0 or the change is not above the noise floor; `higher`
    and `lower` where neither is better; `too short` instead of one of these four where a side has
    fewer than 100 batches; `unknown` where a ratio is to 0. With the sides exchanged it is the
    opposite."""


@attrs.frozen(kw_only=True)
class Comparison:
    """Some sides, the first of which is what the others are compared with."""

    confidence: float
    sides: list[Side]
    differences: list[Difference]
    warnings: list[str]
    """Why not to believe it: sides that are short, loads that differ. A sentence each."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data; what is not finite is None."""
        return plain(self)

    def to_json(self) -> str:
        """Return all fields as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        """Return a table for each side that is compared with the first."""
        first, *others = self.sides
        parts = [_heading(self)]
        if self.warnings:
            parts.append("\n".join(f"warning: {warning}" for warning in self.warnings))
        for side in others:
            rows = [
                _row(metric, first, side, difference)
                for metric in METRICS
                for difference in self.differences
                if difference.side == side.label and difference.metric == metric.name
            ]
            header = (
                "",
                first.label,
                side.label,
                "change",
                f"{self.confidence:.0%} interval",
                "noise",
                "verdict",
            )
            parts.append(_table([header, *rows]))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        return preformatted(str(self))


def compare(sides: Mapping[str, pd.DataFrame], *, confidence: float = 0.95) -> Comparison:
    """Compare loaded logs with the first of them.

    Args:
        sides: frames as `load` returns them, by labels such as those of `label_sides`; two or more.
        confidence: of the intervals.

    Raises:
        ValueError: if there are fewer than two sides.
        LogError: if a side has a single batch.
    """
    if len(sides) < 2:  # noqa: PLR2004 - one has nothing beside it
        raise ValueError("there is nothing to compare with; expected two sides or more")
    for label, df in sides.items():
        if len(df) < 2:  # noqa: PLR2004 - one has no spread
            raise LogError(
                f"{label} has a single batch, and nothing tells how far others would be from it; "
                "compare logs of some hundred batches"
            )
    series = {label: Series.of(df) for label, df in sides.items()}
    edges = _bin_edges(list(series.values()))
    # What is drawn of a side must not depend on its place among the sides.
    ordered = sorted(series, key=lambda label: series[label].fingerprint())
    samples = {label: _Sample.of(one, edges, ordered.index(label)) for label, one in series.items()}
    described = [
        _side(label, sides[label], sample, confidence) for label, sample in samples.items()
    ]
    (_, first), *others = samples.items()
    differences = [
        _difference(metric, label, (first, other), confidence)
        for label, other in others
        for metric in METRICS
        if np.isfinite(first.metrics[metric.name]) and np.isfinite(other.metrics[metric.name])
    ]
    return Comparison(
        confidence=confidence,
        sides=described,
        differences=differences,
        warnings=[*_short_sides(described), *_other_loads(series)],
    )


def _short_sides(sides: list[Side]) -> Iterator[str]:
    for side in sides:
        if side.num_batches < _FEWEST_BATCHES:
            yield (
                f"{side.label} is too short: {side.num_batches:,} batches of at least "
                f"{_FEWEST_BATCHES}; let the engine run for longer"
            )
        elif side.num_blocks < _FEWEST_BLOCKS:
            yield (
                f"{side.label} is short: {side.num_blocks:,} blocks, and with fewer than "
                f"{_FEWEST_BLOCKS} intervals may be too narrow; let the engine run for longer"
            )


def _other_loads(sides: dict[str, Series]) -> Iterator[str]:
    """Say which sides have other work than the first."""
    (first_label, first), *others = sides.items()
    for label, other in others:
        if _is_other_work(first, other):
            yield (
                f"{first_label} and {label} have different loads: {first.tokens_per_batch:.4g} and "
                f"{other.tokens_per_batch:.4g} tokens a batch, {first.prefill_share:.0%} and "
                f"{other.prefill_share:.0%} of them prefill; what differs may be the work"
            )


def _is_other_work(one: Series, other: Series) -> bool:
    """Tell whether two sides had other work to do; not by what is unknown."""
    if abs(one.prefill_share - other.prefill_share) > _SHARE_APART:
        return True
    return (
        _times(one.tokens_per_batch, other.tokens_per_batch) > _TIMES_APART
        and _times(one.tokens, other.tokens) > _SAME_TOKENS
    )


def _times(one: float, other: float) -> float:
    return max(one / other, other / one) if one and other else math.nan


@attrs.frozen(eq=False)
class _Sample:
    """The metrics of one side, of each draw of its blocks, and how far it is from itself."""

    num_batches: int
    batches_per_block: int
    num_blocks: int
    metrics: dict[str, float]
    drawn: dict[str, Floats]
    noise: dict[str, float]
    """See `_noise_of`."""

    @classmethod
    def of(cls, series: Series, edges: dict[str, Floats], seed: int) -> _Sample:
        each = _length(series)
        block = _number_blocks(series.run, each)
        num_blocks = int(block[-1]) + 1
        counts = draw(num_blocks, seed)
        metrics, drawn = series.metrics(), {}
        sums = {
            name: counts @ np.bincount(block, np.nan_to_num(summands))
            for name, summands in series.sums.items()
        }
        for name, (part, whole) in RATIOS.items():
            with np.errstate(divide="ignore", invalid="ignore"):
                drawn[name] = sums[part] / sums[whole]
        for name, bins in edges.items():
            times, weights = series.times[name]
            histogram = _histogram(block, num_blocks, times, weights, bins)
            totals = counts @ histogram
            for metric, (of, share) in QUANTILES.items():
                if of == name:
                    # A bin is a little coarse: only how far draws are from the whole is used.
                    whole_run = quantiles(histogram.sum(axis=0, keepdims=True), bins, share)[0]
                    with np.errstate(divide="ignore", invalid="ignore"):
                        drawn[metric] = metrics[metric] * quantiles(totals, bins, share) / whole_run
        return cls(len(block), each, num_blocks, metrics, drawn, _noise_of(series))


def _length(series: Series) -> int:
    """Return how many batches depend on each other, in the run with the longest memory."""
    lengths = []
    for number in np.unique(series.run):
        rows = series.run == number
        kept = [np.nan_to_num(series.sums[name][rows]) for name in ("tokens", "wall_s", "decodes")]
        # A wild value hides how the others depend on each other.
        kept[1] = np.minimum(kept[1], np.quantile(kept[1], 0.99))
        lengths.append(block_length(kept))
    return max(lengths)


def _number_blocks(run: Ints, each: int) -> Ints:
    """Return the block of each batch; no block has batches of two runs."""
    number = np.zeros(len(run), dtype=np.int64)
    start = 0
    for one in np.unique(run):
        rows = np.flatnonzero(run == one)
        number[rows] = start + blocks(len(rows), each)
        start = int(number[rows[-1]]) + 1
    return number


def _bin_edges(sides: list[Series]) -> dict[str, Floats]:
    """Return bins of equal ratio for each kind of time, the same for all sides."""
    edges = {}
    for name in ("decode", "total_step", "model_run", "schedule"):
        known = [
            times[(times > 0) & (weights > 0)]
            for times, weights in (side.times[name] for side in sides)
        ]
        together = np.concatenate(known)
        low, high = (together.min(), together.max()) if len(together) else (1.0, 2.0)
        edges[name] = np.geomspace(low * 0.999, high * 1.001, _NUM_BINS + 1)
    return edges


def _histogram(
    block: Ints, num_blocks: int, times: Floats, weights: Floats, edges: Floats
) -> Floats:
    """Return a histogram of the times of each block, a row each."""
    known = ~np.isnan(times) & (weights > 0)
    bins = np.clip(np.searchsorted(edges, times[known], side="right") - 1, 0, _NUM_BINS - 1)
    flat = block[known] * _NUM_BINS + bins
    counts = np.bincount(flat, weights[known], minlength=num_blocks * _NUM_BINS)
    return np.asarray(counts.reshape(num_blocks, _NUM_BINS))


def _noise_of(side: Series) -> dict[str, float]:
    """Return how far the first and the second half of a side are apart, in each metric."""
    rows = [np.flatnonzero(side.run == number) for number in np.unique(side.run)]
    halves = [
        side.part(np.concatenate([part[: len(part) // 2] for part in rows])),
        side.part(np.concatenate([part[len(part) // 2 :] for part in rows])),
    ]
    one, two = (half.metrics() for half in halves)
    return {
        metric.name: abs(float(_distance(metric, two[metric.name], one[metric.name])))
        for metric in METRICS
    }


def _distance(metric: Metric, value: Any, base: Any) -> Any:
    """Return how far a value is from another: the same the other way round but for the sign."""
    if metric.kind != "ratio":
        return np.subtract(value, base)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(value) - np.log(base)


def _change(metric: Metric, distance: float) -> float:
    """Return a distance as it is told: see `Metric.kind`."""
    if metric.kind != "ratio":
        return distance
    with np.errstate(over="ignore"):
        return float(np.expm1(distance))


def _side(label: str, df: pd.DataFrame, sample: _Sample, confidence: float) -> Side:
    estimates = {}
    for metric in METRICS:
        value = sample.metrics[metric.name]
        if np.isfinite(value):
            low, high = interval(sample.drawn[metric.name], value, sample.num_blocks, confidence)
            estimates[metric.name] = Estimate(value=value, low=low, high=high)
    return Side(
        label=label,
        num_batches=len(df),
        num_runs=df["run"].nunique() if "run" in df else 1,
        batches_per_block=sample.batches_per_block,
        num_blocks=sample.num_blocks,
        estimates=estimates,
    )


def _difference(
    metric: Metric, label: str, sides: tuple[_Sample, _Sample], confidence: float
) -> Difference:
    first, other = sides
    name = metric.name
    value = float(_distance(metric, other.metrics[name], first.metrics[name]))
    drawn = _distance(metric, other.drawn[name], first.drawn[name])
    low, high = interval(drawn, value, min(first.num_blocks, other.num_blocks), confidence)
    # Farther apart than that, the halves of one side are clear of those of the other.
    floor = (first.noise[name] + other.noise[name]) / 2
    return Difference(
        metric=name,
        side=label,
        change=Estimate(
            value=_change(metric, value), low=_change(metric, low), high=_change(metric, high)
        ),
        noise_floor=abs(_change(metric, math.copysign(floor, value))),
        verdict=_verdict(
            metric,
            Estimate(value=value, low=low, high=high),
            floor,
            is_short=min(first.num_batches, other.num_batches) < _FEWEST_BATCHES,
        ),
    )


def _verdict(metric: Metric, distance: Estimate, floor: float, *, is_short: bool) -> Verdict:
    if not (math.isfinite(distance.low) and math.isfinite(distance.high)):
        return "unknown"
    if distance.low <= 0.0 <= distance.high or not abs(distance.value) > floor:
        return "within noise"
    if is_short:
        return "too short"
    direction: Literal["higher", "lower"] = "higher" if distance.value > 0 else "lower"
    if metric.better is None:
        return direction
    return "better" if direction == metric.better else "worse"


def _heading(comparison: Comparison) -> str:
    rows = [
        (
            side.label,
            f"{side.num_batches:,} batches of {side.num_runs:,} "
            f"{'run' if side.num_runs == 1 else 'runs'}, drawn in {side.num_blocks:,} blocks of "
            f"{side.batches_per_block:,}",
        )
        for side in comparison.sides
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def _row(metric: Metric, first: Side, side: Side, difference: Difference) -> tuple[str, ...]:
    change = difference.change
    show = _SHOW[metric.kind]
    return (
        metric.label,
        _value(metric, first.estimates[metric.name].value),
        _value(metric, side.estimates[metric.name].value),
        show(change.value),
        f"{show(change.low)} to {show(change.high)}",
        show(difference.noise_floor).lstrip("+"),
        difference.verdict,
    )


def _value(metric: Metric, value: float) -> str:
    if metric.kind == "share":
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"  # noqa: PLR2004 - four digits


_SHOW: dict[str, Callable[[float], str]] = {
    "ratio": lambda change: f"{change:+.1%}" if math.isfinite(change) else "?",
    "share": lambda change: f"{100 * change:+.1f} pp",
    "count": lambda change: f"{change:+,.3g}",
}


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number in (0, last) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
