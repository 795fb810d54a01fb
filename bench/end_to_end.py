"""Throughput of a real vLLM engine with profiling against without, in one process.

`make bench` runs it. One engine serves the same load again and again; profiling is attached for
every other round, in balanced order (on, off, off, on, ...), so that the machine's drift meets both
alike. The ratio off against off, of the same rounds, shows what is noise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tiny_model import make_tiny_model

from sched_profiler import BatchProfiler, JsonlSink
from sched_profiler.engines.vllm_probe import Probe, contents_of


def rounds(llm: Any, scheduler: Any, log: Path, number: int) -> list[tuple[bool, float]]:
    """Return for each round whether profiling was on, and its tokens per second."""
    from vllm import SamplingParams  # noqa: PLC0415 - after the environment is set

    draw = random.Random(3)
    prompts = [
        {"prompt_token_ids": [draw.randrange(3, 250) for _ in range(draw.choice([20, 200, 600]))]}
        for _ in range(48)
    ]
    parameters = SamplingParams(max_tokens=48, ignore_eos=True, temperature=0)
    measured = []
    for index in range(number + 2):
        on = index % 4 in (0, 3)
        profiler = BatchProfiler(JsonlSink(log), contents_of=contents_of(scheduler))
        probe = Probe(scheduler, profiler)
        llm.reset_prefix_cache()
        if on:
            probe.attach()
        began = time.perf_counter()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - began
        probe.detach()
        profiler.close()
        tokens = sum(len(o.prompt_token_ids) + len(o.outputs[0].token_ids) for o in outputs)
        # The first two rounds warm up.
        if index >= 2:
            measured.append((on, tokens / seconds))
    return measured


def ratio(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the median of the ratios and its 95% bootstrap interval."""
    draw = random.Random(0)
    ratios = [a / b for a, b in pairs]
    resampled = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(4000))
    return statistics.median(ratios), resampled[100], resampled[3900]


def neighbours(off: list[float]) -> list[tuple[float, float]]:
    """Return pairs of rounds that ran one after the other, in either order by turns."""
    pairs = list(zip(off[1::2], off[2::2], strict=False))
    return [pair if number % 2 else pair[::-1] for number, pair in enumerate(pairs)]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--rounds", type=int, default=48)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM  # noqa: PLC0415 - after the environment is set

    with tempfile.TemporaryDirectory() as folder:
        llm = LLM(
            model=str(make_tiny_model(Path(folder) / "model")),
            load_format="dummy",
            dtype="float32",
            enforce_eager=True,
            max_model_len=2048,
            max_num_batched_tokens=512,
            max_num_seqs=32,
            kv_cache_memory_bytes=256 << 20,
        )
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        measured = rounds(llm, scheduler, Path(folder) / "log.jsonl", arguments.rounds)
    on = [rate for is_on, rate in measured if is_on]
    off = [rate for is_on, rate in measured if not is_on]
    result = {
        "on_against_off": ratio(list(zip(on, off, strict=False))),
        "off_against_off": ratio(neighbours(off)),
        "rounds": len(measured),
        "tokens_per_second_off": statistics.median(off),
    }
    for name in ("on_against_off", "off_against_off"):
        middle, low, high = result[name]
        print(f"throughput, {name.replace('_', ' ')}: {middle:.4f} ({low:.4f} to {high:.4f})")
    (arguments.out / "end_to_end.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
