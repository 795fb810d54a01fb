"""What goes wrong on a real machine costs at most what the documentation says, and is counted."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_under_test import engine, serve, until
from machine import lacks, mounted

from sched_profiler import BatchProfiler, JsonlSink, Rotation, compression
from sched_profiler.cli import main
from sched_profiler.reader import read_records
from sched_profiler.testing import FakeClock
from sched_profiler.verify import verify


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 1 MiB."""
    with mounted(tmp_path / "disk", "size=1m") as is_there:
        if not is_there:
            lacks("only root may mount a file system")
        yield tmp_path / "disk"


def test_a_full_disk_costs_a_delay_and_no_record(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and the lines are written when there is room again."""
    hog = small_disk / "hog"
    profiler = BatchProfiler(JsonlSink(small_disk / "log.jsonl"))
    serve(profiler, 10)
    assert profiler.flush(5)
    hog.write_bytes(b"x" * (600 << 10))
    for _ in range(5):
        serve(profiler, 200)
        profiler.flush(5)
    assert not profiler.flush(5)
    assert (small_disk / "log.jsonl").stat().st_size < 450 << 10
    assert profiler.num_dropped_records == 0
    assert caplog.text.count("sink JsonlSink") == 1
    assert "No space left on device" in caplog.text
    assert "switched off" not in caplog.text
    hog.unlink()
    serve(profiler, 10)
    assert profiler.flush(5)
    assert "can be written again" in caplog.text
    assert profiler.close()
    (run,) = verify(small_disk).runs
    assert (run.num_records, run.num_missing, run.end) == (1020, 0, "clean")


def test_a_disk_that_stays_full_costs_what_does_not_fit_in_memory_and_it_is_counted(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept is written when there is room; verify explains the gap to the record."""
    monkeypatch.setattr("sched_profiler.sinks.jsonl._KEPT_BYTES", 200_000)
    monkeypatch.setattr("sched_profiler.sinks.jsonl._FLUSH_BYTES", 100_000)
    hog = small_disk / "hog"
    hog.write_bytes(b"x" * (900 << 10))
    profiler = BatchProfiler(JsonlSink(small_disk / "log.jsonl"))
    for _ in range(10):
        serve(profiler, 200)
        profiler.flush(5)
    dropped = profiler.num_dropped_records
    assert 0 < dropped < 2000
    hog.unlink()
    assert profiler.flush(5)
    serve(profiler, 100)
    assert not profiler.close(), "something was lost"
    (run,) = verify(small_disk).runs
    assert run.num_missing == run.num_dropped == dropped == profiler.num_dropped_records
    assert run.num_unexplained == 0
    assert run.num_records == 2100 - dropped
    assert run.end == "clean"


def test_a_disk_that_is_full_to_the_end_is_an_incomplete_end(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was never written is counted, and no line is torn but the last."""
    (small_disk / "hog").write_bytes(b"x" * (800 << 10))
    profiler = BatchProfiler(JsonlSink(small_disk / "log.jsonl"))
    serve(profiler, 1000)
    assert not profiler.close()
    written = len(list(read_records(small_disk)))
    assert 0 < written < 1000
    assert profiler.num_dropped_records == 1000 - written


def test_rotation_goes_on_when_a_full_disk_has_room_again(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost, also where the closed parts are compressed on that disk."""
    hog = small_disk / "hog"
    rotation = Rotation(part_bytes=50_000, compress="gzip")
    profiler = BatchProfiler(JsonlSink(small_disk / "log.jsonl", rotation=rotation))
    serve(profiler, 100)
    assert profiler.flush(5)
    hog.write_bytes(
        b"x" * ((1 << 20) - sum(f.stat().st_size for f in small_disk.iterdir()) - 65536)
    )
    serve(profiler, 500)
    profiler.flush(5)
    time.sleep(0.7)
    hog.unlink()
    serve(profiler, 100)
    assert profiler.flush(5)
    assert profiler.close()
    (run,) = verify(small_disk).runs
    assert (run.num_records, run.num_missing, run.num_duplicates) == (700, 0, 0)


def test_a_folder_that_is_read_only_for_a_while_costs_nothing(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is made as soon as that is allowed."""
    remount = ["mount", "-o", "remount,size=1m"]
    subprocess.run([*remount, "-o", "ro", str(small_disk)], check=True)
    profiler = BatchProfiler(JsonlSink(small_disk / "log.jsonl"))
    serve(profiler, 100)
    assert not profiler.flush(5)
    assert caplog.text.count("serving goes on") == 1
    assert "Read-only file system" in caplog.text
    subprocess.run([*remount, "-o", "rw", str(small_disk)], check=True)
    assert profiler.flush(5)
    assert profiler.close()
    assert verify(small_disk).runs[0].num_records == 100


def test_a_disk_that_is_full_without_a_word_of_root(tmp_path: Path) -> None:
    """The kernel refuses a file that gets too large; the engine goes on all the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    profiler = BatchProfiler(JsonlSink(tmp_path / "log.jsonl"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        serve(profiler, 1000)
        assert not profiler.flush(5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert profiler.close()
    assert verify(tmp_path).runs[0].num_records == 1000


@pytest.mark.parametrize(
    "rotation", [Rotation(), Rotation(part_seconds=60)], ids=["plain", "parts"]
)
def test_a_folder_that_is_removed_is_made_again(tmp_path: Path, rotation: Rotation) -> None:
    """What was in it is gone, and verify says exactly what; what comes after is there."""
    folder = tmp_path / "logs"
    profiler = BatchProfiler(JsonlSink(folder / "log.jsonl", rotation=rotation))
    serve(profiler, 100)
    assert profiler.flush(5)
    shutil.rmtree(folder)
    serve(profiler, 50)
    assert profiler.flush(5)
    assert profiler.close()
    (run,) = verify(folder).runs
    assert run.num_records == 50
    assert run.gaps == [(0, 99)]
    assert run.num_unexplained == 100
    assert main(["verify", str(folder)]) == 1


def test_a_file_that_is_moved_away_is_made_anew(tmp_path: Path) -> None:
    """As programs do that rotate logs themselves; both files together are the log."""
    profiler = BatchProfiler(JsonlSink(tmp_path / "log.jsonl"))
    serve(profiler, 100)
    assert profiler.flush(5)
    (tmp_path / "log.jsonl").rename(tmp_path / "log.1.jsonl")
    serve(profiler, 100)
    assert profiler.close()
    (run,) = verify(tmp_path / "log.jsonl", tmp_path / "log.1.jsonl").runs
    assert (run.num_records, run.num_missing) == (200, 0)


@pytest.mark.parametrize(
    "rotation",
    ["Rotation()", "Rotation(part_bytes=1 << 20, compress='gzip')"],
    ids=["plain", "parts"],
)
def test_a_killed_process_loses_at_most_a_second(tmp_path: Path, rotation: str) -> None:
    """At 5 records a millisecond; the file can be read, and verify says what is not there."""
    sink = f"JsonlSink({str(tmp_path / 'log.jsonl')!r}, rotation={rotation})"
    with engine(sink, burst=5) as running:
        began = time.monotonic()
        time.sleep(3)
        num_handed_over = running.killed()
        a_second = num_handed_over / (time.monotonic() - began)
    report = verify(tmp_path)
    (run,) = report.runs
    # What was dropped while the writer did not keep up is counted, and so not lost.
    num_lost = num_handed_over - run.num_records - run.num_missing
    assert num_lost <= a_second
    assert run.end == "none"
    assert run.num_duplicates == 0
    assert run.num_unexplained == 0
    assert report.num_half_written_lines <= 1
    assert run.gaps == [] or run.num_dropped


@pytest.mark.parametrize("rotation", ["Rotation()", "Rotation(part_bytes=200000)"])
def test_two_engines_with_the_same_path_keep_apart(tmp_path: Path, rotation: str) -> None:
    """Each has files of its own, and each record is there once."""
    sink = f"JsonlSink({str(tmp_path / 'log.jsonl')!r}, rotation={rotation})"
    with engine(sink, period=0.01) as one, engine(sink, period=0.01) as other:
        time.sleep(1.5)
        printed = [one.ended()[0], other.ended()[0]]
    counts = sorted(int(text.split("\n")[-3]) for text in printed)
    for log in tmp_path.glob("*.jsonl"):
        assert len({record.run_id for record in read_records(log)}) == 1
    runs = verify(tmp_path).runs
    assert sorted(run.num_records for run in runs) == counts
    assert all(run.num_missing == run.num_duplicates == 0 for run in runs)
    assert {run.end for run in runs} == {"clean"}


def test_a_clock_that_is_set_back_loses_nothing(tmp_path: Path) -> None:
    """Nor does it disturb the order of the parts."""
    clock = FakeClock()
    sink = JsonlSink(tmp_path / "log.jsonl", rotation=Rotation(part_bytes=20_000), clock=clock)
    profiler = BatchProfiler(sink, clock=clock)
    for _ in range(5):
        serve(profiler, 100)
        assert profiler.flush(5)
        clock.step_wall_clock(-3_600_000)
    assert profiler.close()
    assert [record.batch_id for record in read_records(tmp_path)] == list(range(500))
    (run,) = verify(tmp_path).runs
    assert (run.num_missing, run.num_duplicates, run.end) == (0, 0, "clean")


FORK = """
import os, sys
sys.path.insert(0, {tests!r})
from engine_under_test import serve
from sched_profiler import BatchProfiler, JsonlSink, RemoteSink, Rotation

profiler = BatchProfiler({sink})
serve(profiler, 500)
child = os.fork()
if child == 0:
    serve(profiler, 100)  # nobody should; it must do no harm
    sys.exit(0)
_, status = os.waitpid(child, 0)
serve(profiler, 500)
print(os.waitstatus_to_exitcode(status), profiler.close())
"""


@pytest.mark.parametrize(
    "sink",
    [
        "JsonlSink(sys.argv[1] + '/log.jsonl')",
        "JsonlSink(sys.argv[1] + '/log.jsonl', rotation=Rotation(part_bytes=50000))",
        "RemoteSink('file://' + sys.argv[1] + '/out/', spool=sys.argv[1] + '/spool')",
    ],
    ids=["plain", "parts", "remote"],
)
def test_a_fork_after_the_start_does_no_harm(tmp_path: Path, sink: str) -> None:
    """The child ends in order, and the parent's log has each batch of the parent's once."""
    if sink.startswith("RemoteSink"):
        pytest.importorskip("fsspec")
    code = FORK.format(tests=str(Path(__file__).parent), sink=sink)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "0 True\n", done.stderr
    (run,) = verify(tmp_path).runs
    assert (run.num_records, run.num_missing, run.num_duplicates) == (1000, 0, 0)
    assert run.end == "clean"


THROUGHPUT = """
import resource, sys, time
sys.path.insert(0, {tests!r})
from synthetic import batch
from sched_profiler import JsonlSink, Rotation

rotation = Rotation(part_bytes=4 << 20, keep_bytes=16 << 20, compress="gzip")
sink = JsonlSink(sys.argv[1] + "/log.jsonl", rotation=rotation)
record, peaks, written = batch(7), [], 0
end = time.monotonic() + {seconds}
half = time.monotonic() + {seconds} / 2
while time.monotonic() < end:
    for _ in range(500):
        sink.write(record)
    sink.flush()
    written += 500
    if time.monotonic() > half and not peaks:
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sink.close()
print(written / {seconds}, *peaks)
"""


def test_memory_stays_flat_however_fast_records_come(tmp_path: Path) -> None:
    """With rotation, compression and a limit at work; the disk stays below the limit too."""
    code = THROUGHPUT.format(tests=str(Path(__file__).parent), seconds=6)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    _, half_kib, end_kib = map(float, done.stdout.split())
    assert end_kib - half_kib < 8 << 10
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 16 << 20


def test_compression_does_not_hold_up_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes; closed parts wait for it, batches do not."""
    may_go_on = threading.Event()
    compress = compression.compress

    def slow(path: Path, way: str) -> Path:
        assert may_go_on.wait(60)
        return compress(path, way)

    monkeypatch.setattr(compression, "compress", slow)
    rotation = Rotation(part_bytes=200_000, compress="gzip")
    profiler = BatchProfiler(JsonlSink(tmp_path / "log.jsonl", rotation=rotation))
    for _ in range(10):
        serve(profiler, 300, num_decodes=100)
        assert profiler.flush(30)
    assert len(list(tmp_path.glob("*Z-*.jsonl"))) > 5
    may_go_on.set()
    assert profiler.close(30)
    assert profiler.num_dropped_records == 0
    (run,) = verify(tmp_path).runs
    assert (run.num_records, run.num_missing, run.num_duplicates) == (3000, 0, 0)


def test_no_thread_of_ours_outlives_the_close(tmp_path: Path) -> None:
    """Neither the writer's nor that which looks after the parts.

    The one that hears of signals is the process's, whose first profiler starts it.
    """
    with BatchProfiler(JsonlSink(tmp_path / "before.jsonl")) as profiler:
        serve(profiler, 1)
    rotation = Rotation(part_seconds=60)
    before = set(threading.enumerate())
    with BatchProfiler(JsonlSink(tmp_path / "log.jsonl", rotation=rotation)) as profiler:
        serve(profiler, 10)
        until(lambda: any(t.name == "sched-profiler-parts" for t in threading.enumerate()))
    assert set(threading.enumerate()) <= before
    with contextlib.suppress(FileNotFoundError):
        assert not os.path.lexists(tmp_path / f".log.{profiler.run_id}.lock")
