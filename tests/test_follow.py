"""Logs that grow are read to their end, each record once, whatever becomes of their files."""

from __future__ import annotations

import gzip
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic import batch, records, write_log

from sched_profiler import BatchRecord, JsonlSink, RemoteSink, Rotation, SettingError
from sched_profiler.codec import encode
from sched_profiler.follow import Follower, follow
from sched_profiler.reader import Tally


@pytest.fixture(autouse=True)
def always_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for new files each time."""
    monkeypatch.setattr("sched_profiler.follow._LOOK_S", 0.0)
    monkeypatch.setattr("sched_profiler.follow._LOOK_IN_STORE_S", 0.0)


def ids(found: Iterator[BatchRecord]) -> list[int]:
    """Return the batches of records."""
    return [record.batch_id for record in found]


def append(path: Path, *texts: bytes) -> None:
    """Append to a file."""
    with path.open("ab") as stream:
        stream.writelines(texts)


def test_what_is_there_is_read_and_then_what_comes(tmp_path: Path) -> None:
    """Each record once, and nothing where nothing came."""
    log = write_log(tmp_path / "run.jsonl", records(5))
    follower = Follower(log)
    assert ids(follower.poll()) == [0, 1, 2, 3, 4]
    assert ids(follower.poll()) == []
    append(log, encode(batch(5)), encode(batch(6)))
    assert ids(follower.poll()) == [5, 6]
    assert follower.tally.num_bytes == log.stat().st_size
    follower.close()


def test_a_line_is_read_when_its_writer_has_finished_it(tmp_path: Path) -> None:
    """What ends in the middle of a line is no damage."""
    log, line = tmp_path / "run.jsonl", encode(batch(0))
    log.write_bytes(line[:100])
    follower = Follower(log)
    assert ids(follower.poll()) == []
    append(log, line[100:-1])
    assert ids(follower.poll()) == []
    append(log, line[-1:])
    assert ids(follower.poll()) == [0]
    assert follower.tally.num_skipped_lines == 0
    follower.close()


@pytest.mark.parametrize("what", ["run.jsonl", "logs/", "logs/*.jsonl", "logs/run.jsonl"])
def test_a_log_may_come_later(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then `problem` says what is waited for."""
    monkeypatch.chdir(tmp_path)
    follower = Follower(what)
    assert ids(follower.poll()) == []
    assert follower.problem is not None
    assert what in follower.problem
    log = Path("run.jsonl") if what == "run.jsonl" else Path("logs/run.jsonl")
    log.parent.mkdir(exist_ok=True)
    write_log(log, records(3))
    assert ids(follower.poll()) == [0, 1, 2]
    assert follower.problem is None
    follower.close()


@pytest.mark.parametrize("polls_every", [1, 7, 200, 10_000])
def test_a_log_that_rotates_is_read_whole_and_in_order(tmp_path: Path, polls_every: int) -> None:
    """Parts are closed, renamed and compressed while they are read, or before."""
    rotation = Rotation(part_bytes=20_000, compress="gzip")
    sink = JsonlSink(tmp_path / "run.jsonl", rotation=rotation)
    follower, found = Follower(tmp_path), []
    for record in records(600):
        sink.write(record)
        sink.flush()
        if record.batch_id % polls_every == polls_every - 1:
            found += ids(follower.poll())
    sink.close()
    found += ids(follower.poll())
    found += ids(follower.poll())
    assert found == list(range(600))
    assert len(list(tmp_path.glob("*.gz"))) > 10
    follower.close()


def test_parts_that_were_removed_are_passed_over(tmp_path: Path) -> None:
    """What is left is read; what is missing shows in the batches."""
    rotation = Rotation(part_bytes=20_000, keep_parts=2, compress="gzip")
    sink = JsonlSink(tmp_path / "run.jsonl", rotation=rotation)
    follower = Follower(tmp_path)
    for record in records(300):
        sink.write(record)
        sink.flush()
        if record.batch_id == 10:
            assert ids(follower.poll()) == list(range(11))
    sink.close()
    found = ids(follower.poll())
    # What was open is read to its end, also if its name is gone.
    assert found[0] == 11
    assert found == sorted(set(found))
    assert found[-1] == 299
    assert len(found) < 289
    follower.close()


def test_a_log_that_others_rotate_is_read_to_its_end(tmp_path: Path) -> None:
    """Renamed to a name that is no log's, and begun anew; its writer may be late."""
    log = write_log(tmp_path / "run.jsonl", records(3))
    follower = Follower(log)
    assert ids(follower.poll()) == [0, 1, 2]
    append(log, encode(batch(3)))
    old = log.rename(tmp_path / "run.jsonl.1")
    write_log(log, [batch(5)])
    assert ids(follower.poll()) == [3, 5]
    append(old, encode(batch(4)))
    append(log, encode(batch(6)))
    assert sorted(ids(follower.poll())) == [4, 6]
    follower.close()


def test_a_file_that_lost_its_name_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while; nobody writes to it any more."""
    monkeypatch.setattr("sched_profiler.follow._LINGER_S", -1.0)
    log = write_log(tmp_path / "run.jsonl", records(3))
    follower = Follower(log)
    assert ids(follower.poll()) == [0, 1, 2]
    log.unlink()
    assert ids(follower.poll()) == []
    assert follower._tails == {}
    assert follower.problem == f"{log} does not exist yet"


def test_a_log_that_was_copied_and_truncated_goes_on(tmp_path: Path) -> None:
    """The copy is known by its first line, and is not read again."""
    log = write_log(tmp_path / "run.jsonl", records(5))
    follower = Follower(tmp_path)
    assert ids(follower.poll()) == [0, 1, 2, 3, 4]
    (tmp_path / "copy.jsonl.gz").write_bytes(gzip.compress(log.read_bytes()))
    os.truncate(log, 0)
    append(log, encode(batch(5)))
    assert ids(follower.poll()) == [5]
    assert ids(follower.poll()) == []
    follower.close()


def test_a_new_run_in_the_same_file_is_read_on(tmp_path: Path) -> None:
    """What the run before left unfinished is counted, with its reason."""
    log = tmp_path / "run.jsonl"
    log.write_bytes(encode(batch(0)) + encode(batch(1))[:50])
    follower = Follower(log)
    assert ids(follower.poll()) == [0]
    append(log, b"\n", encode(batch(0, run_id="next")))
    assert [record.run_id for record in follower.poll()] == ["next"]
    assert follower.tally.num_skipped_lines == 1
    assert follower.last_invalid is not None
    assert "not JSON" in follower.last_invalid
    follower.close()


def test_it_begins_shortly_before_the_end_where_asked_to(tmp_path: Path) -> None:
    """In a long file, and without a look at parts that ended before."""
    for name in ("20260921T141320.000Z", "20260921T141340.000Z", "20260921T141400.000Z"):
        (tmp_path / f"run.{name}-5eed5eed-000000000.jsonl.gz").write_bytes(b"not looked at")
    log = write_log(tmp_path / "run.jsonl", records(5000))
    newest = max(record.timestamp for record in records(5000))
    tally = Tally()
    found = list(follow(log, last_s=10, quiet_s=0, tally=tally))
    assert ids(iter(found)) == list(range(found[0].batch_id, 5000))
    assert newest - 12 < found[0].timestamp <= newest - 10
    assert tally.num_bytes < log.stat().st_size / 2

    follower = Follower(tmp_path, last_s=10)
    assert len(ids(follower.poll())) == len(found)
    # Only the last of the parts might hold records of these 10 seconds, for all that is known.
    assert [content.num_failures for content in follower._contents.values()].count(1) == 1
    follower.close()


def test_a_log_without_a_record_yet_has_no_end(tmp_path: Path) -> None:
    """Blank lines and damage are no record."""
    log = tmp_path / "run.jsonl"
    log.write_bytes(b"\n\nnothing\n" * 20_000)
    assert list(follow(log, last_s=10, quiet_s=0)) == []


def test_a_line_without_an_end_takes_no_more_memory_than_the_longest_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one line that is left out, and what follows is read."""
    monkeypatch.setattr("sched_profiler.growing_file._LONGEST_LINE_BYTES", 10_000)
    monkeypatch.setattr("sched_profiler.growing_file._CHUNK_BYTES", 4_000)
    log = tmp_path / "run.jsonl"
    log.write_bytes(encode(batch(0)) + b"x" * 25_000)
    follower = Follower(log)
    assert ids(follower.poll()) == [0]
    append(log, b"x" * 25_000)
    assert ids(follower.poll()) == []
    append(log, b"x\n", encode(batch(1)))
    assert ids(follower.poll()) == [1]
    assert follower.tally.num_skipped_lines == 1
    follower.close()


def test_a_broken_part_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    """It is tried a few times, for it may just be copied there."""
    whole = gzip.compress(b"".join(map(encode, records(200))))
    broken = tmp_path / "a.jsonl.gz"
    broken.write_bytes(whole[: len(whole) // 2])
    write_log(tmp_path / "b.jsonl", [batch(1000)])
    follower = Follower(tmp_path)
    found = ids(follower.poll())
    assert found[-1] == 1000
    for _ in range(5):
        assert ids(follower.poll()) == []
        assert follower.problem is not None
        assert "a.jsonl.gz is cut short" in follower.problem
    broken.unlink()
    assert ids(follower.poll()) == []
    assert follower.problem is None
    follower.close()


def test_a_closed_part_may_lack_its_last_line_feed(tmp_path: Path) -> None:
    """A last line that is complete is a record."""
    part = tmp_path / "run.20260921T142640.000Z-run-000000000.jsonl"
    part.write_bytes((encode(batch(0)) + encode(batch(1)))[:-1])
    assert ids(follow(tmp_path, quiet_s=0)) == [0, 1]


def test_many_logs_take_a_bounded_number_of_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are not open are read all the same when they grow."""
    monkeypatch.setattr("sched_profiler.follow._MOST_OPEN", 3)
    for number in range(8):
        write_log(tmp_path / f"{number}.jsonl", [batch(number)])
    follower = Follower(tmp_path)
    assert ids(follower.poll()) == list(range(8))
    for number in range(8):
        append(tmp_path / f"{number}.jsonl", encode(batch(10 + number)))
    assert sorted(ids(follower.poll())) == list(range(10, 18))
    follower._close_some()
    assert sum(tail.is_open for tail in follower._tails.values()) == 3
    (tmp_path / "0.jsonl").unlink()
    assert ids(follower.poll()) == []
    follower.close()


def test_parquet_does_not_grow(tmp_path: Path) -> None:
    """It is said rather than passed over."""
    (tmp_path / "run.parquet").write_bytes(b"PAR1")
    follower = Follower(tmp_path / "run.parquet")
    assert ids(follower.poll()) == []
    assert follower.problem is not None
    assert "is Parquet, which does not grow" in follower.problem


def test_a_url_that_cannot_be_read_here_is_an_error_at_once() -> None:
    """Waiting would not help."""
    pytest.importorskip("fsspec")
    with pytest.raises(SettingError, match="no kind of URL"):
        Follower("nonsense://bucket/")


def test_following_waits_for_more(tmp_path: Path) -> None:
    """The generator goes on when records come, and ends when none came for a while."""
    log = write_log(tmp_path / "run.jsonl", records(2))
    found = follow(log, poll_s=0.01)
    assert ids(itertools.islice(found, 2)) == [0, 1]
    append(log, encode(batch(2)))
    assert next(found).batch_id == 2
    found.close()
    assert ids(follow(log, poll_s=0.01, quiet_s=0.05)) == [0, 1, 2]


def test_objects_are_read_as_they_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real S3 server: first there is none, then each is read once."""
    server = pytest.importorskip("s3_server").S3Server(tmp_path)
    server.start()
    try:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        url = "s3://bucket/logs/"
        follower = Follower(url, last_s=3600)
        assert ids(follower.poll()) == []
        assert follower.problem is not None
        for first in (0, 50):
            sink = RemoteSink(url, spool=tmp_path / "spool")
            for record in itertools.islice(records(100, start=time.time()), first, first + 50):
                sink.write(record)
            sink.close()
            assert (ids(follower.poll()), follower.problem) == (
                list(range(first, first + 50)),
                None,
            )
        assert ids(follower.poll()) == []
        follower.close()
    finally:
        server.kill()
