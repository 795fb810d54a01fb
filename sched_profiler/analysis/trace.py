"""Writes a log as a trace that Perfetto and Chrome show as a timeline.

It is JSON in the Trace Event Format: a process for each run, with a track each for schedule, model
run, idle and update, and counters. Events go out one by one, so a trace may be larger than memory.
"""

from __future__ import annotations

import json
from math import isnan
from typing import IO, TYPE_CHECKING

import numpy as np

from sched_profiler.analysis.columns import numbers, prefill_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Column = Callable[[pd.DataFrame], Floats]

__all__ = ["write_trace"]

_TRACKS = ("schedule", "model run", "idle", "update")
_FIRST_PID = 100
"""To Perfetto 0 is the kernel, and a track with the number of its process is the main thread of it,
which is shown before the others: tracks have small numbers, processes have others."""
_US_PER_S = 1e6
_US_PER_MS = 1e3
_AT_A_TIME = 10_000
"""Batches whose numbers are Python's own at the same time."""


def write_trace(df: pd.DataFrame, stream: IO[str]) -> int:
    """Write a loaded log as a trace, and return how many events it has.

    Times count from the first batch of the log, in µs. Where the wall clock was set back, what
    follows is moved to after what was before. Slices of a track do not overlap: by rounding, one
    that would begin before the last has ended begins at its end.

    Args:
        df: as `load` returns it.
        stream: where to write, as text.
    """
    run = np.asarray(df["run"]) if "run" in df else np.zeros(len(df), dtype=np.int64)
    runs, firsts = np.unique(run, return_index=True)
    start = float(np.nanmin(numbers(df, "timestamp")[firsts])) if len(df) else 0.0
    count = 0
    stream.write('{"displayTimeUnit":"ms","traceEvents":[')
    for number in runs:
        for event in _events(df.iloc[np.flatnonzero(run == number)], int(number), start):
            stream.write(f",\n{event}" if count else f"\n{event}")
            count += 1
    stream.write("\n]}\n")
    return count


def _events(run: pd.DataFrame, number: int, start: float) -> Iterator[str]:
    pid = _FIRST_PID + number
    yield from _names(run, number, pid)
    tracks = _slices(run, start)
    for first in range(0, len(run), _AT_A_TIME):
        some = slice(first, first + _AT_A_TIME)
        slices = [(b[some].tolist(), n[some].tolist()) for b, n in tracks]
        yield from _events_of_batches(run.iloc[some], pid, slices)


def _events_of_batches(
    batches: pd.DataFrame, pid: int, slices: list[tuple[list[int], list[int]]]
) -> Iterator[str]:
    details, counters = (
        _texts(batches, _DETAILS),
        {name: _texts(batches, columns) for name, columns in _COUNTERS.items()},
    )
    kinds = _kinds(batches)
    preempted = np.nan_to_num(numbers(batches, "num_preempted_reqs")).astype(np.int64).tolist()
    for row, detail in enumerate(details):
        for tid, (begins, lengths) in enumerate(slices, 1):
            if lengths[row] >= 0:
                name = kinds[row] if tid == _MODEL_RUN else _TRACKS[tid - 1]
                yield (
                    f'{{"ph":"X","pid":{pid},"tid":{tid},"ts":{begins[row]},'
                    f'"dur":{lengths[row]},"name":"{name}","args":{detail}}}'
                )
        begins, lengths = slices[0]
        at = begins[row] + lengths[row]
        for name, texts in counters.items():
            if texts[row] != "{}":
                yield f'{{"ph":"C","pid":{pid},"ts":{at},"name":"{name}","args":{texts[row]}}}'
        if preempted[row]:
            yield (
                f'{{"ph":"i","s":"t","pid":{pid},"tid":1,"ts":{at},'
                f'"name":"preempted","args":{{"requests":{preempted[row]}}}}}'
            )


_MODEL_RUN = 2
"""Number of its track."""


def _names(run: pd.DataFrame, number: int, pid: int) -> Iterator[str]:
    """Yield what the process and its tracks are called, in the order in which they are shown."""
    name = f"run {number}"
    rank = numbers(run, "dp_rank")[0]
    if not np.isnan(rank):
        name += f", rank {int(rank)}"
    run_id = run["run_id"].iloc[0] if "run_id" in run else None
    if isinstance(run_id, str):
        name += f" ({run_id})"
    label = json.dumps(name)
    yield f'{{"ph":"M","pid":{pid},"name":"process_name","args":{{"name":{label}}}}}'
    yield f'{{"ph":"M","pid":{pid},"name":"process_sort_index","args":{{"sort_index":{pid}}}}}'
    for tid, track in enumerate(_TRACKS, 1):
        yield (
            f'{{"ph":"M","pid":{pid},"tid":{tid},"name":"thread_name","args":{{"name":"{track}"}}}}'
        )
        yield (
            f'{{"ph":"M","pid":{pid},"tid":{tid},"name":"thread_sort_index",'
            f'"args":{{"sort_index":{tid}}}}}'
        )


def _slices(run: pd.DataFrame, start: float) -> list[tuple[Ints, Ints]]:
    """Return when the slices of each track begin, and how long they are, in µs.

    The length is -1 where there is none.
    """
    begin = (numbers(run, "timestamp") - start) * _US_PER_S
    schedule, queue, model, idle, update = (
        numbers(run, f"{name}_duration_ms") * _US_PER_MS
        for name in ("schedule", "queue", "model_run", "idle", "update")
    )
    # In a log without the wait in the queue, what is left of the total is the wait.
    total = numbers(run, "total_step_duration_ms") * _US_PER_MS
    begin = _going_on(begin, begin + np.nan_to_num(np.fmax(schedule, total)))
    queue = np.where(np.isnan(queue), np.maximum(0.0, total - schedule - model), queue)
    runs = begin + schedule + queue
    result = runs + model
    idle = np.where(idle > 0, idle, np.nan)
    return [
        _apart(begin, schedule),
        _apart(runs, model),
        _apart(runs - idle, idle),
        _apart(result, update),
    ]


def _going_on(begin: Floats, end: Floats) -> Floats:
    """Return when batches begin by a clock that was not set back.

    One that seems to begin before the batch before begins at the end of that, and those after it
    are moved with it. Perfetto would stack them all at one time.
    """
    back = np.flatnonzero(np.diff(begin) < 0) + 1
    moved = np.zeros(len(begin))
    moved[back] = end[back - 1] - begin[back]
    moved_so_far: Floats = np.cumsum(moved)
    return begin + moved_so_far


def _apart(begin: Floats, length: Floats) -> tuple[Ints, Ints]:
    known = ~np.isnan(begin) & ~np.isnan(length)
    begins, lengths = np.zeros(len(begin), dtype=np.int64), np.full(len(begin), -1, dtype=np.int64)
    starts = np.rint(begin[known]).astype(np.int64)
    ends = np.maximum.accumulate(np.rint(begin[known] + length[known]).astype(np.int64))
    starts[1:] = np.maximum(starts[1:], ends[:-1])
    begins[known], lengths[known] = starts, np.maximum(0, ends - starts)
    return begins, lengths


_DETAILS: dict[str, Column] = {
    "batch_id": lambda df: numbers(df, "batch_id"),
    "prefill requests": lambda df: numbers(df, "num_prefill_reqs"),
    "prefill tokens": prefill_tokens,
    "decode requests": lambda df: numbers(df, "num_decode_reqs"),
    "tokens": lambda df: numbers(df, "total_scheduled_tokens"),
}
_COUNTERS: dict[str, dict[str, Column]] = {
    "requests": {
        "waiting": lambda df: numbers(df, "num_waiting_reqs"),
        "running": lambda df: numbers(df, "num_running_reqs"),
    },
    "tokens": {
        "prefill": prefill_tokens,
        "decode": lambda df: numbers(df, "total_scheduled_tokens") - prefill_tokens(df),
    },
    "KV cache": {"in use, %": lambda df: np.round(100 * numbers(df, "kv_cache_usage"), 2)},
}


def _texts(batches: pd.DataFrame, columns: dict[str, Column]) -> list[str]:
    """Return a JSON object a batch, without what is unknown."""
    names = [f'"{name}":' for name in columns]
    rows = zip(*(values(batches).tolist() for values in columns.values()), strict=True)
    known = (
        [f"{name}{value:.10g}" for name, value in zip(names, row, strict=True) if not isnan(value)]
        for row in rows
    )
    return ["{" + ",".join(parts) + "}" for parts in known]


def _kinds(batches: pd.DataFrame) -> list[str]:
    """Return what a batch holds, by which the slices of the model are coloured."""
    prefill, decode = (numbers(batches, f"num_{phase}_reqs") > 0 for phase in ("prefill", "decode"))
    names = np.where(prefill & decode, "mixed", np.where(prefill, "prefill", "decode"))
    return [str(name) for name in names]
