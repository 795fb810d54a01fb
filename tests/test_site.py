"""The built documentation, in a real browser: as a server serves it, and opened from the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from browser import DESKTOP, PATIENCE_MS, PHONE, open_browser
from folder_server import serving
from playwright.sync_api import Browser, BrowserContext

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "build/site-pictures"
PAGES = (
    "index",
    "tutorial/first-profile",
    "how-to/read-the-report",
    "reference/record",
    "explanation/times",
    "zh/index",
    "zh/tutorial/first-profile",
)
SIDEWAYS = "document.documentElement.scrollWidth - window.innerWidth"
LOOKS: dict[str, dict[str, Any]] = {
    "desktop": DESKTOP,
    "dark": DESKTOP | {"color_scheme": "dark"},
    "phone": PHONE,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Return where a server serves the site."""
    with serving(site) as where:
        yield where


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a browser for all tests."""
    with open_browser() as opened:
        yield opened


@attrs.frozen
class Watched:
    """Pages of one browser, and what it had to say and asked for meanwhile."""

    context: BrowserContext
    said: list[str] = attrs.field(factory=list)
    asked: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        """Listen from now on."""
        self.context.set_default_timeout(PATIENCE_MS)
        self.context.on("console", lambda message: self.said.append(message.text))
        self.context.on("weberror", lambda error: self.said.append(f"error: {error.error}"))
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.context.on(
            "response",
            lambda got: self.said.append(f"{got.status} {got.url}") if got.status >= 400 else None,
        )


@pytest.mark.parametrize("look", LOOKS)
def test_the_pages_of_the_site_have_all_they_need_and_fit(
    browser: Browser, address: str, look: str
) -> None:
    """No complaint in the console, nothing from another host, and no page scrolls sideways."""
    watched = Watched(browser.new_context(**LOOKS[look]))
    PICTURES.mkdir(parents=True, exist_ok=True)
    page = watched.context.new_page()
    for name in PAGES:
        page.goto(f"{address}/{name}.html", wait_until="networkidle")
        page.screenshot(path=PICTURES / f"{name.replace('/', '-')}-{look}.png")
        assert page.evaluate(SIDEWAYS) <= 0, name
        language = "zh" if name.startswith("zh/") else "en"
        assert page.locator("html").get_attribute("lang") == language
        scheme = "slate" if look == "dark" else "default"
        assert page.locator("body").get_attribute("data-md-color-scheme") == scheme
    assert watched.said == []
    assert {url.partition("://")[2].partition("/")[0] for url in watched.asked} == {
        address.partition("://")[2]
    }
    watched.context.close()


def test_no_page_scrolls_sideways_on_a_phone(browser: Browser, site: Path) -> None:
    """In both languages; what is wider, such as a table, scrolls for itself."""
    context = browser.new_context(**PHONE)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    too_wide = {}
    for file in sorted(site.rglob("*.html")):
        page.goto(file.as_uri())
        if (pixels := page.evaluate(SIDEWAYS)) > 0:
            too_wide[str(file.relative_to(site))] = pixels
    assert too_wide == {}
    context.close()


@pytest.mark.parametrize(
    "name",
    ["tutorial/find-a-stall", "reference/command-line", "how-to/watch-a-live-engine"],
)
def test_what_commands_print_is_seen_to_its_right_end(
    browser: Browser, site: Path, name: str
) -> None:
    """In a window of 1300 px no block of code hides a part of its lines."""
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto((site / f"{name}.html").as_uri())
    assert page.evaluate(SIDEWAYS) <= 0
    hidden = page.eval_on_selector_all(
        "pre > code", "blocks => blocks.map(block => block.scrollWidth - block.clientWidth)"
    )
    assert hidden
    assert max(hidden) <= 0
    context.close()


def test_texts_of_a_table_can_be_read_on_a_phone(browser: Browser, site: Path) -> None:
    """What a field means is not squeezed to a word a line: the table scrolls instead."""
    context = browser.new_context(**PHONE)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto((site / "reference/record.html").as_uri())
    cell = page.locator("table").first.locator("tbody td:nth-child(4)").first
    assert cell.evaluate("cell => cell.clientWidth") > PHONE["viewport"]["width"] / 2
    context.close()


def test_the_search_finds_and_the_language_can_be_switched(browser: Browser, address: str) -> None:
    """Both lead to a page of the site."""
    watched = Watched(browser.new_context(**DESKTOP))
    page = watched.context.new_page()
    page.goto(f"{address}/tutorial/first-profile.html")
    page.locator(".md-search__input").fill("preemptions")
    found = page.locator(".md-search-result__link").first
    assert found.evaluate("link => link.href").startswith(f"{address}/")
    chinese = page.locator(".md-select__link[hreflang=zh]").evaluate("link => link.href")
    assert chinese == f"{address}/zh/tutorial/first-profile.html"
    page.wait_for_load_state("networkidle")
    page.goto(chinese)
    assert watched.said == []
    watched.context.close()


def test_links_lead_to_files_where_no_server_serves_the_site(browser: Browser, site: Path) -> None:
    """From the disk, a link to a folder would show a list of files; only the search is missing."""
    watched = Watched(browser.new_context(**DESKTOP))
    page = watched.context.new_page()
    linked = set()
    for name in PAGES:
        page.goto((site / f"{name}.html").as_uri())
        links = page.eval_on_selector_all("a[href]", "links => links.map(a => a.href)")
        linked |= {url.partition("#")[0] for url in links if url.startswith("file:")}
    assert len(linked) > 2 * 40
    assert [url for url in linked if not Path(url.removeprefix("file://")).is_file()] == []
    assert all(url.startswith(("file:", "data:")) for url in watched.asked)
    watched.context.close()
