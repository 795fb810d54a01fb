"""Loading logs into a frame."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import orjson
import pandas as pd
import pytest
from synthetic import batch, records, seed_record, write_log

from sched_profiler.analysis import COLUMNS, frame, load
from sched_profiler.codec import encode
from sched_profiler.errors import LogError
from sched_profiler.record import BatchRecord

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FIELDS = [field.name for field in attrs.fields(BatchRecord)]


def write_seed_log(path: Path, batches: Iterable[BatchRecord], *, measured: bool = True) -> Path:
    """Write the 17 fields alone."""
    path.write_bytes(
        b"".join(orjson.dumps(seed_record(one, measured=measured)) + b"\n" for one in batches)
    )
    return path


def test_a_frame_has_a_row_for_every_batch_with_its_values(tmp_path: Path) -> None:
    """What was written comes back, field by field."""
    written = list(records(200, overlap=True))
    df = load(write_log(tmp_path / "run.jsonl", written))
    for name in FIELDS:
        expected = [getattr(record, name) for record in written]
        values = df[name]
        if name.endswith("chunk_sizes"):
            assert [list(value) for value in values] == expected
        else:
            assert [None if pd.isna(value) else value for value in values] == expected


@pytest.mark.parametrize("measured", [True, False])
def test_columns_and_dtypes_are_the_same_for_every_log(tmp_path: Path, measured: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Fields that a log lacks are columns without a value, of the same dtype."""
    rich = load(write_log(tmp_path / "rich.jsonl", records(20)))
    poor = load(write_seed_log(tmp_path / "poor.jsonl", records(20), measured=measured))
    assert list(COLUMNS) == ["run", *FIELDS]
    assert rich.dtypes.astype(str).to_dict() == COLUMNS
    assert poor.dtypes.astype(str).to_dict() == COLUMNS
    assert poor["idle_duration_ms"].isna().all()
    assert poor["model_run_duration_ms"].isna().all() != measured
    assert (poor["run"] == 0).all()


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    """A later minor version may add fields of any kind."""
    log = tmp_path / "run.jsonl"
    line = orjson.loads(encode(batch(0))) | {"new": 1, "nested": {"batch_id": "x"}}
    log.write_bytes(orjson.dumps(line))
    assert load(log)["batch_id"].tolist() == [0]


def test_rows_are_in_order_of_run_and_batch(tmp_path: Path) -> None:
    """Runs are in the order of their first batch, whatever the order of logs and lines."""
    early = list(records(30, run_id="zz", start=1000.0))
    late = list(records(30, run_id="aa", start=5000.0))
    log = write_log(tmp_path / "run.jsonl", [*late[::-1], *early[15:], *early[:15]])
    df = load(log)
    assert df["run_id"].tolist() == ["zz"] * 30 + ["aa"] * 30
    assert df["run"].tolist() == [0] * 30 + [1] * 30
    assert df["batch_id"].tolist() == [*range(30), *range(30)]
    assert df.index.tolist() == list(range(60))


def test_ranks_of_one_run_are_told_apart(tmp_path: Path) -> None:
    """Each data-parallel rank counts its batches for itself."""
    ranks = [list(records(10, dp_rank=rank, seed=rank)) for rank in (0, 1)]
    mixed = [record for pair in zip(*ranks, strict=True) for record in pair]
    df = load(write_log(tmp_path / "run.jsonl", mixed))
    assert df["run"].nunique() == 2
    assert df.groupby("run")["dp_rank"].nunique().tolist() == [1, 1]
    assert df.attrs["num_duplicate_batches"] == 0


def test_a_run_may_go_on_in_another_log(tmp_path: Path) -> None:
    """Logs that were rotated are one run."""
    written = list(records(20))
    second = write_log(tmp_path / "2.jsonl", written[10:])
    first = write_log(tmp_path / "1.jsonl", written[:10])
    df = load(second, first)
    assert (df["run"] == 0).all()
    assert df["batch_id"].tolist() == list(range(20))
    assert df.attrs["num_logs"] == 2


def test_without_a_run_id_a_run_starts_where_the_numbering_does(tmp_path: Path) -> None:
    """The original feature appends the next run to the same log."""
    first = records(5, start=1000.0)
    second = records(7, start=2000.0)
    other = write_seed_log(tmp_path / "other.jsonl", records(3, start=3000.0))
    log = write_seed_log(tmp_path / "run.jsonl", [*first, *second])
    df = load(log, other)
    assert df.groupby("run").size().tolist() == [5, 7, 3]


def test_lines_out_of_order_and_a_clock_set_back_start_no_run(tmp_path: Path) -> None:
    """Of a new run, the number falls while time goes on."""
    ordinary = list(records(6))
    ordinary[2], ordinary[3] = ordinary[3], ordinary[2]
    ordinary[5] = attrs.evolve(ordinary[5], timestamp=1.0)
    df = load(write_seed_log(tmp_path / "run.jsonl", ordinary))
    assert (df["run"] == 0).all()
    assert df["batch_id"].tolist() == list(range(6))


def test_a_log_named_twice_is_read_once(tmp_path: Path) -> None:
    """Also under another name for the same file."""
    log = write_log(tmp_path / "run.jsonl", records(4))
    link = tmp_path / "latest.jsonl"
    link.symlink_to(log)
    df = load(log, os.path.relpath(log), link)
    assert len(df) == 4
    assert df.attrs["num_logs"] == 1


def test_a_batch_found_twice_is_kept_once_and_counted(tmp_path: Path) -> None:
    """A copy of a log, or an upload that was repeated, must not count twice."""
    log = write_log(tmp_path / "run.jsonl", records(4))
    copy = write_log(tmp_path / "copy.jsonl", records(3))
    df = load(log, copy)
    assert df["batch_id"].tolist() == [0, 1, 2, 3]
    assert df.attrs["num_duplicate_batches"] == 3


def test_half_written_and_skipped_lines_are_counted_in_attrs(tmp_path: Path) -> None:
    """What is not in the rows is beside them."""
    log = write_log(tmp_path / "run.jsonl", records(4))
    log.write_bytes(log.read_bytes() + b"broken\n" + b'{"batch')
    with pytest.raises(LogError, match="line 5 of"):
        load(log)
    df = load(log, skip_invalid=True)
    assert len(df) == 4
    assert df.attrs["num_skipped_lines"] == 1
    assert df.attrs["num_half_written_lines"] == 1


def test_a_broken_line_deep_in_a_log_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of the line counts from the start of the log, not of a block."""
    monkeypatch.setattr("sched_profiler.analysis.rows._BLOCK_BYTES", 2_000)
    lines = [encode(record) for record in records(100)]
    lines[70] = lines[70].replace(b'"num_decode_reqs":', b'"num_decode_reqs":-0.5,"x":')
    log = tmp_path / "run.jsonl"
    log.write_bytes(b"".join(lines))
    with pytest.raises(LogError, match=r"line 71 of .*: num_decode_reqs is -0.5"):
        load(log)


def test_a_newer_schema_is_an_error(tmp_path: Path) -> None:
    """The columnar parser would have taken it."""
    log = write_log(tmp_path / "run.jsonl", [batch(0), batch(1, schema_version=2)])
    with pytest.raises(LogError, match=r"line 2 of .*: schema_version 2 is newer than 1; upgrade"):
        load(log)


def test_an_empty_log_is_an_error(tmp_path: Path) -> None:
    """An empty frame would hide that profiling was never on."""
    log = tmp_path / "run.jsonl"
    log.touch()
    with pytest.raises(LogError, match="no record in"):
        load(log)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_id", 1 << 63),
        ("num_waiting_reqs", (1 << 64) - 1),
        ("decode_chunk_sizes", [1, 1 << 31]),
    ],
)
def test_a_number_too_large_for_its_column_is_an_error(
    tmp_path: Path, field: str, value: Any
) -> None:
    """Wrapping around, or a traceback, would help nobody."""
    log = tmp_path / "run.jsonl"
    log.write_bytes(orjson.dumps(orjson.loads(encode(batch(0))) | {field: value}))
    with pytest.raises(LogError, match=rf"line 1 of .*: {field} is \d+; expected at most \d+"):
        load(log)


def test_progress_is_told_how_much_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number grows up to the size of the logs."""
    monkeypatch.setattr("sched_profiler.analysis.rows._BLOCK_BYTES", 2_000)
    log = write_log(tmp_path / "run.jsonl", records(50))
    seen: list[tuple[int, int]] = []
    load(log, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 5
    assert seen == sorted(seen)
    size = log.stat().st_size
    assert {total for _, total in seen} == {size}
    assert seen[-1] == (size, size)


def test_a_frame_can_be_changed(tmp_path: Path) -> None:
    """Columns are not views into something that must not change."""
    df = load(write_log(tmp_path / "run.jsonl", records(5)))
    for name in ("schedule_duration_ms", "model_run_duration_ms", "num_decode_reqs"):
        df.loc[1, name] = 7
        assert df.loc[1, name] == 7


def test_orders_keep_large_identifiers_exact() -> None:
    """Sorting goes through integers, never through floats."""
    big = np.array([1 << 60, (1 << 60) + 1, 1 << 60], dtype=np.int64)
    order = frame._order(np.zeros(3, dtype=np.int64), big)
    assert order is not None
    assert order.tolist() == [0, 1]
