"""When a part of a log is closed, and how long it is kept."""

from __future__ import annotations

from typing import Any

import attrs

from sched_profiler import compression
from sched_profiler.errors import SettingError

__all__ = ["Rotation"]


def _limit(_: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not value > 0:
        raise SettingError(f"{attribute.name} is {value}; expected a number above 0, or None")


@attrs.frozen(kw_only=True)
class Rotation:
    """When a part of a log is closed, and how long closed parts are kept.

    Limits hold for all runs of the same log that this engine may look after: its own, and those
    that have ended.

    Attributes:
        part_bytes: close a part before it gets larger than so many bytes.
        part_seconds: close a part that began so long ago.
        keep_parts: keep so many closed parts; the oldest give way.
        keep_bytes: keep so many bytes of parts on this disk; the oldest give way.
        compress: `gzip` or `zstd`: compress closed parts.
    """

    part_bytes: int | None = attrs.field(default=None, validator=_limit)
    part_seconds: float | None = attrs.field(default=None, validator=_limit)
    keep_parts: int | None = attrs.field(default=None, validator=_limit)
    keep_bytes: int | None = attrs.field(default=None, validator=_limit)
    compress: str | None = attrs.field(default=None)

    def __attrs_post_init__(self) -> None:
        """Check what fields alone cannot say."""
        if self.compress is not None and self.compress not in compression.SUFFIXES:
            raise SettingError(f"compress is {self.compress!r}; use gzip or zstd")
        if not self.is_on and (self.keep_parts or self.keep_bytes or self.compress):
            raise SettingError(
                "keep_parts, keep_bytes and compress are about closed parts; "
                "say with part_bytes or part_seconds when a part is closed"
            )

    @property
    def is_on(self) -> bool:
        """Whether parts are closed at all."""
        return self.part_bytes is not None or self.part_seconds is not None
