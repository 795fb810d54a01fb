"""A scheduler that counts its batches where the count survives the process."""

from __future__ import annotations

import os
import time
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler


class Counting(Scheduler):  # type: ignore[misc]  # vLLM ships no types
    """Notes the time of each batch where it survives the process, whatever kills it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._batches = os.open(os.environ["BATCHES"], flags, 0o666)
        self.num_batches = 0

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        output = super().schedule(*args, **kwargs)
        if output.total_num_scheduled_tokens:
            os.write(self._batches, f"{time.time()}\n".encode())
            self.num_batches += 1
        return output
