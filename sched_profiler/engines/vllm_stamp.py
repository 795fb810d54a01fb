"""Tells the engine when a worker in another process had a result ready.

The engine takes a result when it comes round to it. If it was busy scheduling the next batch, the
model has been idle since, and without this that time would pass for model time: a scheduler that is
on the critical path would hide it. A result is pickled in the moment in which a worker hands it
out, so the time of that is put into it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

__all__ = ["CLOCK", "STAMP", "stamp_results"]

STAMP = "_sched_profiler_ready"


def _boot_id() -> str:
    """Identify the monotonic clock: processes share it as long as they share a kernel."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


CLOCK = _boot_id()


def stamp_results() -> None:
    """Make this process put the time into the results that it pickles."""
    from vllm.v1.outputs import ModelRunnerOutput  # noqa: PLC0415 - vLLM is there when it calls us

    def getstate(self: Any) -> dict[str, Any]:
        return {**self.__dict__, STAMP: (CLOCK, time.monotonic_ns())}

    if CLOCK:
        ModelRunnerOutput.__getstate__ = getstate
