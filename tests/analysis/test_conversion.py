"""Converting logs to Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from synthetic import batch, records, seed_record, write_log
from test_cli import failure
from test_cli_replay import log_in, trace_beside
from test_request_trace import RECORD

from sched_profiler import parquet
from sched_profiler.analysis import conversion, convert, load, load_requests, scan
from sched_profiler.cli import main
from sched_profiler.errors import LogError, SchedProfilerError
from sched_profiler.reader import read_records
from sched_profiler.request_record import encode_request
from sched_profiler.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

Capture = pytest.CaptureFixture[str]


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    """Every field, lists included; what is unknown stays unknown."""
    written = [*records(100, dp_rank=1), batch(100, model_run_ms=None, request_ids=["a", "b"])]
    convert(write_log(tmp_path / "run.jsonl", written), out=tmp_path / "run.parquet")
    assert list(read_records(tmp_path / "run.parquet")) == written
    assert pq.read_schema(tmp_path / "run.parquet").names == parquet.SCHEMA.names


def test_a_frame_of_parquet_is_that_of_the_log(tmp_path: Path) -> None:
    """The same columns, dtypes and rows."""
    log = write_log(tmp_path / "run.jsonl", records(300))
    convert(log, out=tmp_path / "run.parquet")
    pd.testing.assert_frame_equal(load(tmp_path / "run.parquet"), load(log))


def test_a_folder_has_a_file_for_each_run_and_rank(tmp_path: Path) -> None:
    """More where a run is long; other tools see the columns and the partitions."""
    ranks = [one for rank in range(2) for one in records(10, dp_rank=rank, run_id="a/b")]
    log = write_log(tmp_path / "run.jsonl", [*ranks, *records(10, run_id="..")])
    done = convert(log, out=f"{tmp_path}/out/")
    assert done.num_records == 30
    assert {str(path.relative_to(tmp_path / "out")) for path in done.files} == {
        "run=a%2Fb/rank=0/0.parquet",
        "run=a%2Fb/rank=1/0.parquet",
        "run=%2E%2E/rank=none/0.parquet",
    }
    df = pd.read_parquet(tmp_path / "out")
    assert len(df) == 30
    assert {"run", "rank", "run_id", "dp_rank"} <= set(df.columns)


def test_a_long_run_is_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is held is bounded, also for many runs at once."""
    monkeypatch.setattr("sched_profiler.analysis.rows._BLOCK_BYTES", 2_000)
    monkeypatch.setattr(conversion, "_ROWS", 20)
    monkeypatch.setattr(conversion, "_HELD_ROWS", 25)
    mixed = [batch(number, run_id=f"r{number % 3}") for number in range(120)]
    log = write_log(tmp_path / "run.jsonl", mixed)
    done = convert(log, out=f"{tmp_path}/out/")
    assert len(done.files) > 3
    assert scan(tmp_path / "out").num_batches == 120
    convert(log, out=tmp_path / "one.parquet")
    assert pq.ParquetFile(tmp_path / "one.parquet").num_row_groups == 6


def test_runs_without_a_name_are_given_one(tmp_path: Path) -> None:
    """A file of Parquet does not say which log a row is from, nor where it started over."""
    for name in ("a.jsonl", "b.jsonl"):
        lives = [seed_record(batch(n, timestamp=t + n)) for t in (1e9, 2e9) for n in range(5)]
        (tmp_path / name).write_bytes(b"".join(conversion_line(one) for one in lives))
    convert(tmp_path / "a.jsonl", tmp_path / "b.jsonl", out=tmp_path / "all.parquet")
    df = load(tmp_path / "all.parquet")
    assert df["run_id"].unique().tolist() == ["a-0-0", "b-1-0", "a-0-1", "b-1-1"]
    assert len(scan(tmp_path / "all.parquet").runs) == 4


def conversion_line(fields: dict[str, Any]) -> bytes:
    """Return fields as a line."""
    import orjson  # noqa: PLC0415 - here only

    return orjson.dumps(fields) + b"\n"


def test_a_log_that_is_broken_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither a file nor what was written of it."""
    log = write_log(tmp_path / "run.jsonl", records(3))
    log.write_bytes(log.read_bytes() + b"broken\n")
    with pytest.raises(LogError, match="line 4 of"):
        convert(log, out=tmp_path / "out" / "run.parquet")
    assert list((tmp_path / "out").iterdir()) == []
    done = convert(log, out=tmp_path / "out" / "run.parquet", skip_invalid=True)
    assert (done.num_records, done.num_skipped_lines) == (3, 1)


def test_where_it_cannot_write_it_says_so(tmp_path: Path) -> None:
    """A file in the way of a folder, and a URL."""
    log = write_log(tmp_path / "run.jsonl", records(3))
    with pytest.raises(SchedProfilerError, match=r"cannot write .*run.jsonl.*; name another place"):
        convert(log, out=f"{log}/")
    with pytest.raises(SchedProfilerError, match="is a URL; convert to a file"):
        convert(log, out="s3://bucket/x.parquet")


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: Capture) -> None:
    """And what it left out."""
    log = write_log(tmp_path / "run.jsonl", records(3))
    log.write_bytes(log.read_bytes() + b'{"half')
    assert main(["convert", str(log), str(tmp_path / "x.parquet")]) == 0
    assert capsys.readouterr().out == (
        f"3 records in {tmp_path / 'x.parquet'}; 1 half-written line left out\n"
    )
    (tmp_path / "empty.jsonl").touch()
    assert main(["convert", str(tmp_path / "empty.jsonl"), str(tmp_path / "y.parquet")]) == 2
    assert "no record in" in capsys.readouterr().err


def test_parquet_is_verified_and_not_validated(tmp_path: Path, capsys: Capture) -> None:
    """It has batches that may be missing, and no lines."""
    log = write_log(tmp_path / "run.jsonl", [one for one in records(10) if one.batch_id != 4])
    convert(log, out=tmp_path / "pq" / "run.parquet")
    (run,) = verify(tmp_path / "pq").runs
    assert (run.num_records, run.gaps) == (9, [(4, 4)])
    assert main(["validate", str(tmp_path / "pq")]) == 2
    assert "is Parquet, which has no lines" in capsys.readouterr().err


def test_what_stands_beside_a_log_goes_with_it(tmp_path: Path, capsys: Capture) -> None:
    """Manifests and requests of its runs: what verifies and replays finds them beside the files."""
    log = log_in(tmp_path / "logs", 30)
    requests = [attrs.evolve(RECORD, run_id="r1", request_number=number) for number in (0, 1)]
    trace_beside(log, *requests, attrs.evolve(RECORD, run_id="of another log"))
    for out in (tmp_path / "pq" / "one.parquet", tmp_path / "all"):
        out.parent.mkdir(exist_ok=True)
        assert main(["convert", str(log), f"{out}/" if out.name == "all" else str(out)]) == 0
        assert "; 1 manifest and 1 request trace beside\n" in capsys.readouterr().out
        folder = tmp_path / out.relative_to(tmp_path).parts[0]
        assert load_requests(folder) == {("r1", 0): requests}
        assert main(["verify", str(folder)]) == 0
        # As its manifest says: it goes on, or was killed.
        assert " none\n" in capsys.readouterr().out
        assert "a fit needs 100" in failure(capsys, "tune", folder)
        assert len(pd.read_parquet(out)) == 30
    out = tmp_path / "again"
    convert(tmp_path / "all", out=f"{out}/")
    assert load_requests(out) == {("r1", 0): requests}
    # Once more, nothing is doubled.
    convert(log, out=f"{out}/")
    assert load_requests(out) == {("r1", 0): requests}
    assert len(list(out.rglob("*.run.json"))) == 1


def test_nothing_is_written_beside_a_log_that_is_there_already(tmp_path: Path) -> None:
    """The trace of a run that lives is its own."""
    log = log_in(tmp_path, 30)
    trace_beside(log, attrs.evolve(RECORD, run_id="r1"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    out = log.with_suffix(".parquet")
    assert convert(log, out=out).companions == []
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path != out} == before


def test_a_damaged_request_trace_can_be_converted_in_part(tmp_path: Path, capsys: Capture) -> None:
    """As damaged logs can."""
    log = log_in(tmp_path / "logs", 30)
    log.with_suffix(".requests.jsonl").write_bytes(
        b"[]\n" + encode_request(attrs.evolve(RECORD, run_id="r1")) + b'{"half'
    )
    out = tmp_path / "out.parquet"
    assert "--skip-invalid goes on" in failure(capsys, "convert", log, out)
    assert main(["convert", str(log), str(out), "--skip-invalid"]) == 0
    assert "; 1 invalid line left out; 1 half-written line left out\n" in capsys.readouterr().out
    assert len(load_requests(out)["r1", 0]) == 1


def damaged(path: Path, change: str) -> None:
    """Write Parquet that is no log, in one way or another."""
    table = pa.Table.from_pylist([seed_record(one) for one in records(5)])
    columns = {name: table[name] for name in table.column_names}
    if change == "lacks a column":
        del columns["kv_cache_usage"]
    elif change == "has a null":
        columns["batch_id"] = pa.chunked_array([[0, 1, None, 3, 4]])
    elif change == "has text":
        columns["batch_id"] = pa.chunked_array([["a"] * 5])
    elif change == "is newer":
        columns["schema_version"] = pa.chunked_array([[1, 1, 2, 1, 1]])
    pq.write_table(pa.table(columns), path)
    if change == "is cut":
        path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lacks a column", "lacks the columns kv_cache_usage; write it again"),
        ("has a null", "row 3 of .*: batch_id is null, which it never is; write it again"),
        ("has text", "the column batch_id is of string, not int64; write it again"),
        ("is newer", "schema_version 2 is newer than 1; upgrade sched-profiler"),
        ("is cut", "is no Parquet .*; write it again"),
    ],
)
def test_parquet_that_is_no_log_is_an_error(tmp_path: Path, change: str, message: str) -> None:
    """With the file, what is wrong, and what to do."""
    path = tmp_path / "x.parquet"
    damaged(path, change)
    for read in (scan, load):
        with pytest.raises(LogError, match=message) as caught:
            read(path)
        assert "x.parquet" in str(caught.value)


def test_parquet_of_the_17_fields_is_a_log(tmp_path: Path) -> None:
    """As another program may have written it from its own."""
    pq.write_table(
        pa.Table.from_pylist([seed_record(one) for one in records(5)]), tmp_path / "x.parquet"
    )
    assert scan(tmp_path / "x.parquet").num_batches == 5
    assert len(load(tmp_path / "x.parquet")) == 5
