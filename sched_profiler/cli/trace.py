"""`sched-profiler trace`."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

from sched_profiler.cli.command import Command, add_logs, add_skip_invalid, needing, writing
from sched_profiler.cli.progress import progress
from sched_profiler.cli.terminal import say
from sched_profiler.whole_file import check_output, whole_file

if TYPE_CHECKING:
    import argparse

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        required=True,
        help="where to write the trace; compressed if the name ends with .gz",
    )
    add_skip_invalid(parser)


def _run(options: argparse.Namespace) -> bool:
    with needing("trace", "analysis"):
        from sched_profiler.analysis import load, write_trace  # noqa: PLC0415 - an extra
    check_output(options.output, logs=options.logs)
    with progress("reading") as advance:
        df = load(*options.logs, skip_invalid=options.skip_invalid, progress=advance)
    with (
        writing(options.output, "--output"),
        whole_file(options.output) as path,
        gzip.open(path, "wt", encoding="utf-8")
        if options.output.suffix == ".gz"
        else path.open("w", encoding="utf-8") as stream,
    ):
        num_events = write_trace(df, stream)
    say(
        f"wrote {num_events:,} events of {len(df):,} batches to {options.output}",
        "open it at ui.perfetto.dev, or in chrome://tracing",
    )
    return True


COMMAND = Command(
    name="trace",
    purpose="Write logs as a timeline for Perfetto or Chrome.",
    examples="""\
  %(prog)s scheduler_profiling.jsonl -o trace.json
      schedule, model run, idle and update as tracks, and counters
  %(prog)s rank*.jsonl -o trace.json.gz
      a process for each rank, compressed
""",
    add_arguments=_add_arguments,
    run=_run,
)
