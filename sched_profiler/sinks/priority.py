"""Lets threads of ours give way to the engine's."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

__all__ = ["lower_priority"]


def lower_priority() -> None:
    """Let this thread give way to the engine's; where threads have a priority of their own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            now = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(19, now + 10))
