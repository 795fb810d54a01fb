"""`sched-profiler analyze`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sched_profiler.cli.command import (
    Command,
    add_json,
    add_logs,
    add_skip_invalid,
    needing,
    writing,
)
from sched_profiler.cli.progress import progress
from sched_profiler.cli.terminal import say
from sched_profiler.errors import counted
from sched_profiler.whole_file import check_output, whole_file

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from sched_profiler.analysis import Digest, Finding, Summary

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="write six charts, overview.png and summary.json into this folder",
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="read on the Dask cluster whose scheduler is there, such as tcp://host:8786",
    )
    add_json(parser, "summary and the findings")
    add_skip_invalid(parser)


def _run(options: argparse.Namespace) -> bool:
    with needing("analyze", "analysis"):
        from sched_profiler.analysis import (  # noqa: PLC0415 - an extra
            find_anomalies,
            load_manifests,
            scan,
            summarize,
        )
    with progress("reading") as advance:
        if options.dask is None:
            digest = scan(
                *options.logs,
                skip_invalid=options.skip_invalid,
                charts=options.out is not None,
                progress=advance,
            )
        else:
            digest = _scan_on(options, advance)
    summary = summarize(digest)
    findings = find_anomalies(digest, load_manifests(*options.logs))
    data = _to_json(summary, findings, digest)
    # Before anything is printed: whoever reads may stop in the middle.
    written = [] if options.out is None else _write_files(options.out, digest, data)
    print(data if options.json else _to_text(summary, findings, digest))
    if written:
        # Only JSON on standard output: the list is for the reader, not for the program.
        stream = sys.stderr if options.json else sys.stdout
        say("", "wrote", *(f"  {path}" for path in written), stream=stream)
    return True


def _to_json(summary: Summary, findings: list[Finding], digest: Digest) -> str:
    found = {
        "findings": [finding.to_dict() for finding in findings],
        "num_batches_looked_at": digest.num_sampled,
        "num_runs_too_short": digest.num_runs_too_short,
    }
    return json.dumps(summary.to_dict() | found, indent=2, allow_nan=False)


def _to_text(summary: Summary, findings: list[Finding], digest: Digest) -> str:
    count = len(findings)
    heading = counted(count, "finding") if count else "no findings"
    if digest.num_sampled < summary.num_batches:
        heading += f" in {digest.num_sampled:,} batches, which are spread evenly over each run"
    if short := digest.num_runs_too_short:
        from sched_profiler.analysis.sample import FEWEST_BATCHES  # noqa: PLC0415 - an extra

        which = "" if short == summary.num_runs else f"{short:,} of {summary.num_runs:,} runs are "
        heading += f": {which}too short to tell, with fewer than {FEWEST_BATCHES} batches"
    return "\n\n".join([str(summary), heading, *map(str, findings)])


def _scan_on(options: argparse.Namespace, advance: Callable[[int, int], None] | None) -> Digest:
    with needing("--dask", "dask"):
        from sched_profiler.analysis.cluster import connect, scan_on  # noqa: PLC0415 - an extra

        client = connect(options.dask)
    with client:
        return scan_on(client, *options.logs, skip_invalid=options.skip_invalid, progress=advance)


def _write_files(folder: Path, digest: Digest, data: str) -> list[Path]:
    """Write charts and the summary as JSON into a folder, and return their paths."""
    with needing("--out", "analysis"):
        from sched_profiler.analysis import plots  # noqa: PLC0415 - an extra

    charts = {
        "overview.png": plots.plot_overview,
        "step_times.png": plots.plot_step_times,
        "requests.png": plots.plot_requests,
        "tokens.png": plots.plot_tokens,
        "schedule_histogram.png": plots.plot_schedule_histogram,
        "model_run_histogram.png": plots.plot_model_run_histogram,
        "schedule_against_model_run.png": plots.plot_schedule_against_model_run,
    }
    written = []
    check_output(*(folder / name for name in (*charts, "summary.json")))
    with writing(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in charts.items():
            with whole_file(folder / name) as path:
                draw(digest).savefig(path, format="png", dpi=120)
            written.append(folder / name)
        with whole_file(folder / "summary.json") as path:
            path.write_text(data + "\n", encoding="utf-8")
        written.append(folder / "summary.json")
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
  %(prog)s s3://bucket/prefix/ --dask tcp://scheduler:8786
      read the logs of a fleet on the workers of a cluster
""",
    add_arguments=_add_arguments,
    run=_run,
)
