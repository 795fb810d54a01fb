# ruff: noqa: INP001, S603, T201 - a script that runs commands and talks to its reader
"""Runs all tests under coverage, in lanes side by side: an engine mostly starts, on one core.

    python tools/tests.py [ARGUMENT OF PYTEST...]

The first lane prints as it goes. What the others print comes when all are through; it is in
`build/lane-2.log` and so on meanwhile. Fails if one of them does, or if no test was run at all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[1] / "build"
OTHERS = (2, 3)
"""Lanes beside the first one; `tests/conftest.py` says what is in them."""


def start(lane: int, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start the tests of a lane."""
    command = [sys.executable, "-m", "coverage", "run", "-m", "pytest", f"--lane={lane}"]
    if lane not in OTHERS:
        # Under coverage an engine takes half as long again; what the others cover is enough.
        environ = os.environ | {"PROCESSES_WITHOUT_COVERAGE": "1"}
        return subprocess.Popen([*command, *arguments], env=environ)
    with (BUILD / f"lane-{lane}.log").open("wb") as log:
        # One lane keeps account of what failed last.
        return subprocess.Popen(
            [*command, "-p", "no:cacheprovider", *arguments], stdout=log, stderr=subprocess.STDOUT
        )


def main(arguments: list[str]) -> int:
    """Run them; return the exit code."""
    BUILD.mkdir(exist_ok=True)
    logs = [BUILD / f"lane-{lane}.log" for lane in OTHERS]
    print(f"tests: beside the first lane, others go to {' and '.join(map(str, logs))}", flush=True)
    lanes = [start(lane, arguments) for lane in (1, *OTHERS)]
    codes = {lane.wait() for lane in lanes}
    for log in logs:
        print(log.read_text(encoding="utf-8", errors="replace"))
    if codes == {pytest.ExitCode.NO_TESTS_COLLECTED}:
        return int(pytest.ExitCode.NO_TESTS_COLLECTED)
    return max(codes - {pytest.ExitCode.NO_TESTS_COLLECTED})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
