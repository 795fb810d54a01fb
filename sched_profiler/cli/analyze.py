"""`sched-profiler analyze`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sched_profiler.cli.command import Command, add_json, add_logs, add_skip_invalid, needing
from sched_profiler.cli.terminal import progress
from sched_profiler.cli.whole_file import whole_file
from sched_profiler.errors import SchedProfilerError

if TYPE_CHECKING:
    import argparse

    import pandas as pd

    from sched_profiler.analysis import Finding, Summary

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="write six charts, overview.png and summary.json into this folder",
    )
    add_json(parser, "summary and the findings")
    add_skip_invalid(parser)


def _run(options: argparse.Namespace) -> bool:
    with needing("analyze", "analysis"):
        from sched_profiler import analysis  # noqa: PLC0415 - an extra
    with progress(options.logs) as advance:
        df = analysis.load(*options.logs, skip_invalid=options.skip_invalid, progress=advance)
    summary = analysis.summarize(df)
    findings = analysis.find_anomalies(df, analysis.load_manifests(*options.logs))
    data = _to_json(summary, findings)
    # Before anything is printed: whoever reads may stop in the middle.
    written = [] if options.out is None else _write_files(options.out, df, data)
    print(data if options.json else _to_text(summary, findings))
    if written:
        listing = "\n".join(["", "wrote", *(f"  {path}" for path in written)])
        # Only JSON on standard output: the list is for the reader, not for the program.
        print(listing, file=sys.stderr if options.json else sys.stdout)
    return True


def _to_json(summary: Summary, findings: list[Finding]) -> str:
    found = [finding.to_dict() for finding in findings]
    return json.dumps(summary.to_dict() | {"findings": found}, indent=2, allow_nan=False)


def _to_text(summary: Summary, findings: list[Finding]) -> str:
    if not findings:
        return f"{summary}\n\nno findings"
    number = "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
    return "\n\n".join([str(summary), number, *map(str, findings)])


def _write_files(folder: Path, df: pd.DataFrame, data: str) -> list[Path]:
    """Write charts and the summary as JSON into a folder, and return their paths."""
    from sched_profiler import analysis  # noqa: PLC0415 - an extra

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
            with whole_file(folder / name) as path:
                draw(df).savefig(path, format="png", dpi=120)
            written.append(folder / name)
        with whole_file(folder / "summary.json") as path:
            path.write_text(data + "\n", encoding="utf-8")
        written.append(folder / "summary.json")
    except OSError as error:
        raise SchedProfilerError(
            f"cannot write {error.filename or folder}: {error.strerror}; name another --out"
        ) from None
    return written


COMMAND = Command(
    name="analyze",
    purpose="Sum up logs in numbers and charts, and say what is wrong.",
    examples="""\
  %(prog)s scheduler_profiling.jsonl
      print a summary and what is noteworthy
  %(prog)s scheduler_profiling.jsonl --out report
      also draw charts and write the summary, into the folder report
  %(prog)s rank0.jsonl rank1.jsonl --json | jq .tokens_per_second
      take several logs together, as data for another program
""",
    add_arguments=_add_arguments,
    run=_run,
)
