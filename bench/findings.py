"""Measures what the findings are worth: how often they see what is there, and what is not.

    PYTHONPATH=bench:examples python bench/findings.py [--real]

Runs of the simulated engine, each with settings and a load of its own, have one fault planted, at
two sizes, or none. A finding of the planted kind is a hit. A finding of any other kind is a false
alarm, unless the fault brings it about. With `--real`, vLLM serves steady loads as well; any
finding there is one to explain.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from simulated_engine import Faults, Load, Setup, SimulatedEngine, Times

from sched_profiler.analysis import find_anomalies, load, load_manifests
from sched_profiler.codec import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.analysis import Finding

_SIZES = ("faint", "clear")
_FIRST_SEED = 2000
"""The limits of the detectors were chosen while looking at lower seeds."""


def healthy(rng: random.Random) -> SimulatedEngine:
    """Return an engine that is at ease with its load, and a machine with its own habits."""
    step_ms = rng.choice([6.0, 12.0, 30.0])
    return SimulatedEngine(
        seed=rng.randrange(1 << 30),
        load=Load(
            requests_per_s=rng.uniform(30, 100) / step_ms,
            prompt_tokens=rng.choice([50.0, 100.0, 150.0]),
            output_tokens=rng.choice([40.0, 80.0, 150.0]),
        ),
        setup=Setup(is_async=rng.random() < 0.5),
        times=Times(
            constant=step_ms,
            noise=rng.choice([0.02, 0.05, 0.1]),
            autocorrelation=rng.choice([0.0, 0.6, 0.9]),
            hiccups_per_s=rng.choice([0.0, 0.05, 0.5]),
        ),
    )


def _running(engine: SimulatedEngine) -> float:
    """Return about how many requests the load keeps running."""
    step_ms = engine.times.constant * 1.2
    return max(2.0, engine.load.requests_per_s / 1e3 * engine.load.output_tokens * step_ms)


def schedule_spikes(engine: SimulatedEngine, rng: random.Random, size: str) -> None:
    """One batch in some tens takes as long to schedule as a step, or twice."""
    times = {"faint": 0.6, "clear": 2.0}[size]
    engine.faults = Faults(
        spike_every=rng.choice([40, 80, 160]), spike_ms=times * engine.times.constant
    )


def schedule_drift(engine: SimulatedEngine, rng: random.Random, size: str) -> None:
    """schedule() gets twice or four times as long, in a step or by and by."""
    engine.times = attrs.evolve(engine.times, schedule_constant=0.04 * engine.times.constant)
    kind = rng.choice(["drift", "step_change"])
    times = {"faint": 2.0, "clear": 4.0}[size]
    engine.faults = Faults(**{kind: times**2 if kind == "drift" else times})


def too_few_seats(engine: SimulatedEngine, _rng: random.Random, size: str) -> None:
    """max_num_seqs is less than the load needs, a little or by half."""
    share = {"faint": 0.9, "clear": 0.5}[size]
    engine.setup = attrs.evolve(engine.setup, max_num_seqs=max(1, int(_running(engine) * share)))


def small_kv_cache(engine: SimulatedEngine, _rng: random.Random, size: str) -> None:
    """The KV cache holds less than the load needs, a little or by half."""
    share = {"faint": 1.2, "clear": 0.6}[size]
    rate = 4 * engine.load.requests_per_s
    engine.load = attrs.evolve(engine.load, requests_per_s=rate, prompt_tokens=150.0)
    tokens = 1.4 * engine.load.prompt_tokens + engine.load.output_tokens
    needed = _running(engine) * (tokens / 16 + 1)
    engine.setup = attrs.evolve(engine.setup, num_blocks=int(needed * share))


def small_budget(engine: SimulatedEngine, _rng: random.Random, size: str) -> None:
    """The token budget is less than prompts and decodes need, a little or by half."""
    share = {"faint": 0.9, "clear": 0.5}[size]
    prompt = 1.4 * engine.load.prompt_tokens
    step_ms = engine.times.constant * 1.2
    needed = engine.load.requests_per_s / 1e3 * step_ms * prompt + _running(engine)
    engine.setup = attrs.evolve(engine.setup, token_budget=max(4, int(needed * share)))


def slow_scheduler(engine: SimulatedEngine, _rng: random.Random, size: str) -> None:
    """schedule() takes a sixth or half of what the model does, in a synchronous engine."""
    share = {"faint": 0.17, "clear": 0.5}[size]
    engine.setup = attrs.evolve(engine.setup, is_async=False)
    engine.times = attrs.evolve(engine.times, schedule_constant=share * engine.times.constant)


def pauses(engine: SimulatedEngine, rng: random.Random, size: str) -> None:
    """The engine stands still now and then, for 4% or 15% of the time."""
    every = rng.choice([50, 100, 200])
    share = {"faint": 0.04, "clear": 0.15}[size]
    engine.faults = Faults(gap_every=every, gap_ms=every * engine.times.constant * share)


def long_prompts(engine: SimulatedEngine, _rng: random.Random, size: str) -> None:
    """Prompts of which each takes two or six times as long as a step of decodes."""
    times = {"faint": 2.0, "clear": 6.0}[size]
    tokens = times * engine.times.constant / engine.times.per_prefill_token
    # So that a prompt comes in one chunk, in about every eighth batch.
    engine.setup = attrs.evolve(engine.setup, token_budget=int(4 * tokens), num_blocks=1 << 20)
    engine.load = Load(
        requests_per_s=120 / engine.times.constant,
        prompt_tokens=tokens,
        prompt_spread=0.3,
        output_tokens=40.0,
    )
    # Its context shall not cost, so that what slows decodes down are prefills.
    engine.times = attrs.evolve(engine.times, per_decode_context_token=0.0)


def slow_rank(engine: SimulatedEngine, _rng: random.Random, size: str) -> None:
    """The model of one rank takes 15% or 40% longer."""
    engine.faults = Faults(slow_model={"faint": 1.15, "clear": 1.4}[size])


@attrs.frozen
class Plant:
    """A fault, the kinds of findings that it must bring, and those that it may."""

    plant: Callable[[SimulatedEngine, random.Random, str], None]
    must: tuple[str, ...]
    may: tuple[str, ...] = ()
    num_ranks: int = 1


PLANTS = (
    Plant(schedule_spikes, ("schedule_spikes",)),
    Plant(schedule_drift, ("schedule_drift",), ("scheduler_on_critical_path",)),
    Plant(too_few_seats, ("queue_blocked",)),
    Plant(
        small_kv_cache,
        ("kv_cache_saturated", "preemption_storm"),
        ("queue_blocked", "prefill_interference"),
    ),
    Plant(small_budget, ("queue_blocked",), ("prefill_interference",)),
    Plant(slow_scheduler, ("scheduler_on_critical_path",)),
    Plant(pauses, ("idle_gaps",)),
    Plant(long_prompts, ("prefill_interference",), ("queue_blocked",)),
    Plant(slow_rank, ("slow_rank",), num_ranks=4),
)


def findings(engines: list[SimulatedEngine], num_batches: int) -> list[Finding]:
    """Return what the analysis says of these engines, by way of a log."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run.jsonl"
        with log.open("wb") as stream:
            for engine in engines:
                stream.writelines(map(encode, engine.run(num_batches)))
        return find_anomalies(load(log), [engine.manifest() for engine in engines])


def ranks(first: SimulatedEngine, number: int) -> list[SimulatedEngine]:
    """Return the first rank and others beside it, which have no fault."""
    if number == 1:
        return [first]
    first.run_id, first.dp_rank = "rank0", 0
    others = [
        SimulatedEngine(
            seed=first.seed + rank,
            load=first.load,
            setup=first.setup,
            times=first.times,
            run_id=f"rank{rank}",
            dp_rank=rank,
        )
        for rank in range(1, number)
    ]
    return [first, *others]


def measure(num_seeds: int) -> dict[str, Any]:
    """Return hits and false alarms over all faults, sizes and seeds."""
    planted: Counter[tuple[str, str, str]] = Counter()
    hits: Counter[tuple[str, str, str]] = Counter()
    false_alarms: Counter[str] = Counter()
    true_alarms: Counter[str] = Counter()
    num_steady = num_steady_alarms = 0
    for seed in range(_FIRST_SEED, _FIRST_SEED + num_seeds):
        for plant in PLANTS:
            for size in _SIZES:
                rng = random.Random(f"{seed} {plant.plant.__name__} {size}")
                engine = healthy(rng)
                plant.plant(engine, rng, size)
                kinds = {
                    f.kind
                    for f in findings(ranks(engine, plant.num_ranks), rng.choice([1500, 3000]))
                }
                for kind in plant.must:
                    planted[kind, plant.plant.__name__, size] += 1
                    hits[kind, plant.plant.__name__, size] += kind in kinds
                true_alarms.update(kinds & set(plant.must))
                false_alarms.update(kinds - set(plant.must) - set(plant.may))
        for number in (1, 1, 1, 4):
            rng = random.Random(f"{seed} steady {number} {num_steady}")
            found = findings(ranks(healthy(rng), number), rng.choice([500, 1500, 3000]))
            num_steady += number
            num_steady_alarms += len(found)
            false_alarms.update({f.kind for f in found})
        print(f"seed {seed}: false alarms {dict(false_alarms)}", flush=True)
    rows = [
        {
            "kind": kind,
            "fault": fault,
            "size": size,
            "planted": number,
            "found": hits[kind, fault, size],
        }
        for (kind, fault, size), number in planted.items()
    ]
    return {
        "rows": rows,
        "alarms": [
            {"kind": kind, "true": true_alarms[kind], "false": false_alarms[kind]}
            for kind in sorted(set(true_alarms) | set(false_alarms))
        ],
        "num_steady_runs": num_steady,
        "num_steady_alarms": num_steady_alarms,
    }


_STEADY = (
    # requests at a time, choice of prompt lengths, output length
    (1, (30,), 50),
    (4, (20, 60), 60),
    (8, (20, 100), 60),
    (12, (10, 40), 100),
    (16, (60,), 40),
    (24, (5, 10, 20), 150),
)
_LAYERS = (2, 16)
"""With two layers a step takes so little time that a scheduler is bound to hold it up."""
_LOADS = tuple((layers, *steady) for layers in _LAYERS for steady in _STEADY)
_STEPS = 2000


def real_runs(folder: Path) -> list[dict[str, Any]]:
    """Serve steady loads with vLLM in this process; return what the analysis says of each."""
    log = folder / "steady.jsonl"
    # vLLM reads these as it starts; so does the plug-in.
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": str(log),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    from tiny_model import make_tiny_model  # noqa: PLC0415 - as vLLM

    model = make_tiny_model(folder / "model")
    for steady in _LOADS:
        serve(model, *steady)
    return judge(log)


def judge(log: Path) -> list[dict[str, Any]]:
    """Return what the analysis says of each of the runs in the log of `real_runs`."""
    df = load(log)
    found = find_anomalies(df, load_manifests(log))
    return [
        {
            "num_layers": num_layers,
            "num_running": num_running,
            "prompts": prompts,
            "num_output": num_output,
            "num_batches": int((df["run"] == run).sum()),
            "step_ms": float(df.loc[df["run"] == run, "total_step_duration_ms"].median()),
            "findings": [f.to_dict() for f in found if f.run == run],
        }
        for run, (num_layers, num_running, prompts, num_output) in enumerate(_LOADS)
    ]


def serve(
    model: Path, num_layers: int, num_running: int, prompts: tuple[int, ...], num_output: int
) -> None:
    """Keep so many requests running for some steps; one comes when another has finished."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - after the environment is set

    llm = LLM(
        model=str(model),
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_batched_tokens=512,
        max_num_seqs=32,
        kv_cache_memory_bytes=256 << 20,
        hf_overrides={"num_hidden_layers": num_layers},
    )
    engine, rng, number = llm.llm_engine, random.Random(3), 0
    for _ in range(_STEPS):
        while engine.get_num_unfinished_requests() < num_running:
            prompt = [rng.randrange(3, 250) for _ in range(rng.choice(prompts))]
            # The first ones must not all finish at the same time.
            length = rng.randint(5, num_output) if number < num_running else num_output
            parameters = SamplingParams(max_tokens=length, ignore_eos=True, temperature=0)
            engine.add_request(str(number), {"prompt_token_ids": prompt}, parameters)
            number += 1
        engine.step()
    engine.engine_core.shutdown()


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--real", action="store_true", help="also serve steady loads with vLLM")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = measure(arguments.seeds)
    if arguments.real:
        with tempfile.TemporaryDirectory() as folder:
            result["real_runs"] = real_runs(Path(folder))
    print(json.dumps(result, indent=2))
    (arguments.out / "findings.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
