"""The command `sched-profiler`: a module for each of its commands, and the list of them.

Only `main` knows exit codes: 0 done, 1 done and something is amiss, 2 bad input (argparse's number
as well), 130 interrupted, 141 if the reader of the output went away; the last two as a shell has
them.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from sched_profiler import __version__
from sched_profiler.cli import (
    analyze,
    capacity,
    compare,
    convert,
    doctor,
    fit,
    report,
    slow,
    top,
    trace,
    tune,
    upload,
    validate,
    verify,
)
from sched_profiler.cli.terminal import say
from sched_profiler.errors import SchedProfilerError
from sched_profiler.redact import without_credentials

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "main"]

COMMANDS = (
    analyze.COMMAND,
    report.COMMAND,
    slow.COMMAND,
    top.COMMAND,
    compare.COMMAND,
    fit.COMMAND,
    tune.COMMAND,
    capacity.COMMAND,
    trace.COMMAND,
    convert.COMMAND,
    verify.COMMAND,
    validate.COMMAND,
    upload.COMMAND,
    doctor.COMMAND,
)
"""Every command, in the order of the help."""

_OK, _AMISS, _BAD_INPUT, _INTERRUPTED, _BROKEN_PIPE = 0, 1, 2, 130, 141

_DESCRIPTION = "Reads the logs of a batch scheduler, as vLLM with sched-profiler writes them."
_EXAMPLES = """\
examples:
  %(prog)s analyze scheduler_profiling.jsonl
      print a summary
  %(prog)s verify s3://bucket/prefix/
      check that nothing is missing from all logs in a bucket
  %(prog)s doctor
      find out why a log is empty
  %(prog)s analyze --help
      what a command takes, with examples

exit codes:
  0 done; 1 done, and something is amiss; 2 bad input; 130 interrupted; 141 nobody reads the output
"""


def main(arguments: Sequence[str] | None = None, prog: str = "sched-profiler") -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: those after the name of the program; by default, of this process.
        prog: name of the program in its help and errors.
    """
    options = _parser(prog).parse_args(arguments)
    try:
        is_fine = options.run(options)
        sys.stdout.flush()
    except SchedProfilerError as error:
        say(f"{prog}: {error}", stream=sys.stderr)
        return _BAD_INPUT
    except BrokenPipeError:
        # Else the interpreter would fail once more on flushing at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        # Such as a folder that one may not look into, or a name that is too long for any file.
        told = error.strerror or type(error).__name__
        if error.filename is not None:
            where = without_credentials(str(error.filename))
            told = f"{where}: {told}; check the name, the permissions and the disk"
        say(f"{prog}: {told}", stream=sys.stderr)
        return _BAD_INPUT
    return _OK if is_fine else _AMISS


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sched-profiler {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name,
            help=command.purpose,
            description=command.purpose,
            epilog=f"examples:\n{command.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
