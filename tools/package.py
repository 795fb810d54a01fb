# ruff: noqa: INP001, S603, T201 - a script that runs commands and talks to its reader
"""Builds the source distribution and the wheels into dist/, and holds them against their promises.

    python tools/package.py

- Two builds, in folders of different names, under different umasks and time zones, are the same
  bytes. The versions of the build tools are in `tools/build-constraints.txt`, and every date is
  that of the last commit, or SOURCE_DATE_EPOCH where that is set.
- There is a wheel with the hook in C, and one for any machine, built without a compiler.
- The wheels hold the type marker, the schemas and the templates of the report.
- `twine check --strict` has nothing to say.
- pip and uv install them into empty environments; the base install is small and quick to import.
- The core tests pass there, without our source tree and without any extra.

What is measured is in `build/package/package.json`.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build/package"
DIST = ROOT / "dist"
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "uv"

MOST_BYTES = 10_000_000
"""Of the base install with all it depends on."""

MOST_IMPORT_MS = 50
"""What `import sched_profiler` may take, besides Python's own start."""

CONTENTS = {
    "sched_profiler/py.typed",
    "sched_profiler/schema/batch-record-v1.schema.json",
    "sched_profiler/schema/request-trace-v1.schema.json",
    "sched_profiler/schema/run-manifest-v1.schema.json",
    "sched_profiler/analysis/report/report.html",
    "sched_profiler/analysis/report/report.css",
    "sched_profiler/analysis/report/report.js",
}

TEST_TOOLS = ["hypothesis", "jsonschema", "pytest", "pytest-timeout"]

CORE_TESTS = [
    *(
        f"tests/sinks/test_{name}.py"
        for name in (*("console", "factories", "jsonl", "locks", "parts", "rotation", "tee"),)
    ),
    *(
        f"tests/test_{name}.py"
        for name in (
            *("codec", "compression", "faults", "follow", "lifetime", "log_files"),
            *("log_names", "manifest", "messages", "profiler", "reader", "record", "redact"),
            *("request_trace", "settings", "verify", "writer"),
        )
    ),
]
"""What needs neither an extra nor the source tree."""


def run(*command: str | Path, cwd: Path = ROOT, umask: int = -1, **variables: str) -> str:
    """Run a command and return what it prints; end with that if it fails."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=os.environ | variables,
        umask=umask,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"package: {' '.join(map(str, command))} fails:\n{done.stdout}")
    return done.stdout


def demand(is_so: bool, otherwise: str) -> None:  # noqa: FBT001 - it is what is demanded
    """End with a message unless something is so."""
    if not is_so:
        sys.exit(f"package: {otherwise}")


def copy_tree(target: Path) -> None:
    """Copy what git knows or would add."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
            (target / name).chmod((ROOT / name).stat().st_mode)


def build(folder: Path, epoch: str, zone: str, umask: int) -> dict[str, bytes]:
    """Build all from a copy of the tree; return the files by their names."""
    copy_tree(folder)
    command = [UV, "build", "--quiet", "--python", sys.executable]
    command += ["--build-constraints", "tools/build-constraints.txt", "--out-dir", "dist"]
    variables = {"SOURCE_DATE_EPOCH": epoch, "TZ": zone}
    run(*command, cwd=folder, umask=umask, **variables)
    run(*command, "--wheel", cwd=folder, umask=umask, CC="no-such-compiler", **variables)
    built = sorted((folder / "dist").glob("sched_profiler-*"))
    return {path.name: path.read_bytes() for path in built}


def check_contents(wheel: Path, epoch: str) -> None:
    """Look into a wheel."""
    members = zipfile.ZipFile(wheel).infolist()
    lacks = CONTENTS - {member.filename for member in members}
    demand(not lacks, f"{wheel.name} lacks {', '.join(sorted(lacks))}")
    at = time.gmtime(int(epoch))
    # A zip file counts in steps of two seconds.
    is_dated = all(member.date_time[:5] == at[:5] for member in members)
    demand(is_dated, f"{wheel.name} has files that are not of {time.asctime(at)}")


def cpu_seconds() -> float:
    """Return what the processes that were started here have taken of the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def import_ms(python: Path, code: str) -> float:
    """Return what some code takes besides the start of Python: the least of many times.

    It is the time of the processor, so that other work on the machine does not count.
    """
    least = {code: float("inf"), "": float("inf")}
    for _ in range(30):
        for each, before in least.items():
            start = cpu_seconds()
            subprocess.run([python, "-I", "-c", each], check=True)
            least[each] = min(before, cpu_seconds() - start)
    return (least[code] - least[""]) * 1000


def install_with_pip(wheel: Path, folder: Path) -> None:
    """Install into an empty environment, and call the program."""
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", wheel)
    run(folder / "bin/python", "-m", "pip", "check")
    said = run(folder / "bin/sched-profiler", "--version")
    demand(said.split()[1] == wheel.name.split("-")[1], f"--version says {said}")


def install_with_uv(wheel: Path, folder: Path) -> None:
    """Install into an empty environment."""
    run(UV, "venv", "--quiet", "--python", sys.executable, folder)
    run(UV, "pip", "install", "--quiet", "--python", folder / "bin/python", wheel)


def test(environment: Path) -> str:
    """Run the core tests where the source tree cannot be imported."""
    python = environment / "bin/python"
    run(UV, "pip", "install", "--quiet", "--python", python, *TEST_TOOLS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("tests", "examples", "bench", "schema"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy(ROOT / "pyproject.toml", folder)
        # Here is left out what needs an extra.
        said = run(
            *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CORE_TESTS),
            cwd=folder,
            LEAVE_NO_TEST_OUT="",
        )
    return said.splitlines()[-1].strip("= ")


def main() -> int:
    """Build and check; return the exit status."""
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.rmtree(DIST, ignore_errors=True)
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct").strip()
    first = build(OUT / "a", epoch, "UTC", 0o022)
    second = build(OUT / "another folder", epoch, "Asia/Tokyo", 0o077)
    demand(first.keys() == second.keys(), f"two builds are of {[*first]} and {[*second]}")
    for name, content in first.items():
        demand(content == second[name], f"two builds of {name} are not the same bytes")
    DIST.mkdir()
    for name, content in first.items():
        (DIST / name).write_bytes(content)
        print(f"package: {name}, {len(content):,} bytes, the same when built again", flush=True)
    wheels = {("-py3-none-any" in path.name): path for path in DIST.glob("*.whl")}
    demand(len(wheels) == 2, "there is no C compiler, so the wheel with the hook in C is missing")  # noqa: PLR2004 - with and without C
    for wheel in wheels.values():
        check_contents(wheel, epoch)
    run(UV, "tool", "run", "twine", "check", "--strict", *DIST.iterdir())
    print("package: contents are complete, twine check --strict passes", flush=True)

    install_with_pip(wheels[True], OUT / "with-pip")
    install_with_uv(wheels[False], OUT / "with-uv")
    python = OUT / "with-uv/bin/python"
    installed = run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip()
    files = [path for path in Path(installed).rglob("*") if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files if path.suffix != ".pyc")
    demand(num_bytes < MOST_BYTES, f"the base install has {num_bytes:,} bytes")
    codes = (
        "import sched_profiler",
        "import sched_profiler.engines.vllm_plugin",
        "from sched_profiler import *",
    )
    measured = {code: round(import_ms(python, code), 1) for code in codes}
    demand(measured[codes[0]] < MOST_IMPORT_MS, f"importing takes {measured}, in ms")
    print(f"package: the base install has {num_bytes:,} bytes; besides Python's start")
    print(*(f"  {code}: {ms} ms" for code, ms in measured.items()), sep="\n", flush=True)

    tests = test(OUT / "with-uv")
    print(f"package: core tests without extras: {tests}")
    found = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "file_bytes": {name: len(content) for name, content in first.items()},
        "base_install_bytes": num_bytes,
        "import_ms": measured,
        "core_tests": tests,
    }
    (OUT / "package.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
