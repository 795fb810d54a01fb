"""vLLM's schedulers with the oracle inside, as `--scheduler-cls` takes them.

Each engine writes a file of its own into the folder that the variable `SCHED_ORACLE` names: a line
for the process, then one for each batch when it is scheduled and one when its result is taken in.
Whatever profiles the scheduler is wrapped around the oracle and is not asked.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from collections import deque
from pathlib import Path
from typing import Any

from oracle import Oracle
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

# Of one process, in the order in which they start.
_numbers = itertools.count()


class _WithOracle:
    """Asks the oracle about each batch, and notes what vLLM itself says when its result is in."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._oracle = Oracle(self)
        self._oracle_pending: deque[tuple[int, Any]] = deque()
        self._oracle_batches = itertools.count()
        folder = Path(os.environ["SCHED_ORACLE"])
        folder.mkdir(exist_ok=True)
        # A line at a time: the process may be killed after any.
        self._oracle_file = (folder / f"{os.getpid()}-{next(_numbers):02}.jsonl").open(
            "w", buffering=1, encoding="utf-8"
        )
        self._note(process=multiprocessing.current_process().name)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        self._oracle.look()
        output = super().schedule(*args, **kwargs)
        expected = self._oracle.batch(output)
        if expected is not None:
            number = next(self._oracle_batches)
            expected["num_inflight_batches"] = len(self._oracle_pending)
            self._oracle_pending.append((number, output))
            self._note(batch=number, expected=expected)
        return output

    def update_from_output(self, output: Any, *args: Any, **kwargs: Any) -> Any:
        returned = super().update_from_output(output, *args, **kwargs)
        if output.num_scheduled_tokens:
            number, pending = self._oracle_pending.popleft()
            assert pending is output, "results come in the order of schedule()"
            clients = list(returned.values())
            told = {
                "num_generated_tokens": sum(
                    len(request.new_token_ids) for client in clients for request in client.outputs
                )
            }
            if self.log_stats:
                stats = [client.scheduler_stats for client in clients if client.scheduler_stats]
                told["num_accepted_tokens"] = sum(
                    of.spec_decoding_stats.num_accepted_tokens
                    for of in stats
                    if of.spec_decoding_stats
                )
            self._note(batch=number, expected=told)
        return returned

    def _note(self, **what: Any) -> None:
        self._oracle_file.write(json.dumps(what) + "\n")


class OracleScheduler(_WithOracle, Scheduler):  # type: ignore[misc]  # vLLM ships no types
    """vLLM's own scheduler with the oracle inside."""


class OracleAsyncScheduler(_WithOracle, AsyncScheduler):  # type: ignore[misc]  # likewise
    """vLLM's own asynchronous scheduler with the oracle inside."""
