"""Parts of logs are compressed so that none is lost, whatever happens meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from synthetic import records, write_log

from sched_profiler import JsonlSink, Rotation, SettingError
from sched_profiler.cli import main
from sched_profiler.compression import compress, decompressed, num_lines


@pytest.mark.parametrize("way", ["gzip", "zstd"])
def test_lines_are_counted_compressed_or_not(tmp_path: Path, way: str) -> None:
    """And the file is replaced by the shorter one."""
    if way == "zstd":
        pytest.importorskip("zstandard")
    path = tmp_path / "part"
    path.write_bytes(b"line\n" * 1000)
    assert num_lines(path) == 1000
    target = compress(path, way)
    assert num_lines(target) == 1000
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_size < 200


@pytest.mark.parametrize("way", ["gzip", "zstd"])
@pytest.mark.parametrize("share", [0.0001, 0.5, 0.9999])
@pytest.mark.parametrize("command", ["analyze", "verify", "validate"])
def test_what_is_cut_short_is_no_whole_log(
    tmp_path: Path, way: str, share: float, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it is cut: what was copied is not what was written."""
    for module in ("zstandard", "polars", "jsonschema"):
        pytest.importorskip(module)
    part = compress(write_log(tmp_path / "run.jsonl", records(2_000)), way)
    whole = part.read_bytes()
    part.write_bytes(whole[: max(1, int(len(whole) * share))])
    assert main([command, str(part)]) == 2
    assert capsys.readouterr().err == (
        f"sched-profiler: {part} is cut short; copy it again, or leave it out\n"
    )


@pytest.mark.parametrize("way", ["gzip", "zstd"])
def test_files_put_together_are_read_to_their_end(tmp_path: Path, way: str) -> None:
    """As the tools of either way do, also one that is empty."""
    if way == "zstd":
        pytest.importorskip("zstandard")
    together = b""
    for content in (b"one\n", b"", b"two\nthree\n"):
        (tmp_path / "part").write_bytes(content)
        target = compress(tmp_path / "part", way)
        together += target.read_bytes()
    target.write_bytes(together)
    assert num_lines(target) == 3
    with target.open("rb") as file:
        assert decompressed(file, target.name).read() == b"one\ntwo\nthree\n"


def test_the_same_lines_give_the_same_bytes(tmp_path: Path) -> None:
    """An upload that is repeated writes the same object."""
    contents = []
    for name in ("a", "b"):
        path = tmp_path / name
        path.write_bytes(b"line\n" * 1000)
        contents.append(compress(path, "gzip").read_bytes())
    assert contents[0] == contents[1]


def test_what_cannot_be_compressed_stays_as_it_is(tmp_path: Path) -> None:
    """Here a folder has the name of the compressed file; nothing unfinished is left."""
    path = tmp_path / "part"
    path.write_bytes(b"line\n")
    (tmp_path / "part.gz").mkdir()
    with pytest.raises(OSError, match="part"):
        compress(path, "gzip")
    assert path.read_bytes() == b"line\n"
    assert {p.name for p in tmp_path.iterdir()} == {"part", "part.gz"}


def test_what_is_gone_or_broken_has_no_lines(tmp_path: Path) -> None:
    """Counting is for a message; it must not fail."""
    assert num_lines(tmp_path / "none") == 0
    (tmp_path / "broken.gz").write_bytes(b"no gzip")
    assert num_lines(tmp_path / "broken.gz") == 0


def test_a_way_that_is_not_installed_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the remedy, when the sink is made."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(SettingError, match=r'pip install "\.\[zstd\]" in a .+, or choose gzip'):
        JsonlSink(tmp_path / "log", rotation=Rotation(part_seconds=1, compress="zstd"))
