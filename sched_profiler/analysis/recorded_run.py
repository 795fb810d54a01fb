"""The run that is replayed: its batches, its requests, and the engine that served them.

What the engine was is told by the run manifest. Without one, the caller tells the limits, and what
the log itself tells for certain is taken from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import pandas as pd

from sched_profiler.analysis.arrivals import arrivals_of
from sched_profiler.analysis.columns import numbers
from sched_profiler.analysis.replay import EngineSettings
from sched_profiler.errors import LogError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sched_profiler.analysis.arrivals import Arrival
    from sched_profiler.manifest import RunManifest
    from sched_profiler.request_record import RequestRecord

__all__ = ["RecordedRun", "find_run"]

_NEEDED = ("max_num_batched_tokens", "max_num_seqs", "block_size", "num_blocks", "max_model_len")
_MAY_LACK = (
    "long_prefill_token_threshold",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "scheduling_policy",
    "async_scheduling",
    "pipeline_parallel_size",
)


_MANIFEST = "the run manifest"


@attrs.frozen(kw_only=True, eq=False)
class RecordedRun:
    """A run of one engine."""

    run_id: str | None
    """None in a log that does not tell."""
    dp_rank: int | None
    limits: dict[str, Any]
    """What is known of the engine, by the names of `EngineSettings`."""
    origins: dict[str, str]
    """Where each of `limits` is from, in words."""
    df: pd.DataFrame
    """Its batches, as `load` returns them."""
    requests: list[RequestRecord]
    """Its requests in the order they came; empty without a request trace."""

    @property
    def lacking(self) -> list[str]:
        """Names of settings that a replay needs and nobody told."""
        return [name for name in _NEEDED if name not in self.limits]

    @property
    def settings(self) -> EngineSettings:
        """What a scheduler is made from.

        Raises:
            LogError: if a setting is not known.
        """
        if self.lacking:
            raise LogError(
                f"{', '.join(self.lacking)} of run {self.run_id} are not known, and a replay needs "
                "them; give them to find_run as told"
            )
        return EngineSettings(**self.limits)

    @property
    def assumed(self) -> tuple[str, ...]:
        """Say of each setting that the manifest does not tell what it is taken to be, and why."""
        known = tuple(
            f"{name}={self.limits[name]}: {origin}."
            for name, origin in self.origins.items()
            if origin != _MANIFEST
        )
        usual = [
            f"{name}={getattr(attrs.fields(EngineSettings), name).default}"
            for name in _MAY_LACK
            if name not in self.limits
        ]
        if not usual:
            return known
        return (*known, f"{', '.join(usual)}: nothing tells otherwise.")


def find_run(
    df: pd.DataFrame,
    manifests: Sequence[RunManifest],
    requests: Mapping[tuple[str, int | None], list[RequestRecord]],
    *,
    told: Mapping[str, Any] | None = None,
    arrivals: Sequence[Arrival] = (),
) -> RecordedRun:
    """Return the run with the most requests in its trace, or else the one with the most batches.

    With `told`, a run needs no manifest. What neither that nor a manifest tells is then taken from
    the log where it is sure: the budget of the batches, whether one is scheduled while another
    runs, and, as the longest request, a length that none exceeds. Runs with a manifest go before
    those without.

    Args:
        df: as `load` returns it.
        manifests: as `load_manifests` returns them.
        requests: as `load_requests` returns them.
        told: settings by the names of `EngineSettings`; they go before the manifest.
        arrivals: what is replayed, if not the requests of the run.

    Raises:
        LogError: if the log is empty or, without `told`, if no run has a manifest or that of the
            run lacks a setting.
    """
    runs = []
    for _, batches in df.groupby("run"):
        first = batches.iloc[0]
        run_id = None if pd.isna(first["run_id"]) else str(first["run_id"])
        dp_rank = None if pd.isna(first["dp_rank"]) else int(first["dp_rank"])
        manifest = next((m for m in manifests if (m.run_id, m.dp_rank) == (run_id, dp_rank)), None)
        served = [] if run_id is None else list(requests.get((run_id, dp_rank), ()))
        if manifest is not None or told is not None:
            runs.append((run_id, dp_rank, manifest, batches, served))
    if not runs:
        raise LogError(
            "no run manifest (*.run.json) beside the logs is that of a run in them; it has the "
            "limits of the scheduler, so keep it beside its log"
        )
    run_id, dp_rank, manifest, batches, served = max(
        runs, key=lambda run: (run[2] is not None, len(run[4]), len(run[3]))
    )
    limits = {}
    if manifest is not None:
        values = {name: getattr(manifest, name) for name in (*_NEEDED, *_MAY_LACK)}
        limits = {name: (value, _MANIFEST) for name, value in values.items() if value is not None}
    for name, value in (told or {}).items():
        origin = "as it was given"
        if name in limits and limits[name][0] != value:
            origin += f"; the run manifest says {limits[name][0]}"
        limits[name] = value, origin
    if told is not None:
        limits = _from_log(batches, arrivals or arrivals_of(served)) | limits
    run = RecordedRun(
        run_id=run_id,
        dp_rank=dp_rank,
        limits={name: value for name, (value, _) in limits.items()},
        origins={name: origin for name, (_, origin) in limits.items()},
        df=batches,
        requests=served,
    )
    if told is None and run.lacking:
        raise LogError(
            f"the manifest of run {run_id} does not tell {', '.join(run.lacking)}; a replay "
            "needs a log of vLLM, recorded with this version of sched-profiler"
        )
    return run


def _from_log(df: pd.DataFrame, arrivals: Sequence[Arrival]) -> dict[str, tuple[Any, str]]:
    """Return what batches and requests tell of the engine for certain, and how."""
    found: dict[str, tuple[Any, str]] = {}
    budgets = np.unique(numbers(df, "token_budget"))
    if len(budgets) == 1 and np.isfinite(budgets[0]):
        found["max_num_batched_tokens"] = int(budgets[0]), "token_budget of every record"
    most = numbers(df, "num_inflight_batches")
    if np.isfinite(most).any():
        in_flight = int(np.nanmax(most))
        words = f"at most {in_flight} batches were on their way when one was scheduled"
        found["async_scheduling"] = in_flight == 1, words
        if in_flight > 1:
            found["pipeline_parallel_size"] = in_flight + 1, words
    if arrivals:
        longest = max(one.num_prompt_tokens + one.num_output_tokens for one in arrivals)
        found["max_model_len"] = longest + 1, "longer than any of the requests"
    return found
