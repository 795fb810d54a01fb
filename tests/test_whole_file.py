"""What is written takes the place of no log."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from synthetic import records, write_log
from test_cli import failure
from test_request_trace import RECORD

from sched_profiler import SchedProfilerError
from sched_profiler.cli import main
from sched_profiler.manifest import Run, write_manifest
from sched_profiler.request_record import encode_request
from sched_profiler.whole_file import check_output

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a log of 40 batches."""
    return write_log(tmp_path / "run.jsonl", records(40))


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "arguments",
    [
        "convert run.jsonl other.jsonl",
        "convert run.jsonl run.jsonl",
        "convert run.jsonl another",
        "trace run.jsonl -o other.jsonl",
        "trace run.jsonl -o other.jsonl.gz",
        "trace run.jsonl -o another",
        "trace run.jsonl -o link",
        "report run.jsonl -o run.jsonl",
        "report run.jsonl -o run.run.json",
        "report run.jsonl -o manifest.json",
        "report run.jsonl -o empty.jsonl",
        "report run.jsonl -o requests",
        "report run.jsonl -o kept.parquet",
        "convert kept.parquet kept.parquet",
        "convert kept.parquet second.parquet",
        "analyze run.jsonl --out named",
        "compare run.jsonl other.jsonl --out named",
        "fit run.jsonl --out named",
    ],
)
def test_no_log_is_lost_to_what_is_made_of_it(
    log: Path,
    tmp_path: Path,
    arguments: str,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it is called, and whichever command would write there: nothing is written."""
    monkeypatch.chdir(tmp_path)
    for name in ("other.jsonl", "another"):
        write_log(tmp_path / name, records(30, run_id=name))
    (tmp_path / "other.jsonl.gz").write_bytes(gzip.compress(log.read_bytes()))
    (tmp_path / "link").symlink_to(log)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "requests").write_bytes(encode_request(RECORD))
    run = Run("r", dp_rank=None, facts={}, num_dropped=lambda: 0)
    for name in ("run.run.json", "manifest.json"):
        write_manifest(tmp_path / name, run.manifest(log="run.jsonl", started=1.0, updated=2.0))
    for name in ("kept.parquet", "second.parquet"):
        assert main(["convert", "run.jsonl", name]) == 0
    if arguments.endswith("named"):
        (tmp_path / "named").mkdir()
        names = ("summary.json", "compare.json", "step_time_model.json")
        for name in names:
            write_log(tmp_path / "named" / name, records(3))
        folder = tmp_path / "named"
    else:
        folder = tmp_path
    before = contents(folder)
    capsys.readouterr()
    assert "name " in failure(capsys, *arguments.split())
    assert contents(folder) == before


@pytest.mark.parametrize(
    "arguments",
    [
        "convert run.jsonl run.parquet",
        "convert run.jsonl runs/",
        "trace run.jsonl -o trace.json",
        "trace run.jsonl -o trace.json.gz",
        "report run.jsonl -o report.html",
        "analyze run.jsonl --out out",
        "compare run.jsonl run.jsonl --out out",
    ],
)
def test_what_was_made_may_be_made_again(
    log: Path, arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same place."""
    monkeypatch.chdir(log.parent)
    assert main(arguments.split()) == 0
    assert main(arguments.split()) == 0


def test_parquet_is_named_so(log: Path, capsys: Capture) -> None:
    """Else one takes it for what its name says."""
    out = log.with_suffix(".csv")
    assert failure(capsys, "convert", log, out).endswith(
        "x.csv is no name for Parquet, which is written; name it with .parquet, or a folder "
        "with /\n".replace("x.csv", str(out))
    )
    assert not out.exists()


def test_a_folder_of_parquet_is_not_converted_onto_itself(
    log: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Its files would be replaced while they are read."""
    out = tmp_path / "out"
    assert main(["convert", str(log), f"{out}/"]) == 0
    capsys.readouterr()
    assert "one of the logs" in failure(capsys, "convert", out, f"{out}/")
    assert main(["convert", str(out), f"{tmp_path / 'again'}/"]) == 0


def test_a_device_stays_a_device() -> None:
    """A file that appears when it is whole would take its place."""
    with pytest.raises(SchedProfilerError, match="/dev/null is no file; name another"):
        check_output(Path("/dev/null"))
