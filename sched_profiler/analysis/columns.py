"""The columns of a frame as plain numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["numbers", "occupied_ms", "prefill_tokens"]

_MS_PER_S = 1_000.0


def numbers(df: pd.DataFrame, name: str) -> Floats:
    """Return a numeric column, one number a row; NaN where unknown, also if there is no column."""
    if name not in df:
        return np.full(len(df), np.nan)
    return df[name].to_numpy(dtype=np.float64, na_value=np.nan)


def prefill_tokens(df: pd.DataFrame) -> Floats:
    """Return the tokens scheduled for prefill; also for a log that has only the 17 fields."""
    recorded = numbers(df, "num_prefill_tokens")
    mean = np.nan_to_num(numbers(df, "avg_prefill_chunk_size"))
    return np.where(np.isnan(recorded), np.rint(numbers(df, "num_prefill_reqs") * mean), recorded)


def occupied_ms(df: pd.DataFrame) -> Floats:
    """Return the wall time of each batch of one run, in ms; their sum is that of all of them.

    It is model run and idle, or, where a log lacks these, the time until the next batch begins; of
    a batch after which others are missing, the time of its own step.
    """
    occupied = numbers(df, "model_run_duration_ms") + numbers(df, "idle_duration_ms")
    if not np.isnan(occupied).all():
        return np.nan_to_num(occupied)
    timestamp = numbers(df, "timestamp")
    step = np.nan_to_num(numbers(df, "total_step_duration_ms"))
    until_next = np.maximum(0.0, np.diff(timestamp)) * _MS_PER_S
    is_followed = ~(np.diff(numbers(df, "batch_id")) > 1)
    return np.concatenate((np.where(is_followed, until_next, step[:-1]), step[-1:]))
