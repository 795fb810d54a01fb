# ruff: noqa: INP001, S603, T201 - a script that runs commands and talks to its reader
"""Runs all tests under coverage, in two lanes side by side: an engine mostly starts, on one core.

    python tools/tests.py [ARGUMENT OF PYTEST...]

`tests/conftest.py` says which test is in which lane. What the second one prints comes when both are
through; it is in `build/lane-2.log` meanwhile. Fails if one of them does, or if no test was run at
all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOG = Path(__file__).parents[1] / "build/lane-2.log"


def command(lane: int, arguments: list[str]) -> list[str]:
    """Return how the tests of a lane are run."""
    return [sys.executable, "-m", "coverage", "run", "-m", "pytest", f"--lane={lane}", *arguments]


def main(arguments: list[str]) -> int:
    """Run them; return the exit code."""
    LOG.parent.mkdir(exist_ok=True)
    print(f"tests: the second lane prints into {LOG}", flush=True)
    with LOG.open("wb") as log:
        # One of them keeps account of what failed last.
        second = subprocess.Popen(
            command(2, ["-p", "no:cacheprovider", *arguments]),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        # Under coverage an engine takes half as long again; what the second covers is enough.
        first = subprocess.run(
            command(1, arguments),
            env=os.environ | {"PROCESSES_WITHOUT_COVERAGE": "1"},
            check=False,
        )
        codes = {first.returncode, second.wait()}
    print(LOG.read_text(encoding="utf-8", errors="replace"))
    if codes == {pytest.ExitCode.NO_TESTS_COLLECTED}:
        return int(pytest.ExitCode.NO_TESTS_COLLECTED)
    return max(codes - {pytest.ExitCode.NO_TESTS_COLLECTED})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
