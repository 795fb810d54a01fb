"""The charts of a report, as data that Plotly's script draws.

What is drawn comes from the digest, so that its size has a limit whatever the length of the log. No
text of a log is in a chart: a label of Plotly's would be read as markup. A colour is the name of
one in the page's two palettes, which the page's script looks up, so that light and dark differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from sched_profiler.analysis.bands import Bands
from sched_profiler.analysis.weighted import bar_edges, correlation, has_long_tail, median

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sched_profiler.analysis.digest import Digest
    from sched_profiler.analysis.sketch import Sketch
    from sched_profiler.analysis.time_axis import TimeAxis

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Trace = dict[str, Any]

__all__ = ["Chart", "Charts", "charts", "run_names"]

MAX_BANDS = 480
"""Most intervals of time of a long log: the outline of a log has hardly more."""
_MAX_COMPARED = 40
"""With more runs than this, their boxes are lines."""
_CELLS = 60
_FEW = 200
"""So many batches can be told apart."""
_RESOLUTION_MS = 0.001
"""Logs hold times in steps of 1 µs; a logarithmic axis draws a time of 0 as this."""
_RARE = 1_000
_DIGITS = 5


@attrs.frozen(kw_only=True)
class Chart:
    """One chart."""

    name: str
    title: str
    facts: str = ""
    """What to say beside the title."""
    over_time: bool = False
    """Whether it is as wide as the page, and zoomed together with the others over time."""
    data: list[Trace] = attrs.field(factory=list)
    """Traces of Plotly; none where there is nothing to draw. An `x` or `customdata` that is a text
    is the name of one of the shared arrays."""
    layout: dict[str, Any] = attrs.field(factory=dict)

    @property
    def spec(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {"overTime": self.over_time, "data": self.data, "layout": self.layout}


@attrs.frozen(kw_only=True)
class Charts:
    """All charts of a log."""

    charts: list[Chart]
    shared: dict[str, list[Any]]
    """What several traces have in common."""


@attrs.frozen
class _Quantity:
    """What is drawn over time."""

    column: str
    label: str
    colour: str
    unit: str
    format: str
    scale: float = 1.0


def charts(digest: Digest, time: TimeAxis) -> Charts:
    """Return the charts of a log."""
    trends = _Trends(digest, time)
    budgets = digest.token_budgets
    is_one = budgets.count == digest.num_batches and 0 < budgets.smallest == budgets.largest
    drawn = [
        trends.chart(
            "step-times",
            "Schedule and model-run time",
            [
                _Quantity("schedule_duration_ms", "schedule", "blue", " ms", ".3~f"),
                _Quantity("model_run_duration_ms", "model run", "vermilion", " ms", ".3~f"),
            ],
            axis="ms",
            floor=_RESOLUTION_MS,
        ),
        trends.chart(
            "tokens",
            "Scheduled tokens",
            [_Quantity("total_scheduled_tokens", "tokens", "green", "", ",.4~r")],
            axis="tokens",
            floor=1.0,
            limit=("token budget", budgets.largest) if is_one else None,
        ),
        trends.chart(
            "requests",
            "Requests: in prefill, decoding and waiting",
            [
                _Quantity("num_decode_reqs", "decode", "sky", "", ",.3~r"),
                _Quantity("num_prefill_reqs", "prefill", "orange", "", ",.3~r"),
                _Quantity("num_waiting_reqs", "waiting", "purple", "", ",.3~r"),
            ],
            axis="requests",
        ),
        trends.chart(
            "kv-cache",
            "KV cache in use",
            [_Quantity("kv_cache_usage", "KV cache", "green", "%", ".3~r", 100.0)],
            axis="%",
        ),
        trends.chart(
            "idle",
            "Idle time of the model before each batch",
            [_Quantity("idle_duration_ms", "idle", "purple", " ms", ".3~f")],
            axis="ms",
            floor=_RESOLUTION_MS,
        ),
        _histogram("schedule", "Schedule time", digest.durations["schedule"], "blue"),
        _histogram("model-run", "Model-run time", digest.durations["model_run"], "vermilion"),
        _histogram("total-step", "Total step time", digest.durations["total_step"], "green"),
        _schedule_against_model_run(digest),
    ]
    return Charts(charts=[chart for chart in drawn if chart.data], shared=trends.shared)


class _Trends:
    """Charts over time, with what they share."""

    def __init__(self, digest: Digest, time: TimeAxis) -> None:
        self._outline, self._time = digest.outline, time
        self._rows = digest.outline.rows
        starts = np.array([run.start for run in digest.ordered_runs])
        lasts = np.maximum.accumulate([run.last for run in digest.ordered_runs])
        self._are_apart = bool(np.all(starts[1:] >= lasts[:-1]))
        begin, end = time.of(np.array([starts[0], lasts[-1]])).tolist()
        self._range = [begin, end if end > begin else begin + 1]
        self.shared: dict[str, list[Any]] = {}
        if self._rows is not None:
            order = np.argsort(self._rows["timestamp"], kind="stable")
            self._rows = {name: values[order] for name, values in self._rows.items()}
            self.shared["time"] = _plain(time.of(self._rows["timestamp"]), 7)
            ids = self._rows["batch_id"]
            self.shared["batch"] = [None if np.isnan(one) else int(one) for one in ids]

    def chart(
        self,
        name: str,
        title: str,
        quantities: Sequence[_Quantity],
        *,
        axis: str,
        floor: float | None = None,
        limit: tuple[str, float] | None = None,
    ) -> Chart:
        """Return a chart of quantities that have the same unit.

        Args:
            name: of the chart.
            title: what it shows.
            quantities: from the one that is drawn below the others.
            axis: what to write at the vertical axis.
            floor: smallest value on a logarithmic axis; without it the axis is always linear.
            limit: name and height of a horizontal line.
        """
        found = []
        for quantity in quantities:
            timestamp, heights, counts = self._outline.over_time(quantity.column)
            known = ~np.isnan(heights) & ~np.isnan(timestamp)
            if known.any():
                found.append((quantity, timestamp[known], heights[known], counts[known]))
        if not found:
            return Chart(name=name, title=title)
        is_log = floor is not None and has_long_tail(
            max(heights.max() for _, _, heights, _ in found),
            min(median(heights, counts) for _, _, heights, counts in found),
        )
        lowest = floor if floor is not None and is_log else 0.0
        data: list[Trace] = []
        for quantity, timestamp, heights, counts in found:
            if self._rows is not None:
                rows = self._rows[quantity.column]
                data.append(self._line(quantity, rows, lowest, is_first=not data))
            else:
                bands = Bands.of(self._time.of(timestamp), heights, counts, MAX_BANDS)
                data += _band(quantity, bands, lowest)
        facts = "" if self._rows is not None else "line: median · band: P5 to P95 · dots: maximum"
        layout: dict[str, Any] = {
            "xaxis": {
                "ticksuffix": f" {self._time.unit}",
                "hoverformat": ".6~g",
                "range": self._range,
            },
            "yaxis": _axis(axis, is_log=is_log) | ({} if is_log else {"rangemode": "tozero"}),
            "shapes": [_line_at(x, "grey", "dot") for x in self._time.run_starts],
        }
        if limit is not None:
            label, height = limit
            layout["shapes"].append(_line_at(height, "grey", "dash", horizontal=True))
            facts = f"{label} {height:,.0f} (dashed)" + (f" · {facts}" if facts else "")
        return Chart(name=name, title=title, facts=facts, over_time=True, data=data, layout=layout)

    @property
    def _mode(self) -> str:
        if not self._are_apart:
            # A line would go to and fro between the ranks.
            return "markers"
        return "lines+markers" if len(self.shared["time"]) <= _FEW else "lines"

    def _line(
        self, quantity: _Quantity, heights: Floats, lowest: float, *, is_first: bool
    ) -> Trace:
        """Return each batch as a point of a line; the first line of a chart names the batch."""
        batch = "batch %{customdata}<br>" if is_first else ""
        return {
            "type": "scatter",
            "mode": self._mode,
            "name": quantity.label,
            "x": "time",
            "y": _plain(np.maximum(heights * quantity.scale, lowest)),
            "customdata": "batch",
            "line": {"color": quantity.colour, "width": 1.2},
            "marker": {"size": 4, "color": quantity.colour},
            "hovertemplate": f"{batch}{quantity.label} "
            f"<b>%{{y:{quantity.format}}}{quantity.unit}</b><extra></extra>",
        }


def _band(quantity: _Quantity, bands: Bands, lowest: float) -> list[Trace]:
    """Return a band, the median in it, and the largest values."""
    x = _plain(bands.x, 7)
    p5, middle, p95, largest = (
        _plain(np.maximum(one * quantity.scale, lowest))
        for one in (bands.p5, bands.median, bands.p95, bands.largest)
    )
    common = {"type": "scatter", "legendgroup": quantity.label, "showlegend": False, "x": x}
    edge = common | {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    unit, form = quantity.unit, quantity.format
    return [
        edge | {"y": p5},
        edge | {"y": p95, "fill": "tonexty", "fillcolor": f"{quantity.colour}/0.22"},
        common
        | {
            "mode": "markers",
            "y": largest,
            "marker": {"color": f"{quantity.colour}/0.75", "size": 3},
            "hoverinfo": "skip",
        },
        common
        | {
            "mode": "lines",
            "name": quantity.label,
            "showlegend": True,
            "y": middle,
            "customdata": [list(row) for row in zip(p5, p95, largest, strict=True)],
            "line": {"color": quantity.colour, "width": 1.8},
            "hovertemplate": f"{quantity.label} <b>%{{y:{form}}}{unit}</b>"
            f"  P5 %{{customdata[0]:{form}}}  P95 %{{customdata[1]:{form}}}"
            f"  max %{{customdata[2]:{form}}}{unit}<extra></extra>",
        },
    ]


def _histogram(name: str, title: str, sketch: Sketch, colour: str) -> Chart:
    if not sketch.count:
        return Chart(name=name, title=title)
    percentiles = sketch.quantiles([0.50, 0.95, 0.99])
    values, weights = sketch.values()
    is_log = has_long_tail(float(values.max()), max(percentiles[0], _RESOLUTION_MS))
    if is_log:
        values = np.maximum(values, _RESOLUTION_MS)
    edges = bar_edges(values, sketch.count, logarithmic=is_log)
    counts, edges = np.histogram(values, edges, weights=weights)
    marked = [max(value, float(edges[0])) for value in percentiles]
    are_rare = bool(counts.max() > _RARE * counts[counts > 0].min())
    least = 0.5 if are_rare else 0.0
    bars = list(
        zip(_plain(edges[:-1]), _plain(edges[1:]), counts.astype(int).tolist(), strict=True)
    )
    y_axis = _axis("batches", is_log=are_rare)
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
                "x": [*_plain(edges), _plain(edges[-1:])[0]],
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
            "xaxis": _axis("ms", is_log=is_log),
            "yaxis": y_axis,
            "shapes": [_line_at(value, "text", "solid") for value in marked],
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
    if rows is None:
        x, y, counts = digest.outline.density.counts()
    else:
        x, y = rows["model_run_duration_ms"], rows["schedule_duration_ms"]
        counts = (~np.isnan(x) & ~np.isnan(y)).astype(np.int64)
    known = counts > 0
    x, y, counts = x[known], y[known], counts[known]
    if not len(x):
        return Chart(name=name, title=title)
    facts = correlation(x, y, counts)
    logs = [
        has_long_tail(float(one.max()), max(median(one, counts), _RESOLUTION_MS)) for one in (x, y)
    ]
    x, y = (
        np.maximum(one, _RESOLUTION_MS) if is_log else one
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
            "xaxis": _axis("model run, ms", is_log=logs[0]),
            "yaxis": _axis("schedule, ms", is_log=logs[1]),
            "hovermode": "closest",
        },
    )


def _points(x: Floats, y: Floats, has_prefill: NDArray[np.bool_], ids: Floats) -> list[Trace]:
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": label,
            "x": _plain(x[chosen]),
            "y": _plain(y[chosen]),
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
        "x": _plain(edges[0]),
        "y": _plain(edges[1]),
        "z": [_plain(row) for row in np.log10(number)],
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


def compared(digest: Digest) -> Chart | None:
    """Return a chart that holds the runs against each other, where there are a few."""
    runs = digest.ordered_runs
    if not 1 < len(runs) <= _MAX_COMPARED:
        return None
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
        columns = [_plain(np.maximum(values, _RESOLUTION_MS)) for values in np.transpose(boxes)]
        keys = ("lowerfence", "q1", "median", "q3", "upperfence")
        data.append(
            {"type": "box", "orientation": "h", "name": label, "y": names}
            | dict(zip(keys, columns, strict=True))
            | {"line": {"color": colour, "width": 1.5}, "fillcolor": f"{colour}/0.25"}
        )
    return Chart(
        name="runs",
        title="Times of each run",
        facts="box: P25, P50 and P75 · whiskers: P5 and P95",
        data=data,
        layout={
            "xaxis": _axis("ms, log scale", is_log=True),
            "yaxis": {"autorange": "reversed", "automargin": True, "title": {"text": ""}},
            "boxmode": "group",
            "hovermode": "closest",
            "height": 130 + 56 * len(runs),
        },
    )


def _axis(label: str, *, is_log: bool) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": label}}
    if is_log:
        axis["type"] = "log"
        axis["title"] = {"text": label if "log" in label else f"{label}, log scale"}
    return axis


def _line_at(at: float, colour: str, dash: str, *, horizontal: bool = False) -> dict[str, Any]:
    along, across = ("x", "y") if horizontal else ("y", "x")
    ends = {f"{along}ref": "paper", f"{along}0": 0, f"{along}1": 1}
    place = {f"{across}0": float(at), f"{across}1": float(at)}
    return {"type": "line"} | ends | place | {"line": {"color": colour, "dash": dash, "width": 1}}


def _ms(value: float) -> str:
    return f"{value:,.3f} ms"


def _plain(values: Floats, digits: int = _DIGITS) -> list[float | None]:
    """Return numbers as JSON has them, short, and null where unknown."""
    return [None if np.isnan(one) else float(f"{one:.{digits}g}") for one in values]
