"""The entry point that vLLM calls in each of its processes.

It is apart from the adapter so that profiling that is off imports nothing and patches nothing.
"""

from __future__ import annotations

import os

__all__ = ["register"]


def register() -> None:
    """Install the adapter if `VLLM_ENABLE_SCHEDULER_PROFILING` asks for anything but "off"."""
    if os.environ.get("VLLM_ENABLE_SCHEDULER_PROFILING", "").strip().lower() in ("", "0", "false"):
        return
    from sched_profiler.engines.vllm import install  # noqa: PLC0415 - off must import nothing

    install()
