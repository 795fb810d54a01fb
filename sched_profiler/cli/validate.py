"""`sched-profiler validate`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs

from sched_profiler.cli.command import Command, add_json, add_logs, count, needing
from sched_profiler.cli.progress import progress
from sched_profiler.cli.terminal import say

if TYPE_CHECKING:
    import argparse

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    parser.add_argument(
        "--limit",
        metavar="N",
        type=count,
        default=20,
        help="show the first N violations (default: %(default)s); all are counted",
    )
    add_json(parser, "report")


def _run(options: argparse.Namespace) -> bool:
    with needing("validate", "validate"):
        from sched_profiler.validate import validate  # noqa: PLC0415 - an extra
    with progress("validating") as advance:
        report = validate(*options.logs, limit=options.limit, progress=advance)
    if options.json:
        print(json.dumps(attrs.asdict(report), indent=2))
    else:
        for violation in report.violations:
            say(str(violation))
        print(report)
    return report.num_violations == 0


COMMAND = Command(
    name="validate",
    purpose="Check logs against the schema.",
    examples="""\
  %(prog)s scheduler_profiling.jsonl
      check every line
  %(prog)s s3://bucket/prefix/ --limit 0
      only count what is wrong, in all logs in a bucket
""",
    add_arguments=_add_arguments,
    run=_run,
)
