"""Runs a real vLLM engine under requests that come at random, and leaves a log and a request trace.

A script for a process of its own, called by `tuning_check.py`. The engine lives in this process: a
request that comes while a step runs is seen after it, as an engine core does.

With `--blocks` it serves a block for each line of standard input, which has a seed and the number
of requests, and says when each block began. Several engines can so take turns, and see the same
minutes of a machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Asked(NamedTuple):
    """A request to come."""

    moment: float
    """In seconds from the beginning on."""
    prompt: list[int]
    num_output_tokens: int


def requests_of(seed: int, rate: float, count: int) -> list[Asked]:
    """Draw requests: half of them long prompts with short answers, half the other way round."""
    draw = random.Random(seed)
    moment, load = 0.0, []
    for _ in range(count):
        moment += draw.expovariate(rate)
        long = draw.random() < 0.5
        length = draw.randint(600, 1500) if long else draw.randint(20, 200)
        answer = draw.randint(8, 32) if long else draw.randint(32, 96)
        load.append(Asked(moment, [draw.randrange(3, 500) for _ in range(length)], answer))
    return load


def serve(engine: Any, load: Sequence[Asked], name: str) -> dict[str, float]:
    """Let requests come at their moments; return when that began, and how long all of it took."""
    from vllm import SamplingParams  # noqa: PLC0415 - after the environment is set

    unix, began, number = time.time(), time.monotonic(), 0
    while number < len(load) or engine.has_unfinished_requests():
        now = time.monotonic() - began
        while number < len(load) and load[number].moment <= now:
            engine.add_request(
                f"{name}-{number}",
                {"prompt_token_ids": load[number].prompt},
                SamplingParams(
                    max_tokens=load[number].num_output_tokens, ignore_eos=True, temperature=0
                ),
            )
            number += 1
        if engine.has_unfinished_requests():
            engine.step()
        else:
            time.sleep(max(0.0, load[number].moment - (time.monotonic() - began)))
    return {"began": unix, "seconds": time.monotonic() - began}


def main() -> None:
    """Serve the load, and print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--seqs", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--requests", type=int, help="how many")
    parser.add_argument("--seed", type=int, help="of the requests")
    parser.add_argument("--blocks", action="store_true", help="read seeds and numbers of requests")
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
    from vllm import LLM  # noqa: PLC0415 - after the environment is set

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
    asked = [(arguments.seed, arguments.requests)]
    blocks = (map(int, line.split()) for line in sys.stdin) if arguments.blocks else asked
    for number, (seed, count) in enumerate(blocks):
        load = requests_of(seed, arguments.rate, count)
        print(json.dumps(serve(llm.llm_engine, load, str(number))), flush=True)


if __name__ == "__main__":
    main()
