"""A real browser for tests: Chromium, as the machine has it, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import lacks
from playwright.sync_api import Browser, Page, sync_playwright

__all__ = ["DESKTOP", "PATIENCE_MS", "PHONE", "open_browser", "open_page"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP = {"viewport": {"width": 1440, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}
# A slow machine that does other things as well is no failure.
PATIENCE_MS = 120_000


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Yield a browser without a window."""
    found = [path for name in _NAMES if (path := shutil.which(name))]
    if not found:
        lacks("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found[0],
            args=["--disable-quic", "--no-first-run", "--disable-component-update"],
        )
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, file: Path, **options: Any) -> Iterator[Page]:
    """Yield a report, opened from the disk, when all its charts are drawn.

    Fails where the browser had anything to say of it, or was asked for anything but the file.
    """
    context = browser.new_context(**(options or DESKTOP))
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]")
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [file.as_uri()]
    context.close()
