"""Where times come from."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock"]


class Clock(Protocol):
    """A source of time: `SYSTEM_CLOCK`, or the fake one of `sched_profiler.testing`."""

    def monotonic_ns(self) -> int:
        """Return nanoseconds since any fixed moment; never goes back. Durations come from it."""
        ...

    def time_ns(self) -> int:
        """Return nanoseconds since the Unix epoch; may be stepped. Timestamps come from it."""
        ...


class SystemClock:
    """The machine's clocks."""

    # Static, so that the engine's thread calls the built-in function and nothing else.
    monotonic_ns = staticmethod(time.monotonic_ns)
    time_ns = staticmethod(time.time_ns)


SYSTEM_CLOCK = SystemClock()
