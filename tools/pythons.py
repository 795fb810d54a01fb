# ruff: noqa: INP001, S603, T201 - a script that runs commands and talks to its reader
"""Runs all tests that need no vLLM on every Python that is declared.

    python tools/pythons.py [VERSION...]

The versions are those of the classifiers in `pyproject.toml`. uv finds each on the PATH, or
fetches it. Each gets an environment of its own in `build/pythons/`, with all extras but `vllm`,
where this source tree is installed as editable. The output is in `build/pythons/VERSION.log`, what
came of it in `build/pythons/pythons.json`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build/pythons"
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "uv"

NEED_VLLM = ["tests/engines", "tests/test_tiny_model.py"]
"""What cannot be imported without it; of the others, the mark `vllm` tells."""


def declared() -> list[str]:
    """Return the versions that the package says it is for."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)


def test(version: str) -> dict[str, Any]:
    """Make the environment, run the tests, and return what came of it."""
    folder, log = OUT / version, OUT / f"{version}.log"
    python = str(folder / "bin/python")
    install = [UV, "pip", "install", "--python", python, "--group", "test", "--group", "docs"]
    commands = [
        [UV, "venv", "--clear", "--python", version, str(folder)],
        [*install, "--editable", ".", "uv"],
        [
            *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not vllm"),
            *(f"--ignore={name}" for name in NEED_VLLM),
        ],
    ]
    with log.open("w+", encoding="utf-8") as file:
        for command in commands:
            status = subprocess.run(
                command,
                cwd=ROOT,
                # Of what only vLLM brings, tests may be left out here.
                env=os.environ | {"LEAVE_NO_TEST_OUT": "", "VIRTUAL_ENV": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
            if status:
                break
        file.seek(0)
        lines = file.read().splitlines() or ["nothing was printed"]
    print(f"pythons: {version}: {lines[-1].strip('= ')}", flush=True)
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            print(f"  {line}", flush=True)
    passed = re.search(r"(\d+) passed", lines[-1])
    return {
        "version": version,
        "outcome": "failed" if status else "ok",
        "passed": int(passed[1]) if passed else 0,
    }


def main(versions: list[str]) -> int:
    """Run one after the other; return the exit status."""
    OUT.mkdir(parents=True, exist_ok=True)
    results = [test(version) for version in versions or declared()]
    (OUT / "pythons.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"pythons: the output is in {OUT}")
    return int(any(result["outcome"] != "ok" for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
