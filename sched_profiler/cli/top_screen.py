"""What `sched-profiler top` shows: a frame of text, as wide and as high as the terminal."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

import attrs
from rich.cells import set_cell_size
from rich.text import Text

from sched_profiler.errors import counted, printable
from sched_profiler.window import (
    DURATIONS,
    NUM_SLICES,
    Lane,
    Value,
    Window,
    budget_share,
    idle_share,
    per_batch,
    per_second,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sched_profiler.record import BatchRecord

__all__ = ["Status", "frame"]

_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
_UNKNOWN = "-"
_NUM_SLOW = 5
_NAME_WIDTH, _CELL_WIDTH, _LEAST_COURSE = 17, 8, 10
_HEADING = "bold dim"


@attrs.frozen(kw_only=True)
class Status:
    """What a frame says beside what is in the window.

    Attributes:
        name: what is followed.
        problem: why nothing can be read; None if all is well.
        num_left_out: lines that hold no record.
        last_invalid: what is wrong with the last of them.
        hint: how to end it.
    """

    name: str
    problem: str | None = None
    num_left_out: int = 0
    last_invalid: str | None = None
    hint: str = ""


def frame(
    window: Window, status: Status, *, width: int, height: int | None, is_ascii: bool = False
) -> Text:
    """Return a frame: no line is longer than `width`, nor are there more than `height`.

    Args:
        window: what came lately; settled.
        status: what else there is to say.
        width: columns of the terminal.
        height: its lines; None for as many as it takes.
        is_ascii: whether the terminal has no other characters.
    """
    head, foot = _head(window, status), _foot(window, status)
    left = 10**6 if height is None else height - len(head) - len(foot)
    body: list[Text] = []
    if window.everything.newest is None:
        body = [Text(), *_waiting(status, width)]
    else:
        body = _figures(window, width, _ASCII_BARS if is_ascii else _BARS)
        lanes = _lanes(window, width)
        slow = _slow(window, width)
        room = left - len(body)
        # The slowest batches give way to the engines, but for the first of them.
        body += _cut(lanes, max(room - min(len(slow), 4), min(room, 4)), "engines")
        body += _cut(slow, left - len(body))
    lines = [*head, *body[: max(0, left)], *foot]
    for line in lines:
        line.truncate(width, overflow="crop" if is_ascii else "ellipsis")
    return Text("\n", no_wrap=True, end="").join(lines[:height])


def _cut(lines: list[Text], count: int, what: str | None = None) -> list[Text]:
    """Return as many lines as there is room for: none if that is no more than the heading."""
    if len(lines) <= count:
        return lines
    if count <= 2:  # noqa: PLR2004 - a blank line and the heading
        return []
    if what is None:
        return lines[:count]
    return [*lines[: count - 1], Text(f"and {len(lines) - count + 1} more {what}", style="dim")]


def _head(window: Window, status: Status) -> list[Text]:
    title = Text("sched-profiler top  ", style="bold")
    title.append(printable(status.name), style="not bold cyan")
    if window.everything.newest is None:
        return [title, Text(f"last {_duration(window.seconds)}: no record yet", style="dim")]
    lanes = window.shown_lanes()
    num_runs = len({lane.run_id for lane in lanes})
    state = Text(f"last {_duration(min(window.everything.span_s, window.seconds))}: ")
    state.append(f"{counted(num_runs, 'run')}, {counted(len(lanes), 'engine')}")
    quiet_s, age_s = window.quiet_s or 0.0, window.age_s or 0.0
    if not window.slides and age_s >= 1:
        state.append(f"; up to the newest batch, {_duration(age_s)} ago", style="yellow")
    elif window.slides and quiet_s >= 1:
        state.append(f"; no batch for {_duration(quiet_s)}", style="yellow")
    return [title, state]


def _waiting(status: Status, width: int) -> list[Text]:
    told = "waiting for the first record"
    if status.problem is not None:
        told += f": {printable(status.problem)}"
    return [Text(line, style="yellow") for line in textwrap.wrap(told, width)]


def _foot(window: Window, status: Status) -> list[Text]:
    num_left_out = status.num_left_out + window.num_refused
    lost = (
        (window.num_missing, counted(window.num_missing, "batch", "batches") + " missing"),
        (window.num_dropped, counted(window.num_dropped, "record") + " dropped by the engine"),
        (num_left_out, counted(num_left_out, "line") + " left out"),
    )
    told = ", ".join(words for number, words in lost if number)
    line = Text("lost: ", style="bold")
    lines = [Text(), line.append(told or "nothing", style="red" if told else "not bold")]
    if status.last_invalid is not None:
        lines.append(Text(f"last line left out: {printable(status.last_invalid)}", style="red"))
    if status.problem is not None and window.everything.newest is not None:
        lines.append(Text(printable(status.problem), style="yellow"))
    if status.hint:
        lines.append(Text(status.hint, style="dim"))
    return lines


@attrs.frozen
class _Row:
    """A figure of all engines together.

    Attributes:
        title: what it is.
        value: what it is made of.
        show: how it is written.
        duration: the times that it is about, if there are percentiles of them.
        top: what a full bar stands for; None for the largest value.
    """

    title: str
    value: Value
    show: Callable[[float | None], str]
    duration: str | None = None
    top: float | None = None


def _rows(num_engines: int) -> list[_Row]:
    ms, every = 1e-3, float(num_engines)
    return [
        _Row("steps/s", per_second("num_batches"), _rate),
        _Row("prefill tokens/s", per_second("prefill_tokens"), _rate),
        _Row("decode tokens/s", per_second("decode_tokens"), _rate),
        _Row("new reqs/s", per_second("num_new_reqs"), _rate),
        _Row("finished reqs/s", per_second("num_finished_reqs"), _rate),
        _Row("preempted reqs/s", per_second("num_preempted_reqs"), _rate),
        *(
            _Row(title, per_batch(name, ms), _ms, name)
            for title, name in zip(
                ("schedule ms", "model run ms", "total step ms"), DURATIONS, strict=True
            )
        ),
        _Row("idle", idle_share(num_engines), _share, top=1.0),
        _Row("waiting reqs", per_batch("num_waiting_reqs", every), _rate),
        _Row("running reqs", per_batch("num_running_reqs", every), _rate),
        _Row("KV cache", per_batch("kv_cache_ppm", 1e-6), _share, top=1.0),
        _Row("token budget", budget_share, _share, top=1.0),
    ]


def _figures(window: Window, width: int, bars: str) -> list[Text]:
    """Return the figures of all engines together, each with its course."""
    every = window.everything
    shown = list(_SHARES)
    while shown and _NAME_WIDTH + _CELL_WIDTH * (2 + len(shown)) + _LEAST_COURSE > width:
        shown.pop(0)
    room = min(NUM_SLICES, width - _NAME_WIDTH - _CELL_WIDTH * (2 + len(shown)) - 1)
    titles = "".join(title.rjust(_CELL_WIDTH) for title in ("now", "mean", *shown))
    lines = [Text(), Text(" " * _NAME_WIDTH + titles, style=_HEADING)]
    for row in _rows(max(1, len(window.shown_lanes()))):
        line = Text(row.title.ljust(_NAME_WIDTH))
        line.append(row.show(every.recent(row.value)).rjust(_CELL_WIDTH), style="bold")
        line.append(row.show(every.mean(row.value)).rjust(_CELL_WIDTH))
        found = row.duration and every.percentiles(row.duration, [_SHARES[s] for s in shown])
        cells = [row.show(value) for value in found] if found else [""] * len(shown)
        line.append("".join(cell.rjust(_CELL_WIDTH) for cell in cells))
        if room >= _LEAST_COURSE // 2:
            series = every.series(row.value)
            line.append(f" {_sparkline(series, room, bars, row.top)}", style="cyan")
        lines.append(line)
    return lines


def _sparkline(
    series: Sequence[float | None], width: int, bars: str, top: float | None = None
) -> str:
    """Return a bar for each of the last values: as many as there is room for."""
    shown = series[-width:]
    top = top or max((value for value in shown if value is not None), default=0.0)
    line = ""
    for value in shown:
        if value is None:
            line += " "
        else:
            share = value / top if top > 0 else 0.0
            line += bars[max(0, min(len(bars) - 1, math.ceil(share * len(bars)) - 1))]
    return line


@attrs.frozen
class _Column:
    """A column of a table: of less weight than others, it gives way where there is no room."""

    title: str
    width: int
    weight: int


def _table(columns: Sequence[_Column], rows: Sequence[Sequence[str]], width: int) -> list[Text]:
    """Return a blank line, a heading and the rows, with the columns that there is room for."""
    kept: set[int] = set()
    room = width + 1
    for index in sorted(range(len(columns)), key=lambda index: -columns[index].weight):
        if columns[index].width + 1 > room:
            break
        room -= columns[index].width + 1
        kept.add(index)

    def line(cells: Sequence[str]) -> str:
        return " ".join(
            set_cell_size(cells[index], columns[index].width)
            if index == 0
            else cells[index].rjust(columns[index].width)
            for index in sorted(kept)
        )

    heading = Text(line([column.title for column in columns]), style=_HEADING)
    return [Text(), heading, *(Text(line(row)) for row in rows)]


_LANE_COLUMNS = (
    _Column("run", 14, 20),
    _Column("rank", 4, 19),
    _Column("steps/s", 7, 18),
    _Column("prefill/s", 9, 9),
    _Column("decode/s", 9, 10),
    _Column("p50 ms", 7, 12),
    _Column("p99 ms", 7, 17),
    _Column("idle", 5, 13),
    _Column("waiting", 7, 16),
    _Column("running", 7, 11),
    _Column("KV", 5, 14),
    _Column("lost", 5, 15),
)


def _lanes(window: Window, width: int) -> list[Text]:
    rows = [_lane(lane) for lane in window.shown_lanes()]
    return _table(_LANE_COLUMNS, rows, width)


def _lane(lane: Lane) -> list[str]:
    newest = lane.newest
    assert newest is not None  # noqa: S101 - for the type checker: a lane begins with a record
    name = DURATIONS[2 if newest.total_step_duration_ms is not None else 0]
    p50, p99 = lane.percentiles(name, (0.5, 0.99)) or (None, None)
    return [
        printable(lane.run_id or _UNKNOWN),
        _UNKNOWN if lane.dp_rank is None else str(lane.dp_rank),
        _rate(lane.mean(per_second("num_batches"))),
        _rate(lane.mean(per_second("prefill_tokens"))),
        _rate(lane.mean(per_second("decode_tokens"))),
        _ms(p50),
        _ms(p99),
        _share(lane.mean(idle_share(1))),
        f"{newest.num_waiting_reqs:,}",
        f"{newest.num_running_reqs:,}",
        _share(newest.kv_cache_usage),
        f"{max(lane.num_missing, lane.num_dropped):,}",
    ]


_SLOW_COLUMNS = (
    _Column("slow batch", 10, 20),
    _Column("rank", 4, 10),
    _Column("ago", 7, 17),
    _Column("total ms", 8, 19),
    _Column("schedule", 8, 16),
    _Column("model run", 9, 15),
    _Column("prefill", 12, 14),
    _Column("decode", 9, 13),
    _Column("waiting", 7, 12),
    _Column("KV", 5, 11),
)


def _slow(window: Window, width: int) -> list[Text]:
    batches = window.everything.slow(_NUM_SLOW)
    if not batches:
        return []
    return _table(_SLOW_COLUMNS, [_slow_row(batch, window.end) for batch in batches], width)


def _slow_row(batch: BatchRecord, end: float) -> list[str]:
    return [
        str(batch.batch_id),
        _UNKNOWN if batch.dp_rank is None else str(batch.dp_rank),
        _duration(max(0.0, end - batch.timestamp)),
        _ms(batch.total_step_duration_ms),
        _ms(batch.schedule_duration_ms),
        _ms(batch.model_run_duration_ms),
        _chunks(batch.prefill_chunk_sizes),
        _chunks(batch.decode_chunk_sizes),
        f"{batch.num_waiting_reqs:,}",
        _share(batch.kv_cache_usage),
    ]


def _chunks(sizes: Sequence[int]) -> str:
    """Return how many requests there are, and how many tokens of them."""
    return f"{len(sizes)}:{sum(sizes):,}" if sizes else "0"


_FEW, _MANY = 99.95, 1e6


def _rate(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    if abs(value) >= _MANY:
        return f"{value / _MANY:,.1f}M"
    return f"{value:.1f}" if abs(value) < _FEW else f"{value:,.0f}"


def _ms(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    if value < 1:
        return f"{value:.3f}"
    return f"{value:.1f}" if value < _FEW else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.0%}"


_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


def _duration(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004 - two digits
