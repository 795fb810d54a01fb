"""The line that our failures do not cross: profiling may fail, serving may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sched_profiler.errors import RecordError, SchedProfilerError, SinkUnavailableError
from sched_profiler.messages import logger

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Boundary"]


class Boundary:
    """Takes the failures of one part (a sink, the adapter) so that they stay ours.

    The first failure is logged with its traceback, all are counted, and after `limit` in a row (if
    there is a limit) the part is switched off for good.

    Attributes:
        is_open: False once the part is switched off; callers then leave it alone.
        num_failures: failures since the start.
    """

    def __init__(self, part: str, *, limit: int | None = 3, strict: bool = False) -> None:
        """Guard `part`, a name for the log; with `strict` let every failure through (tests)."""
        self.part = part
        self.is_open = True
        self.num_failures = 0
        self._limit = limit
        self._strict = strict
        self._num_in_a_row = 0

    def guard(self, call: Callable[..., object], *args: object) -> bool:
        """Call `call(*args)` if the part is still on; tell whether it was called and succeeded."""
        return self.attempt(call, *args) is None

    def attempt(self, call: Callable[..., object], *args: object) -> Exception | None:
        """Call `call(*args)` if the part is still on; return why that went wrong, if it did."""
        if not self.is_open:
            return SchedProfilerError(f"{self.part} is switched off; the log says why")
        try:
            call(*args)
        except Exception as error:  # noqa: BLE001 - this is the boundary: whatever it is stays ours
            self.failed(error)
            return error
        self.succeeded()
        return None

    def succeeded(self) -> None:
        """Note a success: the failures before it are no longer in a row with those after it."""
        self._num_in_a_row = 0

    def failed(self, error: Exception) -> bool:
        """Take a failure: log the first with its traceback, switch off after too many in a row.

        Tells whether it was this one that switched the part off.
        """
        if self._strict:
            raise error
        self.num_failures += 1
        # A malformed record says nothing about the part that was to take it, and a disk that is
        # full now may have room in an hour.
        self._num_in_a_row += not isinstance(error, RecordError | SinkUnavailableError)
        if self.num_failures == 1:
            logger.error(
                "%s failed; serving goes on, and further failures are only counted",
                self.part,
                exc_info=error,
            )
        if not self.is_open or self._limit is None or self._num_in_a_row < self._limit:
            return False
        self.is_open = False
        logger.error(
            "%s failed %d times in a row and is switched off (last: %s)",
            self.part,
            self._num_in_a_row,
            error,
        )
        return True
