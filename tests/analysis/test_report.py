"""The report, in a real browser where it is about what a reader sees."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from browser import DESKTOP, PATIENCE_MS, PHONE, open_browser, open_page
from playwright.sync_api import Browser, Page
from simulated_engine import Load, Setup, SimulatedEngine
from synthetic import batch, records, seed_record, write_log

from sched_profiler import RunManifest
from sched_profiler.analysis import load, load_manifests, scan, write_report
from sched_profiler.manifest import write_manifest

HOSTILE = (
    "</script><script>window.harmed = 1</script>"
    "<img src=x onerror='window.harmed = 2'><a href='javascript:window.harmed = 3'>\u202e{{ 7*7 }}"
)


def manifest(run_id: str, **fields: Any) -> RunManifest:
    """Return the manifest of a run."""
    defaults: dict[str, Any] = {
        "run_id": run_id,
        "log": "run.jsonl",
        "started": 1.79e9,
        "updated": 1.79e9,
        "host": "node",
        "pid": 1,
        "python_version": "3.12.0",
        "sched_profiler_version": "0.1.0",
    }
    return RunManifest(**(defaults | fields))


def written(folder: Path, *logs: Path, **options: Any) -> Path:
    """Write the report of some logs, and return its path."""
    path = folder / "report.html"
    with path.open("w", encoding="utf-8") as stream:
        write_report(stream, scan(*logs), load(*logs), load_manifests(*logs), **options)
    return path


def text_of(digest: Any, df: Any = None, **options: Any) -> str:
    """Return the page as text."""
    stream = io.StringIO()
    write_report(stream, digest, df, **options)
    return stream.getvalue()


def data_of(page: str) -> dict[str, Any]:
    """Return what the charts of a page draw."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    data: dict[str, Any] = json.loads(text)
    return data


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a browser for all tests."""
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a run in which requests wait for a seat."""
    folder = tmp_path_factory.mktemp("busy")
    engine = SimulatedEngine(setup=Setup(max_num_seqs=8), load=Load(requests_per_s=30))
    log = write_log(folder / "run.jsonl", engine.run(500))
    write_manifest(folder / "run.run.json", engine.manifest())
    return written(folder, log)


def drawn(page: Page) -> dict[str, int]:
    """Return how many lines, boxes, cells or dots each chart has."""
    counts: dict[str, int] = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("[data-chart]")].map((plot) => [
            plot.dataset.chart,
            plot.querySelectorAll(".js-line, .point, .box, .heatmaplayer image, .hm image").length,
        ]))"""
    )
    return counts


@pytest.mark.parametrize(
    "options",
    [DESKTOP, DESKTOP | {"color_scheme": "dark"}, PHONE],
    ids=["desktop", "dark", "phone"],
)
def test_a_report_opens_from_the_disk_and_draws_everything(
    browser: Browser, busy: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Nothing is wrong, nothing is asked for, and nothing is wider than the screen."""
    with open_page(browser, busy, **options) as page:
        assert list(drawn(page)) == [
            *("step-times", "tokens", "requests", "kv-cache", "idle"),
            *("schedule", "model-run", "total-step", "schedule-model-run"),
        ]
        assert all(drawn(page).values())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("h1").inner_text()
        assert "max_num_seqs (8) are running" in page.locator("#findings").inner_text()
        assert page.locator("#slow tbody tr").count() == 20
        is_dark = sum(colour_of(page, "body")) < 3 * 128
        assert is_dark == (options.get("color_scheme") == "dark")
        assert page.screenshot(path=tmp_path / "report.png", full_page=True)


def colour_of(page: Page, selector: str) -> list[int]:
    """Return red, green and blue of what is behind the text."""
    colour = page.evaluate(
        "(s) => getComputedStyle(document.querySelector(s)).backgroundColor", selector
    )
    return [int(part) for part in re.findall(r"\d+", colour)[:3]]


def ranges(page: Page) -> list[list[float]]:
    """Return what part of time each chart shows that is over time."""
    shown: list[list[float]] = page.evaluate(
        """() => ["step-times", "tokens", "requests", "kv-cache", "idle"].map((name) =>
            document.getElementById(`plot-${name}`)._fullLayout.xaxis.range)"""
    )
    return shown


def test_a_reader_zooms_hovers_sorts_and_turns_on_the_light(browser: Browser, busy: Path) -> None:
    """Charts over time follow each other, and a batch that is named is found in them."""
    with open_page(browser, busy) as page:
        whole = ranges(page)
        assert len({tuple(one) for one in whole}) == 1
        plot = page.locator("#plot-step-times")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        assert box is not None
        at = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.4, at)
        page.wait_for_selector("#plot-step-times .hoverlayer .legend")
        assert "batch" in (page.locator("#plot-step-times .hoverlayer").text_content() or "")
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.5, at, steps=5)
        page.mouse.up()
        page.wait_for_function(
            """(before) => {
                const shown = ["step-times", "tokens", "requests", "kv-cache", "idle"].map(
                    (name) => document.getElementById(`plot-${name}`)._fullLayout.xaxis.range);
                return shown.every(([from, to]) => from > before && to === shown[0][1]);
            }""",
            arg=whole[0][0],
        )
        assert ranges(page) != whole
        # What is shown stays when the colours change.
        shown = ranges(page)
        light = colour_of(page, "body")
        page.locator("#theme").click()
        assert sum(colour_of(page, "body")) < sum(light)
        page.wait_for_function(
            "() => document.getElementById('plot-idle')._fullLayout.font.color.startsWith('#e')"
        )
        assert ranges(page) == shown
        page.locator("#theme").click()
        assert colour_of(page, "body") == light
        # A batch of a finding.
        batch_id = page.locator("#findings .batch").first
        position = float(batch_id.get_attribute("data-at") or "nan")
        batch_id.click()
        page.wait_for_function(
            """(at) => ["step-times", "idle"].every((name) => {
                const [from, to] = document.getElementById(`plot-${name}`)._fullLayout.xaxis.range;
                return from < at && at < to && Math.abs(from + to - 2 * at) < 1e-6;
            })""",
            arg=position,
        )
        # The slowest come first; sorted by number of batch, they do not.
        heads, cells = page.locator("#slow thead button"), page.locator("#slow tbody tr td .batch")
        heads.first.click()
        ids = [int(text) for text in cells.all_inner_texts()]
        assert ids == sorted(ids, reverse=True)
        heads.first.click()
        assert [int(text) for text in cells.all_inner_texts()] == ids[::-1]


def test_whatever_is_in_a_log_is_text(browser: Browser, tmp_path: Path) -> None:
    """In names of runs, requests, hosts and models; and a script that got in would not run."""
    fields = {"run_id": HOSTILE, "request_ids": [HOSTILE]}
    log = write_log(tmp_path / "run.jsonl", [batch(n, **fields) for n in range(20)])
    write_manifest(
        tmp_path / "run.run.json",
        manifest(HOSTILE, host=HOSTILE, model=HOSTILE, engine=HOSTILE, engine_version=HOSTILE),
    )
    report = written(tmp_path, log)
    with open_page(browser, report) as page:
        shown = HOSTILE.replace("\u202e", r"\u202e")
        assert page.locator("h1").inner_text() == shown
        assert page.locator(".runs code").inner_text() == shown
        assert shown in page.locator("#configuration").inner_text()
        assert shown in (page.locator("#slow tbody").text_content() or "")
        assert page.locator("main img, main a:not([href^='#']), main iframe").count() == 0
        assert page.evaluate("window.harmed") is None
    text = report.read_text(encoding="utf-8")
    with_script = tmp_path / "harmed.html"
    with_script.write_text(text.replace("<h1>", "<h1><script>window.harmed = 4</script>"))
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(with_script.as_uri())
    page.wait_for_selector("html[data-drawn]")
    assert page.evaluate("window.harmed") is None
    fetched = "fetch('http://127.0.0.1:9/').then(() => 'fetched', (error) => error.name)"
    refused = "new Promise((done) => addEventListener('securitypolicyviolation', done))"
    directive = f"Promise.all([{refused}, {fetched}]).then(([why]) => why.effectiveDirective)"
    assert page.evaluate(directive) == "connect-src"
    page.close()


def log_of_seed_fields(folder: Path, *, measured: bool) -> Path:
    """Return a log as a fork of the original feature writes it."""
    log = folder / "run.jsonl"
    lines = [seed_record(record, measured=measured) for record in records(300)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return log


def test_a_log_of_the_17_fields_has_a_report(browser: Browser, tmp_path: Path) -> None:
    """What it lacks is said, not drawn; without a manifest, nothing is known of the settings."""
    log = log_of_seed_fields(tmp_path, measured=True)
    with open_page(browser, written(tmp_path, log)) as page:
        assert "idle" not in drawn(page)
        assert all(drawn(page).values())
        assert page.locator("h1").inner_text() == "Scheduler profile"
        assert "no run manifest" in page.locator("#configuration").inner_text()
        assert "not recorded" in page.locator(".cards").inner_text()


def test_a_log_without_times_of_the_model_has_a_report(browser: Browser, tmp_path: Path) -> None:
    """Scheduling alone was measured."""
    log = log_of_seed_fields(tmp_path, measured=False)
    with open_page(browser, written(tmp_path, log)) as page:
        assert list(drawn(page)) == ["step-times", "tokens", "requests", "kv-cache", "schedule"]
        assert "The log does not have the times of the model" in page.locator(".lead").inner_text()


def test_a_single_batch_has_a_report(browser: Browser, tmp_path: Path) -> None:
    """One is enough for every chart."""
    log = write_log(tmp_path / "run.jsonl", [batch(7)])
    with open_page(browser, written(tmp_path, log, title="One & only")) as page:
        assert all(drawn(page).values())
        assert page.title() == "Scheduler report: One & only"
        assert page.locator(".facts").inner_text().startswith("1 batch\n")
        assert "too short to tell" in page.locator("#findings").inner_text()
        page.locator("#slow .batch").click()


def test_ranks_are_held_against_each_other(browser: Browser, tmp_path: Path) -> None:
    """With the slow one among the findings, and settings of which they differ in one."""
    for rank in range(3):
        slower = 1.5 if rank == 2 else 1.0
        ranked = (
            attrs.evolve(r, model_run_duration_ms=round((r.model_run_duration_ms or 0) * slower, 3))
            for r in records(2_000, seed=rank, run_id="r", dp_rank=rank)
        )
        write_log(tmp_path / f"rank{rank}.jsonl", ranked)
        found = manifest("r", dp_rank=rank, model="m", max_num_seqs=64 + rank // 2)
        write_manifest(tmp_path / f"rank{rank}.run.json", found)
    with open_page(browser, written(tmp_path, tmp_path)) as page:
        assert drawn(page)["runs"] >= 6
        assert "Rank 2 takes 1.5" in page.locator("#findings").inner_text()
        assert "Batches of rank 2 that show it" in page.locator("#findings").inner_text()
        rows = page.locator("#runs tbody tr")
        assert [row.split()[:3] for row in rows.all_inner_texts()] == [
            ["rank", str(rank), "2,000"] for rank in range(3)
        ]
        assert "64 / 65" in page.locator("#configuration").inner_text()
        # More than 5,000 batches are drawn as bands.
        assert "band: P5 to P95" in page.locator("#chart-step-times").inner_text()


def test_a_long_log_makes_no_larger_page_and_keeps_its_spikes(tmp_path: Path) -> None:
    """One slow schedule() among many is what one looks for."""
    log = list(records(30_000))
    log[12_345] = attrs.evolve(log[12_345], schedule_duration_ms=5_000.0)
    path = write_log(tmp_path / "run.jsonl", log)
    page = text_of(scan(path))
    assert len(page) < 3_000_000
    heights = [trace["y"] for trace in data_of(page)["charts"]["step-times"]["data"]]
    assert max(max(filter(None, one)) for one in heights) == pytest.approx(5_000.0, rel=0.004)
    assert max(map(len, heights)) <= 480


def test_a_log_that_was_not_loaded_has_findings_but_no_slow_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be longer than the memory; findings are then concluded from a part of it."""
    monkeypatch.setattr("sched_profiler.analysis.sample.MAX_STRETCHES", 2)
    engine = SimulatedEngine(setup=Setup(max_num_seqs=8), load=Load(requests_per_s=30))
    log = write_log(tmp_path / "run.jsonl", engine.run(2_000))
    page = text_of(scan(log), manifests=[engine.manifest()])
    assert "Concluded from 1,024 batches" in page
    assert "max_num_seqs (8) are running" in page
    assert 'class="batch" data-at="' in page
    assert "too long to look for slow batches" in page


def test_what_was_lost_is_said_at_the_top(tmp_path: Path) -> None:
    """A number that misses batches is not to be trusted blindly."""
    log = write_log(tmp_path / "run.jsonl", [batch(0), batch(3), batch(3)])
    with log.open("ab") as stream:
        stream.write(b"nonsense\n{")
    page = text_of(scan(log, skip_invalid=True))
    assert "1 line holds no record and was left out." in page
    assert "1 line was not finished by its writer." in page
    assert "1 record of a batch came twice and counts once." in page
    assert 'class="card bad"' in page


def test_a_frame_is_enough(tmp_path: Path) -> None:
    """Also a selection of its rows, which has no times of all batches."""
    from sched_profiler.analysis import Digest  # noqa: PLC0415

    df = load(write_log(tmp_path / "run.jsonl", records(300)))
    page = text_of(Digest.of_frame(df[:150]), df[:150])
    assert "150 batches" in page
    assert "Times are in seconds since the first batch.</p>" in page
    assert "Nothing noteworthy was found" in page
    assert "Findings were not looked for" in text_of(Digest.of_frame(df))


def test_many_runs_are_listed_up_to_a_number(tmp_path: Path) -> None:
    """A fleet's log makes no endless table, and no chart of boxes that nobody can read."""
    fleet = [batch(0, run_id=f"run{n:03}", timestamp=1.79e9 + n) for n in range(250)]
    page = text_of(scan(write_log(tmp_path / "run.jsonl", fleet)))
    assert "50 more runs are not shown" in page
    assert "run199" in page
    assert "run200" not in page
    assert "runs" not in data_of(page)["charts"]
