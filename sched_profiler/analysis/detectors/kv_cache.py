"""Is the KV cache full, and what does it cost?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sched_profiler.analysis.detectors.evidence import Evidence
    from sched_profiler.analysis.finding import Finding

__all__ = ["lost_tokens", "preemption_storm", "saturation"]

_FULL = 0.95
_SHARE = 0.05
_CRITICAL = 0.25

_FEWEST_PREEMPTIONS = 3
_LOST = 0.01
_LOST_CRITICAL = 0.10
_OFTEN = 0.01
"""Preemptions a batch, where lost tokens are not known."""

_REMEDY = (
    "Give the KV cache more memory (gpu_memory_utilization, a smaller KV data type), or let fewer "
    "requests in at a time (max_num_seqs)."
)


def saturation(run: Evidence) -> Iterator[Finding]:
    """Look for a KV cache that is full for a good part of the run, to the harm of requests."""
    usage = run.column("kv_cache_usage")
    full = usage >= _FULL
    share = run.share_of_wall(full)
    harmed = (run.column("num_waiting_reqs") > 0) | (run.column("num_preempted_reqs") > 0)
    if share < _SHARE or not (full & harmed).any():
        return
    waiting = run.share_of_wall(full & (run.column("num_waiting_reqs") > 0))
    yield run.finding(
        "kv_cache_saturated",
        "critical" if share >= _CRITICAL else "warning",
        f"The KV cache is full (at least {_FULL:.0%} in use) for {share:.0%} of the time, and "
        f"requests wait meanwhile for {waiting:.0%} of the time",
        numbers={
            "share_of_wall_time": share,
            "share_of_wall_time_with_requests_waiting": waiting,
            "kv_cache_usage_p50": float(np.median(usage)),
            "kv_cache_usage_max": float(usage.max()),
        },
        shown_by=np.where(full, usage + harmed, 0.0),
        remedy=_REMEDY,
    )


def preemption_storm(run: Evidence) -> Iterator[Finding]:
    """Look for requests that lose their KV cache so often that computing it again costs."""
    preempted = np.nan_to_num(run.column("num_preempted_reqs"))
    count = float(preempted.sum())
    if count < _FEWEST_PREEMPTIONS:
        return
    tokens = float(np.nansum(run.column("total_scheduled_tokens")))
    lost = lost_tokens(run)
    if np.isnan(lost):
        is_storm, cost = count >= _OFTEN * len(preempted), ""
    else:
        is_storm = lost >= _LOST * tokens
        cost = (
            f", which lost about {lost:,.0f} computed tokens "
            f"({lost / tokens:.1%} of all that was scheduled)"
        )
    if not is_storm:
        return
    yield run.finding(
        "preemption_storm",
        "critical" if lost >= _LOST_CRITICAL * tokens else "warning",
        f"Requests were preempted {count:,.0f} times{cost}",
        numbers={
            "num_preempted_reqs": count,
            "preemptions_per_1000_batches": 1_000 * count / len(preempted),
            "lost_tokens": lost,
            "lost_share_of_tokens": lost / tokens,
        },
        shown_by=preempted,
        remedy=_REMEDY,
    )


def lost_tokens(run: Evidence) -> float:
    """Return about how many computed tokens preemptions threw away, NaN where unknown.

    What all running requests have computed before a batch is what they had before the batch
    before, plus its tokens, less what left with requests that finished or were preempted. Between
    two batches that hold every running request, and where none finished, the difference is what
    preemptions took. The mean of these counts for the others. It is what has to be computed again,
    except what the prefix cache still holds.
    """
    context = run.column("prefill_context_tokens") + run.column("decode_context_tokens")
    rejected = np.nan_to_num(run.column("num_draft_tokens") - run.column("num_accepted_tokens"))
    computed = run.column("total_scheduled_tokens") - rejected
    cached = np.nan_to_num(run.column("num_cached_tokens"))
    preempted = np.nan_to_num(run.column("num_preempted_reqs"))
    is_whole = run.column("num_prefill_reqs") + run.column("num_decode_reqs") == (
        run.column("num_running_reqs")
    )
    is_next = np.diff(run.column("batch_id")) == 1
    clear = (
        is_next
        & (preempted[1:] > 0)
        & (run.column("num_finished_reqs")[1:] == 0)
        & is_whole[1:]
        & is_whole[:-1]
    )
    lost = context[:-1] + computed[:-1] + cached[1:] - context[1:]
    clear &= lost >= 0
    if not clear.any():
        return np.nan
    return float(lost[clear].sum() / preempted[1:][clear].sum() * preempted.sum())
