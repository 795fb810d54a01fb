"""Results as plain data, which every reader of JSON takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from attrs import AttrsInstance

__all__ = ["plain"]


def plain(result: AttrsInstance) -> dict[str, Any]:
    """Return all fields of a result; what is not finite is None: JSON has no word for it."""
    return attrs.asdict(result, value_serializer=_finite)


def _finite(_: object, __: object, value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
