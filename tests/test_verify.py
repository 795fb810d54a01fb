"""What was written is there; what is not there is accounted for, or it is said."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from engine_under_test import serve
from hypothesis import given
from hypothesis import strategies as st
from synthetic import batch, records, seed_record, write_log

from sched_profiler import BatchProfiler, JsonlSink, LogError
from sched_profiler.cli import main
from sched_profiler.codec import encode
from sched_profiler.manifest import Run, write_manifest
from sched_profiler.reader import file_records
from sched_profiler.verify import RunReport, _Ranges, verify
from sched_profiler.writer import _POLL_S

Capture = pytest.CaptureFixture[str]


def one(*logs: Path) -> RunReport:
    """Return the report of the one run in logs."""
    (run,) = verify(*logs).runs
    return run


def manifest(folder: Path, *, num_written: int, num_dropped: int = 0, run_id: str = "run") -> None:
    """Write the manifest of a run that ended in order, beside the log `log.jsonl`."""
    run = Run(run_id, dp_rank=None, facts={}, num_dropped=lambda: num_dropped)
    begun = run.manifest(log="log.jsonl", started=1.0, updated=2.0)
    complete = attrs.evolve(
        begun,
        ended=2.0,
        clean_end=True,
        num_written_records=num_written,
        num_dropped_records=num_dropped,
    )
    write_manifest(folder / f"log.{run_id}.run.json", complete)


def test_a_complete_log_is_fine(tmp_path: Path, capsys: Capture) -> None:
    """Exit code 0, and a table with one line a run."""
    with BatchProfiler(JsonlSink(tmp_path / "log.jsonl"), dp_rank=2) as profiler:
        serve(profiler, 30)
    assert main(["verify", str(tmp_path / "log.jsonl")]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == [
        *("run", "rank", "records", "duplicated", "waiting", "missing", "dropped"),
        *("removed", "unexplained", "end"),
    ]
    assert line.split() == [profiler.run_id, "2", "30", "0", "0", "0", "0", "0", "0", "clean"]


def test_a_gap_that_nothing_explains_is_amiss(tmp_path: Path, capsys: Capture) -> None:
    """Exit code 1, and the batches are named."""
    log = write_log(tmp_path / "log.jsonl", [batch(n) for n in range(20) if n not in (3, 7, 8, 9)])
    assert one(log).gaps == [(3, 3), (7, 9)]
    assert main(["verify", str(log)]) == 1
    assert capsys.readouterr().out.endswith("missing of run run: batches 3, 7-9\n")
    assert main(["verify", str(log), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["num_unexplained"] == 4
    assert data["runs"][0]["gaps"] == [[3, 3], [7, 9]]
    assert data["runs"][0]["end"] == "unknown"


def test_a_gap_that_the_records_themselves_explain_is_fine(tmp_path: Path) -> None:
    """The count of dropped records goes up after it; no manifest is needed."""
    kept = [
        batch(n, num_dropped_records=0 if n < 5 else 3) for n in range(20) if n not in (5, 6, 7)
    ]
    run = one(write_log(tmp_path / "log.jsonl", kept))
    assert (run.num_missing, run.num_dropped, run.num_unexplained) == (3, 3, 0)


def test_what_is_missing_at_the_end_is_known_from_the_manifest(
    tmp_path: Path, capsys: Capture
) -> None:
    """Here somebody cut the log."""
    log = write_log(tmp_path / "log.jsonl", [batch(n) for n in range(10)])
    manifest(tmp_path, num_written=14, num_dropped=2)
    run = one(log)
    assert (run.num_missing, run.num_dropped, run.num_unexplained) == (6, 2, 4)
    assert main(["verify", str(log)]) == 1
    assert "missing of run run: 6 batches after the last record" in capsys.readouterr().out


def test_one_batch_is_not_called_several(tmp_path: Path) -> None:
    """Between records, and after the last one."""
    log = write_log(tmp_path / "log.jsonl", [batch(n) for n in range(10) if n != 3])
    manifest(tmp_path, num_written=11)
    assert "missing of run run: batch 3, and 1 batch after the last record" in str(verify(log))


def test_a_run_without_any_record_is_missed(tmp_path: Path) -> None:
    """If it wrote to the file that is looked at, or into its folder."""
    log = write_log(tmp_path / "log.jsonl", [batch(0)])
    manifest(tmp_path, num_written=1)
    manifest(tmp_path, num_written=5, run_id="silent")
    for target in (log, tmp_path):
        silent = verify(target).runs[1]
        assert (silent.run_id, silent.num_records, silent.num_unexplained) == ("silent", 0, 5)
    other = write_log(tmp_path / "other.jsonl", [batch(0, run_id="else")])
    assert [run.run_id for run in verify(other).runs] == ["else"]


def test_records_that_are_there_twice_are_counted(tmp_path: Path) -> None:
    """In one file, or in two."""
    log = write_log(tmp_path / "a.jsonl", [batch(n) for n in (0, 1, 1, 2)])
    copy = write_log(tmp_path / "b.jsonl", [batch(n) for n in (2, 3)])
    run = one(log, copy)
    assert (run.num_records, run.num_duplicates, run.num_missing) == (4, 2, 0)


def test_ranks_and_runs_are_apart(tmp_path: Path) -> None:
    """Each has batches of its own."""
    lines = [
        batch(n, run_id=run, dp_rank=rank) for n in range(3) for run in "ab" for rank in (0, 1)
    ]
    report = verify(write_log(tmp_path / "log.jsonl", lines))
    assert [(run.run_id, run.dp_rank, run.num_records) for run in report.runs] == [
        ("a", 0, 3),
        ("a", 1, 3),
        ("b", 0, 3),
        ("b", 1, 3),
    ]


def test_a_log_of_the_original_feature_starts_over_with_each_run(tmp_path: Path) -> None:
    """It has no name of the run."""
    log = tmp_path / "log.jsonl"
    lines = [json.dumps(seed_record(record)) for record in records(10)]
    log.write_text("\n".join([*lines, *lines[:4]]) + "\n")
    assert [run.num_records for run in verify(log).runs] == [10, 4]
    assert verify(log).num_unexplained == 0


def test_bad_input_ends_with_2(tmp_path: Path, capsys: Capture) -> None:
    """A missing log, an empty one and a line that is no record."""
    log = tmp_path / "log.jsonl"
    assert main(["verify", str(log)]) == 2
    log.touch()
    assert main(["verify", str(log)]) == 2
    log.write_text("no record\n")
    assert main(["verify", str(log)]) == 2
    assert "line 1 of" in capsys.readouterr().err
    write_log(log, [batch(0)])
    with log.open("a") as lines:
        lines.write('no record\n{"half')
    assert main(["verify", str(log), "--skip-invalid"]) == 0
    assert capsys.readouterr().out.endswith(
        "lines left out: 1 invalid\nlines left out: 1 half-written\n"
    )


def test_a_broken_manifest_is_bad_input(tmp_path: Path) -> None:
    """It would tell what is missing."""
    log = write_log(tmp_path / "log.jsonl", [batch(0)])
    (tmp_path / "log.run.run.json").write_text("{")
    with pytest.raises(LogError, match=r"log\.run\.run\.json is no run manifest"):
        verify(log)


def test_what_is_printed_is_what_a_terminal_takes(tmp_path: Path, capsys: Capture) -> None:
    """A log is somebody's input."""
    log = tmp_path / "log.jsonl"
    log.write_bytes(encode(batch(0)).replace(b'"run_id":"run"', b'"run_id":"\\u001b[2J<b>"'))
    assert main(["verify", str(log)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\\x1b[2J<b>" in printed


def test_many_gaps_are_not_all_listed(tmp_path: Path) -> None:
    """Ten are enough to see what it is about."""
    log = write_log(tmp_path / "log.jsonl", [batch(2 * n) for n in range(16)])
    assert str(verify(log)).endswith("17, 19, and 5 more gaps")


@given(st.lists(st.integers(0, 30)))
def test_ranges_are_a_set_of_numbers(numbers: list[int]) -> None:
    """In whatever order they come."""
    ranges, expected = _Ranges(), set[int]()
    for number in numbers:
        assert ranges.add(number) == (number not in expected)
        expected.add(number)
    assert ranges.count == len(expected)
    assert ranges.end == max(expected, default=-1) + 1
    missing = [n for first, last in ranges.gaps() for n in range(first, last + 1)]
    assert missing == [n for n in range(ranges.end) if n not in expected]


def test_records_out_of_order_are_no_gap(tmp_path: Path) -> None:
    """Lines of several writers may be."""
    ids = list(range(100))
    random.Random(0).shuffle(ids)
    assert one(write_log(tmp_path / "log.jsonl", map(batch, ids))).num_missing == 0


def test_what_a_live_run_writes_while_it_is_verified_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest may be renewed at any time, and counts what was not read any more."""
    profiler = BatchProfiler(JsonlSink(tmp_path / "log.jsonl"), background=False)
    serve(profiler, 10)
    profiler.flush()

    def read_and_go_on(*arguments: object, **options: object) -> Iterator[object]:
        yield from file_records(*arguments, **options)  # type: ignore[arg-type]  # as they came
        serve(profiler, 10)
        profiler.close()

    monkeypatch.setattr("sched_profiler.verify.file_records", read_and_go_on)
    report = verify(tmp_path)
    (run,) = report.runs
    assert (run.num_records, run.num_missing, run.end) == (10, 0, "none")
    assert run.last_batch_id == 9
    # How much may be missing after it, if that was its end.
    told = rf"no end of run {run.run_id}: .* after batch 9 \(20.*\+00:00\) .* of {_POLL_S:g} s$"
    assert re.search(told, str(report), re.MULTILINE)
    monkeypatch.undo()
    assert verify(tmp_path).runs[0].num_records == 20


def test_progress_is_told_how_much_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number grows up to the size of the logs."""
    monkeypatch.setattr("sched_profiler.reader._BLOCK_BYTES", 2_000)
    log = write_log(tmp_path / "log.jsonl", records(50))
    seen: list[tuple[int, int]] = []
    verify(log, progress=lambda done, total: seen.append((done, total)))
    size = log.stat().st_size
    assert len(seen) > 5
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)
