"""`sched-profiler doctor`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs

from sched_profiler.cli.command import Command, add_json, count
from sched_profiler.cli.terminal import say

if TYPE_CHECKING:
    import argparse

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pid",
        type=count,
        help="look at the environment of this running server instead of your own (Linux)",
    )
    add_json(parser, "findings")


def _run(options: argparse.Namespace) -> bool:
    # It looks at the engine's half, which no other command needs.
    from sched_profiler import doctor  # noqa: PLC0415

    findings = list(doctor.examine(doctor.surroundings(options.pid)))
    if options.json:
        print(json.dumps([attrs.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            say(str(finding))
            if finding.remedy is not None:
                say(f"         -> {finding.remedy}")
    return not any(finding.status == "problem" for finding in findings)


COMMAND = Command(
    name="doctor",
    purpose="Say why a log is empty.",
    examples="""\
  %(prog)s
      look at what a server started from here would find
  %(prog)s --pid 4711
      look at a running server
""",
    add_arguments=_add_arguments,
    run=_run,
)
