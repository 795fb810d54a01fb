"""What other limits of the scheduler would do: recorded requests replayed under each of them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from sched_profiler.analysis.bootstrap import student
from sched_profiler.analysis.plain_data import plain
from sched_profiler.analysis.replay import replay
from sched_profiler.analysis.replay_measures import MEASURES, measures_of
from sched_profiler.errors import SchedProfilerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from sched_profiler.analysis.arrivals import Arrival
    from sched_profiler.analysis.engine_time import EngineTime
    from sched_profiler.analysis.replay import EngineSettings, Replay, ReplayScheduler

    Floats = NDArray[np.float64]

__all__ = ["Candidate", "Range", "Tuning", "limits_around", "tune"]

_SHARE = 0.975
_LEAST_GAIN = 0.08
"""What is gained less may be nothing: on a real engine changes were so far off."""
_MOST_LOSS = 0.01
"""Of throughput: what is lost less is nothing."""
_MOST_HARM = 0.10
"""What is recommended makes neither the first token nor the tokens after it so much later."""
_MOST_UNSEEN = 0.10
"""With so much of the model's time extrapolated, a recommendation says so."""
_OFF = 0.15
"""A replay of what was recorded that is so far off is worth a word."""


@attrs.frozen(kw_only=True)
class Range:
    """A value, and the range in which 95% of replays are: draws of the fit and of its errors."""

    value: float
    low: float
    high: float


@attrs.frozen(kw_only=True)
class Candidate:
    """Limits that were tried."""

    max_num_batched_tokens: int
    max_num_seqs: int
    estimates: dict[str, Range]
    """By the names of `MEASURES`."""
    changes: dict[str, Range]
    """Against the recorded limits, as a ratio less 1."""
    unseen: float
    """Share of the model's time in batches that hold more of something than any that was fitted."""

    @property
    def label(self) -> str:
        """The limits in vLLM's words."""
        return (
            f"max_num_batched_tokens={self.max_num_batched_tokens}, "
            f"max_num_seqs={self.max_num_seqs}"
        )


@attrs.frozen(kw_only=True)
class Tuning:
    """What was found."""

    num_requests: int
    num_replays: int
    recorded: dict[str, float]
    """What was measured in the run, as far as it is known; by the names of `MEASURES`."""
    current: Candidate
    """The recorded limits, replayed."""
    others: tuple[Candidate, ...]
    refused: tuple[str, ...] = ()
    """Limits that could not be tried, and why."""

    @property
    def recommended(self) -> Candidate:
        """The limits under which requests have their answers first, if that is sure.

        They must be faster than the recorded ones by more than a replay may be off (8%), serve no
        fewer tokens, and make neither first tokens (P95) nor the tokens after them (P95) more than
        a tenth later. If none do, the recorded ones are the recommended ones.
        """
        fit = [candidate for candidate in self.others if _is_better(candidate)]
        return min(fit, key=lambda c: c.estimates["request_ms"].value, default=self.current)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and the recommendation as plain data; unknown is null."""
        return {
            **plain(self),
            "recommended": {
                "max_num_batched_tokens": self.recommended.max_num_batched_tokens,
                "max_num_seqs": self.recommended.max_num_seqs,
            },
            "words": self.words,
        }

    def to_json(self) -> str:
        """Return the same as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @property
    def words(self) -> list[str]:
        """What it comes to, in sentences."""
        return [
            *_how_good(self),
            _recommendation(self),
            *_best_of_each(self),
            *(f"Not tried: {reason}" for reason in self.refused),
        ]

    def __str__(self) -> str:
        """Return a table, and what it comes to."""
        shown = [measure for measure in MEASURES if measure.name in self.current.estimates]
        heading = ["budget", "seqs", *(measure.label for measure in shown), "unseen"]
        rows = [heading]
        if self.recorded:
            known = [self.recorded.get(measure.name) for measure in shown]
            rows.append(
                [
                    "recorded",
                    "",
                    *(
                        "" if value is None else measure.show(value)
                        for measure, value in zip(shown, known, strict=True)
                    ),
                    "",
                ]
            )
        every = [self.current, *self.others]
        for one in sorted(every, key=lambda c: (c.max_num_seqs, c.max_num_batched_tokens)):
            mark = " (now)" if one is self.current else ""
            cells = [_cell(measure.show, one.estimates[measure.name]) for measure in shown]
            rows.append(
                [
                    f"{one.max_num_batched_tokens}{mark}",
                    str(one.max_num_seqs),
                    *cells,
                    f"{one.unseen:.0%}",
                ]
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )
        told = "\n".join(f"- {line}" for line in self.words)
        return (
            f"{self.num_requests:,} requests replayed {self.num_replays} times under each limit; "
            f"± is the range of 95% of such replays\n\n{table}\n\n{told}"
        )


def limits_around(settings: EngineSettings) -> list[tuple[int, int]]:
    """Return limits to try: a quarter to four times the budget, half and double the requests.

    One limit is changed at a time. The recorded ones are not among them.
    """
    budget, seqs = settings.max_num_batched_tokens, settings.max_num_seqs
    budgets = (budget // 4, budget // 2, 2 * budget, 4 * budget)
    tried = [(one, seqs) for one in budgets] + [(budget, seqs // 2), (budget, 2 * seqs)]
    return [(one, other) for one, other in tried if one >= other >= 1]


def tune(
    arrivals: Sequence[Arrival],
    settings: EngineSettings,
    times: EngineTime,
    make_scheduler: Callable[[EngineSettings, int], ReplayScheduler],
    limits: Sequence[tuple[int, int]],
    *,
    recorded: dict[str, float] | None = None,
    num_replays: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> Tuning:
    """Replay requests under the recorded limits and under others.

    Args:
        arrivals: in the order of their times.
        settings: of the recorded engine.
        times: fitted to what it did.
        make_scheduler: makes a fresh scheduler, whose prefix cache holds so many tokens.
        limits: pairs of max_num_batched_tokens and max_num_seqs to try.
        recorded: what was measured, by the names of `MEASURES`.
        num_replays: how often each is replayed, each time with another draw of the fit.
        progress: told how many requests were replayed, and how many there are.

    Raises:
        LogError: if a request can never be scheduled under the recorded limits.
        SchedProfilerError: if the engine refuses these.
    """
    own = (settings.max_num_batched_tokens, settings.max_num_seqs)
    every = [own, *(one for one in dict.fromkeys(limits) if one != own)]
    total, done = len(every) * num_replays * len(arrivals), 0
    shared = max(arrival.num_cached_tokens for arrival in arrivals)

    def replays_with(budget: int, seqs: int) -> list[Replay]:
        nonlocal done
        changed = attrs.evolve(settings, max_num_batched_tokens=budget, max_num_seqs=seqs)
        found = []
        for seed in range(num_replays):
            before = done
            found.append(
                replay(
                    arrivals,
                    make_scheduler(changed, shared),
                    times.sampled(seed),
                    max_in_flight=settings.max_in_flight,
                    progress=_counting(progress, before, total),
                )
            )
            done += len(arrivals)
        return found

    base = replays_with(*own)
    values = _values(base)
    current = _candidate(own, values, values, times.unseen(base))
    others, refused = [], []
    for budget, seqs in every[1:]:
        try:
            replays = replays_with(budget, seqs)
        except SchedProfilerError as error:
            refused.append(str(error))
            continue
        others.append(_candidate((budget, seqs), _values(replays), values, times.unseen(replays)))
    return Tuning(
        num_requests=len(arrivals),
        num_replays=num_replays,
        recorded=recorded or {},
        current=current,
        others=tuple(others),
        refused=tuple(refused),
    )


def _counting(
    progress: Callable[[int, int], None] | None, before: int, total: int
) -> Callable[[int], None] | None:
    return None if progress is None else lambda number: progress(before + number, total)


def _values(replays: list[Replay]) -> dict[str, Floats]:
    told = [measures_of(one) for one in replays]
    return {name: np.array([values[name] for values in told]) for name in told[0]}


def _candidate(
    limits: tuple[int, int], values: dict[str, Floats], base: dict[str, Floats], unseen: float
) -> Candidate:
    changes = {}
    for name, value in values.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            changes[name] = _range(value / base[name] - 1.0)
    return Candidate(
        max_num_batched_tokens=limits[0],
        max_num_seqs=limits[1],
        estimates={name: _range(value) for name, value in values.items()},
        changes=changes,
        unseen=unseen,
    )


def _range(drawn: Floats) -> Range:
    value = float(drawn.mean())
    if len(drawn) < 2 or not math.isfinite(value):  # noqa: PLR2004 - one value has no spread
        return Range(value=value, low=math.nan, high=math.nan)
    half = student(len(drawn) - 1, _SHARE) * float(drawn.std(ddof=1))
    return Range(value=value, low=value - half, high=value + half)


def _is_better(candidate: Candidate) -> bool:
    changes = candidate.changes
    harm = max(changes["ttft_p95_ms"].value, changes["token_gap_p95_ms"].value)
    fewer = changes["output_tokens_per_s"]
    return (
        changes["request_ms"].high < 0
        and changes["request_ms"].value < -_LEAST_GAIN
        and not harm > _MOST_HARM
        and not (fewer.high < 0 and fewer.value < -_MOST_LOSS)
    )


def _how_good(tuning: Tuning) -> list[str]:
    """Say how well a replay of what was recorded shows what was recorded."""
    compared = []
    is_off = False
    for measure in MEASURES:
        measured = tuning.recorded.get(measure.name)
        if not measured or measure.name in ("kv_cache_peak", "num_preemptions"):
            continue
        off = tuning.current.estimates[measure.name].value / measured - 1.0
        is_off |= abs(off) > _OFF
        compared.append(f"{measure.label} {off:+.0%}")
    if not compared:
        return ["Nothing was recorded of these requests to hold the replay against."]
    told = f"Replayed as it was recorded, against what was measured: {', '.join(compared)}."
    if is_off:
        told += " That is far off in places; take what follows as a direction only."
    return [told]


def _recommendation(tuning: Tuning) -> str:
    best = tuning.recommended
    if best is tuning.current:
        return (
            f"Recommended: keep {best.label}. None of the others gives requests their answers "
            f"sooner by more than {_LEAST_GAIN:.0%}, which is how far off such a replay may be, "
            "without making first tokens or the tokens after them much later."
        )
    gains = ", ".join(
        f"{label} {_change(best.changes[name])}"
        for name, label in (
            ("request_ms", "the time to a whole answer"),
            ("ttft_p95_ms", "the first token at P95"),
            ("token_gap_p95_ms", "the gap between tokens at P95"),
            ("output_tokens_per_s", "throughput"),
            ("model_busy", "the model's share of the time"),
        )
    )
    told = f"Recommended: {best.label} instead of {tuning.current.label}: {gains}."
    if best.unseen > _MOST_UNSEEN:
        told += (
            f" {best.unseen:.0%} of its model time is in batches larger than any that was "
            "measured: run it once, and tune again with that log beside the others."
        )
    return told


def _best_of_each(tuning: Tuning) -> list[str]:
    told = []
    for name, what in (
        ("ttft_p95_ms", "first tokens at P95"),
        ("token_gap_p95_ms", "gaps between tokens at P95"),
        ("request_ms", "whole answers"),
    ):
        every = (tuning.current, *tuning.others)
        best = every[int(np.argmin([one.estimates[name].value for one in every]))]
        told_already = (tuning.current, tuning.recommended)
        if best not in told_already and best.changes[name].high < 0:
            told.append(f"Soonest {what}: {best.label}, {_change(best.changes[name])}.")
    return told


def _change(change: Range) -> str:
    return f"{change.value:+.1%} ({change.low:+.1%} to {change.high:+.1%})"


def _cell(show: Callable[[float], str], value: Range) -> str:
    if not math.isfinite(value.high):
        return show(value.value)
    return f"{show(value.value)} ±{show(value.high - value.value)}"
