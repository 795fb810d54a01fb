"""What is noteworthy in a log, in plain language."""

from __future__ import annotations

from typing import Any, Literal

import attrs

__all__ = ["Finding", "Kind", "Severity"]

Kind = Literal[
    "queue_blocked",
    "kv_cache_saturated",
    "preemption_storm",
    "scheduler_on_critical_path",
    "idle_gaps",
    "schedule_spikes",
    "schedule_drift",
    "prefill_interference",
    "slow_rank",
]
Severity = Literal["critical", "warning"]


@attrs.frozen(kw_only=True)
class Finding:
    """Something in a run that costs time, with the numbers and the batches that show it."""

    kind: Kind
    severity: Severity
    """`critical` where it costs or concerns a large part of the run; the docs give the limits."""
    title: str
    """What is the matter, in one sentence with the most telling numbers."""
    numbers: dict[str, float]
    """What it was concluded from, by names with units."""
    run: int
    """Number of the run in the frame."""
    dp_rank: int | None
    batch_ids: tuple[int, ...]
    """Some batches of the run that show it, the clearest ones, in ascending order."""
    remedy: str
    """What to try."""
    looked_at: float = 1.0
    """Share of the run's batches that it was concluded from; numbers that are counts are of these.
    They are in stretches, spread evenly over the run."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data."""
        return attrs.asdict(self) | {"batch_ids": list(self.batch_ids)}

    def __str__(self) -> str:
        """Return three lines: what, where, and what to do."""
        rank = "" if self.dp_rank is None else f", rank {self.dp_rank}"
        shown = ", ".join(map(str, self.batch_ids))
        if self.looked_at < 1:
            shown += f" ({self.looked_at:.2g} of the run was looked at)"
        return "\n".join(
            [
                f"{self.severity:<10}{self.title}",
                f"{'':<10}run {self.run}{rank}, for example batch {shown}",
                f"{'':<10}-> {self.remedy}",
            ]
        )
