"""Serves customers of several tiers by a scheduler of one's own, which has a stall in it.

    python examples/planted_stall.py
    python examples/planted_stall.py --fixed

A company's priority rule: requests of its best customers go first. Who is who stands in a table of
another service, and the first version of the rule asks for it in the middle of `schedule()`. With
`--fixed` a thread does that. The program knows nothing of the profiler, which is turned on by
environment variables as ever; `docs/tutorial/find-a-stall.md` finds the stall with it.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from pathlib import Path
from typing import Any

from tiny_model import MAX_MODEL_LEN, make_tiny_model
from vllm import LLM, SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler

__all__ = ["FixedTierScheduler", "TierScheduler", "main"]

NUM_CUSTOMERS = 12
LOOKUP_S = 0.1
"""What the other service takes to answer."""
REFRESH_STEPS = 40
"""After so many steps of the scheduler the table is asked for anew."""


def look_up_tiers() -> dict[str, int]:
    """Ask the service for the tier of each customer; 0 is the best."""
    time.sleep(LOOKUP_S)
    return {f"customer-{number}": number % 3 for number in range(NUM_CUSTOMERS)}


class TierScheduler(Scheduler):  # type: ignore[misc]  # vLLM ships no types
    """Serves better tiers first, and looks them up where everybody has to wait for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make vLLM's scheduler, and start with the table of this moment."""
        super().__init__(*args, **kwargs)
        self.tiers = look_up_tiers()
        self.num_steps = 0

    def add_request(self, request: Any) -> None:
        """Give the request the priority of its customer, whose name is its cache salt."""
        request.priority = self.tiers.get(request.cache_salt, 9)
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule a step, with a table that is no older than 40 steps."""
        self.num_steps += 1
        if self.num_steps % REFRESH_STEPS == 0:
            self.refresh()
        return super().schedule(*args, **kwargs)

    def refresh(self) -> None:
        """Take the table of this moment."""
        self.tiers = look_up_tiers()


class FixedTierScheduler(TierScheduler):
    """Serves better tiers first; a thread looks them up, and `schedule()` waits for nothing."""

    refreshing: threading.Thread | None = None

    def refresh(self) -> None:
        """Have the table taken, unless that is still going on; a late one serves as well."""
        if self.refreshing is None or not self.refreshing.is_alive():
            self.refreshing = threading.Thread(target=super().refresh, daemon=True)
            self.refreshing.start()


def main() -> None:
    """Generate for all customers, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fixed", action="store_true", help="look tiers up in a thread")
    parser.add_argument("--requests", type=int, default=1000, help="default: %(default)s")
    options = parser.parse_args()
    cls = FixedTierScheduler if options.fixed else TierScheduler
    llm = LLM(
        model=str(make_tiny_model(Path(".demo/tiny_model"))),
        # Random weights, and a start without delay.
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_memory_bytes=64 << 20,
        max_num_batched_tokens=256,
        max_num_seqs=16,
        scheduling_policy="priority",
        scheduler_cls=f"{Path(__file__).stem}.{cls.__name__}",
    )
    draw = random.Random(0)  # noqa: S311 - a load
    prompts = [
        {
            "prompt_token_ids": [draw.randrange(3, 250) for _ in range(draw.randrange(8, 160))],
            "cache_salt": f"customer-{number % NUM_CUSTOMERS}",
        }
        for number in range(options.requests)
    ]
    start = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(max_tokens=64, ignore_eos=True), use_tqdm=False)
    took = time.perf_counter() - start
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(f"{num_tokens:,} tokens for {len(outputs)} requests in {took:.2f} s")
    # The engine ends here, and with it the log.
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
