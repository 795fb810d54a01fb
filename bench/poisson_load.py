"""Runs a real vLLM engine under requests that come at random, and leaves a log and a request trace.

A script for a process of its own, called by `tuning_check.py`. The engine lives in this process: a
request that comes while a step runs is seen after it, as an engine core does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path


def main() -> None:
    """Serve the load, and print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--seqs", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": str(arguments.log),
        "SCHED_PROFILER_REQUEST_TRACE": "true",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # One thread: on a shared machine, the slowest of several says how long a step takes.
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - after the environment is set

    llm = LLM(
        model=str(arguments.model),
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_batched_tokens=arguments.budget,
        max_num_seqs=arguments.seqs,
        kv_cache_memory_bytes=64 << 20,
        seed=0,
    )
    engine = llm.llm_engine
    draw = random.Random(arguments.seed)
    moment, load = 0.0, []
    for _ in range(arguments.requests):
        moment += draw.expovariate(arguments.rate)
        long = draw.random() < 0.5
        length = draw.randint(600, 1500) if long else draw.randint(20, 200)
        answer = draw.randint(8, 32) if long else draw.randint(32, 96)
        load.append((moment, [draw.randrange(3, 500) for _ in range(length)], answer))
    began, number = time.monotonic(), 0
    while number < len(load) or engine.has_unfinished_requests():
        now = time.monotonic() - began
        while number < len(load) and load[number][0] <= now:
            _, prompt, answer = load[number]
            engine.add_request(
                str(number),
                {"prompt_token_ids": prompt},
                SamplingParams(max_tokens=answer, ignore_eos=True, temperature=0),
            )
            number += 1
        if engine.has_unfinished_requests():
            engine.step()
        else:
            time.sleep(max(0.0, load[number][0] - (time.monotonic() - began)))
    print(json.dumps({"seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
