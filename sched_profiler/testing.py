"""Help for tests of engines and sinks that use this package."""

from __future__ import annotations

__all__ = ["FakeClock"]


class FakeClock:
    """A clock that moves only when told to, so that every duration in a test is exact."""

    def __init__(self, unix_time_s: float = 1_700_000_000.0) -> None:
        """Start at the Unix time `unix_time_s`."""
        self._monotonic_ns = 0
        self._epoch_ns = round(unix_time_s * 1e9)

    def monotonic_ns(self) -> int:
        """Return the nanoseconds that the clock was moved by."""
        return self._monotonic_ns

    def time_ns(self) -> int:
        """Return the Unix time in nanoseconds."""
        return self._epoch_ns + self._monotonic_ns

    def advance(self, milliseconds: float) -> None:
        """Let time pass."""
        self._monotonic_ns += round(milliseconds * 1e6)

    def step_wall_clock(self, milliseconds: float) -> None:
        """Set the wall clock forward, or back, as an administrator or NTP does."""
        self._epoch_ns += round(milliseconds * 1e6)
