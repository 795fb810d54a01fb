"""Text that does no harm to a terminal."""

from __future__ import annotations

from typing import TextIO

from sched_profiler.errors import printable

__all__ = ["say"]


def say(*lines: str, stream: TextIO | None = None) -> None:
    """Print lines, whatever is in them; by default on standard output."""
    for line in lines:
        print(printable(line), file=stream)
