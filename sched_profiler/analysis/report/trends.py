"""Charts over time: each batch of a short log, and intervals of a long one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from sched_profiler.analysis.bands import Bands
from sched_profiler.analysis.report.plotly import Chart, axis_of, line_at, plain
from sched_profiler.analysis.weighted import has_long_tail, median

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sched_profiler.analysis.digest import Digest
    from sched_profiler.analysis.report.plotly import Trace
    from sched_profiler.analysis.time_axis import TimeAxis

    Floats = NDArray[np.float64]

__all__ = ["Quantity", "Trends"]

_MAX_BANDS = 480
"""Most intervals of time of a long log: the outline of a log has hardly more."""
_FEW = 200
"""So many batches can be told apart."""


@attrs.frozen
class Quantity:
    """What is drawn over time."""

    column: str
    label: str
    colour: str
    unit: str
    format: str
    scale: float = 1.0


class Trends:
    """Charts over time, with what they share.

    Attributes:
        shared: arrays that several traces have in common, by the names that traces call them.
    """

    def __init__(self, digest: Digest, time: TimeAxis) -> None:
        """Draw what a digest holds, over an axis of time."""
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
            self.shared["time"] = plain(time.of(self._rows["timestamp"]), 7)
            ids = self._rows["batch_id"]
            self.shared["batch"] = [None if np.isnan(one) else int(one) for one in ids]

    def chart(
        self,
        name: str,
        title: str,
        quantities: Sequence[Quantity],
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
                bands = Bands.of(self._time.of(timestamp), heights, counts, _MAX_BANDS)
                data += _band(quantity, bands, lowest)
        facts = "" if self._rows is not None else "line: median · band: P5 to P95 · dots: maximum"
        layout: dict[str, Any] = {
            "xaxis": {
                "ticksuffix": f" {self._time.unit}",
                "hoverformat": ".6~g",
                "range": self._range,
            },
            "yaxis": axis_of(axis, is_log=is_log) | ({} if is_log else {"rangemode": "tozero"}),
            "shapes": [line_at(x, "grey", "dot") for x in self._time.run_starts],
        }
        if limit is not None:
            label, height = limit
            layout["shapes"].append(line_at(height, "grey", "dash", horizontal=True))
            facts = f"{label} {height:,.0f} (dashed)" + (f" · {facts}" if facts else "")
        return Chart(name=name, title=title, facts=facts, over_time=True, data=data, layout=layout)

    @property
    def _mode(self) -> str:
        if not self._are_apart:
            # A line would go to and fro between the ranks.
            return "markers"
        return "lines+markers" if len(self.shared["time"]) <= _FEW else "lines"

    def _line(self, quantity: Quantity, heights: Floats, lowest: float, *, is_first: bool) -> Trace:
        """Return each batch as a point of a line; the first line of a chart names the batch."""
        batch = "batch %{customdata}<br>" if is_first else ""
        return {
            "type": "scatter",
            "mode": self._mode,
            "name": quantity.label,
            "x": "time",
            "y": plain(np.maximum(heights * quantity.scale, lowest)),
            "customdata": "batch",
            "line": {"color": quantity.colour, "width": 1.2},
            "marker": {"size": 4, "color": quantity.colour},
            "hovertemplate": f"{batch}{quantity.label} "
            f"<b>%{{y:{quantity.format}}}{quantity.unit}</b><extra></extra>",
        }


def _band(quantity: Quantity, bands: Bands, lowest: float) -> list[Trace]:
    """Return a band, the median in it, and the largest values."""
    x = plain(bands.x, 7)
    p5, middle, p95, largest = (
        plain(np.maximum(one * quantity.scale, lowest))
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
