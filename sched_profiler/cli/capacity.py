"""`sched-profiler capacity`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import attrs

from sched_profiler.cli.command import Command, add_json, add_logs, add_skip_invalid, needing
from sched_profiler.cli.progress import counting
from sched_profiler.cli.replaying import add_trace, fitted, read
from sched_profiler.cli.terminal import say
from sched_profiler.errors import LogError

if TYPE_CHECKING:
    from sched_profiler.analysis.recorded_run import RecordedRun

__all__ = ["COMMAND"]


_SETTINGS = {
    "max_num_batched_tokens": "most tokens in a batch",
    "max_num_seqs": "most requests that run at a time",
    "block_size": "tokens in a block of the KV cache",
    "num_blocks": "blocks of the KV cache",
    "max_model_len": "most tokens of a request, prompt and output together",
}
_SEATS = "max_num_seqs"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    add_trace(parser)
    group = parser.add_argument_group(
        "the engine", "what it was, if the run manifest is lost; each goes before the manifest"
    )
    for name, meaning in _SETTINGS.items():
        group.add_argument(_option(name), metavar="N", type=_at_least_one, help=meaning)
    add_json(parser, "result")
    add_skip_invalid(parser)


def _run(options: argparse.Namespace) -> bool:
    with needing("capacity", "analysis"):
        from sched_profiler.analysis import capacity  # noqa: PLC0415 - an extra
    told = {name: getattr(options, name) for name in _SETTINGS}
    found = read(options, {name: value for name, value in told.items() if value is not None})
    result: capacity.Capacity | capacity.CapacityEstimate
    if not found.arrivals:
        result = capacity.estimate_capacity(found.run.df, max_num_seqs=found.run.limits.get(_SEATS))
        assumed = _seats(found.run)
    else:
        _demand_settings(found.run)
        assumed = found.run.assumed
        engine = fitted(found)
        say(engine.words, stream=sys.stderr)
        with counting("replaying", "requests") as advance:
            result = capacity.find_capacity(
                found.arrivals,
                found.run.settings,
                engine.times,
                engine.make_scheduler,
                progress=advance,
            )
    result = attrs.evolve(result, assumed=assumed)
    if options.json:
        print(result.to_json())
    else:
        say(*str(result).split("\n"))
    return True


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no limit; expected a whole number above 0")
    return int(text)


def _demand_settings(run: RecordedRun) -> None:
    """Say which settings a replay lacks, and how to give them."""
    if run.lacking:
        which = "this log" if run.run_id is None else f"run {run.run_id}"
        raise LogError(
            f"no run manifest (*.run.json) beside the logs tells {', '.join(run.lacking)} of "
            f"{which}, and a replay needs them; keep the manifest beside its log, or give "
            f"{' '.join(f'{_option(name)} N' for name in run.lacking)}"
        )


def _seats(run: RecordedRun) -> tuple[str, ...]:
    """Say what an estimate takes max_num_seqs to be, unless the manifest tells it."""
    if _SEATS not in run.limits:
        return (
            f"nothing of {_SEATS}, which no run manifest tells; give {_option(_SEATS)} N for the "
            "rate at which it is reached.",
        )
    return tuple(words for words in run.assumed if words.startswith(f"{_SEATS}="))


COMMAND = Command(
    name="capacity",
    purpose="Say at what request rate the engine is full, and what fills it.",
    examples="""\
  %(prog)s scheduler_profiling.jsonl
      replay the recorded requests faster and faster; without a request trace, an estimate
  %(prog)s scheduler_profiling.jsonl --trace expected.csv
      of other requests than those that were recorded
  %(prog)s log.jsonl --max-num-seqs 256 --block-size 16 --num-blocks 27500
      of a log whose run manifest is lost; what is missing is named
  %(prog)s scheduler_profiling.jsonl --json | jq .sustained_requests_per_s
      for another program
""",
    add_arguments=_add_arguments,
    run=_run,
)
