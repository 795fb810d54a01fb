"""Do requests wait, and for what?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sched_profiler.analysis.detectors.evidence import Evidence
    from sched_profiler.analysis.finding import Finding

__all__ = ["queue_blocked"]

_SHARE = 0.10
_CRITICAL = 0.50
_FEWEST = 20
_BUDGET_USED = 0.95
_KV_CACHE_NEARLY_FULL = 0.80
"""The next prompt needs its blocks at once, so requests wait before every block is in use."""
_PLATEAU = 0.90
_NEARLY_ALL = 0.95
_WORTH_TELLING = 0.05

_REMEDIES = {
    "max_num_seqs": "Raise max_num_seqs if the KV cache has room, or add a replica.",
    "kv_cache": "Give the KV cache more memory (gpu_memory_utilization, a smaller KV data type), "
    "shorten max_model_len, or add a replica.",
    "token_budget": "The batches are full: raise max_num_batched_tokens, or add a replica. Larger "
    "batches make decodes beside prefills wait longer; sched-profiler tune weighs one against the "
    "other.",
    "other": "Neither budget, seats nor KV cache are used up. Look for what else holds requests "
    "back: structured output, LoRA limits, KV transfer, limits on partial prefills.",
}


def queue_blocked(run: Evidence) -> Iterator[Finding]:
    """Look for requests that wait for a good part of the run, and say what blocks them."""
    waiting = run.column("num_waiting_reqs")
    waits = waiting > 0
    share = run.share_of_wall(waits)
    if share < _SHARE or waits.sum() < _FEWEST:
        return
    blockers = _blockers(run, waits)
    shares = {name: run.share_of_wall(waits & mask) / share for name, mask in blockers.items()}
    blocker = max(shares, key=lambda name: shares[name])
    tokens, budget = run.column("total_scheduled_tokens"), _budget(run)
    used = float(np.median((tokens / budget)[waits]))
    quarter = max(1, int(waits.sum()) // 4)
    first, last = (
        float(np.median(part)) for part in (waiting[waits][:quarter], waiting[waits][-quarter:])
    )
    yield run.finding(
        "queue_blocked",
        "critical" if share >= _CRITICAL else "warning",
        f"Requests wait for {share:.0%} of the time, {_median(waiting[waits]):.0f} of them at a "
        f"time{_growth(first, last)}, {_why(run, blockers, shares, waits)}",
        numbers={
            "share_of_wall_time": share,
            "waiting_reqs_p50": _median(waiting[waits]),
            "waiting_reqs_max": float(waiting.max()),
            "waiting_reqs_first_quarter": first,
            "waiting_reqs_last_quarter": last,
            "token_budget_used_p50": used,
            **{f"blocked_by_{name}_share": value for name, value in shares.items()},
        },
        shown_by=np.where(waits & blockers[blocker], waiting, 0.0),
        remedy=_REMEDIES[blocker],
    )


def _budget(run: Evidence) -> NDArray[np.float64]:
    budget = run.column("token_budget")
    limit = run.limit("max_num_batched_tokens")
    return budget if limit is None else np.where(np.isnan(budget), limit, budget)


def _blockers(run: Evidence, waits: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Return for each possible reason the batches in which it keeps requests waiting."""
    running, usage = run.column("num_running_reqs"), run.column("kv_cache_usage")
    full = run.column("total_scheduled_tokens") >= _BUDGET_USED * _budget(run)
    most = run.limit("max_num_seqs")
    if most is None:
        # Unknown: a queue of running requests that always ends at the same length has a limit.
        highest = float(running.max())
        held = (running >= highest) & waits & ~full
        most = highest if held.sum() >= _PLATEAU * (waits & ~full).sum() else np.inf
    seats = ~full & (running >= most)
    # In a step that preempts, nothing is admitted.
    preempts = np.nan_to_num(run.column("num_preempted_reqs")) > 0
    cache = ~full & ~seats & ((usage >= _KV_CACHE_NEARLY_FULL) | preempts)
    return {
        "max_num_seqs": seats,
        "kv_cache": cache,
        "token_budget": full,
        "other": ~full & ~seats & ~cache,
    }


def _why(
    run: Evidence,
    blockers: dict[str, NDArray[np.bool_]],
    shares: dict[str, float],
    waits: NDArray[np.bool_],
) -> str:
    first, *others = sorted(shares, key=lambda name: -shares[name])
    if shares[first] >= _NEARLY_ALL:
        used = float(np.median((run.column("total_scheduled_tokens") / _budget(run))[waits]))
        although = ""
        if first != "token_budget" and not np.isnan(used):
            although = f"although batches use {used:.1%} of the token budget, "
        return f"{although}because {_reason(run, first, blockers[first] & waits)}"
    why = f"mostly ({shares[first]:.0%} of that time) because "
    why += _reason(run, first, blockers[first] & waits)
    for name in others:
        if shares[name] >= _WORTH_TELLING:
            why += f", {shares[name]:.0%} because {_reason(run, name, blockers[name] & waits)}"
    return why


def _reason(run: Evidence, blocker: str, blocked: NDArray[np.bool_]) -> str:
    if blocker == "token_budget":
        return "batches use the whole token budget"
    if blocker == "max_num_seqs":
        seats = _median(run.column("num_running_reqs")[blocked])
        known = "" if run.limit("max_num_seqs") is not None else ", as it seems"
        return f"max_num_seqs ({seats:.0f}{known}) are running"
    usage = _median(run.column("kv_cache_usage")[blocked])
    if blocker == "kv_cache":
        return f"the KV cache is full ({usage:.0%} in use)"
    return f"of no limit that the log knows, and the KV cache has room ({usage:.0%} in use)"


def _growth(first: float, last: float) -> str:
    if last >= 2 * first and last - first >= _GROWN:
        return f" and ever more ({first:.0f}, then {last:.0f})"
    return ""


_GROWN = 10


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values))
