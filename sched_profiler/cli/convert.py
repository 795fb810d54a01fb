"""`sched-profiler convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sched_profiler.cli.command import Command, add_logs, add_skip_invalid, needing
from sched_profiler.cli.progress import progress
from sched_profiler.cli.terminal import say
from sched_profiler.errors import counted
from sched_profiler.log_names import MANIFEST_SUFFIX

if TYPE_CHECKING:
    import argparse

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    parser.add_argument(
        "out",
        metavar="OUT",
        help="a file, such as run.parquet; or a folder, if it is there or ends with /, for a file "
        "for each run and rank",
    )
    add_skip_invalid(parser)


def _run(options: argparse.Namespace) -> bool:
    with needing("convert", "analysis"):
        from sched_profiler.analysis import convert  # noqa: PLC0415 - an extra
    with progress("converting") as advance:
        done = convert(
            *options.logs, out=options.out, skip_invalid=options.skip_invalid, progress=advance
        )
    left_out = [
        counted(number, f"{kind} line") + " left out"
        for number, kind in (
            (done.num_skipped_lines, "invalid"),
            (done.num_half_written_lines, "half-written"),
        )
        if number
    ]
    files = str(done.files[0]) if len(done.files) == 1 else f"{len(done.files)} files"
    num_manifests = sum(path.name.endswith(MANIFEST_SUFFIX) for path in done.companions)
    beside = [
        counted(number, what)
        for number, what in (
            (num_manifests, "manifest"),
            (len(done.companions) - num_manifests, "request trace"),
        )
        if number
    ]
    told = [f"{counted(done.num_records, 'record')} in {files}"]
    if beside:
        told.append(f"{' and '.join(beside)} beside")
    say("; ".join([*told, *left_out]))
    return True


COMMAND = Command(
    name="convert",
    purpose="Convert logs to Parquet, with their run manifests and request traces.",
    examples="""\
  %(prog)s scheduler_profiling.jsonl run.parquet
      one file
  %(prog)s s3://bucket/prefix/ fleet/
      a folder with a file for each run and rank
""",
    add_arguments=_add_arguments,
    run=_run,
)
