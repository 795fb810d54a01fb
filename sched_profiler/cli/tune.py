"""`sched-profiler tune`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from sched_profiler.cli.command import Command, add_json, add_logs, add_skip_invalid, needing
from sched_profiler.cli.progress import counting
from sched_profiler.cli.replaying import add_trace, fitted, read
from sched_profiler.cli.terminal import say
from sched_profiler.errors import LogError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sched_profiler.analysis.replay import EngineSettings

__all__ = ["COMMAND"]


def _limits(text: str) -> list[int]:
    limits = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(limits) < 1:
        raise argparse.ArgumentTypeError(
            f"{text} is no list of limits; expected whole numbers above 0, such as 512,2048"
        )
    return limits


def _replays(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:  # noqa: PLR2004 - one has no spread
        raise argparse.ArgumentTypeError(f"{text} is no number of replays; expected 2 or more")
    return int(text)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    parser.add_argument(
        "--max-num-batched-tokens",
        metavar="N,N",
        type=_limits,
        help="budgets to try (default: a quarter, half, double and four times the recorded one)",
    )
    parser.add_argument(
        "--max-num-seqs",
        metavar="N,N",
        type=_limits,
        help="numbers of running requests to try (default: half and double the recorded one); if "
        "both are given, each is tried with each",
    )
    add_trace(parser)
    parser.add_argument(
        "--replays",
        metavar="N",
        type=_replays,
        default=5,
        help="how often to replay each, for the ranges (default: %(default)s)",
    )
    add_json(parser, "result")
    add_skip_invalid(parser)


def _run(options: argparse.Namespace) -> bool:
    with needing("tune", "analysis"):
        from sched_profiler.analysis import tuning  # noqa: PLC0415 - an extra
    found = read(options)
    if not found.arrivals:
        raise LogError(
            f"there is no request trace of run {found.run.run_id} beside the logs; record one with "
            "SCHED_PROFILER_REQUEST_TRACE=true, or name one with --trace"
        )
    engine = fitted(found)
    say(engine.words, stream=sys.stderr)
    with counting("replaying", "requests") as advance:
        result = tuning.tune(
            found.arrivals,
            found.run.settings,
            engine.times,
            engine.make_scheduler,
            _to_try(options, found.run.settings) or tuning.limits_around(found.run.settings),
            recorded=found.measures,
            num_replays=options.replays,
            progress=advance,
        )
    if options.json:
        print(result.to_json())
    else:
        say(*str(result).split("\n"))
    return True


def _to_try(options: argparse.Namespace, settings: EngineSettings) -> list[tuple[int, int]]:
    budgets: Sequence[int] | None = options.max_num_batched_tokens
    seqs: Sequence[int] | None = options.max_num_seqs
    if budgets is None and seqs is None:
        return []
    return [
        (budget, number)
        for budget in budgets or [settings.max_num_batched_tokens]
        for number in seqs or [settings.max_num_seqs]
    ]


COMMAND = Command(
    name="tune",
    purpose="Say what other limits of the scheduler would do, by replaying recorded requests.",
    examples="""\
  %(prog)s scheduler_profiling.jsonl
      a quarter to four times the budget, half and double the requests; needs a request trace
      beside the log, and vLLM
  %(prog)s budget256.jsonl budget2048.jsonl --max-num-batched-tokens 512,1024,2048,4096
      fit to both runs, replay the one with more requests
  %(prog)s scheduler_profiling.jsonl --trace expected.csv --json
      other requests than those that were recorded; for another program
""",
    add_arguments=_add_arguments,
    run=_run,
)
