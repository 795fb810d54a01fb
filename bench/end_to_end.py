"""Throughput of a real vLLM engine with profiling against without, in one process.

`make bench` runs it. One engine serves a load that never ends: every other step a request finishes
and another takes its place, so that each block of steps has the same to do. Block by block
profiling is on or off, in balanced order (on, off, off, on, ...), so that the machine's drift meets
both alike. Each block with profiling is set against the one without beside it; blocks are short,
since a machine drifts less in a short time. The ratio of blocks without profiling, off against off,
shows what is noise.

The writer's thread does not come round by its own clock but once in each block with profiling,
which is as often as it does otherwise: so its work falls into a block with profiling.
"""

from __future__ import annotations

import argparse
import itertools
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
from sched_profiler.engines.vllm_contents import contents_of
from sched_profiler.engines.vllm_probe import Probe

_NUM_RUNNING = 32
_BLOCK_S = 0.2
"""How often the writer comes round."""
_WRITES_AT = 0.2
"""When the writer is woken, as a part of the block: what it has to do is done before the end."""


class Load:
    """Steps an engine, and keeps it full."""

    def __init__(self, engine: Any) -> None:
        from vllm import SamplingParams  # noqa: PLC0415 - after the environment is set

        self._engine = engine
        self._parameters = SamplingParams
        self._numbers = itertools.count()
        self._draw = random.Random(3)

    def step(self) -> None:
        """Do one step, which brings each request a token."""
        while self._engine.get_num_unfinished_requests() < _NUM_RUNNING:
            number = next(self._numbers)
            prompt = [self._draw.randrange(3, 250) for _ in range(60)]
            # The first ones finish one after the other.
            length = 2 * (number + 1) if number < _NUM_RUNNING else 2 * _NUM_RUNNING
            parameters = self._parameters(max_tokens=length, ignore_eos=True, temperature=0)
            self._engine.add_request(str(number), {"prompt_token_ids": prompt}, parameters)
        self._engine.step()


def block(
    load: Load, scheduler: Any, profiler: BatchProfiler, num_steps: int, *, on: bool
) -> float:
    """Return the tokens per second of a block of steps."""
    probe = Probe(scheduler, profiler)
    if on:
        probe.attach()
    began = time.perf_counter()
    for number in range(num_steps):
        load.step()
        if on and number == int(_WRITES_AT * num_steps):
            profiler.writer._wake.put(None)  # type: ignore[attr-defined]  # noqa: SLF001 - see top
    seconds = time.perf_counter() - began
    if on:
        probe.detach()
    return _NUM_RUNNING * num_steps / seconds


def middle(ratios: list[float]) -> float:
    """Return the geometric mean of the middle three fifths: in the others the machine was not ours.

    It is as good an estimate as the mean of all, and a steal of the whole machine does not move it.
    """
    left_out = len(ratios) // 5
    return statistics.geometric_mean(sorted(ratios)[left_out : len(ratios) - left_out])


def ratio(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the trimmed mean of the ratios and its 95% bootstrap interval."""
    draw = random.Random(0)
    ratios = [a / b for a, b in pairs]
    resampled = sorted(middle(draw.choices(ratios, k=len(ratios))) for _ in range(4000))
    return middle(ratios), resampled[100], resampled[3900]


def neighbours(off: list[float]) -> list[tuple[float, float]]:
    """Return pairs of blocks that ran one right after the other, in either order by turns."""
    pairs = list(zip(off[::2], off[1::2], strict=False))
    return [pair if number % 2 else pair[::-1] for number, pair in enumerate(pairs)]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--blocks", type=int, default=1600)
    parser.add_argument(
        "--layers", type=int, default=2, help="of the model: the more, the longer a step"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        # A model on every core leaves none for the writer, as no model on a GPU does.
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    from vllm import LLM  # noqa: PLC0415 - after the environment is set

    with tempfile.TemporaryDirectory() as folder:
        llm = LLM(
            model=str(make_tiny_model(Path(folder) / "model")),
            load_format="dummy",
            dtype="float32",
            enforce_eager=True,
            max_model_len=2048,
            max_num_batched_tokens=512,
            max_num_seqs=_NUM_RUNNING,
            kv_cache_memory_bytes=256 << 20,
            hf_overrides={"num_hidden_layers": arguments.layers},
        )
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        load, log = Load(llm.llm_engine), Path(folder) / "log.jsonl"
        profiler = BatchProfiler(JsonlSink(log), contents_of=contents_of(scheduler))
        profiler.writer._poll_s = 1e6  # type: ignore[attr-defined]  # noqa: SLF001 - see top
        num_steps = 50
        for number in range(6):
            rate = block(load, scheduler, profiler, num_steps, on=number % 2 == 0)
        num_steps = max(4, round(_BLOCK_S * rate / _NUM_RUNNING))
        measured = []
        for number in range(arguments.blocks):
            is_on = number % 4 in (0, 3)
            measured.append((is_on, block(load, scheduler, profiler, num_steps, on=is_on)))
        profiler.close()
        num_records = sum(1 for _ in log.open("rb"))
    on = [rate for is_on, rate in measured if is_on]
    off = [rate for is_on, rate in measured if not is_on]
    result = {
        "on_against_off": ratio(list(zip(on, off, strict=True))),
        "off_against_off": ratio(neighbours(off)),
        "layers": arguments.layers,
        "blocks": len(measured),
        "records": num_records,
        "step_ms": 1000 * _NUM_RUNNING / statistics.median(off),
    }
    for name in ("on_against_off", "off_against_off"):
        estimate, low, high = result[name]
        print(f"throughput, {name.replace('_', ' ')}: {estimate:.4f} ({low:.4f} to {high:.4f})")
    print(f"a step takes {result['step_ms']:.1f} ms")
    name = f"end_to_end_{arguments.layers}_layers.json"
    (arguments.out / name).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
