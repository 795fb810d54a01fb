# ruff: noqa: INP001 - a script, no package
"""Draws the pictures of the documentation from logs of real runs.

    python docs/tools/draw.py

The log is `examples/first_look.jsonl.gz`, of a run of `make demo`; the summary that the tutorial
shows is of the same. The timeline has an engine that schedules asynchronously as well: the log that
`docs/tools/asynchronous.py` kept. The files go to `docs/images/`.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from sched_profiler import analysis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

IMAGES = Path(__file__).parents[1] / "images"
LOG = Path(__file__).parents[2] / "examples/first_look.jsonl.gz"
ASYNCHRONOUS_LOG = Path(__file__).parents[1] / "measured/asynchronous.jsonl.gz"
DEMO_TITLE = "Demo: chats, documents, both"

_SCHEDULE, _MODEL_RUN, _QUEUE, _UPDATE = "#0072B2", "#D55E00", "#999999", "#009E73"


def save_small(figure: Figure, name: str, dpi: int) -> None:
    """Save as a PNG of at most 256 colours: a third of the size, and no visible difference."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    Image.open(buffer).convert("RGB").quantize(256).save(IMAGES / name, optimize=True)


def draw_charts() -> None:
    """Draw the overview and each of the six charts."""
    df = analysis.load(LOG)
    save_small(analysis.plot_overview(df), "overview.png", dpi=100)
    for name in (
        "step_times",
        "requests",
        "tokens",
        "schedule_histogram",
        "model_run_histogram",
        "schedule_against_model_run",
    ):
        figure = getattr(analysis, f"plot_{name}")(df)
        figure.set_size_inches(9, 5)
        save_small(figure, f"{name}.png", dpi=100)


def draw_report() -> None:
    """Draw the top of the report, as browsers show it."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - and Chromium

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder, "report.html")
        with file.open("w", encoding="utf-8") as stream:
            manifests = analysis.load_manifests(LOG)
            df = analysis.load(LOG)
            analysis.write_report(stream, analysis.scan(LOG), df, manifests, title=DEMO_TITLE)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, width, height, scheme in (
            # High enough for the chart that is pointed at: else the page is scrolled to it.
            ("report", 1280, 1750, "light"),
            ("report-dark", 1280, 1750, "dark"),
            ("report-phone", 390, 844, "light"),
        ):
            size: Any = {"width": width, "height": height}
            is_phone = height > 2 * width
            looks: Any = {"color_scheme": scheme, "is_mobile": is_phone}
            shown = browser.new_page(viewport=size, **looks)
            shown.goto(file.as_uri())
            shown.wait_for_selector("html[data-drawn]")
            if not is_phone:
                shown.locator("#plot-step-times").hover(position={"x": 560, "y": 120})
            shown.wait_for_timeout(500)
            picture = Image.open(io.BytesIO(shown.screenshot()))
            picture.convert("RGB").quantize(256).save(IMAGES / f"{name}.png", optimize=True)
        browser.close()


def draw_timeline(synchronous: pd.DataFrame, asynchronous: pd.DataFrame) -> None:
    """Draw a few steps of a synchronous and of an asynchronous engine, each at its own scale."""
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    for axes, df, title in zip(
        figure.subplots(2, 1),
        (synchronous, asynchronous),
        ("Synchronous: one batch at a time", "Asynchronous: scheduled while the one before runs"),
        strict=True,
    ):
        axes.set_title(f"{title} (vLLM, batches {df.batch_id.iloc[0]} to {df.batch_id.iloc[-1]})")
        _draw_steps(axes, df)
    figure.legend(
        handles=[
            Patch(color=_SCHEDULE, label="schedule"),
            Patch(facecolor="white", edgecolor=_QUEUE, hatch="////", label="queue"),
            Patch(color=_MODEL_RUN, label="model run"),
            Patch(color=_UPDATE, label="update"),
            Patch(color="black", alpha=0.12, label="idle (the model has nothing to do)"),
        ],
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )
    # Without the date and with fixed ids, the file changes only when the picture does.
    with rc_context({"svg.hashsalt": "sched_profiler"}):
        figure.savefig(IMAGES / "timeline.svg", metadata={"Date": None})


def _draw_steps(axes: Axes, df: pd.DataFrame) -> None:
    for row, batch in enumerate(df.to_dict("records")):
        began = (batch["timestamp"] - df["timestamp"].iloc[0]) * 1e3
        scheduled = began + batch["schedule_duration_ms"]
        ran = scheduled + batch["queue_duration_ms"]
        result = began + batch["total_step_duration_ms"]
        if row:  # before the first of them, the gap belongs to a batch that is not shown
            idle_since = ran - batch["idle_duration_ms"]
            axes.axvspan(idle_since, ran, color="black", alpha=0.12, linewidth=0)
        parts: tuple[tuple[float, float, dict[str, Any]], ...] = (
            (began, scheduled, {"color": _SCHEDULE}),
            (scheduled, ran, {"facecolor": "white", "edgecolor": _QUEUE, "hatch": "////"}),
            (ran, result, {"color": _MODEL_RUN}),
            (result, result + batch["update_duration_ms"], {"color": _UPDATE}),
        )
        for start, end, style in parts:
            axes.barh(row, end - start, left=start, height=0.6, **style)
    axes.set_yticks(range(len(df)), [f"batch {batch_id}" for batch_id in df["batch_id"]])
    axes.invert_yaxis()
    axes.set_xlabel("time since the first of these batches began (ms)")
    axes.spines[["top", "right"]].set_visible(False)


def _batches(log: Path, first: int) -> pd.DataFrame:
    df = analysis.load(log)
    return df[df["batch_id"].between(first, first + 3)]


def main() -> None:
    """Draw everything."""
    IMAGES.mkdir(exist_ok=True)
    draw_charts()
    draw_report()
    draw_timeline(_batches(LOG, 300), _batches(ASYNCHRONOUS_LOG, 35))


if __name__ == "__main__":
    main()
