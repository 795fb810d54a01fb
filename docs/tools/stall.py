# ruff: noqa: INP001, S603 - a script that runs commands
"""Runs what the tutorial about a stall shows, and keeps what it prints.

    python docs/tools/stall.py

Both versions of `examples/planted_stall.py` run with profiling on, then the commands and the Python
of `docs/tutorial/find-a-stall.md`. What they print goes to `docs/measured/stall.json`, the chart to
`docs/images/stall.png`. It wants a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import draw

from sched_profiler import analysis

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/tutorial/find-a-stall.md"
SIDES = ("stalled", "fixed")
COMMANDS = (
    "analyze .demo/stalled",
    "slow .demo/stalled --schedule-over 5ms --top 3",
    "analyze .demo/fixed",
    "compare .demo/stalled .demo/fixed",
)


def run(folder: Path, *command: str | Path, **variables: str) -> str:
    """Run a command and return what it prints."""
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def main() -> None:
    """Run everything, and write what was printed."""
    printed = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side in SIDES:
            said = run(
                folder,
                *(sys.executable, ROOT / "examples/planted_stall.py"),
                *(["--fixed"] if side == "fixed" else []),
                VLLM_ENABLE_SCHEDULER_PROFILING="true",
                VLLM_SCHEDULER_PROFILING_LOG=f".demo/{side}/scheduler_profiling.jsonl",
                VLLM_LOGGING_LEVEL="ERROR",
            )
            (printed[side],) = re.findall(r"^[\d,]+ tokens for .*$", said, re.MULTILINE)
        for command in COMMANDS:
            arguments = [*command.split()]
            printed[command] = run(folder, sys.executable, "-m", "sched_profiler", *arguments)
        (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
        printed["snippet"] = run(folder / ".demo/stalled", sys.executable, "-c", snippet)
        figure = analysis.plot_step_times(analysis.load(folder / ".demo/stalled"))
        figure.set_size_inches(9, 5)
        draw.save_small(figure, "stall.png", dpi=100)
    found = {
        "machine": f"{os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "vllm": version("vllm"),
        "printed": {name: text.rstrip() for name, text in printed.items()},
    }
    text = json.dumps(found, indent=2, ensure_ascii=False)
    (ROOT / "docs/measured/stall.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
