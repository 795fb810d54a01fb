"""A command whose extra is not installed says how to install it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from synthetic import records, write_log

from sched_profiler.cli import COMMANDS

ROOT = Path(__file__).parents[1]
BASE_ONLY = """
import contextlib, io, json, sys

for name in (
    "distributed fsspec jinja2 jsonschema matplotlib msgspec numpy opentelemetry pandas plotly "
    "polars prometheus_client pyarrow rich s3fs vllm zstandard"
).split():
    sys.modules[name] = None
from sched_profiler.cli import main

said = {}
for name, arguments in json.loads(sys.argv[1]).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    said[name] = (code, out.getvalue(), err.getvalue())
print(json.dumps(said))
"""
"""Runs commands where nothing but the base install can be imported."""

EXTRAS = {
    "analyze": "analysis",
    "analyze --out": "analysis",
    "analyze --dask": "analysis",
    "report": "report",
    "slow": "analysis",
    "top": "top",
    "compare": "analysis",
    "compare --out": "analysis",
    "fit": "analysis",
    "fit --out": "analysis",
    "tune": "analysis",
    "capacity": "analysis",
    "trace": "analysis",
    "convert": "analysis",
    "validate": "validate",
    "verify s3": "s3",
    "verify parquet": "analysis",
}
"""The extra that a call asks for."""


def test_without_its_extra_a_command_says_what_to_install(tmp_path: Path) -> None:
    """In one line, with exit code 2, and nothing is written."""
    log = str(write_log(tmp_path / "run.jsonl", records(40)))
    (tmp_path / "run.parquet").write_bytes(b"PAR1")
    out = str(tmp_path / "out")
    more = {
        "analyze --out": ["--out", out],
        "analyze --dask": ["--dask", "tcp://127.0.0.1:1"],
        "report": ["-o", out],
        "compare": [log],
        "compare --out": [log, "--out", out],
        "fit --out": ["--out", out],
        "trace": ["-o", out],
        "convert": [out],
    }
    logs = {"verify s3": "s3://bucket/log.jsonl", "verify parquet": str(tmp_path / "run.parquet")}
    calls = {
        name: [name.split(maxsplit=1)[0], logs.get(name, log), *more.get(name, [])]
        for name in EXTRAS
    }
    without = {"verify": ["verify", log], "upload": ["upload", str(tmp_path)], "doctor": ["doctor"]}
    assert {call.split()[0] for call in [*EXTRAS, *without]} == {c.name for c in COMMANDS}
    done = subprocess.run(
        [sys.executable, "-c", BASE_ONLY, json.dumps(calls | without)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    said = json.loads(done.stdout)
    for name, extra in EXTRAS.items():
        code, printed, error = said[name]
        assert (code, printed) == (2, ""), name
        assert error.count("\n") == 1, (name, error)
        assert f'install it with: pip install ".[{extra}]" in a checkout' in error, name
    page = ROOT / "docs/how-to/troubleshoot.md"
    (quoted,) = re.findall(r"^\| `(analyze needs .+?)` \|", page.read_text("utf-8"), re.MULTILINE)
    assert quoted in said["analyze"][2]
    assert not Path(out).exists()
    assert said["verify"][0] == 0
    assert "no run to upload" in said["upload"][2]
    assert "vLLM: is not installed" in said["doctor"][1]
