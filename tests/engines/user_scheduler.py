"""A scheduler of a user's own, as `--scheduler-cls` takes it."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler


class UserScheduler(Scheduler):  # type: ignore[misc]  # vLLM ships no types
    """Counts its steps, and takes an argument that vLLM's own does not know."""

    num_steps = 0

    def schedule(self, *args: Any, tag: str = "", **kwargs: Any) -> Any:
        UserScheduler.num_steps += 1
        return super().schedule(*args, **kwargs)
