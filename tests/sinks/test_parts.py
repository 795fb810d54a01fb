"""A log goes on in new files, the old ones are kept for as long as was asked, and none is lost."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import threading
import time
from pathlib import Path

import attrs
import pytest
from engine_under_test import only_file, serve, until
from synthetic import batch

from sched_profiler import (
    BatchProfiler,
    JsonlSink,
    Rotation,
    SettingError,
    compression,
    decode,
    encode,
)
from sched_profiler.manifest import parse_manifest
from sched_profiler.reader import read_records
from sched_profiler.sinks.locks import RunLocks
from sched_profiler.sinks.parts import PartsKeeper
from sched_profiler.testing import FakeClock
from sched_profiler.verify import verify

LINE_BYTES = len(encode(batch(100, timestamp=1.5, run_id="0" * 12)))


def write(sink: JsonlSink, batch_ids: range, run_id: str = "0" * 12) -> None:
    """Write records and flush."""
    for batch_id in batch_ids:
        sink.write(batch(batch_id, timestamp=1.5, run_id=run_id))
    sink.flush()


def parts(folder: Path) -> list[str]:
    """Return the names of the closed parts, sorted."""
    return sorted(path.name for path in folder.glob("log.2*Z-*"))


def test_a_part_is_closed_before_it_gets_larger_than_its_limit(tmp_path: Path) -> None:
    """Each part is below the limit, and names sort as the batches do."""
    sink = JsonlSink(tmp_path / "log.jsonl", rotation=Rotation(part_bytes=10 * LINE_BYTES))
    write(sink, range(100, 205))
    sink.close()
    names = parts(tmp_path)
    assert len(names) == 11
    pattern = r"log\.\d{8}T\d{6}\.\d{3}Z-0{12}-(\d{9})\.jsonl"
    first_ids = [int(re.fullmatch(pattern, name)[1]) for name in names]  # type: ignore[index]
    assert first_ids == list(range(100, 205, 10))
    ids = [
        decode(line).batch_id
        for name in names
        for line in (tmp_path / name).read_bytes().splitlines()
    ]
    assert ids == list(range(100, 205))
    assert all((tmp_path / name).stat().st_size <= 10 * LINE_BYTES for name in names)


def test_the_part_that_grows_keeps_its_name_and_is_never_compressed(tmp_path: Path) -> None:
    """It can be read at any time."""
    rotation = Rotation(part_bytes=10 * LINE_BYTES, compress="gzip")
    sink = JsonlSink(tmp_path / "log.jsonl", rotation=rotation)
    current = tmp_path / f"log.{'0' * 12}.jsonl"
    for start in range(100, 130, 5):
        write(sink, range(start, start + 5))
        assert decode(current.read_bytes().splitlines()[-1]).batch_id == start + 4
        assert {r.batch_id for r in read_records(tmp_path)} == set(range(100, start + 5))
    sink.close()


def test_a_part_is_closed_when_it_is_old_although_no_batch_comes(tmp_path: Path) -> None:
    """Its age counts from its first record."""
    clock = FakeClock()
    sink = JsonlSink(tmp_path / "log.jsonl", rotation=Rotation(part_seconds=60), clock=clock)
    write(sink, range(3))
    clock.advance(59_000)
    time.sleep(0.7)
    assert parts(tmp_path) == []
    clock.advance(1_000)
    until(lambda: parts(tmp_path))
    assert parts(tmp_path)[0].startswith("log.20231114T221320.000Z-")
    write(sink, range(3, 5))
    sink.close()
    assert len(parts(tmp_path)) == 2


def test_a_clock_that_is_set_back_does_not_upset_the_order_of_the_names(tmp_path: Path) -> None:
    """Nor do two parts of one millisecond."""
    clock = FakeClock()
    rotation = Rotation(part_bytes=2 * LINE_BYTES)
    sink = JsonlSink(tmp_path / "log.jsonl", rotation=rotation, clock=clock)
    write(sink, range(100, 104))
    clock.step_wall_clock(-3_600_000)
    write(sink, range(104, 110))
    sink.close()
    assert len(parts(tmp_path)) == 5
    assert [name[-15:-6] for name in parts(tmp_path)] == [f"{n:09d}" for n in range(100, 110, 2)]


@pytest.mark.parametrize(("way", "suffix"), [("gzip", ".gz"), ("zstd", ".zst")])
def test_closed_parts_are_compressed_and_read_as_any_other(
    way: str, suffix: str, tmp_path: Path
) -> None:
    """By us and, here, by the programs of that name."""
    if way == "zstd":
        pytest.importorskip("zstandard")
    rotation = Rotation(part_bytes=100 * LINE_BYTES, compress=way)
    sink = JsonlSink(tmp_path / "log.jsonl", rotation=rotation)
    write(sink, range(100, 1100))
    sink.close()
    names = parts(tmp_path)
    assert len(names) == 11
    assert all(name.endswith(".jsonl" + suffix) for name in names)
    assert [r.batch_id for r in read_records(tmp_path)] == list(range(100, 1100))
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 1000 * LINE_BYTES / 3
    if way == "gzip":
        assert gzip.decompress((tmp_path / names[0]).read_bytes()).count(b"\n") == 100


def test_the_oldest_parts_give_way_to_the_limits(tmp_path: Path) -> None:
    """To that of the number, and to that of the size."""
    for name, limit in (("count", {"keep_parts": 3}), ("size", {"keep_bytes": 35 * LINE_BYTES})):
        folder = tmp_path / name
        rotation = Rotation(part_bytes=10 * LINE_BYTES, **limit)  # type: ignore[arg-type]
        sink = JsonlSink(folder / "log.jsonl", rotation=rotation)
        write(sink, range(100, 200))
        sink.close()
        assert [name[-15:-6] for name in parts(folder)] == ["000000170", "000000180", "000000190"]


def test_what_gave_way_is_counted_in_the_manifest(tmp_path: Path) -> None:
    """So that nobody takes it for lost."""
    rotation = Rotation(part_bytes=20_000, keep_parts=2, compress="gzip")
    with BatchProfiler(JsonlSink(tmp_path / "log.jsonl", rotation=rotation)) as profiler:
        serve(profiler, 1000)
    manifest = parse_manifest(only_file(tmp_path, "*.run.json").read_bytes(), "manifest")
    (run,) = verify(tmp_path).runs
    assert run.num_records == 1000 - manifest.num_removed_records
    assert run.num_removed == run.num_missing == manifest.num_removed_records > 500
    assert run.num_unexplained == 0


def test_what_gives_way_after_the_end_is_counted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compression may take longer than a close waits for it."""
    may_go_on, compress = threading.Event(), compression.compress

    def slow(path: Path, way: str) -> None:
        may_go_on.wait()
        compress(path, way)

    monkeypatch.setattr(compression, "compress", slow)
    monkeypatch.setattr(PartsKeeper.close, "__defaults__", (0.1,))
    rotation = Rotation(part_bytes=20_000, keep_parts=2, compress="gzip")
    with BatchProfiler(JsonlSink(tmp_path / "log.jsonl", rotation=rotation)) as profiler:
        serve(profiler, 200)
    (run,) = verify(tmp_path).runs
    assert (run.num_records, run.end) == (200, "clean")
    may_go_on.set()
    until(lambda: verify(tmp_path).runs[0].num_removed > 100)
    until(lambda: verify(tmp_path).runs[0].num_unexplained == 0)
    (run,) = verify(tmp_path).runs
    assert run.num_records + run.num_removed == 200
    assert run.end == "clean"


def test_limits_hold_for_ended_runs_as_well_and_leave_live_ones_alone(tmp_path: Path) -> None:
    """A server that is restarted every day must not fill the disk."""
    rotation = Rotation(part_bytes=20_000, keep_parts=4)
    path = tmp_path / "log.jsonl"
    live = BatchProfiler(JsonlSink(path, rotation=rotation))
    serve(live, 100)
    assert live.flush(5)
    time.sleep(0.7)  # names have milliseconds, and limits are looked at now and then
    num_live = len([name for name in parts(tmp_path) if live.run_id in name])
    with BatchProfiler(JsonlSink(path, rotation=rotation)) as ended:
        serve(ended, 200)
    time.sleep(0.1)
    with BatchProfiler(JsonlSink(path, rotation=rotation)) as last:
        serve(last, 200)
    names = parts(tmp_path)
    assert len([name for name in names if live.run_id in name]) == num_live
    assert not [name for name in names if ended.run_id in name]
    assert len([name for name in names if last.run_id in name]) == 4
    live.close()
    assert verify(tmp_path).num_unexplained == 0


@pytest.mark.parametrize("name", ["log.jsonl", "log-{pid}-{run_id}-{dp_rank}.jsonl"])
def test_what_a_killed_run_left_is_brought_in_order_by_the_next(tmp_path: Path, name: str) -> None:
    """Its last part is closed and compressed; nothing of it is lost."""
    rotation = Rotation(part_bytes=100_000, compress="gzip")
    killed = JsonlSink(tmp_path / name, rotation=rotation)
    profiler = BatchProfiler(killed, background=False)
    serve(profiler, 10)
    profiler.flush()
    # As if its process had died: nobody holds the lock, and nobody closes.
    killed._keeper.close()  # type: ignore[union-attr]
    for file in killed.locks._held.values():
        os.close(file)
    closed = f"log*Z-{profiler.run_id}-000000000.jsonl.gz"
    with BatchProfiler(JsonlSink(tmp_path / name, rotation=rotation)) as after:
        serve(after, 10)
        until(lambda: list(tmp_path.glob(closed)))
    assert len(list(tmp_path.glob("log*Z-*.gz"))) == 2
    assert len(list(tmp_path.glob("*.jsonl"))) == 0
    assert len(list(read_records(tmp_path))) == 20
    assert {run.end for run in verify(tmp_path).runs} == {"clean", "none"}
    assert list(tmp_path.glob(".*")) == []


def test_placeholders_are_filled_in_and_keep_runs_apart(tmp_path: Path) -> None:
    """Ranks and engines with the same setting write to files of their own."""
    clock = FakeClock()
    for rank in (0, 1, None):
        sink = JsonlSink(tmp_path / "{date}/{host}/r{dp_rank}-{pid}-{run_id}.jsonl", clock=clock)
        with BatchProfiler(sink, dp_rank=rank, clock=clock, background=False) as profiler:
            serve(profiler, 2)
    host = re.sub(r"[^A-Za-z0-9._-]", "_", os.uname().nodename)
    found = sorted(path.name[:-18] for path in (tmp_path / "2023-11-14" / host).glob("*.jsonl"))
    assert found == [f"r0-{os.getpid()}-", f"r1-{os.getpid()}-", f"rnone-{os.getpid()}-"]
    assert len(list(tmp_path.glob("*/*/*.run.json"))) == 3


def test_rotation_with_the_run_in_the_path_looks_after_all_runs_too(tmp_path: Path) -> None:
    """Limits are of the log, whatever its files are called."""
    rotation = Rotation(part_bytes=20_000, keep_parts=2)
    for _ in range(2):
        sink = JsonlSink(tmp_path / "{date}" / "s-{run_id}.jsonl", rotation=rotation)
        with BatchProfiler(sink) as profiler:
            serve(profiler, 200)
    names = [path.name for path in tmp_path.glob("*/s-*Z-*.jsonl")]
    assert len(names) == 2
    assert all(profiler.run_id in name for name in names)


def test_a_sink_goes_on_after_it_was_closed(tmp_path: Path) -> None:
    """A signal may close it, and the engine may go on nevertheless."""
    sink = JsonlSink(tmp_path / "log.jsonl", rotation=Rotation(part_seconds=60, compress="gzip"))
    write(sink, range(3))
    sink.close()
    write(sink, range(3, 6))
    sink.close()
    assert [r.batch_id for r in read_records(tmp_path)] == list(range(6))


def test_an_unknown_placeholder_is_an_error(tmp_path: Path) -> None:
    """At once, not when the first record comes."""
    with pytest.raises(SettingError, match=r"\{rank\}"):
        JsonlSink(tmp_path / "{rank}.jsonl")


def test_a_run_holds_its_lock_all_the_time(tmp_path: Path) -> None:
    """Also while it goes on in a new part, and again after its folder was removed."""
    sink = JsonlSink(tmp_path / "logs" / "log.jsonl", rotation=Rotation(part_bytes=LINE_BYTES))
    write(sink, range(2))
    assert sink.names is not None
    lock = sink.names.lock
    inode = lock.stat().st_ino
    write(sink, range(2, 9))
    assert lock.stat().st_ino == inode
    shutil.rmtree(tmp_path / "logs")
    write(sink, range(9, 12))
    assert not RunLocks().take(lock)
    sink.close()
    assert not lock.exists()


def test_where_the_records_go_is_known_before_the_first(tmp_path: Path) -> None:
    """A message at the start names the file that `tail -F` can follow."""
    sink = JsonlSink(tmp_path / "r{dp_rank}.jsonl", rotation=Rotation(part_seconds=60))
    assert sink.shown == str(tmp_path / "r{dp_rank}.jsonl")
    with BatchProfiler(sink, dp_rank=1) as profiler:
        assert sink.shown == str(tmp_path / f"r1.{profiler.run_id}.jsonl")
        serve(profiler, 1)
        assert profiler.flush(5)
        assert Path(sink.shown).exists()


def test_a_part_that_is_empty_is_not_closed(tmp_path: Path) -> None:
    """Closing what nothing was written to makes no file."""
    sink = JsonlSink(tmp_path / "log.jsonl", rotation=Rotation(part_seconds=1))
    sink.close()
    assert list(tmp_path.iterdir()) == []


def test_order_and_ids_go_on_over_many_parts(tmp_path: Path) -> None:
    """Through the background writer, compressed as it goes, nothing is lost or doubled."""
    rotation = Rotation(part_bytes=100_000, compress="gzip")
    with BatchProfiler(JsonlSink(tmp_path / "log.jsonl", rotation=rotation)) as profiler:
        for _ in range(10):
            serve(profiler, 500)
            assert profiler.flush(10)
    assert [r.batch_id for r in read_records(tmp_path)] == list(range(5000))
    (run,) = verify(tmp_path).runs
    assert attrs.astuple(run)[2:8] == (5000, 0, 0, 0, 0, 0)
    assert run.end == "clean"


def test_where_no_thread_can_be_started_the_close_looks_after_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Python 3.12 when the main thread has ended: no record is lost, and limits are kept."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    rotation = Rotation(part_bytes=10 * LINE_BYTES, compress="gzip")
    sink = JsonlSink(tmp_path / "log.jsonl", rotation=rotation)
    write(sink, range(35))
    sink.close()
    parts = sorted(tmp_path.glob("*.jsonl*"))
    assert len(parts) >= 3
    assert all(part.suffix == ".gz" for part in parts)
    assert [record.batch_id for part in parts for record in read_records(part)] == [*range(35)]
