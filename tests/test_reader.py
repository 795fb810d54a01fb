"""Reading the lines of logs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import orjson
import pytest
from synthetic import batch, records, seed_record, write_log

from sched_profiler.codec import encode
from sched_profiler.errors import LogError
from sched_profiler.reader import Tally, read_blocks, read_records

if TYPE_CHECKING:
    from pathlib import Path


def test_reads_the_records_of_several_logs_in_order(tmp_path: Path) -> None:
    """Records come back as they were written, log after log."""
    written = list(records(30))
    first = write_log(tmp_path / "first.jsonl", written[:20])
    second = write_log(tmp_path / "second.jsonl", written[20:])
    assert list(read_records(first, str(second))) == written


@pytest.mark.parametrize("block_bytes", [1, 7, 700, 5_000, 1 << 20])
def test_blocks_are_whole_lines_whatever_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """Blocks put together are the log, and know the numbers of their lines."""
    monkeypatch.setattr("sched_profiler.reader._BLOCK_BYTES", block_bytes)
    log = write_log(tmp_path / "run.jsonl", records(20))
    tally = Tally()
    blocks = list(read_blocks(log, tally))
    assert b"".join(block.data for block in blocks) == log.read_bytes()
    next_line = 1
    for block in blocks:
        assert block.data.endswith(b"\n")
        assert block.first_line == next_line
        assert block.num_lines == block.data.count(b"\n")
        next_line += block.num_lines
    assert next_line == 21
    assert tally.num_bytes == log.stat().st_size


def test_a_missing_log_is_an_error_that_says_where_logs_are(tmp_path: Path) -> None:
    """The message names the file and the variable that says where a server writes."""
    with pytest.raises(LogError, match=r"nowhere\.jsonl: no such file; .*_PROFILING_LOG says"):
        list(read_records(tmp_path / "nowhere.jsonl"))


def test_a_folder_without_a_log_is_an_error(tmp_path: Path) -> None:
    """The message says what was looked for."""
    with pytest.raises(LogError, match=r"a folder without a log in it \(\*\.jsonl"):
        list(read_records(tmp_path))


def test_a_log_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """The message has the reason that the system gives."""
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    with pytest.raises(LogError, match="Too many levels of symbolic links; name another"):
        list(read_records(loop))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_log_is_an_error_with_three_things_to_check(
    tmp_path: Path, content: bytes
) -> None:
    """The variables, the permission to write, and whether there was anything to record."""
    log = tmp_path / "run.jsonl"
    log.write_bytes(content)
    with pytest.raises(LogError) as caught:
        list(read_records(log))
    message = str(caught.value)
    assert str(log) in message
    assert "server process itself sees VLLM_ENABLE_SCHEDULER_PROFILING" in message
    assert "VLLM_SCHEDULER_PROFILING_LOG" in message
    assert "may write to the folder" in message
    assert "anything was scheduled" in message
    assert "\n" not in message


def test_an_empty_log_beside_one_with_records_is_no_error(tmp_path: Path) -> None:
    """A rank that had nothing to do does not spoil the others."""
    empty = tmp_path / "rank1.jsonl"
    empty.touch()
    log = write_log(tmp_path / "rank0.jsonl", records(3))
    assert len(list(read_records(log, empty))) == 3


def test_a_half_written_last_line_is_counted(tmp_path: Path) -> None:
    """A log that is being written, or whose writer was killed, is read up to its last line."""
    log = write_log(tmp_path / "run.jsonl", records(3))
    os.truncate(log, log.stat().st_size - 10)
    tally = Tally()
    assert len(list(read_records(log, tally=tally))) == 2
    assert tally.num_half_written_lines == 1
    assert tally.num_skipped_lines == 0


def test_every_cut_through_a_last_line_is_tolerated(tmp_path: Path) -> None:
    """Wherever the writer stopped, the line is a record, half-written or not there at all."""
    whole = encode(batch(0))
    log = tmp_path / "run.jsonl"
    for cut in range(len(whole) + 1):
        log.write_bytes(whole + whole[:cut])
        tally = Tally()
        num_records = len(list(read_records(log, tally=tally)))
        is_whole = cut >= len(whole) - 1
        assert num_records == 1 + is_whole
        assert tally.num_half_written_lines == int(not is_whole and cut > 0)


def test_a_whole_last_line_needs_no_line_feed(tmp_path: Path) -> None:
    """Only its line feed is missing, so the record is there."""
    log = tmp_path / "run.jsonl"
    log.write_bytes(encode(batch(0)).rstrip())
    assert list(read_records(log)) == [batch(0)]


def test_a_whole_last_line_that_is_no_record_is_an_error(tmp_path: Path) -> None:
    """It was written to its end, so what is wrong with it will not go away."""
    log = tmp_path / "run.jsonl"
    log.write_bytes(encode(batch(0)) + b'{"batch_id":1}')
    with pytest.raises(LogError, match=r"line 2 of .*: lacks timestamp"):
        list(read_records(log))


def test_a_log_of_half_a_line_says_so(tmp_path: Path) -> None:
    """That nothing was read has a reason, and the message has it."""
    log = tmp_path / "run.jsonl"
    log.write_bytes(b'{"batch_id"')
    with pytest.raises(LogError, match=r"no record in .* \(lines left out: 1 half-written\)"):
        list(read_records(log))


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    """They are neither records nor faults, but they are counted as lines."""
    log = tmp_path / "run.jsonl"
    log.write_bytes(b"\n" + encode(batch(0)) + b" \r\n\n" + encode(batch(1)) + b"broken\n")
    tally = Tally()
    assert list(read_records(log, skip_invalid=True, tally=tally)) == [batch(0), batch(1)]
    assert tally.num_skipped_lines == 1
    with pytest.raises(LogError, match="line 6 of"):
        list(read_records(log))


def test_a_broken_line_is_an_error_with_place_value_and_remedy(tmp_path: Path) -> None:
    """The message names the file, the line, what is in it and the option to go on."""
    log = tmp_path / "run.jsonl"
    broken = encode(batch(1)).replace(b'"num_waiting_reqs":0', b'"num_waiting_reqs":"many"')
    log.write_bytes(encode(batch(0)) + broken + encode(batch(2)))
    with pytest.raises(LogError) as caught:
        list(read_records(log))
    assert str(caught.value) == (
        f"line 2 of {log}: num_waiting_reqs is 'many'; expected an integer; "
        "--skip-invalid goes on without such lines"
    )


def test_broken_lines_are_skipped_on_demand(tmp_path: Path) -> None:
    """The other records are read, and the skipped lines counted."""
    log = tmp_path / "run.jsonl"
    log.write_bytes(encode(batch(0)) + b"broken\n[]\n" + encode(batch(2)))
    tally = Tally()
    assert list(read_records(log, skip_invalid=True, tally=tally)) == [batch(0), batch(2)]
    assert tally.num_skipped_lines == 2


def test_a_log_of_broken_lines_is_an_error_even_when_they_are_skipped(tmp_path: Path) -> None:
    """Nothing is left to look at."""
    log = tmp_path / "run.jsonl"
    log.write_bytes(b"broken\n" * 3)
    with pytest.raises(LogError, match=r"\(lines left out: 3 invalid\)"):
        list(read_records(log, skip_invalid=True))


def test_a_newer_schema_is_an_error_with_its_own_remedy(tmp_path: Path) -> None:
    """What a newer version wrote is not broken: an upgrade reads it."""
    log = write_log(
        tmp_path / "run.jsonl",
        (batch(number, schema_version=3 if number == 40 else 1) for number in range(50)),
    )
    with pytest.raises(LogError) as caught:
        list(read_records(log))
    assert str(caught.value) == (
        f"line 41 of {log}: schema_version 3 is newer than 1; upgrade sched-profiler"
    )


def test_the_17_fields_of_the_original_feature_are_enough(tmp_path: Path) -> None:
    """A log without optional fields, and even without model times, is a log."""
    log = tmp_path / "seed.jsonl"
    log.write_bytes(orjson.dumps(seed_record(batch(7), measured=False)))
    (record,) = read_records(log)
    assert record.batch_id == 7
    assert record.model_run_duration_ms is None
    assert record.run_id is None


def test_a_line_cut_by_a_crash_before_a_restart_is_tolerated_and_counted(tmp_path: Path) -> None:
    """The next run ends it and goes on after it; an operator restarts, and analyses as ever."""
    log = tmp_path / "log.jsonl"
    whole = encode(batch(0, prefill=[5]))
    log.write_bytes(whole + whole[:40] + b"\n" + whole)
    tally = Tally()
    assert len(list(read_records(log, tally=tally))) == 2
    assert tally.num_half_written_lines == 1
    # Anywhere else it is damage.
    log.write_bytes(whole + whole[:40] + b"\n" + encode(batch(7, prefill=[5])))
    with pytest.raises(LogError, match="line 2"):
        list(read_records(log))
