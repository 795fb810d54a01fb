"""Runs the same load with several sizes of the token budget, and compares the runs.

    python examples/chunk_size_sweep.py tiny 128 512 2048

A larger `max_num_batched_tokens` gets long prompts done in fewer steps, and each of those steps
holds the decodes up for longer. Each size is a process of its own, `examples/offline_llm.py`, so
that none inherits anything from another. In the end, each size is compared with the first one, as
`sched-profiler compare` does it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from sched_profiler.analysis import compare, load


def main() -> None:
    """Run the sweep that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="as for offline_llm.py")
    parser.add_argument("sizes", nargs="+", type=int, help="token budgets, in tokens")
    parser.add_argument("--out", type=Path, default=Path("sweep"), help="folder for the logs")
    arguments = parser.parse_args()

    sides = {}
    for size in arguments.sizes:
        log = arguments.out / str(size) / "scheduler_profiling.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        label = f"max_num_batched_tokens={size}"
        print(label, flush=True)
        script = Path(__file__).with_name("offline_llm.py")
        subprocess.run(  # noqa: S603 - made right here
            [
                sys.executable,
                str(script),
                arguments.model,
                f"--max-num-batched-tokens={size}",
                f"--log={log}",
            ],
            check=True,
        )
        sides[label] = load(log)
    print(compare(sides))


if __name__ == "__main__":
    main()
