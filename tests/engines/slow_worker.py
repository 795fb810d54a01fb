"""A worker that measures itself, and sleeps when it is told to."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class SlowWorker(CPUWorker):  # type: ignore[misc]  # vLLM ships no types
    """Sleeps as long as the file in `SLOW_MODEL` says, while there is one.

    It notes how long the model took, for each batch that holds a request.
    """

    began = 0.0
    has_tokens = False

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self.began = time.monotonic()
        self.has_tokens = scheduler_output.total_num_scheduled_tokens > 0
        result = super().execute_model(scheduler_output, *args, **kwargs)
        delay = Path(os.environ["SLOW_MODEL"])
        # After the model: in a pipeline it waits for the stage before.
        if self._is_last and self.has_tokens and delay.exists():
            time.sleep(float(delay.read_text()))
        if result is not None:
            self._note()
        return result

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        result = super().sample_tokens(*args, **kwargs)
        self._note()
        return result

    @property
    def _is_last(self) -> bool:
        return bool(self.rank == self.parallel_config.world_size - 1)

    def _note(self) -> None:
        if self._is_last and self.has_tokens:
            ended = time.monotonic()
            with Path(os.environ["SLOW_MODEL"] + ".times").open("a") as times:
                times.write(f"{self.began} {ended}\n")
