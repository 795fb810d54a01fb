"""Runs real vLLM engines offline and tells what vLLM itself says of its requests.

A script for a process of its own: `python offline.py MODEL_DIR SCENARIO...`. Each scenario makes
an engine, and the last line of the output is JSON: per scenario, what vLLM reports of each request.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from user_scheduler import UserScheduler
from vllm import LLM, SamplingParams
from vllm.platforms.cpu import CpuPlatform
from vllm.sampling_params import StructuredOutputsParams

Prompt = dict[str, list[int]]

# The cache holds 416 tokens, a batch 64: what is preempted is recomputed in several chunks.
TIGHT = {
    "block_size": 32,
    "num_gpu_blocks_override": 14,
    "max_model_len": 256,
    "max_num_batched_tokens": 64,
}

# vLLM's CPU worker makes room for what stages hand on only as it warms up, and it warms up only
# when it compiles: an eager engine fails in its first batch.
PIPELINE = {
    "pipeline_parallel_size": 2,
    "distributed_executor_backend": "mp",
    "enforce_eager": False,
    "compilation_config": {"mode": 2, "backend": "eager"},
}


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


@contextmanager
def asynchronous_scheduling() -> Iterator[None]:
    """Keep what vLLM's CPU platform switches off as it makes the configuration."""
    check = CpuPlatform.check_and_update_config

    def check_and_keep(cls: Any, config: Any) -> None:
        asked_for = config.scheduler_config.async_scheduling
        check(config)
        config.scheduler_config.async_scheduling = asked_for

    CpuPlatform.check_and_update_config = classmethod(check_and_keep)
    yield
    CpuPlatform.check_and_update_config = check


@contextmanager
def forking() -> Iterator[None]:
    """Let vLLM fork its first processes: each that it spawns takes long to import vLLM again."""
    check = CpuPlatform.check_and_update_config

    def check_and_fork(cls: Any, config: Any) -> None:
        check(config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = classmethod(check_and_fork)
    yield
    CpuPlatform.check_and_update_config = check


def asynchronous(model: str) -> Any:
    """Scheduling overlaps with a worker in a process of its own, as on a GPU.

    The engine is in a process of its own as well.
    """
    with asynchronous_scheduling(), forking():
        llm = engine_with_oracle(model, async_scheduling=True, distributed_executor_backend="mp")
    return generate(llm, prompts([5, 40, 300, 700, 1100, 17] * 4), 24)


def engine_with_oracle(model: str, **options: Any) -> Any:
    """Make an engine whose scheduler notes what the oracle says of each batch."""
    is_async = options.get("async_scheduling", False)
    cls = "OracleAsyncScheduler" if is_async else "OracleScheduler"
    # Without statistics vLLM does not tell how many draft tokens it accepted.
    return engine(
        model, scheduler_cls=f"oracle_scheduler.{cls}", disable_log_stats=False, **options
    )


class Arrival(NamedTuple):
    """A request that comes before the engine's step `at`, and may be aborted before a later one."""

    prompt: Prompt
    max_tokens: int = 12
    at: int = 0
    abort_at: int | None = None
    priority: int = 0
    structured: dict[str, Any] | None = None


def drive(llm: Any, load: list[Arrival]) -> list[dict[str, Any]]:
    """Step the engine until the load is served, and return what vLLM's own outputs say.

    The engine must live in this process. Of the aborts every other one comes while the model runs.
    """
    engine, core = llm.llm_engine, llm.llm_engine.engine_core.engine_core
    told: list[dict[str, Any]] = [
        {"prompt": len(a.prompt["prompt_token_ids"]), "cached": 0, "generated": 0, "tokens": []}
        for a in load
    ]
    step = 0
    while (
        any(step <= max(a.at, a.abort_at or 0) for a in load)
        or core.scheduler.has_requests()
        or core.batch_queue
    ):
        for number, arrival in enumerate(load):
            if arrival.at == step:
                parameters = SamplingParams(
                    max_tokens=arrival.max_tokens,
                    ignore_eos=arrival.structured is None,
                    temperature=0,
                )
                if arrival.structured:
                    parameters.structured_outputs = StructuredOutputsParams(**arrival.structured)
                engine.add_request(
                    str(number), arrival.prompt, parameters, priority=arrival.priority
                )
            elif arrival.abort_at == step and number % 2:
                engine.abort_request([str(number)])
            elif arrival.abort_at == step:
                # vLLM takes these while the model runs; it has appended to the number.
                ids = [r for r in core.scheduler.requests if r.startswith(f"{number}-")]
                core.aborts_queue.put(ids)
        for output in engine.step():
            (completion,) = output.outputs
            told[int(output.request_id)] |= {
                "cached": output.num_cached_tokens or 0,
                "generated": len(completion.token_ids),
                "tokens": list(completion.token_ids),
            }
        step += 1
    return told


def chunked_and_cached(model: str) -> Any:
    """Long prompts in chunks, then the same again: from the prefix cache, one but for a token."""
    llm = engine_with_oracle(model)
    first = prompts([1, 2, 255, 257, 513, 1000, 1900, 17, 512, 129])
    again = prompts([129, 257, 1000, 400], seed=1)
    told = generate(llm, first, 12)
    return told + generate(llm, [first[9], first[3], first[5], again[3]], 12)


def contended(num_requests: int = 16, *, shared: int = 0) -> list[Arrival]:
    """Return more than `TIGHT` has room for, coming one after the other."""
    rest = prompts([30 + 7 * (number % 10) for number in range(num_requests)], seed=2)
    return [
        Arrival({"prompt_token_ids": [9] * shared + prompt["prompt_token_ids"]}, 100, 2 * number)
        for number, prompt in enumerate(rest)
    ]


def preempted(model: str) -> Any:
    """Without a prefix cache all that was computed is computed again."""
    llm = engine_with_oracle(model, **TIGHT, enable_prefix_caching=False)
    return drive(llm, contended())


def preempted_and_cached(model: str) -> Any:
    """With a prefix cache a part of it is still there."""
    return drive(engine_with_oracle(model, **TIGHT), contended(shared=70))


def aborted(model: str) -> Any:
    """Clients go: while they wait, in the middle of the prompt, of the answer, and preempted.

    The last comes when the engine has been idle for long.
    """
    llm = engine_with_oracle(model, **TIGHT)
    return drive(llm, [*with_aborts(contended(24)), Arrival(prompts([20])[0], at=700)])


def with_aborts(load: list[Arrival]) -> list[Arrival]:
    """Abort two in three, from the step in which they come until long after."""
    return [
        arrival._replace(abort_at=arrival.at + 1 + (17 * number) % 150) if number % 3 else arrival
        for number, arrival in enumerate(load)
    ]


def priority(model: str) -> Any:
    """The last to come is the first to be served, and takes the room of who is running.

    Decodes leave so little of a batch that prompts and recomputes go on one token at a time.
    """
    few = {"num_gpu_blocks_override": 11, "max_num_batched_tokens": 3, "max_num_seqs": 3}
    llm = engine_with_oracle(model, **(TIGHT | few), scheduling_policy="priority")
    load = contended()
    return drive(llm, [a._replace(priority=-number) for number, a in enumerate(load)])


def structured_output(model: str) -> Any:
    """Grammars beside requests without one."""
    llm = engine_with_oracle(model)
    grammars: list[dict[str, Any] | None] = [
        {"regex": "[0-9]{3}-[a-f]{4}"},
        {"choice": ["yes", "no, never"]},
        None,
        {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
    ]
    load = [
        Arrival(prompt, 20, at=number, structured=grammars[number % 4])
        for number, prompt in enumerate(prompts([5, 300, 40, 17] * 3))
    ]
    # It takes many steps to compile; others are served meanwhile.
    slow = {"regex": "([a-f]{1,99}[0-9]{1,99}){1,40}"}
    return drive(llm, [*load, Arrival(prompts([9])[0], 20, at=2, structured=slow)])


def pooling(model: str) -> Any:
    """An embedding model: prompts only, the longer ones in chunks."""
    llm = engine_with_oracle(model, runner="pooling", convert="embed")
    batch = prompts([5, 40, 700, 300, 20, 129] * 4)
    return [
        {"prompt": len(output.prompt_token_ids), "size": len(output.outputs.embedding)}
        for output in llm.embed(batch, use_tqdm=False)
    ]


def asynchronous_in_process(model: str) -> Any:
    """One batch ahead of the model: preemptions, aborts and a grammar while one is in flight."""
    with asynchronous_scheduling():
        llm = engine_with_oracle(model, **TIGHT, async_scheduling=True)
    load = contended(24, shared=70)
    load.append(Arrival(prompts([50])[0], 60, 5, structured={"regex": "([0-9]{2}-[a-f]{2} )+"}))
    return drive(llm, with_aborts(load))


def asynchronous_workers(model: str) -> Any:
    """Likewise, with a worker in a process of its own."""
    with asynchronous_scheduling():
        llm = engine_with_oracle(
            model, async_scheduling=True, distributed_executor_backend="mp", max_num_seqs=8
        )
    batch = prompts([5, 40, 300, 700, 1100, 17] * 4)
    return drive(llm, with_aborts([Arrival(p, 40, at=n) for n, p in enumerate(batch)]))


def pipeline_parallel(model: str) -> Any:
    """Two batches of different requests are in flight, one in each of two workers."""
    llm = engine_with_oracle(
        model,
        **PIPELINE,
        max_num_seqs=8,
    )
    batch = prompts([5, 40, 300, 700, 1100, 17] * 4)
    return drive(llm, with_aborts([Arrival(p, 40, at=n) for n, p in enumerate(batch)]))


def ngram(model: str) -> Any:
    """Drafts from the prompt, some of them accepted; a grammar refuses others.

    It imports numba, after which vLLM's CPU build makes no further engine in the same process.
    """
    llm = engine_with_oracle(
        model,
        speculative_config={
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_min": 1,
            "prompt_lookup_max": 3,
        },
    )
    batch = prompts([5, 40, 300, 700] * 2)
    load = [
        Arrival(prompt, 60, at=number, abort_at=None if number < 3 else number + 8)
        for number, prompt in enumerate(batch)
    ]
    load.append(Arrival(prompts([30])[0], 60, structured={"regex": "([0-9]{2}-[a-f]{2} )+"}))
    return drive(llm, load)


SCENARIOS: dict[str, Callable[[str], Any]] = {
    scenario.__name__: scenario
    for scenario in (
        synchronous,
        users_scheduler,
        failing_model,
        asynchronous,
        chunked_and_cached,
        preempted,
        preempted_and_cached,
        aborted,
        priority,
        structured_output,
        pooling,
        asynchronous_in_process,
        asynchronous_workers,
        pipeline_parallel,
        ngram,
    )
}


if __name__ == "__main__":
    outputs = {name: SCENARIOS[name](sys.argv[1]) for name in sys.argv[2:]}
    sys.stdout.write(f"\n{json.dumps(outputs)}\n")
