"""`make links` finds the links to other hosts, and tells which of them lead nowhere."""

from __future__ import annotations

import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

SCRIPT = Path(__file__).parents[1] / "tools/links.py"


class Pages(http.server.BaseHTTPRequestHandler):
    """Has one page, and one that can only be had with its text."""

    def do_HEAD(self) -> None:
        self.answer(200 if self.path == "/here" else 405 if self.path == "/text" else 404)

    def do_GET(self) -> None:
        self.answer(200 if self.path in {"/here", "/text"} else 404)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """Serve the pages; return the address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def check(*pages: Path) -> tuple[int, list[str]]:
    """Run the script; return its exit code and the lines that it prints."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, pages)],
        env=os.environ | {"no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_a_link_that_leads_nowhere_is_named_with_its_pages(tmp_path: Path, site: str) -> None:
    """The others are only counted, however their server wants to be asked."""
    first, second = tmp_path / "first.md", tmp_path / "second.md"
    first.write_text(f"[one]({site}/here#part), [two]({site}/gone) and <{site}/text>\n")
    second.write_text(f"[once more]({site}/gone), `[code]({site}/code)`, [beside](first.md)\n")
    assert check(first, second) == (
        1,
        [
            f"{site}/gone: 404 Not Found",
            f"    on {first}, {second}",
            "links: 2 of 3 lead somewhere",
        ],
    )


def test_links_that_all_lead_somewhere_are_fine(tmp_path: Path, site: str) -> None:
    """The exit code says so."""
    page = tmp_path / "page.md"
    page.write_text(f"[one]({site}/here)\n\n```bash\nopen <{site}/in-a-block>\n```\n")
    assert check(page) == (0, ["links: 1 of 1 lead somewhere"])


def test_a_host_that_does_not_answer_is_a_problem(tmp_path: Path, site: str) -> None:
    """No traceback, whatever goes wrong on the way."""
    page = tmp_path / "page.md"
    # Nobody listens at port 1, and a bare port is no address.
    page.write_text("[refused](http://127.0.0.1:1/) [bad](http://127.0.0.1:none/)\n")
    code, lines = check(page)
    assert code == 1
    assert re.fullmatch(r"http://127\.0\.0\.1:1/: .*refused.*", lines[0])
    assert lines[-1] == "links: 0 of 2 lead somewhere"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Return the script as a module."""
    return load_script(SCRIPT)


def test_of_the_documentation_all_pages_are_looked_at(script: ModuleType) -> None:
    """Those at the root and the translations as well; they do have links to other hosts."""
    found = {page.name: script.links(page.read_text("utf-8")) for page in script.pages()}
    assert {"README.md", "CONTRIBUTING.md", "peers.md", "index.md", "index.zh.md"} <= set(found)
    assert "https://github.com/sgl-project/sglang/issues/40254" in found["peers.md"]
    urls = set().union(*found.values())
    assert all(re.fullmatch(r"https?://[\w./@%?=&~+-]+", url) for url in urls), urls
    assert not any("127.0.0.1" in url or "localhost" in url for url in urls)
