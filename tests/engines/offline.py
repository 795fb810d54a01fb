"""Runs real vLLM engines offline and tells what vLLM itself says of its requests.

A script for a process of its own: `python offline.py MODEL_DIR SCENARIO...`. Each scenario makes
an engine, and the last line of the output is JSON: per scenario, what vLLM reports of each request.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from typing import Any

from user_scheduler import UserScheduler
from vllm import LLM, SamplingParams
from vllm.platforms.cpu import CpuPlatform

Prompt = dict[str, list[int]]


def engine(model: str, **options: Any) -> Any:
    """Make a small engine on the CPU."""
    defaults = {
        "load_format": "dummy",
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 2048,
        "max_num_batched_tokens": 256,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": 64 << 20,
        "seed": 0,
    }
    return LLM(model=model, **(defaults | options))


def prompts(lengths: list[int], seed: int = 0) -> list[Prompt]:
    """Return prompts of the given lengths that share no prefix."""
    rng = random.Random(seed)
    return [{"prompt_token_ids": [rng.randrange(3, 250) for _ in range(n)]} for n in lengths]


def generate(llm: Any, batch: list[Prompt], max_tokens: int) -> list[dict[str, int]]:
    """Generate, and return what vLLM's own outputs say."""
    parameters = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0)
    return [
        {
            "prompt": len(output.prompt_token_ids),
            "cached": output.num_cached_tokens or 0,
            "generated": len(output.outputs[0].token_ids),
        }
        for output in llm.generate(batch, parameters, use_tqdm=False)
    ]


def synchronous(model: str) -> Any:
    """Mixed prompts, longer ones in chunks; a second round hits the prefix cache."""
    llm = engine(model)
    batch = prompts([5, 40, 300, 700, 1100, 17, 256, 1] * 4)
    return generate(llm, batch, 12) + generate(llm, batch[:8], 12)


def users_scheduler(model: str) -> Any:
    """A scheduler class of the user's own does the scheduling."""
    llm = engine(model, scheduler_cls="user_scheduler.UserScheduler")
    outputs = generate(llm, prompts([30, 400, 3]), 5)
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    assert isinstance(scheduler, UserScheduler)
    assert UserScheduler.num_steps > 0
    assert type(scheduler).__name__ == "UserScheduler"
    scheduler.schedule(tag="an argument that only the user's own class knows")
    return outputs


def failing_model(model: str) -> Any:
    """The model raises in the middle of a run."""
    llm = engine(model)
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    execute, num_calls = executor.execute_model, 0

    def fail_at_the_seventh(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 7:
            raise RuntimeError("the model fails, says the test")
        return execute(*args, **kwargs)

    executor.execute_model = fail_at_the_seventh
    try:
        generate(llm, prompts([100, 100]), 20)
    except RuntimeError as error:
        return str(error)
    return "did not fail"


def asynchronous(model: str) -> Any:
    """Scheduling overlaps with a worker in a process of its own, as on a GPU.

    vLLM's CPU platform switches asynchronous scheduling off as it makes the configuration; this
    puts back what was asked for.
    """
    check = CpuPlatform.check_and_update_config.__func__

    def check_and_keep(cls: Any, config: Any) -> None:
        asked_for = config.scheduler_config.async_scheduling
        check(cls, config)
        config.scheduler_config.async_scheduling = asked_for

    CpuPlatform.check_and_update_config = classmethod(check_and_keep)
    llm = engine(model, async_scheduling=True, distributed_executor_backend="mp")
    return generate(llm, prompts([5, 40, 300, 700, 1100, 17] * 4), 24)


SCENARIOS: dict[str, Callable[[str], Any]] = {
    "synchronous": synchronous,
    "users_scheduler": users_scheduler,
    "failing_model": failing_model,
    "asynchronous": asynchronous,
}


if __name__ == "__main__":
    outputs = {name: SCENARIOS[name](sys.argv[1]) for name in sys.argv[2:]}
    sys.stdout.write(f"\n{json.dumps(outputs)}\n")
