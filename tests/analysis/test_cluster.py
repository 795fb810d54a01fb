"""Reading logs on a Dask cluster: a real one, of two processes of this machine."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from typing import TYPE_CHECKING

import attrs
import pytest
from distributed import LocalCluster
from synthetic import batch, records, write_log
from test_cli import run
from test_stream import assert_same, assert_same_charts

from sched_profiler.analysis import cluster, find_anomalies, scan, summarize
from sched_profiler.cli import main
from sched_profiler.errors import LogError, SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the address of a cluster."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",  # else it takes port 8787, which may be taken
        host="127.0.0.1",
    ) as local:
        yield local.scheduler_address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of logs: two ranks, one of them compressed, and a part that came twice.

    The second rank is slow.
    """
    logs = tmp_path / "logs"
    logs.mkdir()
    write_log(logs / "0.jsonl", records(4_000, dp_rank=0))
    slow = (
        attrs.evolve(one, model_run_duration_ms=1.5 * (one.model_run_duration_ms or 0))
        for one in records(3_000, dp_rank=1, seed=1)
    )
    other = write_log(tmp_path / "1.jsonl", slow)
    (logs / "1.jsonl.gz").write_bytes(gzip.compress(other.read_bytes()))
    write_log(logs / "2.jsonl", (one for one in records(4_500, dp_rank=0) if one.batch_id > 3_900))
    return logs


def test_a_cluster_finds_what_one_machine_finds(
    address: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summary and charts, from parts of files and with batches that are in two of them."""
    monkeypatch.setattr(cluster, "_PART_BYTES", 500_000)
    seen: list[tuple[int, int]] = []
    with cluster.connect(address) as client:
        digest = cluster.scan_on(
            client, folder, progress=lambda done, total: seen.append((done, total))
        )
    expected = scan(folder)
    assert_same(summarize(digest), summarize(expected))
    assert summarize(digest).num_duplicate_batches == 99
    assert_same_charts(digest, expected)
    (slow_rank,) = find_anomalies(digest)
    assert (slow_rank.kind, slow_rank.dp_rank) == ("slow_rank", 1)
    assert [slow_rank] == find_anomalies(expected)
    assert len(seen) > 5
    assert seen == sorted(seen)
    assert seen[-1] == (seen[-1][1],) * 2


def test_the_command_reads_on_a_cluster(
    address: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    """With the same output and the same files."""
    assert main(["analyze", str(folder), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    out = tmp_path / "out"
    assert main(["analyze", str(folder), "--json", "--dask", address, "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("findings") == expected.pop("findings") != []
    for name, value in expected.items():
        assert printed[name] == pytest.approx(value), name
    assert len(list(out.iterdir())) == 8


def test_errors_on_a_worker_are_told_as_on_this_machine(
    address: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """With file, line, value and remedy, and without a traceback."""
    monkeypatch.setattr(cluster, "_PART_BYTES", 500_000)
    log = folder / "0.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[3_000] = b"broken\n"
    log.write_bytes(b"".join(lines))
    assert main(["analyze", str(folder), "--dask", address]) == 2
    error = capsys.readouterr().err
    assert error.endswith("; --skip-invalid goes on without such lines\n")
    assert f"line 3001 of {log}: not JSON" in error
    assert main(["analyze", "--json", "--skip-invalid", str(folder), "--dask", address]) == 0
    assert json.loads(capsys.readouterr().out)["num_skipped_lines"] == 1


def test_an_empty_log_is_an_error_on_a_cluster_too(address: str, tmp_path: Path) -> None:
    """With the same things to check."""
    (tmp_path / "run.jsonl").touch()
    with cluster.connect(address) as client, pytest.raises(LogError, match="no record in"):
        cluster.scan_on(client, tmp_path)


def test_a_run_without_a_name_goes_on_in_the_next_part(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it starts over is seen from what comes before."""
    monkeypatch.setattr(cluster, "_PART_BYTES", 4_000)
    log = write_log(
        tmp_path / "run.jsonl",
        (batch(n, run_id=None, timestamp=t + n) for t in (1e9, 2e9) for n in range(30)),
    )
    with cluster.connect(address) as client:
        digest = cluster.scan_on(client, log)
    assert len(digest.runs) == 2
    assert_same(summarize(digest), summarize(scan(log)))


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:9", "tls://127.0.0.1:9", "nonsense://x:1", "foo", ""]
)
def test_a_cluster_that_is_not_there_is_an_error(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its address and what to give."""
    monkeypatch.setattr(cluster, "_CONNECT_TIMEOUT_S", 1)
    with pytest.raises(SettingError, match=rf"no Dask cluster at {address} \(.*tcp://host:8786"):
        cluster.connect(address)


def test_a_cluster_is_reached_where_a_loop_runs(address: str) -> None:
    """As in a notebook."""

    async def cell() -> int:
        with cluster.connect(address) as client:
            return len(client.scheduler_info()["workers"])

    assert asyncio.run(cell()) == 2


def test_the_command_ends_when_there_is_no_cluster(tmp_path: Path) -> None:
    """With one line, and nothing follows it while the interpreter ends."""
    log = write_log(tmp_path / "run.jsonl", records(3))
    done = run("-m", "sched_profiler", "analyze", log, "--dask", "foo")
    assert done.returncode == 2
    assert re.fullmatch(
        r"sched-profiler: no Dask cluster at foo \(missing port number.*\); give the .*\n",
        done.stderr,
    )
