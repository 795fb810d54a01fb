"""Shows on a terminal how far long work is, how fast, and how long it will take."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["counting", "progress"]

_SILENT_S = 1.0
"""Work that takes no longer than this shows nothing."""
_PAUSE_S = 0.1
"""How often what is shown changes."""
_BAR_WIDTH = 24
_MB = 1_000_000


def progress(
    verb: str, clock: Callable[[], float] = time.monotonic
) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """Show on a terminal how far the block is, how fast, and how long it will take.

    Args:
        verb: what is being done, such as "reading".
        clock: for tests.

    Returns:
        a function that takes how many bytes are done, and how many there are.
    """
    return counting(verb, "MB", each=_MB, clock=clock)


@contextmanager
def counting(
    verb: str, unit: str, *, each: int = 1, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int], None] | None]:
    """Do what `progress` does for work that is not counted in bytes.

    Args:
        verb: what is being done, such as "replaying".
        unit: of what is counted, such as "requests".
        each: so many make one unit.
        clock: for tests.

    Returns:
        a function that takes how many are done, and how many there are.
    """
    if not sys.stderr.isatty():
        yield None
        return
    begin = shown = clock()
    width = 0

    def advance(done: int, total: int) -> None:
        nonlocal shown, width
        now = clock()
        if now - begin < _SILENT_S or now - shown < _PAUSE_S:
            return
        shown = now
        line = f"{verb} {_state(done / each, max(done, total, 1) / each, now - begin, unit)}"
        _show(f"\r{line:<{width}}")
        width = len(line)

    try:
        yield advance
    finally:
        if width:
            _show(f"\r{'':<{width}}\r")


def _state(done: float, total: float, seconds: float, unit: str) -> str:
    share = done / total
    bar = "#" * int(share * _BAR_WIDTH)
    rate = done / seconds
    left = f", {_duration((total - done) / rate)} left" if rate else ""
    return (
        f"{share:4.0%} [{bar:.<{_BAR_WIDTH}}] {done:,.0f} of {total:,.0f} {unit}, "
        f"{rate:,.0f} {unit}/s{left}"
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _show(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
