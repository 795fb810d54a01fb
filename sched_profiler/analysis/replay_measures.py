"""What is told of a replay, and of the run that it replays, in the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from sched_profiler.analysis.columns import numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from sched_profiler.analysis.replay import Replay
    from sched_profiler.request_record import RequestRecord

    Floats = NDArray[np.float64]

__all__ = ["MEASURES", "Measure", "measures_of", "recorded_measures"]


@attrs.frozen(kw_only=True)
class Measure:
    """A number that is told."""

    name: str
    label: str
    show: Callable[[float], str]


def _ms(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"  # noqa: PLR2004 - three digits


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _share(value: float) -> str:
    return f"{value:.0%}"


MEASURES = (
    Measure(name="step_ms", label="step ms", show=_ms),
    Measure(name="tpot_ms", label="per token ms", show=_ms),
    Measure(name="token_gap_p95_ms", label="gap P95 ms", show=_ms),
    Measure(name="ttft_ms", label="first token ms", show=_ms),
    Measure(name="ttft_p95_ms", label="P95 ms", show=_ms),
    Measure(name="request_ms", label="answer ms", show=_ms),
    Measure(name="output_tokens_per_s", label="tokens/s", show=_number),
    Measure(name="model_busy", label="busy", show=_share),
    Measure(name="kv_cache_peak", label="KV peak", show=_share),
    Measure(name="num_preemptions", label="preempted", show=_number),
)
"""In this order:

- `step_ms`: mean of total_step_duration_ms;
- `tpot_ms`: time per output token after the first, mean over requests;
- `token_gap_p95_ms`: P95 of the time between two tokens of a request, over all tokens;
- `ttft_ms`, `ttft_p95_ms`: from the arrival at the engine core to the first token, mean and P95;
- `request_ms`: from the arrival to the last token, mean;
- `output_tokens_per_s`: output tokens over the time from the first arrival to the last token;
- `model_busy`: the share of that time in which the model ran;
- `kv_cache_peak`: highest kv_cache_usage;
- `num_preemptions`.
"""


def measures_of(replay: Replay) -> dict[str, float]:
    """Return the measures of a replay, by their names."""
    plans = replay.plans
    return {
        "step_ms": _mean(1e3 * (replay.ready - replay.scheduled)),
        **_of_requests(
            replay.arrival, replay.first_token, replay.end, replay.num_output_tokens.astype(float)
        ),
        "token_gap_p95_ms": _p95(replay.token_gaps_ms),
        "model_busy": float(replay.model_ms.sum()) / 1e3 / replay.makespan_s,
        "kv_cache_peak": max(plan.kv_cache_usage for plan in plans),
        "num_preemptions": float(sum(plan.num_preempted_reqs for plan in plans)),
    }


def recorded_measures(df: pd.DataFrame, records: Sequence[RequestRecord]) -> dict[str, float]:
    """Return what was measured in a run, as far as its log and its request trace tell.

    Args:
        df: the batches of the run.
        records: the requests that are replayed; without any, only what the log alone tells.
    """
    served = [record for record in records if record.num_output_tokens]
    ended = [r for r in served if r.first_token_time is not None and r.end_time is not None]
    found = {
        "step_ms": _mean(numbers(df, "total_step_duration_ms")),
        "kv_cache_peak": float(numbers(df, "kv_cache_usage").max()),
        "num_preemptions": float(np.nansum(numbers(df, "num_preempted_reqs"))),
    }
    if ended and len(ended) == len(served):
        arrival = np.array([r.arrival_time for r in ended])
        end = np.array([r.end_time for r in ended], dtype=np.float64)
        first = np.array([r.first_token_time for r in ended], dtype=np.float64)
        found |= _of_requests(
            arrival, first, end, np.array([float(r.num_output_tokens) for r in ended])
        )
        model_ms = float(np.nansum(numbers(df, "model_run_duration_ms")))
        found["model_busy"] = model_ms / 1e3 / float(end.max() - arrival.min())
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _of_requests(arrival: Floats, first: Floats, end: Floats, tokens: Floats) -> dict[str, float]:
    several = tokens > 1
    waited = 1e3 * (first - arrival)
    return {
        "tpot_ms": _mean(1e3 * (end - first)[several] / (tokens[several] - 1)),
        "ttft_ms": _mean(waited),
        "ttft_p95_ms": _p95(waited),
        "request_ms": _mean(1e3 * (end - arrival)),
        "output_tokens_per_s": float(tokens.sum() / (end.max() - arrival.min())),
    }


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def _p95(values: Floats) -> float:
    return float(np.quantile(values, 0.95)) if len(values) else np.nan
