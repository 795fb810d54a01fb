"""`sched-profiler capacity`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sched_profiler.cli.command import Command, add_json, add_logs, add_skip_invalid, needing
from sched_profiler.cli.replaying import add_trace, fitted, read
from sched_profiler.cli.terminal import counting, say

if TYPE_CHECKING:
    import argparse

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    add_trace(parser)
    add_json(parser, "result")
    add_skip_invalid(parser)


def _run(options: argparse.Namespace) -> bool:
    with needing("capacity", "analysis"):
        from sched_profiler.analysis import capacity  # noqa: PLC0415 - an extra
    found = read(options)
    result: capacity.Capacity | capacity.CapacityEstimate
    if not found.arrivals:
        result = capacity.estimate_capacity(
            found.run.df, max_num_seqs=found.run.settings.max_num_seqs
        )
    else:
        engine = fitted(found)
        say(engine.words, stream=sys.stderr)
        with counting("replaying", "requests") as advance:
            result = capacity.find_capacity(
                found.arrivals,
                found.run.settings,
                engine.times,
                engine.make_scheduler,
                progress=advance,
            )
    if options.json:
        print(result.to_json())
    else:
        say(*str(result).split("\n"))
    return True


COMMAND = Command(
    name="capacity",
    purpose="Say at what request rate the engine is full, and what fills it.",
    examples="""\
  %(prog)s scheduler_profiling.jsonl
      replay the recorded requests faster and faster; without a request trace, an estimate
  %(prog)s scheduler_profiling.jsonl --trace expected.csv
      of other requests than those that were recorded
  %(prog)s scheduler_profiling.jsonl --json | jq .sustained_requests_per_s
      for another program
""",
    add_arguments=_add_arguments,
    run=_run,
)
