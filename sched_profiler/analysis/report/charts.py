"""The charts of a report, as data that Plotly's script draws.

What is drawn comes from the digest, so that its size has a limit whatever the length of the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from sched_profiler.analysis.report.plotly import RESOLUTION_MS, Chart, axis_of, line_at, plain
from sched_profiler.analysis.report.trends import Quantity, Trends
from sched_profiler.analysis.weighted import bar_edges, correlation, has_long_tail, median

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sched_profiler.analysis.digest import Digest
    from sched_profiler.analysis.report.plotly import Trace
    from sched_profiler.analysis.sketch import Sketch
    from sched_profiler.analysis.time_axis import TimeAxis

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["Charts", "charts", "run_names"]

_MAX_COMPARED = 40
"""With more runs than this, their boxes are lines."""
_CELLS = 60
_RARE = 1_000


@attrs.frozen(kw_only=True)
class Charts:
    """All charts of a log."""

    charts: list[Chart]
    shared: dict[str, list[Any]]
    """What several traces have in common."""


def charts(digest: Digest, time: TimeAxis) -> Charts:
    """Return the charts of a log."""
    trends = Trends(digest, time)
    budgets = digest.token_budgets
    is_one = budgets.count == digest.num_batches and 0 < budgets.smallest == budgets.largest
    drawn = [
        trends.chart(
            "step-times",
            "Schedule and model-run time",
            [
                Quantity("schedule_duration_ms", "schedule", "blue", " ms", ".3~f"),
                Quantity("model_run_duration_ms", "model run", "vermilion", " ms", ".3~f"),
            ],
            axis="ms",
            floor=RESOLUTION_MS,
        ),
        trends.chart(
            "tokens",
            "Scheduled tokens",
            [Quantity("total_scheduled_tokens", "tokens", "green", "", ",.4~r")],
            axis="tokens",
            floor=1.0,
            limit=("token budget", budgets.largest) if is_one else None,
        ),
        trends.chart(
            "requests",
            "Requests: in prefill, decoding and waiting",
            [
                Quantity("num_decode_reqs", "decode", "sky", "", ",.3~r"),
                Quantity("num_prefill_reqs", "prefill", "orange", "", ",.3~r"),
                Quantity("num_waiting_reqs", "waiting", "purple", "", ",.3~r"),
            ],
            axis="requests",
        ),
        trends.chart(
            "kv-cache",
            "KV cache in use",
            [Quantity("kv_cache_usage", "KV cache", "green", "%", ".3~r", 100.0)],
            axis="%",
        ),
        trends.chart(
            "idle",
            "Idle time of the model before each batch",
            [Quantity("idle_duration_ms", "idle", "purple", " ms", ".3~f")],
            axis="ms",
            floor=RESOLUTION_MS,
        ),
        _histogram("schedule", "Schedule time", digest.durations["schedule"], "blue"),
        _histogram("model-run", "Model-run time", digest.durations["model_run"], "vermilion"),
        _histogram("total-step", "Total step time", digest.durations["total_step"], "green"),
        _schedule_against_model_run(digest),
        _compared(digest),
    ]
    return Charts(charts=[chart for chart in drawn if chart.data], shared=trends.shared)


def _histogram(name: str, title: str, sketch: Sketch, colour: str) -> Chart:
    if not sketch.count:
        return Chart(name=name, title=title)
    percentiles = sketch.quantiles([0.50, 0.95, 0.99])
    values, weights = sketch.values()
    is_log = has_long_tail(float(values.max()), max(percentiles[0], RESOLUTION_MS))
    if is_log:
        values = np.maximum(values, RESOLUTION_MS)
    edges = bar_edges(values, sketch.count, logarithmic=is_log)
    counts, edges = np.histogram(values, edges, weights=weights)
    marked = [max(value, float(edges[0])) for value in percentiles]
    are_rare = bool(counts.max() > _RARE * counts[counts > 0].min())
    least = 0.5 if are_rare else 0.0
    bars = list(zip(plain(edges[:-1]), plain(edges[1:]), counts.astype(int).tolist(), strict=True))
    y_axis = axis_of("batches", is_log=are_rare)
    if are_rare:
        y_axis["dtick"] = 1
        y_axis["range"] = [np.log10(least), np.log10(counts.max() * 1.5)]
    return Chart(
        name=name,
        title=title,
        facts=" · ".join(
            f"{label} {_ms(value)}"
            for label, value in zip(
                (*_PERCENTILES, "max"), [*percentiles, sketch.largest], strict=True
            )
        ),
        data=[
            {
                "type": "scatter",
                "mode": "lines",
                "x": [*plain(edges), plain(edges[-1:])[0]],
                "y": [*np.maximum(counts, least).tolist(), float(max(counts[-1], least)), least],
                "customdata": [*bars, bars[-1], bars[-1]],
                "line": {"color": colour, "shape": "hv", "width": 1},
                "fill": "tozeroy",
                "fillcolor": f"{colour}/0.45",
                "hovertemplate": "%{customdata[0]:.3~f} to %{customdata[1]:.3~f} ms: "
                "<b>%{customdata[2]:,} batches</b><extra></extra>",
                "showlegend": False,
            }
        ],
        layout={
            "xaxis": axis_of("ms", is_log=is_log),
            "yaxis": y_axis,
            "shapes": [line_at(value, "text", "solid") for value in marked],
            "annotations": [
                # Of an annotation, unlike of a line, a logarithmic axis wants the logarithm.
                _name_of_line(label, float(np.log10(value)) if is_log else value, number)
                for number, (label, value) in enumerate(zip(_PERCENTILES, marked, strict=True))
            ],
            "hovermode": "closest",
        },
    )


_PERCENTILES = ("P50", "P95", "P99")


def _name_of_line(label: str, at: float, number: int) -> dict[str, Any]:
    """Return a name beside a vertical line, each lower than the one before."""
    place = {"x": at, "yref": "paper", "y": 1 - 0.1 * number}
    anchor = {"xanchor": "left", "yanchor": "top", "xshift": 2, "showarrow": False}
    return {"text": label, "font": {"size": 11, "color": "text"}} | place | anchor


def _schedule_against_model_run(digest: Digest) -> Chart:
    name, title = "schedule-model-run", "Schedule time against model-run time"
    rows = digest.outline.rows
    x, y, counts = digest.outline.pairs()
    known = counts > 0
    x, y, counts = x[known], y[known], counts[known]
    if not len(x):
        return Chart(name=name, title=title)
    facts = correlation(x, y, counts)
    logs = [
        has_long_tail(float(one.max()), max(median(one, counts), RESOLUTION_MS)) for one in (x, y)
    ]
    x, y = (
        np.maximum(one, RESOLUTION_MS) if is_log else one
        for one, is_log in zip((x, y), logs, strict=True)
    )
    if rows is None:
        data = [_density(x, y, counts, logs)]
    else:
        data = _points(x, y, rows["num_prefill_reqs"][known] > 0, rows["batch_id"][known])
    return Chart(
        name=name,
        title=title,
        facts=facts,
        data=data,
        layout={
            "xaxis": axis_of("model run, ms", is_log=logs[0]),
            "yaxis": axis_of("schedule, ms", is_log=logs[1]),
            "hovermode": "closest",
        },
    )


def _points(x: Floats, y: Floats, has_prefill: NDArray[np.bool_], ids: Floats) -> list[Trace]:
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": label,
            "x": plain(x[chosen]),
            "y": plain(y[chosen]),
            "customdata": [None if np.isnan(one) else int(one) for one in ids[chosen]],
            "marker": {"color": f"{colour}/0.65", "size": 5, "symbol": symbol},
            "hovertemplate": "batch %{customdata}: schedule <b>%{y:.3~f} ms</b>, "
            "model run <b>%{x:.3~f} ms</b><extra></extra>",
        }
        for chosen, label, colour, symbol in (
            (~has_prefill, "decode only", "sky", "circle"),
            (has_prefill, "with prefill", "orange", "triangle-up"),
        )
        if chosen.any()
    ]


def _density(x: Floats, y: Floats, counts: Ints, logs: Sequence[bool]) -> Trace:
    """Return how many batches are in each cell of a grid."""
    edges = [_grid(values, is_log=is_log) for values, is_log in zip((x, y), logs, strict=True)]
    cells, *_ = np.histogram2d(x, y, bins=edges, weights=counts)
    number = np.where(cells > 0, cells, np.nan).T
    return {
        "type": "heatmap",
        "x": plain(edges[0]),
        "y": plain(edges[1]),
        "z": [plain(row) for row in np.log10(number)],
        "customdata": [[None if np.isnan(one) else int(one) for one in row] for row in number],
        # Seen on light and on dark.
        "colorscale": [[0, "#7fb2d9"], [0.5, "#e0b84c"], [1, "#d1461f"]],
        "hoverongaps": False,
        "hovertemplate": "schedule %{y:.3~f} ms, model run %{x:.3~f} ms: "
        "<b>%{customdata:,} batches</b><extra></extra>",
        "colorbar": {
            "title": {"text": "batches", "side": "right"},
            "tickprefix": "10<sup>",
            "ticksuffix": "</sup>",
            "dtick": 1,
            "thickness": 10,
            "outlinewidth": 0,
        },
    }


def _grid(values: Floats, *, is_log: bool) -> Floats:
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low * 0.9, low * 1.1 or 1.0
    return (np.geomspace if is_log else np.linspace)(low, high, _CELLS + 1)


def run_names(digest: Digest) -> list[str]:
    """Return what charts call the runs, which are in the order of their first batch."""
    ranks = [run.dp_rank for run in digest.ordered_runs]
    if None not in ranks and len(set(ranks)) == len(ranks) > 1:
        return [f"rank {rank}" for rank in ranks]
    return [f"run {number}" for number in range(len(ranks))]


def _compared(digest: Digest) -> Chart:
    """Return a chart that holds the runs against each other, where there are a few."""
    name, title = "runs", "Times of each run"
    runs = digest.ordered_runs
    if not 1 < len(runs) <= _MAX_COMPARED:
        return Chart(name=name, title=title)
    names = run_names(digest)
    data: list[Trace] = []
    for column, label, colour in (
        ("schedule_duration_ms", "schedule", "blue"),
        ("model_run_duration_ms", "model run", "vermilion"),
    ):
        sketches = [run.durations[column] for run in runs]
        boxes = [
            one.quantiles([0.05, 0.25, 0.5, 0.75, 0.95]) if one.count else [np.nan] * 5
            for one in sketches
        ]
        if np.isnan(boxes).all():
            continue
        columns = [plain(np.maximum(values, RESOLUTION_MS)) for values in np.transpose(boxes)]
        keys = ("lowerfence", "q1", "median", "q3", "upperfence")
        data.append(
            {"type": "box", "orientation": "h", "name": label, "y": names}
            | dict(zip(keys, columns, strict=True))
            | {"line": {"color": colour, "width": 1.5}, "fillcolor": f"{colour}/0.25"}
        )
    return Chart(
        name=name,
        title=title,
        facts="box: P25, P50 and P75 · whiskers: P5 and P95",
        data=data,
        layout={
            "xaxis": axis_of("ms, log scale", is_log=True),
            "yaxis": {"autorange": "reversed", "automargin": True, "title": {"text": ""}},
            "boxmode": "group",
            "hovermode": "closest",
            "height": 130 + 56 * len(runs),
        },
    )


def _ms(value: float) -> str:
    return f"{value:,.3f} ms"
