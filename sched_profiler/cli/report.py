"""`sched-profiler report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sched_profiler.cli.command import Command, add_logs, add_skip_invalid, needing, writing
from sched_profiler.cli.progress import progress
from sched_profiler.cli.terminal import say
from sched_profiler.whole_file import check_output, whole_file

if TYPE_CHECKING:
    import argparse

__all__ = ["COMMAND"]

_MOST_BATCHES = 500_000
"""Slow batches are looked for among all, and so many take about 1 GB of memory."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        required=True,
        help="where to write the page, such as report.html",
    )
    parser.add_argument(
        "--title", default="", help="what to call it (default: the model, if the manifest tells it)"
    )
    add_skip_invalid(parser)


def _run(options: argparse.Namespace) -> bool:
    with needing("report", "report"):
        from sched_profiler import analysis  # noqa: PLC0415 - an extra

        write_report = analysis.write_report
    check_output(options.output, logs=options.logs)
    with progress("reading") as advance:
        digest = analysis.scan(*options.logs, skip_invalid=options.skip_invalid, progress=advance)
    df = None
    if digest.num_batches <= _MOST_BATCHES:
        with progress("reading once more") as advance:
            df = analysis.load(*options.logs, skip_invalid=options.skip_invalid, progress=advance)
    manifests = analysis.load_manifests(*options.logs)
    with (
        writing(options.output, "--output"),
        whole_file(options.output) as path,
        path.open("w", encoding="utf-8") as stream,
    ):
        write_report(stream, digest, df, manifests, title=options.title)
        num_bytes = stream.tell()
    say(
        f"wrote {options.output}, {num_bytes / _MB:.1f} MB about {digest.num_batches:,} batches",
        "open it in a browser; it needs no network",
    )
    return True


_MB = 1_000_000

COMMAND = Command(
    name="report",
    purpose="Write logs as one HTML page: findings, charts, slow batches, runs and configuration.",
    examples="""\
  %(prog)s scheduler_profiling.jsonl -o report.html
      a page that opens from the disk, without a network
  %(prog)s rank*.jsonl -o report.html --title "Llama, 4 ranks"
      ranks beside each other, under a title of your own
""",
    add_arguments=_add_arguments,
    run=_run,
)
