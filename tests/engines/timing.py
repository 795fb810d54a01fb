"""Runs an engine through phases in each of which a delay is added in another place.

A script for a process of its own: `python timing.py MODEL_DIR sync|async|pipeline MS`. The last
line of its output is JSON: each phase, and the Unix times between which it ran. All run twice,
since a machine is busy at times.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import offline


def main(model: str, mode: str, added_ms: str) -> None:
    """Run all phases."""
    options: dict[str, Any] = {"worker_cls": "slow_worker.SlowWorker"}
    if mode == "async":
        options |= {"async_scheduling": True, "distributed_executor_backend": "mp"}
    elif mode == "pipeline":
        options |= offline.PIPELINE
    keep = offline.asynchronous_scheduling() if mode == "async" else contextlib.nullcontext()
    with keep, offline.forking():
        llm = offline.engine(model, **options)
    added_s = float(added_ms) / 1000
    core = llm.llm_engine.engine_core.engine_core
    slow_model = Path(os.environ["SLOW_MODEL"])
    step, delays = core.step_fn, {"schedule": 0.0, "gap": 0.0}
    # Inside of what the profiler measures: the scheduler's own method, found by its class.
    inner = type(core.scheduler)._update_after_schedule

    def update_after_schedule(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        # A pipeline also schedules nothing, while its only batch is on its way.
        if scheduled.total_num_scheduled_tokens:
            time.sleep(delays["schedule"])
        return inner(core.scheduler, scheduled, *args, **kwargs)

    def step_after_a_gap() -> Any:
        # A pipeline makes two steps of a batch: before the second one the model is at work.
        on_their_way = [scheduled for _, scheduled, _ in core.batch_queue or []]
        if mode != "pipeline" or not any(s.total_num_scheduled_tokens for s in on_their_way):
            time.sleep(delays["gap"])
        return step()

    core.scheduler._update_after_schedule = update_after_schedule
    core.step_fn = step_after_a_gap
    phases = []
    prompts = offline.prompts([20, 21, 22, 23])
    offline.generate(llm, prompts, 10)
    for phase in ("none", "model", "schedule", "gap") * 2:
        if phase == "model":
            slow_model.write_text(str(added_s))
        elif phase != "none":
            delays[phase] = added_s
        began = time.time()
        offline.generate(llm, prompts, 40)
        phases.append((phase, began, time.time()))
        slow_model.unlink(missing_ok=True)
        delays.update(schedule=0.0, gap=0.0)
    sys.stdout.write(f"\n{json.dumps(phases)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
