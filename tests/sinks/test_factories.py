"""The settings decide where the log goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sched_profiler import JsonlSink, RemoteSink, Rotation, Sink
from sched_profiler.settings import Settings
from sched_profiler.sinks.base import SinkContext
from sched_profiler.sinks.factories import jsonl, request_trace
from sched_profiler.sinks.remote import REMOTE_ROTATION, default_spool


def log_sink(settings: Settings, dp_rank: int | None = None) -> Sink:
    """Return what the adapter makes for a rank where it is to write the log."""
    return jsonl(SinkContext(settings=settings, dp_rank=dp_rank, print_line=print))


def test_a_path_is_a_file_without_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the folder that the engine was started in."""
    monkeypatch.chdir(tmp_path)
    sink = log_sink(Settings())
    assert isinstance(sink, JsonlSink)
    assert sink.path == tmp_path / "scheduler_profiling.jsonl"
    assert sink._rotation == Rotation()


@pytest.mark.parametrize(
    ("log", "expected"),
    [("log.jsonl", "log.dp2.jsonl"), ("r{dp_rank}.jsonl", "r{dp_rank}.jsonl")],
)
def test_each_rank_has_a_file_of_its_own(tmp_path: Path, log: str, expected: str) -> None:
    """Rank 0 the one that was asked for; a path that holds the rank is as it is."""
    pytest.importorskip("fsspec")
    settings = Settings(log=str(tmp_path / log))
    for rank, name in ((0, log), (None, log), (2, expected)):
        sink = log_sink(settings, rank)
        assert isinstance(sink, JsonlSink)
        assert sink.path == tmp_path / name
    remote = log_sink(Settings(log="memory://x/log.jsonl"), 2)
    assert isinstance(remote, RemoteSink)
    assert remote.shown == "memory://x/log.jsonl"


def test_a_request_trace_is_beside_the_log_and_rotated_like_it(tmp_path: Path) -> None:
    """Of each rank, in files and in stores."""
    pytest.importorskip("fsspec")
    settings = Settings(log=str(tmp_path / "log.jsonl"), part_mib=2)
    for rank, name in ((0, "log.requests.jsonl"), (2, "log.dp2.requests.jsonl")):
        sink = request_trace(SinkContext(settings=settings, dp_rank=rank, print_line=print))
        assert isinstance(sink, JsonlSink)
        assert sink.path == tmp_path / name
        assert sink._rotation.part_bytes == 2 << 20
    settings = Settings(log="memory://x/")
    remote = request_trace(SinkContext(settings=settings, dp_rank=0, print_line=print))
    assert isinstance(remote, RemoteSink)
    assert remote.shown == "memory://x/scheduler_profiling.requests.jsonl"


def test_settings_become_a_rotation(tmp_path: Path) -> None:
    """MiB are bytes there."""
    settings = Settings(
        log=str(tmp_path / "log.jsonl"),
        part_mib=2,
        part_seconds=60,
        keep_parts=5,
        keep_mib=10,
        compress="gzip",
    )
    sink = log_sink(settings)
    assert isinstance(sink, JsonlSink)
    assert sink._rotation == Rotation(
        part_bytes=2 << 20, part_seconds=60, keep_parts=5, keep_bytes=10 << 20, compress="gzip"
    )


def test_a_url_is_a_store_with_a_rotation_of_its_own(tmp_path: Path) -> None:
    """What is set changes only what it names."""
    pytest.importorskip("fsspec")
    sink = log_sink(Settings(log="memory://x/"))
    assert isinstance(sink, RemoteSink)
    assert sink._rotation == REMOTE_ROTATION
    assert sink._folder == default_spool()
    sink = log_sink(Settings(log="memory://x/", compress="none", part_mib=1, spool=str(tmp_path)))
    assert isinstance(sink, RemoteSink)
    assert sink._rotation.compress is None
    assert sink._rotation.part_bytes == 1 << 20
    assert sink._rotation.part_seconds == REMOTE_ROTATION.part_seconds
    assert sink._folder == tmp_path
