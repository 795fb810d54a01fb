"""What a person at a terminal gets to see: text that does no harm, and how far long work is."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sched_profiler.errors import SchedProfilerError
from sched_profiler.log_files import find_logs
from sched_profiler.log_names import COMPRESSED
from sched_profiler.redact import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["printable", "progress"]


def printable(text: str) -> str:
    """Return a text without what no terminal takes: control characters, half a surrogate pair."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_LONG_LOGS_BYTES = 64 << 20
"""From here on, reading takes long enough to show how far it is."""


@contextmanager
def progress(logs: Sequence[str]) -> Iterator[Callable[[int], None] | None]:
    """Show on a terminal how much of long logs is read; the block calls it with that number."""
    total = _total_bytes(logs)
    if total < _LONG_LOGS_BYTES or not sys.stderr.isatty():
        yield None
        return
    try:
        yield lambda num_bytes: _show(f"\rreading {min(1.0, num_bytes / total):4.0%}")
    finally:
        _show("\r            \r")


_COMPRESSION = 8
"""How much shorter a log is when it is compressed, about."""


def _total_bytes(logs: Sequence[str]) -> int:
    """Return about how many bytes there are to read; 0 where asking for that would take long."""
    if any(map(is_url, logs)):
        return 0
    try:
        files = find_logs(*logs)
    except SchedProfilerError:
        return 0  # reading them will say what is wrong
    return sum(
        file.num_bytes * (_COMPRESSION if file.name.endswith(COMPRESSED) else 1) for file in files
    )


def _show(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
