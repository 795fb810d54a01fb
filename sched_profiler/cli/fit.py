"""`sched-profiler fit`."""

from __future__ import annotations

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
from sched_profiler.whole_file import check_output, whole_file

if TYPE_CHECKING:
    import argparse

    import pandas as pd

    from sched_profiler.analysis import StepTimeModel

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="write step_time_model.json and step_time_model.png into this folder",
    )
    add_json(parser, "model")
    add_skip_invalid(parser)


def _run(options: argparse.Namespace) -> bool:
    with needing("fit", "analysis"):
        from sched_profiler.analysis import (  # noqa: PLC0415 - an extra
            common_settings,
            fit_step_time,
            load,
            load_manifests,
        )
    with progress("reading") as advance:
        df = load(*options.logs, skip_invalid=options.skip_invalid, progress=advance)
    settings = common_settings(df, load_manifests(*options.logs))
    model = fit_step_time(df, settings)
    # Before anything is printed: whoever reads may stop in the middle.
    written = [] if options.out is None else _write_files(options.out, df, model)
    print(model.to_json() if options.json else model)
    say(*(f"wrote {path}" for path in written), stream=sys.stderr)
    return True


def _write_files(folder: Path, df: pd.DataFrame, model: StepTimeModel) -> list[Path]:
    with needing("--out", "analysis"):
        from sched_profiler.analysis import plot_residuals  # noqa: PLC0415 - an extra

    written = [folder / "step_time_model.json", folder / "step_time_model.png"]
    check_output(*written)
    with writing(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(written[0]) as path:
            path.write_text(model.to_json() + "\n", encoding="utf-8")
        with whole_file(written[1]) as path:
            plot_residuals(df, model).savefig(path, format="png", dpi=100)
    return written


COMMAND = Command(
    name="fit",
    purpose="Fit a model of how long the model runs for a batch.",
    examples="""\
  %(prog)s scheduler_profiling.jsonl
      what a step costs, by what the batch holds
  %(prog)s runs/ --out fitted
      also write the model as JSON, and a picture of its errors
""",
    add_arguments=_add_arguments,
    run=_run,
)
