"""`sched-profiler upload`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sched_profiler.cli.command import Command
from sched_profiler.cli.terminal import say
from sched_profiler.errors import counted

if TYPE_CHECKING:
    import argparse

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="the spool")
    parser.add_argument(
        "--to", metavar="URL", help="upload to here; by default to where each run was bound for"
    )


def _run(options: argparse.Namespace) -> bool:
    from sched_profiler.sinks.upload import upload_folder  # noqa: PLC0415 - only for this command

    is_fine = True
    for left in upload_folder(options.folder, options.to):
        problem = f"; the rest stays: {left.problem}" if left.problem else ""
        say(f"{left.run}: {counted(left.num_uploaded, 'part')} uploaded{problem}")
        is_fine = is_fine and left.problem is None
    return is_fine


COMMAND = Command(
    name="upload",
    purpose="Upload what runs that have ended left in a spool.",
    examples="""\
  %(prog)s spool/
      to where each run was bound for
  %(prog)s spool/ --to s3://bucket/prefix/
      to another place
""",
    add_arguments=_add_arguments,
    run=_run,
)
