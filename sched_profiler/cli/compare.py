"""`sched-profiler compare`."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sched_profiler.cli.command import Command, add_json, add_skip_invalid, needing, writing
from sched_profiler.cli.progress import progress
from sched_profiler.cli.terminal import say
from sched_profiler.errors import printable
from sched_profiler.whole_file import check_output, whole_file

if TYPE_CHECKING:
    import pandas as pd

    from sched_profiler.analysis import Comparison

__all__ = ["COMMAND"]


def _confidence(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(
            f"{text} is no confidence; expected more than 0 and less than 1, such as 0.95"
        )
    return number


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="the log to compare with, named as for analyze")
    parser.add_argument("others", metavar="B", nargs="+", help="logs to compare with it")
    parser.add_argument(
        "--confidence",
        metavar="SHARE",
        type=_confidence,
        default=0.95,
        help="of the intervals (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="write compare.png and compare.json into this folder",
    )
    add_json(parser, "comparison")
    add_skip_invalid(parser)


def _run(options: argparse.Namespace) -> bool:
    with needing("compare", "analysis"):
        from sched_profiler.analysis import (  # noqa: PLC0415 - an extra
            compare,
            label_sides,
            load,
            load_manifests,
        )
    logs = [options.first, *options.others]
    names = _names(logs)
    found = {}
    for name, log in zip(names, logs, strict=True):
        with progress("reading") as advance:
            df = load(log, skip_invalid=options.skip_invalid, progress=advance)
        found[name] = (df, load_manifests(log))
    labels = {name: printable(label) for name, label in label_sides(found).items()}
    sides = {labels[name]: df for name, (df, _) in found.items()}
    comparison = compare(sides, confidence=options.confidence)
    # Before anything is printed: whoever reads may stop in the middle.
    written = [] if options.out is None else _write_files(options.out, sides, comparison)
    print(comparison.to_json() if options.json else comparison)
    say(*(f"wrote {path}" for path in written), stream=sys.stderr)
    return True


def _names(logs: list[str]) -> list[str]:
    """Return a short name for each log, and no name twice."""
    short = [Path(log.rstrip("/")).name or log for log in logs]
    names = short if len(set(short)) == len(short) else list(logs)
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names


def _write_files(
    folder: Path, sides: dict[str, pd.DataFrame], comparison: Comparison
) -> list[Path]:
    with needing("--out", "analysis"):
        from sched_profiler.analysis import plot_comparison  # noqa: PLC0415 - an extra

    written = [folder / "compare.png", folder / "compare.json"]
    check_output(*written)
    with writing(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(written[0]) as path:
            plot_comparison(sides, comparison).savefig(path, format="png", dpi=100)
        with whole_file(written[1]) as path:
            path.write_text(comparison.to_json() + "\n", encoding="utf-8")
    return written


COMMAND = Command(
    name="compare",
    purpose="Compare runs: what differs by more than chance.",
    examples="""\
  %(prog)s before.jsonl after.jsonl
      a table with a verdict for each metric
  %(prog)s budget256.jsonl budget512.jsonl budget2048.jsonl --out report
      several against the first, and a chart
  %(prog)s before/ after/ --json | jq '.differences[] | select(.verdict == "worse")'
      what got worse, as data for another program
""",
    add_arguments=_add_arguments,
    run=_run,
)
