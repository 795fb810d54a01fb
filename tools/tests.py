# ruff: noqa: INP001, S603, T201 - a script that runs commands and talks to its reader
"""Runs all tests under coverage: most of those with a real vLLM beside all others, side by side.

    python tools/tests.py [ARGUMENT OF PYTEST...]

An engine mostly starts, on one core. What the others print comes when both are through; it is in
`build/tests.log` meanwhile. Fails if one of them does, or if no test was run at all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOG = Path(__file__).parents[1] / "build/tests.log"


def command(marked: str, arguments: list[str]) -> list[str]:
    """Return how the tests with such marks are run."""
    return [sys.executable, "-m", "coverage", "run", "-m", "pytest", "-m", marked, *arguments]


def main(arguments: list[str]) -> int:
    """Run them; return the exit code."""
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("wb") as log:
        # One of them keeps account of what failed last.
        others = subprocess.Popen(
            command("not vllm or aside", ["-p", "no:cacheprovider", *arguments]),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        print(
            f"tests: those without an engine, and some with one, run beside these, into {LOG}",
            flush=True,
        )
        # Under coverage an engine takes half as long again; what those beside cover is enough.
        engines = subprocess.run(
            command("vllm and not aside", arguments),
            env=os.environ | {"PROCESSES_WITHOUT_COVERAGE": "1"},
            check=False,
        )
        codes = {engines.returncode, others.wait()}
    print(LOG.read_text(encoding="utf-8", errors="replace"))
    if codes == {pytest.ExitCode.NO_TESTS_COLLECTED}:
        return int(pytest.ExitCode.NO_TESTS_COLLECTED)
    return max(codes - {pytest.ExitCode.NO_TESTS_COLLECTED})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
