"""Runs a command in a process of its own, and tells how much memory it took."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["on_linux", "peak_mb"]

# Not ru_maxrss, in which the process that started this one lives on.
_CODE = """
import re, sys
from pathlib import Path
from sched_profiler.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


def peak_mb(*arguments: str | Path) -> tuple[int, str, float]:
    """Run a command; return its exit code, its errors and its peak memory in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        # Else the memory depends on the number of cores.
        env=os.environ | {"POLARS_MAX_THREADS": "2"},
    )
    return done.returncode, done.stderr, int(done.stdout.splitlines()[-1]) / 1024
