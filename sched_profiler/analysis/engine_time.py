"""How long an engine takes for a batch, on all its parts, as a replay needs it.

The model's time is that of the step-time model. What the engine does besides, between a result and
the next batch, is no part of that model: it is fitted here, from the idle times of batches that did
not have to wait for a request.

What the fit leaves is taken as the pace of the machine, which changes over time and not by batch: a
machine that is slow for a while is slow for whatever it then does. So replays under other limits
meet the same slow moments, and differ in nothing but the limits.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

import attrs
import numpy as np

from sched_profiler.analysis.columns import numbers
from sched_profiler.analysis.cost_model import draw_coefficients, fit_step_time
from sched_profiler.analysis.nonnegative import solve

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from sched_profiler.analysis.cost_model import StepTimeModel
    from sched_profiler.analysis.replay import Plan, Replay

    Floats = NDArray[np.float64]

__all__ = ["EngineTime", "Line", "Pace", "fit_engine_time"]

_MOST_ERRORS = 20_000
_FAR = 0.005
"""The share of errors that are cut off at either end: another process had the machine."""


@attrs.frozen
class Line:
    """A time in ms that grows with the requests in a batch."""

    constant: float
    each: float

    def at(self, num_reqs: int) -> float:
        """Return the time of a batch with so many requests."""
        return self.constant + self.each * num_reqs


@attrs.frozen(kw_only=True, eq=False)
class EngineTime:
    """What a step takes: the model, schedule(), and all that the engine does besides."""

    model: StepTimeModel
    schedule: Line
    rest: Line
    """From a result until the engine schedules again, as long as it has requests."""
    coefficients: Floats
    """A row for each draw of the terms of the model."""
    model_pace: Floats
    """A row for each batch, in their order: how long the model took, and what the fit says, in ms.

    The farthest ones are cut.
    """
    rest_pace: Floats
    """Likewise of `rest`."""

    def sampled(self, seed: int) -> SampledTimes:
        """Return times as they might be: a draw of the fit, and a machine as uneven as it was."""
        return SampledTimes(self, seed)

    def unseen(self, replays: Sequence[Replay]) -> float:
        """Return the share of the model's time in batches beyond what the model was fitted to."""
        low = np.array([term.smallest for term in self.model.terms])
        high = np.array([term.largest for term in self.model.terms])
        beyond = total = 0.0
        for one in replays:
            held = np.array([plan.terms for plan in one.plans])
            is_beyond = ((held < low) | (held > high)).any(axis=1)
            beyond += float(one.model_ms[is_beyond].sum())
            total += float(one.model_ms.sum())
        return beyond / total if total else 0.0


class SampledTimes:
    """Step times with the fit's own uncertainty: for one seed always the same."""

    def __init__(self, engine: EngineTime, seed: int) -> None:
        """Draw the coefficients, and the pace in stretches, because neighbours are alike."""
        self._engine = engine
        random = np.random.default_rng(seed)
        self._coefficients = [
            float(c) for c in engine.coefficients[random.integers(len(engine.coefficients))]
        ]
        self._model_pace = Pace(_stretches(engine.model_pace, random))
        self._rest_pace = Pace(_stretches(engine.rest_pace, random))

    def schedule_ms(self, plan: Plan) -> float:
        """Return the time that it took to form a batch."""
        return self._engine.schedule.at(plan.num_reqs)

    def model_ms(self, plan: Plan, now: float) -> float:
        """Return the time that the model takes for it from a moment on, in s."""
        predicted = sum(c * v for c, v in zip(self._coefficients, plan.terms, strict=True))
        return self._model_pace.time_for(predicted, 1e3 * now)

    def rest_ms(self, plan: Plan, now: float) -> float:
        """Return the time from its result, at a moment in s, until the engine schedules again."""
        return self._rest_pace.time_for(self._engine.rest.at(plan.num_reqs), 1e3 * now)


class Pace:
    """How fast a machine is over time: what it took against what it should; then all over again."""

    def __init__(self, pace: Floats) -> None:
        """Take in rows of what something took and of what it should have taken, in ms."""
        self._took: list[float] = [0.0, *accumulate(pace[:, 0].tolist())]
        self._done: list[float] = [0.0, *accumulate(pace[:, 1].tolist())]

    def time_for(self, work: float, now: float) -> float:
        """Return how long so much work takes from now on; all in ms."""
        at = now % self._took[-1]
        again, done = divmod(_at(at, self._took, self._done) + work, self._done[-1])
        return max(0.0, again * self._took[-1] + _at(done, self._done, self._took) - at)


def _at(place: float, places: list[float], values: list[float]) -> float:
    """Return the value at a place on the line through all of them."""
    after = min(bisect_right(places, place), len(places) - 1)
    share = (place - places[after - 1]) / (places[after] - places[after - 1])
    return values[after - 1] + share * (values[after] - values[after - 1])


def fit_engine_time(df: pd.DataFrame, *, async_scheduling: bool) -> EngineTime:
    """Fit what a step takes to the batches of a loaded log.

    Where a batch is scheduled while the one before it runs, what the engine does besides is hidden
    behind the model and only its `update_duration_ms` is known; what shows as idle time all the
    same is then part of no step.

    Args:
        df: as `load` returns it.
        async_scheduling: of the engine.

    Raises:
        LogError: if there are too few batches; see `fit_step_time`.
    """
    model = fit_step_time(df)
    num_reqs = numbers(df, "num_prefill_reqs") + numbers(df, "num_decode_reqs")
    schedule = numbers(df, "schedule_duration_ms")
    if async_scheduling:
        rest, known = numbers(df, "update_duration_ms"), np.ones(len(df), dtype=np.bool_)
    else:
        rest = numbers(df, "idle_duration_ms") - schedule
        # Requests that were there before: the engine did not wait for somebody to come.
        known = num_reqs > np.nan_to_num(numbers(df, "num_new_reqs"))
        known &= _after_a_neighbour(df)
    known &= np.isfinite(rest) & (rest > 0)
    measured = numbers(df, "model_run_duration_ms")
    predicted = model.predict_batches(df)
    ran = (measured > 0) & (predicted > 0)
    rest_line = _line(num_reqs[known], rest[known])
    return EngineTime(
        model=model,
        schedule=_line(num_reqs, schedule),
        rest=rest_line,
        coefficients=draw_coefficients(df, seed=0),
        model_pace=_pace(measured[ran], predicted[ran]),
        rest_pace=_pace(
            rest[known], np.maximum(rest_line.constant + rest_line.each * num_reqs[known], 1e-9)
        ),
    )


def _after_a_neighbour(df: pd.DataFrame) -> NDArray[np.bool_]:
    """Tell for each batch whether the row before it is the batch before it in its run."""
    same = np.ones(len(df), dtype=np.bool_)
    same[:1] = False
    if len(df) > 1:
        same[1:] = np.diff(df["batch_id"].to_numpy()) == 1
    return same


def _line(num_reqs: Floats, measured: Floats) -> Line:
    """Fit a line that has the mean of what was measured, without its farthest values."""
    if not len(measured):
        return Line(0.0, 0.0)
    measured = np.minimum(measured, np.quantile(measured, 1 - _FAR))
    design = np.column_stack([np.ones(len(num_reqs)), num_reqs])
    constant, each = solve(design.T @ design, design.T @ measured)
    return Line(float(constant), float(each))


def _pace(measured: Floats, predicted: Floats) -> Floats:
    if not len(measured):
        return np.ones((1, 2))
    errors = (measured / predicted)[-_MOST_ERRORS:]
    predicted = predicted[-_MOST_ERRORS:]
    errors = np.clip(errors, *np.quantile(errors, [_FAR, 1 - _FAR]))
    return np.column_stack([errors * predicted, predicted])


def _stretches(pace: Floats, random: np.random.Generator) -> Floats:
    """Return a pace in stretches that were drawn anew, with a mean of their own."""
    length = max(1, min(50, len(pace) // 4))
    num = max(1, len(pace) // length)
    starts = random.integers(0, len(pace) - length + 1, size=num)
    return np.concatenate([pace[start : start + length] for start in starts])
