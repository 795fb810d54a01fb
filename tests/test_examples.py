"""The examples do what they say; those with an engine are in `engines/test_vllm_examples.py`."""

from __future__ import annotations

import itertools
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from custom_sink import SlowBatchesSink
from s3_server import S3Server
from synthetic import batch, records, seed_record, write_log

from sched_profiler.testing import SinkContract

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: object, cwd: Path, environ: Mapping[str, str] | None = None) -> str:
    """Run an example in a folder, and return what it prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


class TestSlowBatchesSink(SinkContract):
    """The sink of `custom_sink.py` keeps the contract of all sinks."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.paths = (tmp_path / f"{number}.sqlite" for number in itertools.count())

    def make_sink(self) -> SlowBatchesSink:
        self.path = next(self.paths)
        return SlowBatchesSink(self.path, limit_ms=-1.0)

    def arrived(self) -> int:
        if not self.path.exists():
            return 0
        with closing(sqlite3.connect(self.path)) as database:
            return int(database.execute("SELECT count(*) FROM slow").fetchone()[0])


def test_the_sink_of_the_example_keeps_slow_batches_only(tmp_path: Path) -> None:
    """An unknown time is not slow."""
    sink = SlowBatchesSink(tmp_path / "slow.sqlite", limit_ms=50.0)
    for number, model_run_ms in enumerate((10.0, 60.0, None, 90.0)):
        sink.write(batch(number, model_run_ms=model_run_ms))
    sink.close()
    with closing(sqlite3.connect(tmp_path / "slow.sqlite")) as database:
        assert database.execute("SELECT batch, ms FROM slow").fetchall() == [(1, 61.0), (3, 91.0)]


def test_the_custom_sink_shows_the_slowest_batches(tmp_path: Path) -> None:
    """Of which the model, which takes time for each token, makes the full ones the slowest."""
    printed = run("custom_sink.py", cwd=tmp_path)
    assert len(re.findall(r"^batch \d+: \d+\.\d ms for \d+ tokens$", printed, re.MULTILINE)) == 3


def test_records_come_back_from_s3(tmp_path: Path) -> None:
    """All of them: none is missing, and the run ended in order."""
    (tmp_path / "server").mkdir()
    server = S3Server(tmp_path / "server")
    server.start()
    try:
        printed = run("s3_round_trip.py", "s3://bucket/logs/", cwd=tmp_path, environ=server.environ)
        names = server.client().find("bucket/logs")
    finally:
        server.kill()
    (row,) = re.findall(r"^(\w+) +- +(\d+) +0 +0 +0 +0 +0 +0 +clean$", printed, re.MULTILINE)
    assert f"\n{row[1]} batches of 1 run" in printed
    assert any(name.endswith(".jsonl.gz") for name in names)


@pytest.mark.parametrize("whose", ["ours", "the original feature's"])
def test_the_pandas_recipes_work_on_any_log(tmp_path: Path, whose: str) -> None:
    """Its 17 fields are enough."""
    log = write_log(tmp_path / "run.jsonl", records(500))
    if whose != "ours":
        lines = [json.dumps(seed_record(record)) + "\n" for record in records(500)]
        log.write_text("".join(lines))
    printed = run("pandas_recipes.py", log, cwd=tmp_path)
    assert printed.count("?\n") == 6
    assert "decode only" in printed
    assert "nan" not in printed.lower()


def refused(name: str, *arguments: str, cwd: Path) -> str:
    """Run an example that cannot do what it is asked; return its errors."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "no URL"])
def test_a_server_that_is_not_there_is_told_in_one_line(url: str, tmp_path: Path) -> None:
    """With its URL and what to do."""
    errors = refused("client_load.py", url, cwd=tmp_path)
    assert re.fullmatch(rf"{url}: .*; start the server first, and give its URL\n", errors)


@pytest.mark.parametrize("name", ["pandas_recipes.py", "s3_round_trip.py"])
def test_an_example_says_what_it_takes(name: str, tmp_path: Path) -> None:
    """Called without arguments, in one line."""
    assert re.fullmatch(r"usage: .*\n", refused(name, cwd=tmp_path))
