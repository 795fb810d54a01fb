# ruff: noqa: INP001 - a script, no package
"""Draws the picture of the architecture, and lists what is in its boxes.

    python docs/tools/architecture.py

The picture goes to `docs/images/architecture.svg`. The tests hold the boxes and the arrows against
the modules of the tree and what these import.
"""

from __future__ import annotations

import html
import textwrap
from pathlib import Path
from typing import NamedTuple

PICTURE = Path(__file__).parents[1] / "images/architecture.svg"

_WIDTH, _HEIGHT = 1000, 1000
_COLOURS = {"engine": "#0072B2", "shared": "#555", "reader": "#00795A", "outside": "#777"}
_LETTER, _LINE = 6.3, 14
"""Width of a letter and height of a line, in the small print of a box."""


class Box(NamedTuple):
    """Modules that do one thing together, and where they are in the picture."""

    half: str
    """`engine` or `reader`, or `shared` by both; `outside` of the package."""
    contents: str
    """A folder and its modules in a line: `sinks/: memory tee`; the folder may be missing."""
    place: tuple[int, int, int, int]
    """Left, top, width, height."""

    def modules(self) -> list[str]:
        """Return the modules, as paths below the package."""
        if self.half == "outside":
            return []
        groups = (line.rpartition(": ") for line in self.contents.splitlines())
        return [folder + name for folder, _, names in groups for name in names.split()]


BOXES = {
    "vLLM": Box("outside", "", (20, 60, 90, 36)),
    "your own engine": Box("outside", "", (20, 225, 140, 36)),
    "doctor": Box("engine", "doctor", (20, 135, 90, 46)),
    "hook": Box(
        "engine",
        "engines/: vllm_plugin vllm vllm_binding vllm_probe vllm_hook _vllm_hook.c vllm_contents"
        " vllm_requests vllm_stamp",
        (150, 60, 200, 125),
    ),
    "choice of sinks": Box("engine", "settings\nsinks/: registry factories", (390, 50, 190, 62)),
    "profiler": Box("engine", "profiler request_trace", (390, 150, 190, 48)),
    "queue, writer": Box("engine", "writer lifetime", (620, 150, 150, 48)),
    "sinks": Box(
        "engine",
        "sinks/: base tee detached guarded jsonl rotation parts locks remote upload"
        " console prometheus opentelemetry metrics memory\nboundary testing",
        (810, 50, 170, 150),
    ),
    "log, spool, store": Box("outside", "described by schema/", (810, 265, 170, 48)),
    "contract": Box(
        "shared",
        "record codec errors request_record manifest redact messages clock log_names compression"
        " store",
        (150, 290, 600, 62),
    ),
    "reader": Box("reader", "log_files reader parquet whole_file", (810, 400, 170, 62)),
    "watch, check": Box(
        "reader", "follow growing_file window verify validate", (810, 510, 170, 62)
    ),
    "rows": Box(
        "reader", "analysis/: rows lines ahead layout runs sample arrivals", (620, 400, 150, 76)
    ),
    "convert": Box("reader", "analysis/: conversion companions", (620, 524, 150, 62)),
    "digest": Box("reader", "analysis/: digest outline stream cluster", (430, 400, 150, 76)),
    "frame": Box("reader", "analysis/: frame manifests", (430, 540, 150, 62)),
    "statistics, charts": Box("reader", "analysis/: stats plots", (200, 400, 190, 48)),
    "findings": Box(
        "reader",
        "analysis/: anomalies finding composition slow\n"
        "analysis/detectors/: queueing kv_cache idle schedule_time prefill ranks evidence",
        (200, 463, 190, 132),
    ),
    "compare": Box(
        "reader",
        "analysis/: comparison comparison_plot run_metrics run_settings",
        (200, 610, 190, 76),
    ),
    "trace": Box("reader", "analysis/: trace", (200, 701, 190, 48)),
    "fit": Box("reader", "analysis/: cost_model cost_model_plot engine_time", (200, 764, 190, 62)),
    "tune, capacity": Box(
        "reader",
        "analysis/: recorded_run replay replay_measures tuning capacity\nengines/: vllm_replay",
        (200, 846, 190, 104),
    ),
    "report": Box(
        "reader", "analysis/report/: page charts trends plotly definitions", (20, 400, 140, 76)
    ),
    "commands": Box(
        "reader",
        "cli/: analyze report slow compare fit tune capacity top top_screen trace convert verify"
        " validate upload doctor command replaying terminal progress",
        (20, 540, 140, 440),
    ),
    "arithmetic, display": Box(
        "reader",
        "analysis/: columns sketch weighted robust bootstrap nonnegative bands time_axis chart"
        " markup plain_data",
        (430, 680, 245, 92),
    ),
}

COMMON = {"engine": ("contract",), "reader": ("contract", "arithmetic, display")}
"""What all boxes of a half may import without an arrow."""

RIGHT, LEFT, DOWN, RIGHT_UP, DOWN_LEFT = "right", "left", "down", "right, up", "down, left"

ARROWS = {
    ("vLLM", "hook"): RIGHT,
    ("doctor", "hook"): RIGHT,
    ("hook", "choice of sinks"): RIGHT,
    ("hook", "profiler"): RIGHT,
    ("your own engine", "profiler"): RIGHT_UP,
    ("choice of sinks", "profiler"): DOWN,
    ("choice of sinks", "sinks"): RIGHT,
    ("profiler", "queue, writer"): RIGHT,
    ("queue, writer", "sinks"): RIGHT,
    ("sinks", "log, spool, store"): DOWN,
    ("log, spool, store", "reader"): DOWN,
    ("reader", "rows"): LEFT,
    ("reader", "watch, check"): DOWN,
    ("rows", "digest"): LEFT,
    ("rows", "frame"): LEFT,
    ("rows", "convert"): DOWN,
    ("digest", "statistics, charts"): LEFT,
    ("digest", "findings"): LEFT,
    ("frame", "findings"): LEFT,
    ("frame", "compare"): LEFT,
    ("frame", "trace"): LEFT,
    ("frame", "fit"): LEFT,
    ("fit", "tune, capacity"): DOWN,
    ("statistics, charts", "report"): LEFT,
    ("findings", "report"): LEFT,
    ("report", "commands"): DOWN,
    ("compare", "commands"): LEFT,
    ("trace", "commands"): LEFT,
    ("fit", "commands"): LEFT,
    ("tune, capacity", "commands"): LEFT,
    ("convert", "commands"): DOWN_LEFT,
    ("watch, check", "commands"): DOWN_LEFT,
}
"""From where to where the data goes, and how the arrow is drawn."""


def draw() -> str:
    """Return the picture as SVG."""
    arrows = "\n".join(f'<path d="{_path(*ends)}"/>' for ends in ARROWS)
    boxes = "\n".join(_drawn(name) for name in BOXES)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" \
font-family="DejaVu Sans, Verdana, sans-serif" font-size="11" role="img" aria-labelledby="t">
<title id="t">Packages and modules, and the one way that data takes through them</title>
<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" \
orient="auto"><path d="M0 0 10 5 0 10z" fill="#444"/></marker></defs>
<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>
<g fill="#222" font-size="13"><text x="20" y="30">in the engine's process</text>\
<text x="20" y="385">wherever a log is read</text></g>
<path d="M20 367H790" stroke="#bbb" stroke-dasharray="6 5"/>
<g fill="none" stroke="#444" stroke-width="1.5" marker-end="url(#a)">
{arrows}
</g>
{boxes}
</svg>
"""


def _path(start: str, end: str) -> str:
    """Return the line of an arrow."""
    x, y, width, height = BOXES[start].place
    to_x, to_y, to_width, to_height = BOXES[end].place
    middle, to_middle = y + height // 2, to_y + to_height // 2
    match ARROWS[start, end]:
        case "right":
            turn = (x + width + to_x) // 2
            return f"M{x + width} {middle}H{turn}V{to_middle}H{to_x}"
        case "left":
            # The lines of one box stay apart from those of another.
            turn = to_x + to_width + (15 if start == "digest" else 25)
            # Into a tall box they go side by side.
            aim = min(max(middle, to_y + 10), to_y + to_height - 10)
            if end != "commands":
                aim = to_middle + (12 if start == "frame" and end == "findings" else 0)
            return f"M{x} {middle}H{turn}V{aim}H{to_x + to_width}"
        case "down":
            at = max(x, to_x) + min(width, to_width) // 2
            return f"M{at} {y + height}V{to_y}"
        case "right, up":
            return f"M{x + width} {middle}H{to_x + to_width // 2}V{to_y + to_height}"
        case _:
            return f"M{x + width // 2} {y + height}V{to_y + to_height - 12}H{to_x + to_width}"


def _drawn(name: str) -> str:
    """Return a box with its name and what is in it."""
    half, contents, (x, y, width, height) = BOXES[name]
    colour = _COLOURS[half]
    dashes = ' stroke-dasharray="5 4"' if half == "outside" else ""
    lines = [
        line
        for group in contents.splitlines()
        for line in textwrap.wrap(
            group.replace("/:", "/"), int((width - 16) / _LETTER), break_on_hyphens=False
        )
    ]
    if 25 + len(lines) * _LINE > height:
        raise ValueError(f"{name} has {len(lines)} lines, and no room for them in {height}")
    text = "".join(
        f'<text x="{x + 8}" y="{y + 33 + number * _LINE}">{html.escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="#fff"'
        f' stroke="{colour}" stroke-width="1.5"{dashes}/>'
        f'<text x="{x + 8}" y="{y + 17}" font-size="13" font-weight="bold" fill="{colour}">'
        f'{html.escape(name)}</text><g fill="#333">{text}</g>'
    )


def table() -> str:
    """Return what is in the boxes, as a table of the page."""
    rows = ["| box | modules |", "| --- | --- |"]
    for name, box in BOXES.items():
        if modules := box.modules():
            rows.append(f"| {name} | {', '.join(f'`{module}`' for module in modules)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
