"""What the commands that replay requests share: which run, which requests, which engine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sched_profiler.cli.progress import progress
from sched_profiler.cli.terminal import say
from sched_profiler.errors import counted
from sched_profiler.reader import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd

    from sched_profiler.analysis.arrivals import Arrival
    from sched_profiler.analysis.engine_time import EngineTime
    from sched_profiler.analysis.recorded_run import RecordedRun
    from sched_profiler.analysis.replay import EngineSettings, ReplayScheduler

__all__ = ["Engine", "Recorded", "add_trace", "fitted", "read"]


@attrs.frozen(kw_only=True, eq=False)
class Recorded:
    """What there is to replay."""

    df: pd.DataFrame
    """The batches of all runs: what times are fitted to."""
    run: RecordedRun
    """The run whose limits and requests are replayed."""
    arrivals: list[Arrival]
    """The requests; empty where none are known."""
    measures: dict[str, float]
    """What was measured of them; empty for requests from elsewhere."""
    origin: str
    """Where they are from."""


@attrs.frozen(kw_only=True, eq=False)
class Engine:
    """What replays them."""

    times: EngineTime
    make_scheduler: Callable[[EngineSettings, int], ReplayScheduler]
    words: str
    """What is replayed by what, in a sentence."""


def add_trace(parser: argparse.ArgumentParser) -> None:
    """Add where the requests come from, and how many of them are taken."""
    parser.add_argument(
        "--trace",
        metavar="CSV",
        type=Path,
        help="requests to replay instead of the recorded ones: columns arrival_time, "
        "num_prompt_tokens, num_output_tokens and, if known, num_cached_tokens",
    )
    parser.add_argument(
        "--requests",
        metavar="N",
        type=_at_least_two,
        default=2000,
        help="replay the first so many requests (default: %(default)s)",
    )


def _at_least_two(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:  # noqa: PLR2004 - one has no rate
        raise argparse.ArgumentTypeError(f"{text} is no number of requests; expected 2 or more")
    return int(text)


def read(options: argparse.Namespace, told: Mapping[str, int] | None = None) -> Recorded:
    """Read logs, manifests and requests.

    Args:
        options: of the command.
        told: settings of the engine; with it, also if it is empty, a manifest may be missing.

    Raises:
        LogError: if one cannot be read, or if a manifest is needed and missing or lacks a setting.
    """
    from sched_profiler import analysis  # noqa: PLC0415 - an extra
    from sched_profiler.analysis import arrivals  # noqa: PLC0415
    from sched_profiler.analysis.recorded_run import find_run  # noqa: PLC0415
    from sched_profiler.analysis.replay_measures import recorded_measures  # noqa: PLC0415

    # First, for it is the quickest to read.
    given = arrivals.load_arrivals(options.trace) if options.trace is not None else None
    with progress("reading") as advance:
        df = analysis.load(*options.logs, skip_invalid=options.skip_invalid, progress=advance)
    manifests = analysis.load_manifests(*options.logs)
    of_requests = Tally()
    requests_of_runs = arrivals.load_requests(
        *options.logs, skip_invalid=options.skip_invalid, tally=of_requests
    )
    if skipped := df.attrs["num_skipped_lines"] + of_requests.num_skipped_lines:
        say(counted(skipped, "invalid line") + " left out", stream=sys.stderr)
    run = find_run(df, manifests, requests_of_runs, told=told, arrivals=given or ())
    if given is not None:
        return Recorded(
            df=df,
            run=run,
            arrivals=given[: options.requests],
            measures={},
            origin=str(options.trace),
        )
    requests = run.requests[: options.requests]
    batches = run.df
    if len(requests) < len(run.requests):
        last = max((request.end_time or 0.0 for request in requests), default=0.0)
        batches = batches[batches["timestamp"] <= last]
    return Recorded(
        df=df,
        run=run,
        arrivals=arrivals.arrivals_of(requests),
        measures=recorded_measures(batches, requests) if requests else {},
        origin=f"run {run.run_id}",
    )


def fitted(recorded: Recorded) -> Engine:
    """Fit an engine's times to what was recorded, and make ready vLLM's scheduler.

    Raises:
        LogError: if there are too few batches to fit to.
        SchedProfilerError: if vLLM is not installed.
    """
    from sched_profiler.analysis.engine_time import fit_engine_time  # noqa: PLC0415 - an extra
    from sched_profiler.engines.vllm_replay import (  # noqa: PLC0415 - heavy
        VllmReplayScheduler,
        require_vllm,
    )

    is_async = recorded.run.settings.async_scheduling
    times = fit_engine_time(recorded.df, async_scheduling=is_async)
    version = require_vllm()
    return Engine(
        times=times,
        make_scheduler=lambda settings, shared: VllmReplayScheduler(
            settings, num_shared_tokens=shared
        ),
        words=(
            f"requests of {recorded.origin}; step times fitted to {times.model.num_batches:,} "
            f"batches, off by {times.model.cross_validation.median_error:.1%} in the median; "
            f"scheduler of vLLM {version}"
        ),
    )
