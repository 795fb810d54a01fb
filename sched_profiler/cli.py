"""The command `sched-profiler`.

Only `main` knows exit codes: 0 done, 1 done and something is amiss, 2 bad input (argparse's number
as well), 130 interrupted, 141 if the reader of the output went away; the last two as a shell has
them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import attrs

from sched_profiler import __version__
from sched_profiler.errors import MissingExtraError, SchedProfilerError, printable
from sched_profiler.log_files import find_logs
from sched_profiler.log_names import COMPRESSED
from sched_profiler.redact import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd

    from sched_profiler.analysis import Summary

__all__ = ["main"]

_OK, _AMISS, _BAD_INPUT, _INTERRUPTED, _BROKEN_PIPE = 0, 1, 2, 130, 141

_DESCRIPTION = "Reads the logs of a batch scheduler, as vLLM with sched-profiler writes them."
_EXAMPLES = """\
examples:
  %(prog)s analyze scheduler_profiling.jsonl
      print a summary
  %(prog)s analyze scheduler_profiling.jsonl --out report
      also draw charts and write the summary, into the folder report
  %(prog)s analyze rank0.jsonl rank1.jsonl --json | jq .tokens_per_second
      take several logs together, as data for another program
  %(prog)s verify s3://bucket/prefix/
      check that nothing is missing from all logs in a bucket
  %(prog)s validate scheduler_profiling.jsonl
      check every line against the schema
  %(prog)s doctor
      find out why a log is empty
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
        _say(f"{prog}: {error}", stream=sys.stderr)
        return _BAD_INPUT
    except BrokenPipeError:
        # Else the interpreter would fail once more on flushing at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    return _OK if is_fine else _AMISS


def _say(*lines: str, stream: TextIO | None = None) -> None:
    """Print lines, whatever is in them."""
    for line in lines:
        print(printable(line), file=stream)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sched-profiler {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, description, add_arguments, run in _COMMANDS:
        subparser = subparsers.add_parser(name, help=description, description=description)
        add_arguments(subparser)
        subparser.set_defaults(run=run)
    return parser


_LOG_HELP = (
    "a log: a file, a folder, a pattern with wildcards, or a URL of any of these; several are "
    "taken together"
)


def _add_analyze_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", nargs="+", metavar="LOG", help=_LOG_HELP)
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="write six charts, overview.png and summary.json into this folder",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument(
        "--skip-invalid", action="store_true", help="skip and count lines that hold no record"
    )


def _analyze(options: argparse.Namespace) -> bool:
    # Loaded only now, so that --help and --version need no more than the base install.
    try:
        from sched_profiler import analysis  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("sched_profiler"):
            raise
        raise MissingExtraError("analyze", error, extra="analysis") from None
    with _progress(options.logs) as progress:
        df = analysis.load(*options.logs, skip_invalid=options.skip_invalid, progress=progress)
    summary = analysis.summarize(df)
    # Before anything is printed: whoever reads may stop in the middle.
    written = [] if options.out is None else _write_files(options.out, df, summary)
    print(summary.to_json() if options.json else summary)
    if written:
        # Only JSON on standard output: the list is for the reader, not for the program.
        stream = sys.stderr if options.json else sys.stdout
        _say("", "wrote", *(f"  {path}" for path in written), stream=stream)
    return True


def _add_validate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", nargs="+", metavar="LOG", help=_LOG_HELP)
    parser.add_argument(
        "--limit",
        metavar="N",
        type=_count,
        default=20,
        help="show the first N violations (default: %(default)s); all are counted",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _validate(options: argparse.Namespace) -> bool:
    try:
        from sched_profiler.validate import validate  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise MissingExtraError("validate", error, extra="validate") from None
    report = validate(*options.logs, limit=options.limit)
    if options.json:
        print(json.dumps(attrs.asdict(report), indent=2))
    else:
        for violation in report.violations:
            _say(str(violation))
        print(report)
    return report.num_violations == 0


def _add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pid",
        type=_count,
        help="look at the environment of this running server instead of your own (Linux)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def _doctor(options: argparse.Namespace) -> bool:
    # Loaded only now: it looks at the engine's half, which no other command needs.
    from sched_profiler import doctor  # noqa: PLC0415

    findings = list(doctor.examine(doctor.surroundings(options.pid)))
    if options.json:
        print(json.dumps([attrs.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            _say(str(finding))
            if finding.remedy is not None:
                _say(f"         -> {finding.remedy}")
    return not any(finding.status == "problem" for finding in findings)


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", nargs="+", metavar="LOG", help=_LOG_HELP)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--skip-invalid", action="store_true", help="skip and count lines that hold no record"
    )


def _verify(options: argparse.Namespace) -> bool:
    from sched_profiler.verify import verify  # noqa: PLC0415 - --help needs no codec

    report = verify(*options.logs, skip_invalid=options.skip_invalid)
    print(report.to_json() if options.json else report)
    return report.num_unexplained == 0


def _add_upload_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="the spool")
    parser.add_argument(
        "--to", metavar="URL", help="upload to here; by default to where each run was bound for"
    )


def _upload(options: argparse.Namespace) -> bool:
    from sched_profiler.sinks.upload import upload_folder  # noqa: PLC0415 - only for this command

    is_fine = True
    for left in upload_folder(options.folder, options.to):
        problem = f"; the rest stays: {left.problem}" if left.problem else ""
        _say(f"{left.run}: {left.num_uploaded} parts uploaded{problem}")
        is_fine = is_fine and left.problem is None
    return is_fine


_COMMANDS: tuple[
    tuple[
        str,
        str,
        Callable[[argparse.ArgumentParser], None],
        Callable[[argparse.Namespace], bool],
    ],
    ...,
] = (
    ("analyze", "Sum up logs in numbers and charts.", _add_analyze_arguments, _analyze),
    ("verify", "Check that logs are complete.", _add_verify_arguments, _verify),
    ("validate", "Check logs against the schema.", _add_validate_arguments, _validate),
    ("upload", "Upload what runs that have ended left in a spool.", _add_upload_arguments, _upload),
    ("doctor", "Say why a log is empty.", _add_doctor_arguments, _doctor),
)
"""Every subcommand: its name, what it does, its arguments and the function that does it.

The function tells whether all is well with what it looked at.
"""


_LONG_LOGS_BYTES = 64 << 20
"""From here on, reading takes long enough to show how far it is."""


@contextmanager
def _progress(logs: Sequence[str]) -> Iterator[Callable[[int], None] | None]:
    """Show on a terminal how much of long logs is read; the block calls it with that number."""
    total = _total_bytes(logs)
    if total < _LONG_LOGS_BYTES or not sys.stderr.isatty():
        yield None
        return
    try:
        yield lambda num_bytes: _show(f"\rreading {min(1.0, num_bytes / total):4.0%}")
    finally:
        _show("\r            \r")


_COMPRESSION = 8
"""How much shorter a log is when it is compressed, about."""


def _total_bytes(logs: Sequence[str]) -> int:
    """Return about how many bytes there are to read; 0 where asking for that would take long."""
    if any(map(is_url, logs)):
        return 0
    try:
        files = find_logs(*logs)
    except SchedProfilerError:
        return 0  # reading them will say what is wrong
    return sum(
        file.num_bytes * (_COMPRESSION if file.name.endswith(COMPRESSED) else 1) for file in files
    )


def _show(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _write_files(folder: Path, df: pd.DataFrame, summary: Summary) -> list[Path]:
    """Write charts and summary into a folder, and return their paths."""
    from sched_profiler import analysis  # noqa: PLC0415 - see _analyze

    charts = {
        "overview.png": analysis.plot_overview,
        "step_times.png": analysis.plot_step_times,
        "requests.png": analysis.plot_requests,
        "tokens.png": analysis.plot_tokens,
        "schedule_histogram.png": analysis.plot_schedule_histogram,
        "model_run_histogram.png": analysis.plot_model_run_histogram,
        "schedule_against_model_run.png": analysis.plot_schedule_against_model_run,
    }
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in charts.items():
            with _unfinished(folder / name) as path:
                draw(df).savefig(path, format="png", dpi=120)
            written.append(folder / name)
        with _unfinished(folder / "summary.json") as path:
            path.write_text(summary.to_json() + "\n", encoding="utf-8")
        written.append(folder / "summary.json")
    except OSError as error:
        raise SchedProfilerError(
            f"cannot write {error.filename or folder}: {error.strerror}; name another --out"
        ) from None
    return written


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Yield where to write a file, so that it appears under its name only when it is whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
