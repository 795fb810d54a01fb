"""Logs behind URLs, on a real server that speaks S3."""

from __future__ import annotations

import gzip
import re
from typing import TYPE_CHECKING

import attrs
import pytest
import zstandard
from s3_server import S3Server
from synthetic import records, write_log
from test_request_trace import RECORD
from test_stream import assert_same

from sched_profiler.analysis import convert, load, load_requests, scan, summarize
from sched_profiler.cli import main
from sched_profiler.request_record import encode_request
from sched_profiler.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Run a server with an empty bucket."""
    started = S3Server(tmp_path)
    for name, value in started.environ.items():
        monkeypatch.setenv(name, value)
    started.start()
    yield started
    started.kill()


def test_a_store_that_cannot_be_reached_is_told_with_what_to_check(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the client of the storage makes of it."""
    assert main(["verify", "http://127.0.0.1:9/run.jsonl"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sched-profiler: http://127.0.0.1:9/run.jsonl: ")
    assert error.endswith(
        "; check the URL, the network, and the credentials that the client of "
        "this storage looks for\n"
    )


def test_logs_in_a_bucket_are_read_whatever_they_are_made_of(
    server: S3Server, tmp_path: Path
) -> None:
    """By everything that reads logs: parts as they are, compressed either way, and as Parquet."""
    written = list(records(3_000))
    local = tmp_path / "logs"
    local.mkdir()
    whole = write_log(local / "all.jsonl", written)
    parts = [
        write_log(
            tmp_path / f"{number}.jsonl", written[800 * number :][: 800 if number < 3 else None]
        )
        for number in range(4)
    ]
    convert(parts[2], out=tmp_path / "2.parquet")
    client = server.client()
    for name, data in (
        ("0.jsonl.gz", gzip.compress(parts[0].read_bytes())),
        ("1.jsonl.zst", zstandard.compress(parts[1].read_bytes())),
        ("day/3.jsonl", parts[3].read_bytes()),
        ("day/2.parquet", (tmp_path / "2.parquet").read_bytes()),
    ):
        client.pipe(f"bucket/logs/{name}", data)
    url = "s3://bucket/logs/"
    seen: list[tuple[int, int]] = []
    digest = scan(url, progress=lambda done, total: seen.append((done, total)))
    assert_same(summarize(digest), summarize(scan(whole)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert len(load(url)) == 3_000
    assert scan("s3://bucket/logs/*/*.parquet").num_batches == 800
    (run,) = verify(url).runs
    assert (run.num_records, run.num_missing) == (3_000, 0)
    convert(url, out=tmp_path / "back.parquet")
    assert_same(summarize(scan(tmp_path / "back.parquet")), summarize(digest))


def test_a_bucket_is_watched_as_a_folder_is(
    server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `top`, which says where it looks, and what is missing there."""
    url = "s3://bucket/logs/"
    assert main(["top", url, "--once"]) == 2
    assert f"no record in {url}" in capsys.readouterr().err
    log = write_log(tmp_path / "run.jsonl", records(500, run_id="in the bucket", dp_rank=3))
    server.client().pipe("bucket/logs/run.jsonl.gz", gzip.compress(log.read_bytes()))
    assert main(["top", url, "--once"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"sched-profiler top  {url}\n")
    assert re.search(r"\nin the bucket +3 ", printed)


def test_request_traces_in_a_bucket_are_read(server: S3Server, tmp_path: Path) -> None:
    """Beside the logs they are of, compressed or not; `convert` brings them here."""
    log = write_log(tmp_path / "run.jsonl", records(50, run_id="r1", dp_rank=0))
    requests = [attrs.evolve(RECORD, run_id="r1", request_number=number) for number in range(4)]
    lines = [*map(encode_request, requests)]
    client = server.client()
    client.pipe("bucket/logs/run.jsonl", log.read_bytes())
    client.pipe("bucket/logs/run.requests.jsonl", lines[3] + lines[2])
    client.pipe("bucket/logs/old.requests.jsonl.gz", gzip.compress(lines[1] + lines[0]))
    assert load_requests("s3://bucket/logs/") == {("r1", 0): requests}
    convert("s3://bucket/logs/", out=f"{tmp_path}/pq/")
    assert load_requests(tmp_path / "pq") == {("r1", 0): requests}
