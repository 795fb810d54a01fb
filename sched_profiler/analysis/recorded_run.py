"""The run that is replayed: its batches, its requests, and the engine that served them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pandas as pd

from sched_profiler.analysis.replay import EngineSettings
from sched_profiler.errors import LogError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


@attrs.frozen(kw_only=True, eq=False)
class RecordedRun:
    """A run of one engine."""

    run_id: str
    dp_rank: int | None
    settings: EngineSettings
    df: pd.DataFrame
    """Its batches, as `load` returns them."""
    requests: list[RequestRecord]
    """Its requests in the order they came; empty without a request trace."""


def find_run(
    df: pd.DataFrame,
    manifests: Sequence[RunManifest],
    requests: Mapping[tuple[str, int | None], list[RequestRecord]],
) -> RecordedRun:
    """Return the run with the most requests in its trace, or else the one with the most batches.

    Args:
        df: as `load` returns it.
        manifests: as `load_manifests` returns them.
        requests: as `load_requests` returns them.

    Raises:
        LogError: if no run has a manifest, or that of the run lacks a setting.
    """
    runs = {}
    for number, batches in df.groupby("run"):
        first = batches.iloc[0]
        key = (str(first["run_id"]), None if pd.isna(first["dp_rank"]) else int(first["dp_rank"]))
        manifest = next((m for m in manifests if (m.run_id, m.dp_rank) == key), None)
        if manifest is not None:
            runs[number] = (len(requests.get(key, ())), len(batches), key, manifest, batches)
    if not runs:
        raise LogError(
            "no run manifest (*.run.json) beside the logs is that of a run in them; it has the "
            "limits of the scheduler, so keep it beside its log"
        )
    _, _, key, manifest, batches = max(runs.values(), key=lambda run: run[:2])
    lacking = [name for name in _NEEDED if getattr(manifest, name) is None]
    if lacking:
        raise LogError(
            f"the manifest of run {manifest.run_id} does not tell {', '.join(lacking)}; a replay "
            "needs a log of vLLM, recorded with this version of sched-profiler"
        )
    told = {name: getattr(manifest, name) for name in (*_NEEDED, *_MAY_LACK)}
    return RecordedRun(
        run_id=manifest.run_id,
        dp_rank=manifest.dp_rank,
        settings=EngineSettings(**{k: v for k, v in told.items() if v is not None}),
        df=batches,
        requests=list(requests.get(key, ())),
    )
