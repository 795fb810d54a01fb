"""`sched-profiler slow`."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING

from sched_profiler.cli.command import Command, add_json, add_logs, add_skip_invalid, count, needing
from sched_profiler.cli.progress import progress
from sched_profiler.errors import printable

if TYPE_CHECKING:
    from sched_profiler.analysis import Deviation, SlowBatch

__all__ = ["COMMAND"]

_UNITS_MS = {"": 1.0, "us": 0.001, "ms": 1.0, "s": 1000.0}
_SHOWN_REQUESTS = 8


def _milliseconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration; expected a number with us, ms or s, such as 10ms"
        )
    return float(match[1]) * _UNITS_MS[match[2]]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    for name, what in (
        ("schedule", "schedule()"),
        ("model", "the model run"),
        ("total", "the whole step"),
    ):
        parser.add_argument(
            f"--{name}-over",
            metavar="TIME",
            type=_milliseconds,
            help=f"batches in which {what} took longer than this, such as 10ms or 0.5s",
        )
    parser.add_argument(
        "--top",
        metavar="N",
        type=count,
        default=20,
        help="show the N slowest (default: %(default)s)",
    )
    add_json(parser, "batches")
    add_skip_invalid(parser)


def _run(options: argparse.Namespace) -> bool:
    with needing("slow", "analysis"):
        from sched_profiler.analysis import load, slow_batches  # noqa: PLC0415 - an extra
    with progress("reading") as advance:
        df = load(*options.logs, skip_invalid=options.skip_invalid, progress=advance)
    found = slow_batches(
        df,
        schedule_over_ms=options.schedule_over,
        model_run_over_ms=options.model_over,
        total_over_ms=options.total_over,
        top=options.top,
    )
    if options.json:
        print(json.dumps([batch.to_dict() for batch in found], indent=2))
        return True
    if not found:
        print(f"none of {len(df):,} batches is over a limit")
        return True
    start = float(df["timestamp"].min())
    print("\n\n".join(_lines(batch, start) for batch in found))
    return True


def _lines(batch: SlowBatch, start: float) -> str:
    """Return some lines about a batch; `start` is the Unix time of the first one."""
    rank = "" if batch.dp_rank is None else f", rank {batch.dp_rank}"
    over = f", over the limit in {' and '.join(batch.over)}" if batch.over else ""
    lines = [f"batch {batch.batch_id} of run {batch.run}{rank}, at {batch.timestamp - start:.3f} s"]
    lines[0] += over
    chunks = ", ".join(map(str, batch.prefill_chunk_sizes[:_SHOWN_REQUESTS]))
    more = ", ..." if len(batch.prefill_chunk_sizes) > _SHOWN_REQUESTS else ""
    lines.append(
        f"  held    {batch.num_prefill_reqs} prefill ({batch.prefill_tokens} tokens"
        f"{f': {chunks}{more}' if chunks else ''}), {batch.num_decode_reqs} decode "
        f"({batch.decode_tokens} tokens); {batch.num_running_reqs} running, "
        f"{batch.num_waiting_reqs} waiting, KV cache {batch.kv_cache_usage:.0%}"
    )
    if batch.request_ids is not None:
        more = ", ..." if len(batch.request_ids) > _SHOWN_REQUESTS else ""
        lines.append(f"  who     {', '.join(batch.request_ids[:_SHOWN_REQUESTS])}{more}")
    if not batch.deviations:
        lines.append(f"  nothing to compare with: {batch.why_not_compared}")
        return "\n".join(map(printable, lines))
    times = [
        f"{name} {_compared(batch.deviations[name])}"
        for name in ("schedule", "model run", "total step")
        if name in batch.deviations
    ]
    lines.append(f"  times   {', '.join(times)}; usual of the {batch.num_alike} most like it")
    others = [
        f"{name} {_compared(deviation)}"
        for name, deviation in batch.unusual.items()
        if name not in ("schedule", "model run", "total step")
    ]
    if others:
        lines.append(f"  also    {', '.join(others)}")
    return "\n".join(map(printable, lines))


def _compared(deviation: Deviation) -> str:
    return f"{deviation.value:.5g} (usual {deviation.usual:.5g}, z {deviation.shown_z})"


COMMAND = Command(
    name="slow",
    purpose="Show the slow batches, who was in them and how they differ from others like them.",
    examples="""\
  %(prog)s scheduler_profiling.jsonl
      the 20 batches with the longest steps
  %(prog)s scheduler_profiling.jsonl --schedule-over 10ms --top 5
      the 5 with the longest schedule(), if that took more than 10 ms
  %(prog)s scheduler_profiling.jsonl --model-over 0.2s --json
      as data for another program
""",
    add_arguments=_add_arguments,
    run=_run,
)
