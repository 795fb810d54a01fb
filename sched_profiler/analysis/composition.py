"""Batches that hold about the same, so that their times can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sched_profiler.analysis.columns import numbers, prefill_tokens

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["cells", "expected", "features", "usual"]

_PER_OCTAVE = 2
"""Batches are alike if no count differs by more than the square root of two."""
_MOST_CELLS = 1_000


def features(df: pd.DataFrame | pl.DataFrame) -> Floats:
    """Return what decides how long a batch takes, a row a batch, each on a logarithmic scale.

    These are requests in prefill and in decode, and tokens of prefill, of decode and of context.
    A context that is not recorded counts as 0 for all, and so does a count that a damaged record
    makes negative.
    """
    prefill = prefill_tokens(df)
    columns = [
        numbers(df, "num_prefill_reqs"),
        numbers(df, "num_decode_reqs"),
        prefill,
        numbers(df, "total_scheduled_tokens") - prefill,
        numbers(df, "prefill_context_tokens"),
        numbers(df, "decode_context_tokens"),
    ]
    return np.log2(1.0 + np.maximum(np.nan_to_num(np.column_stack(columns)), 0.0))


def cells(df: pl.DataFrame) -> Ints:
    """Return a number for each batch, the same for batches of about the same tokens in any run."""
    _, _, prefill, decode, *_ = features(df).T
    number = np.rint(prefill * _PER_OCTAVE) * _MOST_CELLS + np.rint(decode * _PER_OCTAVE)
    return np.asarray(number, dtype=np.int64)


def expected(values: Floats, cell: Ints, share: float = 0.5) -> Floats:
    """Return for each batch a quantile of the batches in its cell, NaN where none is known.

    Args:
        values: one a batch.
        cell: see `cells`.
        share: which quantile, from 0 to 1: the median by default.
    """
    table = pl.DataFrame({"value": values, "cell": cell}, nan_to_null=True)
    quantile = pl.col("value").quantile(share, "linear").over("cell")
    return table.select(quantile).to_series().to_numpy()


def usual(values: Floats, cell: NDArray[Any], where: NDArray[Any], fewest: int) -> Floats:
    """Return the median of the values in each of some cells, NaN where there are too few of them.

    Args:
        values: some of them, NaN where unknown.
        cell: that of each value.
        where: the cells that are asked for.
        fewest: so many values are enough.
    """
    medians = (
        pl.DataFrame({"value": values, "cell": cell}, nan_to_null=True)
        .drop_nulls()
        .group_by("cell")
        .agg(pl.col("value").median(), pl.len().alias("count"))
        .filter(pl.col("count") >= fewest)
    )
    asked = pl.DataFrame({"cell": where}, nan_to_null=True)
    found = asked.join(medians, on="cell", how="left", maintain_order="left")
    return found["value"].to_numpy()
