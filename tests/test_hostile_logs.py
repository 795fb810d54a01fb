"""What somebody else made of a log costs little memory, and leads nowhere."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import attrs
import numpy as np
import pyarrow as pa
import pytest
from peak_memory import on_linux, peak_mb
from pyarrow import parquet as pq
from synthetic import batch, records, write_log

from sched_profiler.cli import main
from sched_profiler.codec import encode
from sched_profiler.manifest import Run, write_manifest
from sched_profiler.parquet import SCHEMA

MIB = 1 << 20


@pytest.fixture(scope="module")
def long_lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with logs of one endless line: NUL bytes, as after a crash, and gzip."""
    folder = tmp_path_factory.mktemp("long")
    plain = folder / "plain.jsonl"
    write_log(plain, [batch(0)])
    os.truncate(plain, 1 << 30)
    with gzip.open(folder / "packed.jsonl.gz", "wb", compresslevel=1) as stream:
        stream.write(encode(batch(0)))
        for _ in range(300):
            stream.write(b"1" * MIB)
    return folder


@on_linux
@pytest.mark.parametrize("name", ["plain.jsonl", "packed.jsonl.gz"])
@pytest.mark.parametrize("command", ["validate", "verify", "analyze", "slow"])
def test_a_line_without_end_is_refused_in_little_memory(
    long_lines: Path, command: str, name: str
) -> None:
    """A gigabyte of it on the disk, or 300 MiB in a few kilobytes of gzip."""
    path = long_lines / name
    code, errors, megabytes = peak_mb(command, path)
    assert code == 2
    assert errors == (
        f"sched-profiler: line 2 of {path} is longer than 16 MiB; this is no log of a scheduler\n"
    )
    assert megabytes < (300 if command in ("analyze", "slow") else 100)


@on_linux
@pytest.mark.parametrize(
    ("command", "column", "message"),
    [
        ("analyze", "decode_chunk_sizes", "30,000,004 values of decode_chunk_sizes.list.element"),
        ("verify", "run_id", "3,000,000,000 bytes of text in the 3,000 rows from row 1"),
        ("convert", "request_ids", "3,000,000,000 bytes of text in the 3,000 rows from row 1"),
    ],
)
def test_parquet_that_unfolds_is_refused_in_little_memory(
    tmp_path: Path, command: str, column: str, message: str
) -> None:
    """A list of 30 million ones, or a name of a megabyte thousands of times: both small files."""
    rows = pa.Table.from_pylist([attrs.asdict(batch(n)) for n in range(3000)], schema=SCHEMA)
    if column == "decode_chunk_sizes":
        many = pa.array(np.ones(30_000_004, np.int32))
        values = pa.ListArray.from_arrays([*range(2999), 2999, 30_000_004], many)
    else:
        names = pa.DictionaryArray.from_arrays(np.zeros(3000, np.int32), ["x" * 1_000_000])
        values = names
        if column == "request_ids":
            # As Polars writes it.
            values = pa.LargeListArray.from_arrays([*range(3001)], names)
    path = tmp_path / "log.parquet"
    position = rows.schema.get_field_index(column)
    pq.write_table(rows.set_column(position, column, values), path)
    assert path.stat().st_size < 3_000_000
    further = [tmp_path / "out.parquet"] if command == "convert" else []
    code, errors, megabytes = peak_mb(command, path, *further)
    assert code == 2
    assert message in errors
    assert megabytes < 400


@on_linux
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["verify", "log.jsonl"],
            2,
            "log.run.run.json is no run manifest: it is longer than 1 MiB",
        ),
        (["doctor"], 1, ""),
        (["upload", "."], 1, ""),
    ],
    ids=["verify", "doctor", "upload"],
)
def test_a_manifest_without_end_is_refused_in_little_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    """Verify says which and what to do; the others take it for one that is broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_SCHEDULER_PROFILING_LOG", "log.jsonl")
    write_log(tmp_path / "log.jsonl", [batch(0)])
    manifest = tmp_path / "log.run.run.json"
    manifest.touch()
    os.truncate(manifest, 400 * MIB)
    found, errors, megabytes = peak_mb(*arguments)
    assert found == code
    assert message in errors
    assert ("move it away" in errors) == bool(message)
    assert megabytes < 100


@on_linux
def test_what_a_killed_run_left_is_closed_in_little_memory(tmp_path: Path) -> None:
    """Also where the machine left NUL bytes in place of a record."""
    spool, out = tmp_path / "spool", tmp_path / "out"
    spool.mkdir()
    manifest = Run("run", dp_rank=None, facts={}, num_dropped=int).manifest(
        log=f"file://{out}/", started=1.0, updated=2.0
    )
    write_manifest(spool / "log.run.run.json", manifest)
    (spool / "log.run.jsonl").touch()
    os.truncate(spool / "log.run.jsonl", 300 * MIB)
    code, errors, megabytes = peak_mb("upload", spool)
    assert (code, errors) == (0, "")
    assert len(list(out.glob("*.jsonl.gz"))) == 1
    assert megabytes < 150


def test_run_ids_that_are_paths_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever commands write is in the folder that they are given."""
    run_ids = ["../../x", f"{tmp_path}/x", "..", "a/../../../x\0y"]
    work = tmp_path / "a" / "b" / "work"
    logs = work / "logs"
    logs.mkdir(parents=True)
    monkeypatch.chdir(work)
    for number, run_id in enumerate(run_ids):
        of_run = records(100, run_id=run_id, dp_rank=number)
        write_log(logs / f"log.20261124T113336.123Z-{number}-000000000.jsonl", of_run)
        run = Run(run_id, dp_rank=0, facts={"model": run_id}, num_dropped=int)
        manifest = run.manifest(log=run_id, started=1.0, updated=2.0)
        manifest = attrs.evolve(manifest, host=run_id, num_missing_elsewhere={run_id: 1})
        write_manifest(logs / f"log.{number}.run.json", manifest)
    before = {*tmp_path.rglob("*")}
    out = work / "out"
    out.mkdir()
    for arguments in (
        ["analyze", "logs", "--out", "out/analyze"],
        ["report", "logs", "-o", "out/report.html"],
        ["trace", "logs", "-o", "out/trace.json"],
        ["convert", "logs", "out/converted/"],
        ["compare", *map(str, sorted(logs.glob("*.jsonl"))[:2]), "--out", "out/compare"],
        ["fit", "logs", "--out", "out/fit"],
        ["upload", "logs", "--to", f"file://{out}/uploaded/"],
    ):
        assert main(arguments) == 0, arguments
        new = {*tmp_path.rglob("*")} - before - {out}
        assert [path for path in new if out not in path.parents] == [], arguments
    assert len(list(out.iterdir())) == 7
    uploaded = (path.read_bytes() for path in (out / "uploaded").glob("*.run.json"))
    assert {json.loads(text)["run_id"] for text in uploaded} == set(run_ids)
