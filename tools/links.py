# ruff: noqa: INP001, T201 - a script that talks to its reader
"""Asks for each page of another host that the documentation links to.

    python tools/links.py [PAGE...]

It needs a network, and nothing but Python. All pages of the documentation are looked at where none
is named. A link that leads nowhere is printed with the pages that have it; then the exit code is 1.
"""

from __future__ import annotations

import http.client
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
NUM_AT_A_TIME = 4
"""Many links lead to one host, which may refuse more."""
TIMEOUT_S = 20.0

_CODE = re.compile(r"^( *)```.*?^\1```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((https?://[^)\s]+)\)|<(https?://[^>\s]+)>")
_AGENT = "Mozilla/5.0 (compatible; links.py of sched_profiler)"


def pages() -> list[Path]:
    """Return the pages of the documentation."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def links(text: str) -> set[str]:
    """Return the addresses on other hosts to which a page links; code has no links."""
    found = _LINK.findall(_CODE.sub("", text))
    # What follows `#` is looked up by a browser alone.
    return {(inline or bare).partition("#")[0] for inline, bare in found}


def problem(url: str, timeout: float = TIMEOUT_S) -> str:
    """Ask for a page; return what is wrong with the answer, or nothing.

    Without its text first (HEAD), then in full (GET), since not every server answers the first.
    """
    said = ""
    for method in ("HEAD", "GET"):
        request = urllib.request.Request(  # noqa: S310 - `links` finds http and https only
            url, headers={"User-Agent": _AGENT}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout):  # noqa: S310 - likewise
                return ""
        except urllib.error.HTTPError as error:
            error.close()
            said = f"{error.code} {error.reason}"
        except urllib.error.URLError as error:
            said = str(error.reason)
        except (OSError, http.client.HTTPException, ValueError) as error:
            said = str(error) or type(error).__name__
    return said


def main(names: list[str]) -> int:
    """Check the links of pages; return the exit code."""
    on: dict[str, list[str]] = {}
    for page in map(Path, names) if names else pages():
        for url in links(page.read_text(encoding="utf-8")):
            on.setdefault(url, []).append(str(page.relative_to(ROOT) if not names else page))
    urls = sorted(on)
    with ThreadPoolExecutor(NUM_AT_A_TIME) as threads:
        problems = dict(zip(urls, threads.map(problem, urls), strict=True))
    wrong = {url: said for url, said in problems.items() if said}
    for url, said in wrong.items():
        print(f"{url}: {said}\n    on {', '.join(on[url])}")
    print(f"links: {len(urls) - len(wrong)} of {len(urls)} lead somewhere")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
