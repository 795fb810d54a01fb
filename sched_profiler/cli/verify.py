"""`sched-profiler verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sched_profiler.cli.command import Command, add_json, add_logs, add_skip_invalid
from sched_profiler.cli.progress import progress

if TYPE_CHECKING:
    import argparse

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    add_json(parser, "report")
    add_skip_invalid(parser)


def _run(options: argparse.Namespace) -> bool:
    from sched_profiler.verify import verify  # noqa: PLC0415 - --help needs no codec

    with progress("reading") as advance:
        report = verify(*options.logs, skip_invalid=options.skip_invalid, progress=advance)
    print(report.to_json() if options.json else report)
    return report.num_unexplained == 0


COMMAND = Command(
    name="verify",
    purpose="Check that logs are complete.",
    examples="""\
  %(prog)s logs/
      tell for each run in a folder what is missing, and what accounts for it
  %(prog)s s3://bucket/prefix/ --json | jq .num_unexplained
      the same for all logs in a bucket, as data for another program
""",
    add_arguments=_add_arguments,
    run=_run,
)
