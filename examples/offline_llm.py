"""Profiles vLLM's `LLM` class in a program of your own; no server is needed.

    python examples/offline_llm.py MODEL --max-num-batched-tokens 256

Profiling is turned on by environment variables that are set before the engine is made. All options
but the model and `--log` go to `LLM` as they are. Without a model at hand, this one makes its own:

    python examples/offline_llm.py tiny
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

from tiny_model import MAX_MODEL_LEN, make_tiny_model

__all__ = ["main"]

# Random weights, and a start without delay: leave these out for a model of your own.
_TINY = {
    "load_format": "dummy",
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": MAX_MODEL_LEN,
    "kv_cache_memory_bytes": 64 << 20,
}
_LENGTHS = (5, 40, 300, 700, 1100, 17, 256, 1)


def main() -> None:
    """Generate for 32 prompts of mixed lengths, and sum up the log."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="name or folder of a model; tiny for one of random weights")
    parser.add_argument("--log", type=Path, default=Path("offline_llm.jsonl"))
    parser.add_argument("--max-num-batched-tokens", type=int, default=256)
    parser.add_argument("--max-num-seqs", type=int, default=16)
    options = vars(parser.parse_args())

    log, model = options.pop("log"), options.pop("model")
    os.environ["VLLM_ENABLE_SCHEDULER_PROFILING"] = "true"
    os.environ["VLLM_SCHEDULER_PROFILING_LOG"] = str(log)
    if model == "tiny":
        model, options = str(make_tiny_model(log.parent / "tiny_model")), options | _TINY

    # Only now: vLLM looks at the environment when it is imported.
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    llm = LLM(model=model, **options)
    draw = random.Random(0)  # noqa: S311 - a load
    prompts = [
        {"prompt_token_ids": [draw.randrange(3, 250) for _ in range(length)]}
        for length in _LENGTHS * 4
    ]
    llm.generate(prompts, SamplingParams(max_tokens=12, ignore_eos=True))
    # The engine ends here, and with it the log.
    llm.llm_engine.engine_core.shutdown()

    from sched_profiler.analysis import scan, summarize  # noqa: PLC0415 - the engine came first

    print(summarize(scan(log)))


if __name__ == "__main__":
    main()
