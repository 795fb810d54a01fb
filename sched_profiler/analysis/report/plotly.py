"""A chart as Plotly's script draws it: what it is made of, its axes and lines.

No text of a log is in a chart: a label of Plotly's would be read as markup. A colour is the name of
one in the page's two palettes, which the page's script looks up, so that light and dark differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Trace = dict[str, Any]

__all__ = ["RESOLUTION_MS", "Chart", "axis_of", "line_at", "plain"]

RESOLUTION_MS = 0.001
"""Logs hold times in steps of 1 µs; a logarithmic axis draws a time of 0 as this."""
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


def axis_of(label: str, *, is_log: bool) -> dict[str, Any]:
    """Return an axis with a label."""
    axis: dict[str, Any] = {"title": {"text": label}}
    if is_log:
        axis["type"] = "log"
        axis["title"] = {"text": label if "log" in label else f"{label}, log scale"}
    return axis


def line_at(at: float, colour: str, dash: str, *, horizontal: bool = False) -> dict[str, Any]:
    """Return a line across the chart, vertical unless asked otherwise."""
    along, across = ("x", "y") if horizontal else ("y", "x")
    ends = {f"{along}ref": "paper", f"{along}0": 0, f"{along}1": 1}
    place = {f"{across}0": float(at), f"{across}1": float(at)}
    return {"type": "line"} | ends | place | {"line": {"color": colour, "dash": dash, "width": 1}}


def plain(values: Floats, digits: int = _DIGITS) -> list[float | None]:
    """Return numbers as JSON has them, short, and null where unknown."""
    return [None if np.isnan(one) else float(f"{one:.{digits}g}") for one in values]
