"""The columns of a frame as plain numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["numbers"]


def numbers(df: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Return a numeric column, one number a row; NaN where unknown, also if there is no column."""
    if name not in df:
        return np.full(len(df), np.nan)
    return df[name].to_numpy(dtype=np.float64, na_value=np.nan)
