"""Profiles a vLLM whose scheduler stalls now and then: the tutorial finds out where, and mends it.

    python examples/planted_stall.py
    python examples/planted_stall.py --mended

The first run writes `stalling.jsonl`, the second one `mended.jsonl`. The scheduler is one that a
user might have written: vLLM's own, with a table that is rebuilt every 40 steps.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path
from typing import Any

from tiny_model import MAX_MODEL_LEN, make_tiny_model

__all__ = ["main"]

_STEPS = 40
_REBUILDING_S = 0.03


def stalling(scheduler: type[Any]) -> type[Any]:
    """Return a scheduler that rebuilds a table on the engine's thread, every 40 steps."""

    class Stalling(scheduler):  # type: ignore[misc]  # vLLM ships no types
        num_steps = 0

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            self.num_steps += 1
            if self.num_steps % _STEPS == 0:
                time.sleep(_REBUILDING_S)
            return super().schedule(*args, **kwargs)

    return Stalling


def main() -> None:
    """Generate for 200 prompts, with the stall or without it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mended", action="store_true", help="leave the stall out")
    mended = parser.parse_args().mended

    # In this process: vLLM is given a class that no other process could import.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_ENABLE_SCHEDULER_PROFILING"] = "true"
    os.environ["VLLM_SCHEDULER_PROFILING_LOG"] = "mended.jsonl" if mended else "stalling.jsonl"
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - after the environment is set
    from vllm.v1.core.sched.scheduler import Scheduler  # noqa: PLC0415 - likewise

    llm = LLM(
        model=str(make_tiny_model(Path("tiny_model"))),
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_memory_bytes=64 << 20,
        max_num_seqs=16,
        async_scheduling=False,
        scheduler_cls=Scheduler if mended else stalling(Scheduler),
    )
    draw = random.Random(0)  # noqa: S311 - a load
    prompts = [
        {"prompt_token_ids": [draw.randrange(3, 250) for _ in range(draw.randrange(20, 120))]}
        for _ in range(200)
    ]
    llm.generate(prompts, SamplingParams(max_tokens=50, ignore_eos=True))
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
