"""Keeps records in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sched_profiler.record import BatchRecord

__all__ = ["MemorySink"]


class MemorySink:
    """Keeps every record in `records`, in the order of writing: for tests and notebooks."""

    def __init__(self) -> None:
        """Start with no record."""
        self.records: list[BatchRecord] = []

    def write(self, record: BatchRecord) -> None:
        """Append the record."""
        self.records.append(record)

    def flush(self) -> None:
        """Do nothing: records are in place at once."""

    def close(self) -> None:
        """Do nothing: the records stay readable."""

    def __repr__(self) -> str:
        """Return the sink and how much it holds."""
        return f"MemorySink({len(self.records)} records)"
