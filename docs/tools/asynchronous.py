# ruff: noqa: INP001 - a script, no package
"""Runs an engine that schedules asynchronously, and keeps its log for the page about times.

    python docs/tools/asynchronous.py

vLLM generates for 24 prompts on a CPU, with a worker in a process of its own: the scenario of that
name in `tests/engines/offline.py`. The log goes to `docs/measured/asynchronous.jsonl.gz`;
`docs/tools/draw.py` draws a few of its batches.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from tiny_model import make_tiny_model

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs/measured/asynchronous.jsonl.gz"


def main() -> None:
    """Run it once."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.jsonl")
        model = make_tiny_model(Path(folder, "model"))
        subprocess.run(  # noqa: S603 - a script of the project
            [sys.executable, ROOT / "tests/engines/offline.py", model, "asynchronous"],
            env=os.environ
            | {
                "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
                "VLLM_SCHEDULER_PROFILING_LOG": str(log),
                "VLLM_LOGGING_LEVEL": "ERROR",
            },
            check=True,
        )
        KEPT.write_bytes(gzip.compress(log.read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
