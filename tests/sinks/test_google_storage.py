"""Another store than S3: what fsspec has a client for takes logs and gives them back."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from engine_under_test import serve, until
from s3_server import free_ports

from sched_profiler import BatchProfiler, RemoteSink, Rotation
from sched_profiler.analysis import scan
from sched_profiler.verify import verify

START = "from gcp_storage_emulator.__main__ import main; main()"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a server that speaks as Google Cloud Storage does; return the URL of a bucket."""
    (port,) = free_ports(1)
    where = ["--host=127.0.0.1", f"--port={port}", "--default-bucket=bucket", "--in-memory"]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", START, "start", *where], stdout=log, stderr=log
        )

    def answers() -> bool:
        assert server.poll() is None, (tmp_path / "server.log").read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(answers, 60)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        fsspec.get_filesystem_class("gs").clear_instance_cache()
        yield "gs://bucket"
    finally:
        server.kill()
        server.wait()


def test_a_run_in_another_store_is_complete_and_can_be_read(bucket: str, tmp_path: Path) -> None:
    """Parts, the manifest, and the end; nothing is left in the spool."""
    spool = tmp_path / "spool"
    sink = RemoteSink(
        f"{bucket}/runs/", spool=spool, rotation=Rotation(part_bytes=100_000), close_timeout=60
    )
    profiler = BatchProfiler(sink)
    serve(profiler, 1000)
    assert profiler.close(timeout=90)
    assert list(spool.iterdir()) == []
    (run,) = verify(f"{bucket}/runs/").runs
    assert (run.num_records, run.num_missing, run.end) == (1000, 0, "clean")
    assert scan(f"{bucket}/runs/").num_batches == 1000
