"""What users of the original feature did with a log, with pandas alone.

    python examples/pandas_recipes.py scheduler_profiling.jsonl

Nothing of sched_profiler is imported: a log is lines of JSON. Only the fields that every record has
are used, so logs of the original feature work as well.
"""

from __future__ import annotations

import json
import sys

import pandas as pd


def main(log: str) -> None:
    """Print answers to the usual questions."""
    with open(log, encoding="utf-8") as lines:  # noqa: PTH123 - the shortest way
        df = pd.DataFrame(map(json.loads, lines))

    print("\nHow long do scheduling, the model and the whole step take, in ms?")
    times = ["schedule_duration_ms", "model_run_duration_ms", "total_step_duration_ms"]
    print(df[times].describe(percentiles=[0.5, 0.95, 0.99]).round(3))

    print("\nWhat share of a step is scheduling?")
    print((df["schedule_duration_ms"] / df["total_step_duration_ms"]).describe().round(4))

    print("\nHow do batches with and without prefill differ?")
    kind = df["num_prefill_reqs"].gt(0).map({True: "with prefill", False: "decode only"})
    print(df.groupby(kind)[[*times, "total_scheduled_tokens"]].mean().round(3))

    print("\nHow large are the chunks of prefill, in tokens?")
    print(df["prefill_chunk_sizes"].explode().dropna().astype(int).describe().round(1))

    print("\nWhich batches took longest to schedule?")
    columns = ["batch_id", "schedule_duration_ms", "num_waiting_reqs", "num_running_reqs"]
    print(df.nlargest(5, "schedule_duration_ms")[columns].to_string(index=False))

    print("\nDo requests wait because the KV cache is full?")
    waiting = df["num_waiting_reqs"] > 0
    print(f"{waiting.mean():.1%} of batches leave requests waiting; KV cache usage then and else:")
    print(df.groupby(waiting)["kv_cache_usage"].describe().round(3))


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and the log
        sys.exit(f"usage: {sys.argv[0]} LOG")
    main(sys.argv[1])
