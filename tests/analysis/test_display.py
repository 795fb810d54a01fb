"""What results look like in a notebook."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import records, write_log

from sched_profiler.analysis import (
    Finding,
    compare,
    fit_step_time,
    load,
    plot_comparison,
    plot_overview,
    plot_residuals,
    scan,
    summarize,
)
from sched_profiler.analysis.markup import table

HOSTILE = "<script>alert('x')</script>&\""


class Seen(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a log whose run has an evil name."""
    return write_log(tmp_path / "run.jsonl", records(1_000, run_id=HOSTILE, overlap=True))


def test_a_summary_is_two_tables_with_all_that_its_text_says(log: Path) -> None:
    """Distributions, and facts."""
    summary = summarize(scan(log))
    seen = Seen(summary._repr_html_())
    assert seen.tags.count("table") == 2
    assert all(word in seen.text for word in str(summary).split())


def test_what_a_log_does_not_tell_is_one_cell(log: Path) -> None:
    """And no number."""
    df = load(log).drop(columns=["model_run_duration_ms", "decode_chunk_sizes"])
    seen = Seen(summarize(df)._repr_html_())
    assert "model run, msnot recorded" in seen.text
    assert "decode chunk, tokensnone" in seen.text


def test_a_loaded_log_is_a_table_in_which_names_do_nothing(log: Path) -> None:
    """As pandas shows any frame."""
    text = load(log)[["run_id", "batch_id"]]._repr_html_()
    assert "<table" in text
    assert "<script" not in text


def test_texts_stay_aligned_and_names_do_nothing(log: Path) -> None:
    """Of a comparison, a model and a finding."""
    df = load(log)
    comparison = compare({HOSTILE: df, "b": df})
    finding = Finding(
        kind="idle_gaps",
        severity="warning",
        title=HOSTILE,
        numbers={},
        run=0,
        dp_rank=None,
        batch_ids=(1,),
        remedy="",
    )
    for shown in (comparison, fit_step_time(df), finding):
        seen = Seen(shown._repr_html_())
        assert seen.tags == ["pre"]
        assert seen.text == str(shown)


def test_every_figure_shows_itself(log: Path) -> None:
    """As a picture, whether or not pyplot was imported."""
    df = load(log)
    for figure in (
        plot_overview(scan(log)),
        plot_residuals(df, fit_step_time(df)),
        plot_comparison({"a": df, "b": df}, compare({"a": df, "b": df})),
    ):
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_digest_says_what_it_is_of(log: Path) -> None:
    """In a line."""
    assert repr(scan(log)) == "<Digest: 1,000 batches, 1 runs>"


def test_cells_are_escaped() -> None:
    """All of them."""
    seen = Seen(table([(HOSTILE, HOSTILE)], (HOSTILE, "")))
    assert seen.text == 3 * HOSTILE
    assert "script" not in seen.tags
