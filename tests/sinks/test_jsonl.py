"""A file grows by whole lines and never loses what it held."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from sched_profiler import BatchProfiler, BatchRecord, JsonlSink, Rotation, Sink, decode, encode
from sched_profiler.testing import make_record


def test_it_is_a_sink(tmp_path: Path) -> None:
    """By shape, not by ancestry."""
    assert isinstance(JsonlSink(tmp_path / "log.jsonl"), Sink)


def test_nothing_touches_the_disk_before_the_first_record(tmp_path: Path) -> None:
    """The sink can be made before the process of the engine exists."""
    sink = JsonlSink(tmp_path / "deep" / "log.jsonl")
    sink.flush()
    sink.close()
    assert list(tmp_path.iterdir()) == []


def test_parent_folders_are_made_and_lines_are_records(tmp_path: Path, record: BatchRecord) -> None:
    """After a flush the file holds what was written, while it is still open."""
    path = tmp_path / "a" / "b" / "log.jsonl"
    sink = JsonlSink(path)
    sink.write(record)
    sink.write(attrs.evolve(record, batch_id=6))
    sink.flush()
    assert [decode(line).batch_id for line in path.read_bytes().splitlines()] == [5, 6]
    sink.close()
    assert path.read_bytes().endswith(b"\n")


def test_a_second_run_appends_and_has_another_run_id(tmp_path: Path) -> None:
    """Nothing is truncated; runs can be told apart."""
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        with BatchProfiler(JsonlSink(path), strict=True) as profiler:
            batch = profiler.begin()
            batch.scheduled(
                prefill_chunk_sizes=[3],
                decode_chunk_sizes=[],
                num_waiting_reqs=0,
                num_running_reqs=1,
                kv_cache_usage=0.0,
            )
            batch.finished()
    first, second = map(decode, path.read_bytes().splitlines())
    assert first.batch_id == second.batch_id == 0
    assert first.run_id
    assert second.run_id
    assert first.run_id != second.run_id


def test_a_line_that_a_dead_writer_left_half_is_ended(tmp_path: Path, record: BatchRecord) -> None:
    """It must not swallow the first record of the next run."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"batch_id":0,"timest')
    sink = JsonlSink(path)
    sink.write(record)
    sink.close()
    assert decode(path.read_bytes().splitlines()[1]) == record


def test_a_big_buffer_is_written_without_a_flush(tmp_path: Path, record: BatchRecord) -> None:
    """Memory stays bounded between two flushes."""
    path = tmp_path / "log.jsonl"
    sink = JsonlSink(path)
    large = attrs.evolve(
        record, decode_chunk_sizes=[1] * 1024, num_decode_reqs=1024, total_scheduled_tokens=1088
    )
    for _ in range(1000):
        sink.write(large)
    assert path.stat().st_size > 1 << 20
    sink.close()
    assert len(path.read_bytes().splitlines()) == 1000


def test_lines_that_do_not_fit_are_kept_and_written_later(
    tmp_path: Path, record: BatchRecord
) -> None:
    """A full disk costs a delay, not a record, and no line is torn."""
    path = tmp_path / "log.jsonl"
    sink = JsonlSink(path)
    for number in range(100):
        sink.write(attrs.evolve(record, batch_id=number))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_001, hard))  # the kernel: no more than that
    try:
        with pytest.raises(OSError, match="File too large"):
            sink.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == 10_001
    sink.close()
    assert [decode(x).batch_id for x in path.read_bytes().splitlines()] == list(range(100))


def test_a_full_disk_is_tried_with_a_line_not_with_all_that_is_kept(
    tmp_path: Path, record: BatchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megabytes handed over in vain with every record would take the engine's processor."""
    tried: list[int] = []

    def write(_: int, block: bytes) -> int:
        tried.append(len(block))
        raise OSError(errno.ENOSPC, "No space left on device")

    sink = JsonlSink(tmp_path / "log.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        for number in range(4000):
            sink.write(attrs.evolve(record, batch_id=number))
    longest = len(encode(attrs.evolve(record, batch_id=3999)))
    assert tried[0] > 1 << 20
    assert len(tried) > 100
    assert max(tried[1:]) <= longest
    sink.close()
    ids = [decode(x).batch_id for x in (tmp_path / "log.jsonl").read_bytes().splitlines()]
    assert ids == list(range(4000))


def test_a_line_that_cannot_be_ended_leaves_no_file_open(
    tmp_path: Path, record: BatchRecord
) -> None:
    """A writer died in it when the disk was full, and it still is: each flush tries again."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"x" * 8192)
    sink = JsonlSink(path)
    sink.write(record)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            with pytest.raises(OSError, match="File too large"):
                sink.flush()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sink.close()
    assert decode(path.read_bytes().splitlines()[1]) == record


def test_a_relative_path_is_one_file_wherever_the_process_goes(
    tmp_path: Path, record: BatchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is relative to where the sink was made."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    sink = JsonlSink("log.jsonl")
    sink.write(record)
    sink.flush()
    monkeypatch.chdir("elsewhere")
    sink.write(record)
    sink.close()
    assert [decode(x) for x in (tmp_path / "log.jsonl").read_bytes().splitlines()] == [record] * 2


def test_a_file_that_cannot_be_made_is_an_error_of_the_sink(
    tmp_path: Path, record: BatchRecord
) -> None:
    """Here a file stands where the folder should be; the record is kept for a later try."""
    (tmp_path / "folder").write_text("")
    sink = JsonlSink(tmp_path / "folder" / "log.jsonl")
    sink.write(record)
    with pytest.raises(OSError, match="folder"):
        sink.flush()
    (tmp_path / "folder").unlink()
    sink.flush()
    assert len((tmp_path / "folder" / "log.jsonl").read_bytes().splitlines()) == 1
    sink.close()


WRITER = """
import sys
from sched_profiler import BatchProfiler, JsonlSink
with BatchProfiler(JsonlSink(sys.argv[1])) as profiler:
    batch = profiler.begin()
    batch.scheduled(prefill_chunk_sizes=[], decode_chunk_sizes=[1] * 50, num_waiting_reqs=0,
                    num_running_reqs=1, kv_cache_usage=0.0)
    batch.finished()
    profiler.flush()
    print("it is written", flush=True)
    sys.stdin.read()
"""


def test_a_file_that_another_process_writes_to_is_left_to_it(
    tmp_path: Path, record: BatchRecord, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes to a file with its own name, and the log says so; later the path is free."""
    path = tmp_path / "log.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"it is written\n"
        theirs = path.read_bytes()
        sink = JsonlSink(path)
        sink.write(attrs.evolve(record, run_id="ours"))
        sink.flush()
        own = tmp_path / "log.ours.jsonl"
        assert sink.shown == str(own)
        assert decode(own.read_bytes()).run_id == "ours"
        assert path.read_bytes() == theirs
        assert f"another engine writes to {path}: this run goes to {own}" in caplog.text
        sink.close()
    assert writer.returncode == 0
    sink = JsonlSink(path)
    sink.write(attrs.evolve(record, run_id="later"))
    sink.close()
    assert [decode(line).run_id for line in path.read_bytes().splitlines()][1:] == ["later"]


def test_no_two_sinks_of_one_process_share_a_file(tmp_path: Path, record: BatchRecord) -> None:
    """Neither do they where the first one has ended and begins again."""
    path = tmp_path / "log.jsonl"
    sinks = {run_id: JsonlSink(path) for run_id in ("first", "second", "third")}
    for _ in range(3):
        for run_id, sink in sinks.items():
            sink.write(attrs.evolve(record, run_id=run_id))
            sink.flush()
    sinks["first"].close()
    fourth = JsonlSink(path)
    fourth.write(attrs.evolve(record, run_id="fourth"))
    fourth.flush()
    sinks["first"].write(attrs.evolve(record, run_id="first"))
    for sink in (*sinks.values(), fourth):
        sink.close()
    runs = {
        file.name: [decode(line).run_id for line in file.read_bytes().splitlines()]
        for file in tmp_path.iterdir()
    }
    assert runs == {
        "log.jsonl": ["first"] * 3 + ["fourth"],
        "log.second.jsonl": ["second"] * 3,
        "log.third.jsonl": ["third"] * 3,
        "log.first.jsonl": ["first"],
    }


FORKING = """
import os, sys, time
from sched_profiler import JsonlSink, Rotation
from sched_profiler.manifest import Run
from sched_profiler.testing import make_record
sinks = [JsonlSink(sys.argv[1]), JsonlSink(sys.argv[2], rotation=Rotation(part_bytes=10**6))]
for sink in sinks:
    sink.begin_run(Run("killed", dp_rank=None, facts={}, num_dropped=lambda: 0))
    sink.write(make_record(0, run_id="killed"))
    sink.flush()
if not os.fork():
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


def test_a_forked_process_keeps_no_file_of_an_engine_that_was_killed(tmp_path: Path) -> None:
    """The next engine gets the log, and closes the part that the killed one left."""
    plain, rotated = tmp_path / "plain.jsonl", tmp_path / "rotated.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", FORKING, str(plain), str(rotated)], stdout=subprocess.PIPE
    ) as engine:
        assert engine.stdout is not None
        child = int(engine.stdout.readline())
        try:
            engine.kill()
            engine.wait()
            for sink in (JsonlSink(plain), JsonlSink(rotated, rotation=Rotation(part_bytes=10**6))):
                sink.write(make_record(0, run_id="next"))
                sink.flush()
                sink.close()
        finally:
            os.kill(child, signal.SIGKILL)
    assert [decode(line).run_id for line in plain.read_bytes().splitlines()] == ["killed", "next"]
    runs = {decode(part.read_bytes()).run_id for part in tmp_path.glob("rotated.*Z-*.jsonl")}
    assert runs == {"killed", "next"}


def test_files_follow_the_umask_of_the_user(tmp_path: Path, record: BatchRecord) -> None:
    """Who may read the log is the operator's decision."""
    before = os.umask(0o027)
    try:
        sink = JsonlSink(tmp_path / "log.jsonl")
        sink.write(record)
        sink.close()
    finally:
        os.umask(before)
    assert (tmp_path / "log.jsonl").stat().st_mode & 0o777 == 0o640


def test_a_log_is_read_without_knowledge_of_us(tmp_path: Path, record: BatchRecord) -> None:
    """`map(json.loads, open(LOG))` is all it takes."""
    sink = JsonlSink(tmp_path / "log.jsonl")
    sink.write(record)
    sink.close()
    with (tmp_path / "log.jsonl").open() as lines:
        (fields,) = map(json.loads, lines)
    assert fields["prefill_chunk_sizes"] == [64]
