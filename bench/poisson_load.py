"""Runs a real vLLM engine under requests that come at random, and leaves a log and a request trace.

A script for a process of its own, called by `tuning_check.py` and `capacity_check.py`. The engine
lives in this process: a request that comes while a step runs is seen after it, as an engine core
does.

With `--blocks` it serves a block for each line of standard input, which has a seed, the number of
requests and their rate, and says when each block began and when each request had its answer.
Several engines can so take turns, and see the same minutes of a machine.
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


LENGTHS = {
    "long or short": (((600, 1500), (8, 32)), ((20, 200), (32, 96))),
    "short": (((20, 200), (8, 32)),),
}
"""The least and the most tokens of a prompt and of its answer, for each kind of request."""


class Asked(NamedTuple):
    """A request to come."""

    moment: float
    """In seconds from the beginning on."""
    prompt: list[int]
    num_output_tokens: int


def requests_of(seed: int, rate: float, count: int, lengths: str = "long or short") -> list[Asked]:
    """Draw requests: of two kinds, if there are two, about half of them of each.

    At another rate the same ones come, only faster or slower.
    """
    first, last = LENGTHS[lengths][0], LENGTHS[lengths][-1]
    draw = random.Random(seed)
    moment, load = 0.0, []
    for _ in range(count):
        moment += draw.expovariate(rate)
        prompt, answers = first if draw.random() < 0.5 else last
        length, answer = draw.randint(*prompt), draw.randint(*answers)
        load.append(Asked(moment, [draw.randrange(3, 500) for _ in range(length)], answer))
    return load


def serve(engine: Any, load: Sequence[Asked], name: str) -> dict[str, Any]:
    """Let requests come at their moments; return when that began, and how long all of it took.

    And when each was answered, in the order of that, in seconds from the beginning on.
    """
    from vllm import SamplingParams  # noqa: PLC0415 - after the environment is set

    unix, began, number = time.time(), time.monotonic(), 0
    answered: list[float] = []
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
            ended = sum(output.finished for output in engine.step())
            answered += [round(time.monotonic() - began, 4)] * ended
        else:
            time.sleep(max(0.0, load[number].moment - (time.monotonic() - began)))
    return {"began": unix, "seconds": time.monotonic() - began, "answered": answered}


def main() -> None:
    """Serve the load, and print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--seqs", type=int, required=True)
    parser.add_argument("--lengths", choices=LENGTHS, default="long or short")
    parser.add_argument("--kv-mib", type=int, default=64)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--requests", type=int, help="how many")
    parser.add_argument("--seed", type=int, help="of the requests")
    parser.add_argument("--blocks", action="store_true", help="read what each one is")
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
        kv_cache_memory_bytes=arguments.kv_mib << 20,
        seed=0,
    )
    asked = [(arguments.seed, arguments.requests, arguments.rate)]
    blocks = (line.split() for line in sys.stdin) if arguments.blocks else asked
    for number, (seed, count, rate) in enumerate(blocks):
        load = requests_of(int(seed), float(rate), int(count), arguments.lengths)
        print(json.dumps(serve(llm.llm_engine, load, str(number))), flush=True)


if __name__ == "__main__":
    main()
