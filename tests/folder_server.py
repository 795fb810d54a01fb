"""A web server on loopback for tests, which serves a folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["serving"]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Yield the address at which the files of a folder are."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    # Not in this process: a thread for each request, under coverage, does not always start.
    environ = {name: os.environ[name] for name in os.environ if "COVERAGE" not in name}
    with subprocess.Popen(
        [*command, "--directory", str(folder)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        started = re.search(r" port (\d+) ", server.stdout.readline())
        assert started is not None
        try:
            yield f"http://127.0.0.1:{started[1]}"
        finally:
            server.kill()
