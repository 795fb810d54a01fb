"""Runs `faulty.py`, which puts real engines through faults, and reads what it left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from sched_profiler.sinks.registry import GROUP
from sched_profiler.verify import RunReport, verify

HERE = Path(__file__).parent

Answer = tuple[int, list[int]]
"""The number of a request in `engine_in_process.LENGTHS`, and the tokens that came."""


def plug_in(site: Path) -> None:
    """Install the sinks of `faulty.py` into a folder of packages."""
    info = site / "faulty-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    sinks = (f"{name} = faulty:{name}" for name in ("raising", "hanging", "slow"))
    (info / "entry_points.txt").write_text("\n".join((f"[{GROUP}]", *sinks, "")))


@contextmanager
def faulty(model: Path, folder: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    """Run `faulty.py` with its plug-in installed; it is killed at the end of the block."""
    plug_in(folder / "site")
    environ = {
        "VLLM_ENABLE_SCHEDULER_PROFILING": str(mode == "workers"),
        "VLLM_SCHEDULER_PROFILING_LOG": str(folder / "log.jsonl"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(mode == "workers")),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE / "engines", folder / "site"))),
    }
    with (folder / "printed").open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "engines" / "faulty.py"), str(model), str(folder), mode],
            env=os.environ | environ,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with_group(process, signal.SIGKILL)
        process.wait()


def with_group(process: subprocess.Popen[str], signum: int) -> None:
    """Send a signal to a process and all that it started, as a terminal does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def told(folder: Path) -> list[dict[str, Any]]:
    """Return what the script has told so far."""
    lines = (folder / "printed").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"')]


@attrs.frozen
class Faults:
    """What one engine left that met the faults that do not end a process.

    Attributes:
        folder: where its logs are.
        tokens: what it generated in each of them.
        unprofiled: what it generates unprofiled if it goes on for longer.
        times: in s, how long the same load took in each of them, again and again.
        printed: its log.
    """

    folder: Path
    tokens: dict[str, list[list[int]]]
    unprofiled: list[list[int]]
    times: dict[str, list[float]]
    printed: str

    def run(self, log: str) -> RunReport:
        """Return what verify says of the one run of a log."""
        (run,) = verify(self.folder / log).runs
        return run

    @property
    def num_batches(self) -> int:
        """Batches of one generation."""
        return self.run("none.jsonl").num_records

    @property
    def num_all_batches(self) -> int:
        """Batches of a fault in which throughput was compared as well."""
        return self.num_batches * (1 + len(self.times["well"]))

    def differing(self, answers: Iterable[Answer]) -> list[Answer]:
        """Return the answers with which an unprofiled engine does not begin its own."""
        return [
            (number, tokens)
            for number, tokens in answers
            if tokens != self.unprofiled[number][: len(tokens)]
        ]
