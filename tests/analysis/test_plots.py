"""Drawing a log. The tests look at what was drawn, not at pixels."""

from __future__ import annotations

import functools
import io
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection, PolyCollection
from synthetic import batch, records, seed_record, write_log

from sched_profiler import analysis
from sched_profiler.analysis import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRENDS = [analysis.plot_step_times, analysis.plot_requests, analysis.plot_tokens]
HISTOGRAMS = [analysis.plot_schedule_histogram, analysis.plot_model_run_histogram]
CHARTS = [*TRENDS, *HISTOGRAMS, analysis.plot_schedule_against_model_run]

OKABE_ITO = {
    *("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Return a log of 50 batches."""
    return load(write_log(tmp_path_factory.mktemp("small") / "run.jsonl", records(50)))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Return a frame of a million batches: a log of 10,000, a hundred times over."""
    log = write_log(tmp_path_factory.mktemp("large") / "run.jsonl", records(10_000))
    df = load(log).drop(columns=["prefill_chunk_sizes", "decode_chunk_sizes", "request_ids"])
    span = df["timestamp"].iloc[-1] - df["timestamp"].iloc[0]
    df = pd.concat([df] * 100, ignore_index=True)
    df["batch_id"] = np.arange(len(df))
    df["timestamp"] += np.repeat(np.arange(100), 10_000) * span
    return df


@pytest.fixture(scope="module")
def chart_of(small: pd.DataFrame, large: pd.DataFrame) -> Callable[..., Figure]:
    """Return a function that renders a chart of a log, each once."""
    frames = {"small": small, "large": large}

    @functools.cache
    def chart_of(plot: Callable[..., Figure], size: str) -> Figure:
        figure = plot(frames[size])
        drawn(figure)
        return figure

    return chart_of


@pytest.fixture
def scheduling_only() -> pd.DataFrame:
    """Return a log of a fork that does not measure the model."""
    return pd.DataFrame([seed_record(record, measured=False) for record in records(60)])


def drawn(figure: Figure) -> Axes:
    """Return the chart of a figure, once it was really rendered."""
    figure.savefig(io.BytesIO(), format="png")
    return figure.axes[0]


def num_vertices(axes: Axes) -> int:
    """Return how many points all artists of a chart have together."""
    lines = sum(len(line.get_xdata()) for line in axes.get_lines())
    shapes = sum(
        len(collection.get_offsets()) + sum(len(path.vertices) for path in collection.get_paths())
        for collection in axes.collections
    )
    patches = sum(len(patch.get_path().vertices) for patch in axes.patches)
    return lines + shapes + patches


def legend_of(axes: Axes) -> list[str]:
    """Return the entries of the legend."""
    legend = axes.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


@pytest.mark.parametrize("plot", CHARTS)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_chart_has_a_title_units_and_a_legend(
    plot: Callable[..., Figure], size: str, chart_of: Callable[..., Figure]
) -> None:
    """Whoever gets the picture without the code can read it."""
    figure = chart_of(plot, size)
    axes = figure.axes[0]
    assert axes.get_title()
    units = ("(ms)", "(s)", "(min)", "requests", "tokens", "batches")
    for label in (axes.get_xlabel(), axes.get_ylabel()):
        assert any(unit in label for unit in units)
    colour_bars = [other.get_ylabel() for other in figure.axes[1:]]
    assert legend_of(axes) or colour_bars == ["batches in a cell, log scale"]


@pytest.mark.parametrize("plot", CHARTS)
def test_a_chart_of_a_million_batches_is_no_million_points(
    plot: Callable[..., Figure], large: pd.DataFrame, chart_of: Callable[..., Figure]
) -> None:
    """A file and an eye can take a few thousand."""
    assert len(large) == 1_000_000
    assert num_vertices(chart_of(plot, "large").axes[0]) < 10_000


@pytest.mark.parametrize("plot", TRENDS)
def test_a_trend_of_a_short_log_shows_each_batch(
    plot: Callable[..., Figure], chart_of: Callable[..., Figure]
) -> None:
    """With tens of batches, a band would hide what can be shown."""
    axes = chart_of(plot, "small").axes[0]
    points = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert {len(line.get_xdata()) for line in points} == {50}
    assert not any("P95" in label for label in legend_of(axes))


@pytest.mark.parametrize("plot", TRENDS)
def test_a_trend_of_a_long_log_shows_middle_band_and_maximum(
    plot: Callable[..., Figure], chart_of: Callable[..., Figure]
) -> None:
    """The legend explains all three."""
    axes = chart_of(plot, "large").axes[0]
    assert any(isinstance(collection, PolyCollection) for collection in axes.collections)
    labels = legend_of(axes)
    assert "P5 to P95" in labels
    assert "maximum" in labels
    assert any(label in ("mean of an interval", "median of an interval") for label in labels)


def test_a_rare_spike_stays_visible_in_a_million_batches(large: pd.DataFrame) -> None:
    """One slow schedule() among a million is what one looks for."""
    df = large.copy()
    df.loc[123_456, "schedule_duration_ms"] = 5_000.0
    axes = drawn(analysis.plot_step_times(df))
    heights = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    assert np.nanmax(heights) == pytest.approx(5_000.0, rel=0.004)
    assert axes.get_ylim()[1] > 5_000.0
    assert "maximum 5,000.000 ms" in legend_of(drawn(analysis.plot_schedule_histogram(df)))


def test_an_axis_is_logarithmic_only_for_a_long_tail() -> None:
    """And its label says so."""
    even = pd.DataFrame([seed_record(batch(n, schedule_ms=5.0 + n % 3)) for n in range(40)])
    uneven = even.assign(schedule_duration_ms=[0.0, 100.0] + [0.1] * 38)
    for plot in (*HISTOGRAMS[:1], analysis.plot_step_times):
        for df, scale in ((even, "linear"), (uneven, "log")):
            axes = drawn(plot(df))
            is_y = plot is analysis.plot_step_times
            label = axes.get_ylabel() if is_y else axes.get_xlabel()
            assert (axes.get_yscale() if is_y else axes.get_xscale()) == scale
            assert ("log scale" in label) == (scale == "log")


def test_a_linear_axis_of_counts_starts_at_zero(small: pd.DataFrame) -> None:
    """A cut axis makes small differences look large."""
    assert drawn(analysis.plot_requests(small)).get_ylim()[0] == 0


def test_a_histogram_counts_every_batch_and_names_percentiles(
    large: pd.DataFrame, chart_of: Callable[..., Figure]
) -> None:
    """The sum of the bars is the number of batches."""
    axes = chart_of(analysis.plot_model_run_histogram, "large").axes[0]
    (stairs,) = axes.patches
    heights, _, _ = stairs.get_data()
    assert heights.sum() == len(large)
    p50, p95, p99 = np.quantile(large["model_run_duration_ms"].astype(float), [0.5, 0.95, 0.99])
    assert legend_of(axes)[:3] == [f"P50 {p50:.3f} ms", f"P95 {p95:.3f} ms", f"P99 {p99:.3f} ms"]


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_histogram_of_equal_times_has_one_bar(value: float) -> None:
    """Also of times too short for the clock."""
    df = pd.DataFrame([seed_record(batch(number, schedule_ms=value)) for number in range(5)])
    (stairs,) = drawn(analysis.plot_schedule_histogram(df)).patches
    heights, _, _ = stairs.get_data()
    assert heights.tolist() == [5]


def test_the_scatter_plot_gives_both_correlations() -> None:
    """Pearson's of the times, Spearman's of the ranks."""
    times = [(1.0, 1.0), (2.0, 8.0), (3.0, 27.0), (4.0, 64.0), (5.0, 125.0)]
    df = pd.DataFrame(
        [
            seed_record(batch(schedule_ms=s, model_run_ms=m, prefill=[2], decode=[]))
            for s, m in times
        ]
    )
    axes = drawn(analysis.plot_schedule_against_model_run(df))
    assert "Pearson r = 0.94, Spearman rho = 1.00, 5 batches" in axes.get_title()
    (points,) = axes.collections
    assert isinstance(points, PathCollection)
    assert len(points.get_offsets()) == 5
    assert legend_of(axes) == ["with prefill"]


def test_a_density_keeps_logarithmic_axes_and_their_labels() -> None:
    """Drawing one sets the scale anew, which must not bring back powers of ten."""
    rng = np.random.default_rng(0)
    times = {
        "schedule_duration_ms": rng.lognormal(0, 2, 6_000),
        "model_run_duration_ms": rng.lognormal(0, 2, 6_000),
    }
    axes = drawn(analysis.plot_schedule_against_model_run(pd.DataFrame(times)))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    labels = [label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    assert "0.1" in labels
    assert not any("10^" in label for label in labels)


def test_equal_times_have_no_correlation() -> None:
    """Dividing by no variance would be a warning and a NaN."""
    df = pd.DataFrame([seed_record(batch(number)) for number in range(5)])
    axes = drawn(analysis.plot_schedule_against_model_run(df))
    assert "no correlation defined, 5 batches" in axes.get_title()


def test_what_was_not_recorded_is_said_in_the_chart(scheduling_only: pd.DataFrame) -> None:
    """A chart that lacks its numbers says so, and the others are drawn."""
    for plot in (analysis.plot_model_run_histogram, analysis.plot_schedule_against_model_run):
        axes = drawn(plot(scheduling_only))
        assert [text.get_text() for text in axes.texts] == ["model-run time: not recorded"]
    axes = drawn(analysis.plot_step_times(scheduling_only))
    assert legend_of(axes) == ["schedule time", "model-run time: not recorded"]
    assert legend_of(drawn(analysis.plot_tokens(scheduling_only))) == ["scheduled tokens"]


def test_an_empty_selection_is_said_in_the_charts(small: pd.DataFrame) -> None:
    """A selection without rows is no reason for a traceback."""
    figure = analysis.plot_overview(small.iloc[:0])
    drawn(figure)
    assert all(axes.texts for axes in figure.axes)


def test_one_batch_can_be_drawn(small: pd.DataFrame) -> None:
    """The shortest log there is."""
    drawn(analysis.plot_overview(small.iloc[:1]))


def test_the_token_budget_is_a_line(small: pd.DataFrame) -> None:
    """Where all runs have the same; several limits would limit nothing."""
    assert "token budget (2,048)" in legend_of(drawn(analysis.plot_tokens(small)))
    two = small.assign(token_budget=[1024] * 25 + [2048] * 25)
    assert legend_of(drawn(analysis.plot_tokens(two))) == ["scheduled tokens"]


def test_the_time_between_runs_is_left_out(tmp_path: Path) -> None:
    """A day between two runs would squeeze both into a line."""
    runs = [records(40, run_id=str(start), start=start) for start in (1e9, 1e9 + 86_400)]
    df = load(write_log(tmp_path / "run.jsonl", [record for run in runs for record in run]))
    axes = drawn(analysis.plot_requests(df))
    assert axes.get_xlabel() == "time since the first batch (s, without the time between runs)"
    assert axes.get_xlim()[1] < 2
    assert "a run starts" in legend_of(axes)


def test_an_interval_between_empty_ones_is_visible() -> None:
    """A line has no points to join there."""
    stamps = np.concatenate([np.full(300, 0.0), np.full(300, 50.0), np.full(300, 100.0)])
    df = pd.DataFrame({"timestamp": stamps, "total_scheduled_tokens": np.full(900, 10)})
    markers = [
        line for line in drawn(analysis.plot_tokens(df)).get_lines() if line.get_marker() == "_"
    ]
    assert [len(line.get_xdata()) for line in markers] == [3]


@pytest.mark.parametrize(("seconds", "unit"), [(100, "s"), (1_000, "min"), (100_000, "h")])
def test_time_is_in_a_unit_that_fits(seconds: int, unit: str) -> None:
    """Nobody reads 100,000 s."""
    df = pd.DataFrame({"timestamp": [0.0, seconds], "total_scheduled_tokens": [1, 2]})
    assert drawn(analysis.plot_tokens(df)).get_xlabel() == f"time since the first batch ({unit})"


def test_colours_are_told_apart_by_all_eyes(chart_of: Callable[..., Figure]) -> None:
    """Every colour with a meaning is one of Okabe and Ito's."""
    for plot in TRENDS:
        for line in chart_of(plot, "small").axes[0].get_lines():
            colour: Any = line.get_color()
            assert {"black": "#000000"}.get(colour, colour).lower() in OKABE_ITO


def test_the_overview_has_all_six_charts(chart_of: Callable[..., Figure]) -> None:
    """One after the other, under the number of batches."""
    figure = chart_of(analysis.plot_overview, "small")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [chart_of(plot, "small").axes[0].get_title() for plot in CHARTS]
    assert figure.get_suptitle() == "50 batches"


def test_drawing_needs_neither_pyplot_nor_a_display() -> None:
    """A server has none, and a library must not touch the state of a notebook."""
    code = (
        "import sys, pandas as pd\n"
        "from sched_profiler.analysis import plot_tokens\n"
        "df = pd.DataFrame({'timestamp': [0.0], 'total_scheduled_tokens': [1]})\n"
        "plot_tokens(df).savefig('/dev/null', format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": ""})
