"""The columns of records: what each is called, and of which type it is."""

from __future__ import annotations

from typing import Any, get_args, get_origin

import attrs
import polars as pl

from sched_profiler.record import BatchRecord

__all__ = ["NULLABLE", "REQUIRED", "SCHEMA"]

_TYPES: dict[Any, Any] = {
    int: pl.Int64(),
    float: pl.Float64(),
    str: pl.String(),
    list[int]: pl.List(pl.Int32()),
    list[str]: pl.List(pl.String()),
}


def _split_type(annotation: Any) -> tuple[Any, bool]:
    """Return the type of a field without its None, and whether it had one."""
    kinds = [] if get_origin(annotation) is list else [*get_args(annotation)]
    if type(None) not in kinds:
        return annotation, False
    kinds.remove(type(None))
    return kinds[0], True


_FIELDS = attrs.fields(BatchRecord)

SCHEMA: dict[str, Any] = {field.name: _TYPES[_split_type(field.type)[0]] for field in _FIELDS}
"""The Polars type of each field of a record, in order."""

NULLABLE = frozenset(field.name for field in _FIELDS if _split_type(field.type)[1])
"""Fields that may be unknown."""

REQUIRED = frozenset(field.name for field in _FIELDS if field.default is attrs.NOTHING) - {
    # A fork of the original feature that measures scheduling only has neither.
    "model_run_duration_ms",
    "total_step_duration_ms",
}
"""Fields that no record lacks, although some of them may be null."""
