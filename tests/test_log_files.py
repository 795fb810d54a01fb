"""A log is found and read wherever it is, and however it is compressed."""

from __future__ import annotations

import builtins
import gzip
import importlib.util
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from synthetic import records, write_log

from sched_profiler import LogError, compression, log_files
from sched_profiler.log_files import find_logs, find_manifests, open_log
from sched_profiler.reader import Tally, read_blocks, read_records

ALL = list(records(60))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a log in three parts, each stored in another way."""
    logs = tmp_path / "logs"
    (logs / "rank0").mkdir(parents=True)
    write_log(logs / "log.run.jsonl", ALL[40:])
    plain = write_log(tmp_path / "plain", ALL[:20]).read_bytes()
    part = "log.20261124T113336.123Z-run-000000000.jsonl.gz"
    (logs / part).write_bytes(gzip.compress(plain))
    part = write_log(logs / "log.20261124T113346.123Z-run-000000020.jsonl", ALL[20:40])
    compression.compress(part, "zstd" if importlib.util.find_spec("zstandard") else "gzip")
    (logs / "log.run.run.json").write_text("{}")
    (logs / ".hidden.jsonl").write_text("no record")
    (logs / "notes.txt").write_text("no record")
    return logs


def test_a_folder_stands_for_all_logs_in_it_in_order(folder: Path) -> None:
    """Closed parts before what grows; nothing else that lies there."""
    assert list(read_records(folder)) == ALL
    write_log(folder / "rank0" / "log.jsonl", ALL[:1])
    assert len(find_logs(folder)) == 4


def test_a_folder_can_be_loaded(folder: Path) -> None:
    """A batch that is in two of its files counts once."""
    frame = pytest.importorskip("sched_profiler.analysis.frame")
    write_log(folder / "rank0" / "log.jsonl", ALL[:1])
    assert list(frame.load(folder)["batch_id"]) == [record.batch_id for record in ALL]


def test_a_pattern_stands_for_what_matches(folder: Path) -> None:
    """Manifests beside the log are no log."""
    assert list(read_records(str(folder / "log.2*"))) == ALL[:40]
    assert len(find_logs(f"{folder}/log.*")) == 3
    with pytest.raises(LogError, match=r"x\*: no such file"):
        find_logs(f"{folder}/x*")


def test_a_file_named_twice_is_read_once(folder: Path) -> None:
    """By itself and with its folder, or through a link."""
    (folder / "link.jsonl").symlink_to(folder / "log.run.jsonl")
    assert len(find_logs(folder, folder / "log.run.jsonl", folder / "link.jsonl")) == 3


def test_a_part_that_is_being_compressed_is_read_once(folder: Path, tmp_path: Path) -> None:
    """For a moment it is there in both forms."""
    (folder / "log.20261124T113336.123Z-run-000000000.jsonl").write_bytes(
        write_log(tmp_path / "plain", ALL[:20]).read_bytes()
    )
    assert list(read_records(folder)) == ALL


def test_a_part_that_was_compressed_since_it_was_found_is_read_all_the_same(folder: Path) -> None:
    """Its name has become longer."""
    (file,) = find_logs(folder / "log.run.jsonl")
    path = folder / "log.run.jsonl"
    (folder / "log.run.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with open_log(file) as (stream, _):
        assert stream.read().count(b"\n") == 20


def test_a_part_that_gave_way_since_it_was_found_is_passed_over(tmp_path: Path) -> None:
    """As if it had before; but a part that is asked for by its name has to be there."""
    names = [f"log.20261124T11333{number}.123Z-run-00000000{number}.jsonl" for number in range(2)]
    for name, record in zip(names, ALL, strict=False):
        write_log(tmp_path / name, [record])
    read = read_records(tmp_path)
    assert next(read) == ALL[0]
    (tmp_path / names[1]).unlink()
    assert list(read) == []
    with pytest.raises(LogError, match="no such file"):
        list(read_records(tmp_path / names[1]))


def test_blocks_of_a_folder_are_those_of_its_files(folder: Path) -> None:
    """Line numbers start anew in each file."""
    blocks = list(read_blocks(folder, Tally()))
    assert [block.first_line for block in blocks] == [1, 1, 1]


def test_a_url_is_read_as_a_path_is(folder: Path) -> None:
    """A file, a prefix and a pattern, compressed or not."""
    store = pytest.importorskip("fsspec").filesystem("memory")
    store.store.clear()
    try:
        for path in folder.iterdir():
            if path.is_file():
                store.pipe_file(f"/b/logs/{path.name}", path.read_bytes())
        assert list(read_records("memory://b/logs/")) == ALL
        assert list(read_records("memory://b/logs")) == ALL
        assert list(read_records("memory://b/logs/log.2*")) == ALL[:40]
        assert list(read_records("memory://b/logs/log.run.jsonl")) == ALL[40:]
        assert list(read_records("memory://b/")) == ALL
        assert [name for name, _ in find_manifests("memory://b/logs/")] == [
            "/b/logs/log.run.run.json"
        ]
        with pytest.raises(LogError, match=r"memory://b/logs/none\.jsonl: FileNotFoundError"):
            find_logs("memory://b/logs/none.jsonl")
        store.pipe_file("/empty/notes.txt", b"")
        store.pipe_file("/empty/more.txt", b"")
        with pytest.raises(LogError, match=r"holds no log .*check the bucket and the prefix"):
            find_logs("memory://empty/")
    finally:
        store.store.clear()


@pytest.mark.parametrize("num_failures", [2, 3])
def test_a_manifest_that_is_renewed_while_it_is_read_is_read_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_failures: int
) -> None:
    """A store says then that the object is no longer there; after that has failed, so has all."""
    store = pytest.importorskip("fsspec").filesystem("memory")
    text = next(folder.glob("*.run.json")).read_bytes()
    failures = [OSError(16, "the remote file no longer exists")] * num_failures

    def read(stream: BinaryIO) -> bytes:
        if failures:
            raise failures.pop()
        return stream.read()

    monkeypatch.setattr(log_files, "manifest_text", read)
    try:
        for path in folder.iterdir():
            if path.is_file():
                store.pipe_file(f"/b/logs/{path.name}", path.read_bytes())
        if num_failures < 3:
            assert [found for _, found in find_manifests("memory://b/logs/")] == [text]
        else:
            with pytest.raises(LogError, match=r"^memory://.*log.run.run.json: .*no longer exists"):
                list(find_manifests("memory://b/logs/"))
    finally:
        store.store.clear()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_is_broken_is_an_error_that_names_it(
    suffix: str, folder: Path
) -> None:
    """Cut short, or nothing of the kind."""
    if suffix == ".zst":
        pytest.importorskip("zstandard")
    path = next(folder.glob(f"*{suffix}"))
    whole = path.read_bytes()
    path.write_bytes(b"not compressed at all")
    with pytest.raises(LogError, match=f"{path.name} is no (gzip|zstd) file"):
        list(read_records(path))
    path.write_bytes(whole[:-20])
    if suffix == ".gz":
        with pytest.raises(LogError, match=f"{path.name} is cut short"):
            list(read_records(path))


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let a package be as if it was not installed."""
    real = builtins.__import__

    def no_import(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_import)


def test_what_is_not_installed_is_named_with_the_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one line."""
    pytest.importorskip("zstandard")
    without(monkeypatch, "zstandard")
    with pytest.raises(LogError, match=r'pip install "\.\[zstd\]"'):
        list(read_records(folder))
    without(monkeypatch, "fsspec")
    with pytest.raises(LogError, match=r'pip install "\.\[s3\]"'):
        list(read_records("s3://bucket/x/"))


def test_a_part_that_is_closed_while_a_log_is_read_is_read_once(folder: Path) -> None:
    """The run lives on: what grows is then another file, and the part may be compressed by now."""
    (folder / ".log.run.lock").touch()
    growing = folder / "log.run.jsonl"
    seen = []
    for record in read_records(folder):
        seen.append(record)
        if len(seen) == 15:
            growing.rename(folder / "log.20261124T113356.123Z-run-000000040.jsonl")
            write_log(growing, ALL[50:])
        if len(seen) == 35:
            part = folder / "log.20261124T113356.123Z-run-000000040.jsonl"
            kept = part.read_bytes().splitlines(keepends=True)[:10]
            (folder / f"{part.name}.gz").write_bytes(gzip.compress(b"".join(kept)))
            part.unlink()
    assert seen == ALL


def test_a_run_that_ends_while_its_log_is_read_is_read_to_its_end(folder: Path) -> None:
    """Nothing grows any more."""
    (folder / ".log.run.lock").touch()
    records = read_records(folder)
    seen = [next(records)]
    (folder / "log.run.jsonl").rename(folder / "log.20261124T113356.123Z-run-000000040.jsonl")
    assert seen + list(records) == ALL


def test_a_part_that_grows_is_read_although_it_is_closed_meanwhile(folder: Path) -> None:
    """It was opened before."""
    (folder / ".log.run.lock").touch()
    records = read_records(folder)
    seen = [next(records) for _ in range(41)]
    (folder / "log.run.jsonl").rename(folder / "log.20261124T113356.123Z-run-000000040.jsonl")
    assert seen + list(records) == ALL
