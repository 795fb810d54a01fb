"""Records reach a store by way of the spool; one that is slow or dead costs the engine nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from engine_under_test import engine, only_file, serve, until
from s3_server import S3Server

from sched_profiler import BatchProfiler, JsonlSink, RemoteSink, Rotation, SettingError
from sched_profiler.cli import main
from sched_profiler.doctor import Surroundings, examine
from sched_profiler.errors import UploadError, counted
from sched_profiler.log_names import LogNames, Part
from sched_profiler.manifest import read_manifest
from sched_profiler.reader import read_records
from sched_profiler.sinks import remote
from sched_profiler.sinks.upload import upload_rest
from sched_profiler.store import Store
from sched_profiler.verify import verify

SOON = Rotation(part_seconds=0.2, keep_bytes=1 << 30, compress="gzip")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Return a server that speaks S3; a test that kills it starts it again."""
    started = S3Server(tmp_path_factory.mktemp("s3"))
    started.start()
    yield started
    started.kill()


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Return the server, with its address and a credential in the environment."""
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait for long between two tries."""
    monkeypatch.setattr(remote, "_FIRST_RETRY_S", 0.1)
    monkeypatch.setattr(remote, "_LONGEST_RETRY_S", 0.5)
    # Else the client tries for long before it says that something is wrong.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def is_empty(spool: Path) -> bool:
    """Tell whether nothing is left in a spool."""
    return list(spool.iterdir()) == []


def test_nothing_happens_before_the_first_record(tmp_path: Path, memory: Any) -> None:
    """The sink can be made before the process of the engine exists."""
    before = threading.active_count()
    sink = RemoteSink("memory://logs/", spool=tmp_path / "spool")
    sink.flush()
    sink.close()
    assert threading.active_count() == before
    assert not (tmp_path / "spool").exists()


def test_records_arrive_as_compressed_parts_with_a_manifest(tmp_path: Path, memory: Any) -> None:
    """And nothing of them is left here."""
    sink = RemoteSink("memory://logs/{dp_rank}", spool=tmp_path, rotation=SOON)
    with BatchProfiler(sink, dp_rank=3) as profiler:
        for _ in range(3):
            serve(profiler, 100)
            time.sleep(0.7)
    names = sorted(memory.find("/logs/3"))
    *parts, manifest = names
    # As many as there were pauses, unless the machine was busy for as long.
    assert len(parts) >= 2
    assert all(f"-3-{profiler.run_id}-" in name and name.endswith(".jsonl.gz") for name in parts)
    assert manifest.endswith(f"{profiler.run_id}.run.json")
    assert is_empty(tmp_path)
    assert [r.batch_id for r in read_records("memory://logs/3/")] == list(range(300))
    (run,) = verify("memory://logs/").runs
    assert (run.num_records, run.num_missing, run.end) == (300, 0, "clean")


def test_a_sink_that_is_closed_goes_on_and_may_be_closed_again(tmp_path: Path, memory: Any) -> None:
    """A signal closes it, the engine goes on for a while, and closes it at last."""
    sink = RemoteSink("memory://again/", spool=tmp_path)
    profiler = BatchProfiler(sink, background=False)
    for _ in range(2):
        serve(profiler, 10)
        sink.close()
        assert is_empty(tmp_path)
    assert profiler.close()
    assert is_empty(tmp_path)
    (run,) = verify("memory://again/").runs
    assert (run.num_records, run.num_missing, run.end) == (20, 0, "clean")


def test_no_thread_of_ours_has_a_lower_priority_than_the_engine(
    tmp_path: Path, memory: Any
) -> None:
    """Without a processor it would keep the interpreter's lock, and the engine would wait."""
    with BatchProfiler(RemoteSink("memory://x/", spool=tmp_path, rotation=SOON)) as profiler:
        serve(profiler, 100)
        until(lambda: memory.glob("/x/*.jsonl.gz"))
        ours = [t for t in threading.enumerate() if t.name.startswith("sched-profiler")]
        assert {"sched-profiler", "sched-profiler-parts", "sched-profiler-upload"} <= {
            thread.name for thread in ours
        }
        found = {os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) for thread in ours}
        assert found == {os.getpriority(os.PRIO_PROCESS, 0)}


def test_a_url_of_a_file_gives_the_objects_its_name(tmp_path: Path, memory: Any) -> None:
    """They are beside each other all the same."""
    with BatchProfiler(RemoteSink("memory://a/b/run.jsonl", spool=tmp_path)) as profiler:
        serve(profiler, 1)
    assert all(name.startswith("/a/b/run.") for name in memory.find("/a"))
    assert len(list(read_records("memory://a/b/run.*.jsonl.gz"))) == 1


def test_the_spool_is_for_nobody_else_and_files_follow_the_umask(
    tmp_path: Path, memory: Any
) -> None:
    """Folders are 0700; who may read a file of an old spool is the operator's decision."""
    before = os.umask(0o027)
    try:
        spool = tmp_path / "a" / "spool"
        profiler = BatchProfiler(RemoteSink("memory://x/", spool=spool))
        serve(profiler, 1)
        assert profiler.flush(5)
        assert spool.stat().st_mode & 0o777 == 0o700
        files = [path for path in spool.iterdir() if path.suffix == ".jsonl"]
        assert [path.stat().st_mode & 0o777 for path in files] == [0o640]
        profiler.close()
    finally:
        os.umask(before)


def test_what_a_live_run_has_not_uploaded_yet_is_on_its_way(
    tmp_path: Path,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is not missing, unless the run gives no sign of life for long: its machine may be lost."""
    monkeypatch.setattr(remote, "_MANIFEST_S", 0.0)
    rotation = Rotation(part_bytes=50_000, part_seconds=3600)
    url = "s3://bucket/live/"
    with BatchProfiler(RemoteSink(url, spool=tmp_path, rotation=rotation)) as profiler:
        serve(profiler, 1)
        assert profiler.flush(30)
        until(lambda: s3.client().glob("bucket/live/*.run.json"), 60)
        assert main(["verify", url]) == 2
        assert "has not uploaded its first part yet" in capsys.readouterr().err
        serve(profiler, 299)
        assert profiler.flush(30)
        until(lambda: s3.client().glob("bucket/live/*.jsonl"), 60)
        until(lambda: verify(url).runs[0].num_waiting > 0, 60)
        (run,) = verify(url).runs
        assert run.num_records + run.num_waiting == 300
        assert (run.num_missing, run.num_unexplained, run.end) == (0, 0, "none")
        assert main(["verify", url]) == 0
        monkeypatch.setattr("sched_profiler.verify._ALIVE_S", 0.0)
        assert verify(url).num_unexplained == run.num_waiting
        assert main(["verify", url]) == 1
    (run,) = verify(url).runs
    assert (run.num_records, run.num_waiting, run.num_missing, run.end) == (300, 0, 0, "clean")


def test_the_oldest_parts_give_way_when_the_spool_is_full(
    tmp_path: Path, s3: S3Server, caplog: pytest.LogCaptureFixture, impatient: None
) -> None:
    """It is said, and counted: verify explains the gap."""
    rotation = Rotation(part_bytes=20_000, keep_bytes=100_000)
    sink = RemoteSink("s3://no-such-bucket/", spool=tmp_path, rotation=rotation, close_timeout=1)
    with BatchProfiler(sink) as profiler:
        serve(profiler, 1000)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) <= 100_000
    assert caplog.text.count("is full: the oldest records give way") == 1
    (run,) = verify(tmp_path).runs
    assert run.num_removed == run.num_missing > 800
    assert run.num_unexplained == 0
    assert run.num_records + run.num_removed == 1000


def test_a_part_that_is_on_its_way_does_not_give_way(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """It would be counted as removed, and arrive: a loss of others would be explained by it."""
    may_go_on, is_on_its_way = threading.Event(), threading.Event()

    def put_file(store: Any, path: str, target: str) -> None:
        content = Path(path).read_bytes()
        if path.endswith(".gz"):
            is_on_its_way.set()
            may_go_on.wait()
        store.pipe_file(target, content)

    monkeypatch.setattr(type(memory), "put_file", put_file)
    rotation = Rotation(part_bytes=20_000, keep_bytes=40_000, compress="gzip")
    spool = tmp_path / "spool"
    with BatchProfiler(RemoteSink("memory://slow/", spool=spool, rotation=rotation)) as profiler:
        serve(profiler, 60)
        is_on_its_way.wait()
        serve(profiler, 3000)
        # A flush brings to the manifest what gave way since the last one.
        manifest = only_file(spool, "*.run.json")
        until(lambda: profiler.flush() and read_manifest(manifest).num_removed_records > 1000)
        may_go_on.set()
    (run,) = verify("memory://slow/").runs
    assert run.num_missing == run.num_removed > 1000
    assert run.num_records + run.num_removed == 3060


def test_a_full_day_on_a_real_server(
    tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two engines with the same setting, read back as one; nothing is missing or double."""
    sinks = [RemoteSink("s3://bucket/day/", spool=tmp_path, rotation=SOON) for _ in range(2)]
    profilers = [BatchProfiler(sink, dp_rank=rank) for rank, sink in enumerate(sinks)]
    for _ in range(5):
        for profiler in profilers:
            serve(profiler, 200)
        time.sleep(0.3)
    for profiler in profilers:
        assert profiler.close()
    report = verify("s3://bucket/day/")
    assert [(run.num_records, run.num_missing, run.num_duplicates) for run in report.runs] == [
        (1000, 0, 0)
    ] * 2
    assert {run.end for run in report.runs} == {"clean"}
    assert is_empty(tmp_path)
    assert main(["verify", "s3://bucket/day/"]) == 0
    assert main(["analyze", "s3://bucket/day/"]) == 0
    assert "2,000 batches of 2 runs" in capsys.readouterr().out
    # The times at which parts began come first in the names.
    names = [path for path in s3.client().find("bucket/day") if "run.json" not in path]
    assert len(names) >= 4
    assert names == sorted(names)


def test_a_server_that_is_killed_in_an_upload_and_started_again_gets_every_record(
    tmp_path: Path,
    s3: S3Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    impatient: None,
) -> None:
    """Records wait in the spool meanwhile."""
    uploading = threading.Event()
    put = Store.put

    def noticed_put(store: Store, file: Path, name: str) -> None:
        if file.stat().st_size > 1 << 20:
            uploading.set()
        put(store, file, name)

    monkeypatch.setattr(Store, "put", noticed_put)
    rotation = Rotation(part_bytes=20 << 20, part_seconds=1)
    sink = RemoteSink("s3://bucket/killed/", spool=tmp_path, rotation=rotation, close_timeout=60)
    profiler = BatchProfiler(sink)
    try:
        serve(profiler, 1000, num_decodes=5000)
        assert profiler.flush(20)
        assert uploading.wait(30)
        s3.kill()
        serve(profiler, 600)
        until(lambda: "uploading is tried again" in caplog.text, 60)
    finally:
        s3.kill()
        s3.start()
    assert profiler.close(timeout=90)
    (run,) = verify("s3://bucket/killed/").runs
    assert (run.num_records, run.num_missing, run.num_duplicates) == (1600, 0, 0)
    assert caplog.text.count("uploading is tried again") == 1
    assert "is reached again after" in caplog.text
    assert is_empty(tmp_path)


@pytest.mark.parametrize("end", ["pass", "time.sleep(2)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_what_is_left_at_the_end_of_the_process_is_uploaded_without_a_close(
    tmp_path: Path, s3: S3Server, end: str
) -> None:
    """Although the interpreter takes no new work for its threads by then.

    Nothing is logged, unless a busy server made it ask twice. One that is busier than the end can
    wait is told of, and `upload` brings the rest; not three times in a row. Python 3.12 does not
    even start a thread by then: if no record was taken before, all wait in the spool.
    """
    code = f"""
import os, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from engine_under_test import serve
from sched_profiler import BatchProfiler, RemoteSink
profiler = BatchProfiler(RemoteSink("s3://bucket/" + sys.argv[1], spool=sys.argv[1]))
serve(profiler, 100)
{end}
"""
    starts_no_thread = end == "pass" and sys.version_info[:2] == (3, 12)
    told = ["records wait in .* is tried again: ", "s3://.* is reached again "]
    for attempt in range(3):
        spool = tmp_path / str(attempt)
        spool.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code, str(spool)], capture_output=True, text=True, check=False
        )
        assert done.returncode == (-signal.SIGTERM if "kill" in end else 0)
        arrived = is_empty(spool)
        if not arrived:
            assert main(["upload", str(spool)]) == 0
        too_late = [] if arrived else ["s3://.* is not reached in time: 1 parts stay in "]
        for line in done.stderr.splitlines():
            assert re.match("|".join(told + too_late), line)
        assert is_empty(spool)
        (run,) = verify(f"s3://bucket/{spool}").runs
        assert (run.num_records, run.end) == (100, "clean")
        if arrived or starts_no_thread:
            return
    pytest.fail("it has left everything to `upload` each time")


@pytest.mark.parametrize(
    ("url", "environ", "reason"),
    [
        ("s3://bucket/denied/", {"AWS_SECRET_ACCESS_KEY": "wrong-secret-key-000"}, "Permission"),
        ("s3://no-such-bucket/x/", {}, "bucket does not exist"),
    ],
)
def test_what_a_store_refuses_stays_in_the_spool_until_upload_is_told_where_to(  # noqa: PLR0917 - fixtures
    tmp_path: Path,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    impatient: None,
    url: str,
    environ: dict[str, str],
    reason: str,
) -> None:
    """Close is quick, and one line names what is left and what to do."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    sink = RemoteSink(url, spool=tmp_path, rotation=SOON, close_timeout=1)
    profiler = BatchProfiler(sink)
    serve(profiler, 100)
    until(lambda: "uploading is tried again" in caplog.text)
    began = time.monotonic()
    assert profiler.close()
    assert time.monotonic() - began < 8
    assert reason in caplog.text
    left = [path.name for path in tmp_path.glob("*.jsonl.gz")]
    assert left
    (line,) = [message for message in caplog.messages if "is not reached in time" in message]
    assert all(name in line for name in left)
    assert f"sched-profiler upload {tmp_path}" in line
    if "no-such" in url:
        assert main(["upload", str(tmp_path)]) == 1
        assert "bucket does not exist" in capsys.readouterr().out
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    target = f"s3://bucket/rescued/{profiler.run_id}/"
    assert main(["upload", str(tmp_path), "--to", target]) == 0
    assert f"{counted(len(left), 'part')} uploaded" in capsys.readouterr().out
    assert is_empty(tmp_path)
    assert len(list(read_records(target))) == 100


@pytest.mark.parametrize(
    ("bucket", "environ", "status", "text"),
    [
        ("bucket", {}, "ok", "takes what is uploaded"),
        ("bucket", {"AWS_SECRET_ACCESS_KEY": "wrong-secret-key-000"}, "problem", "Permission"),
        ("no-such-bucket", {}, "problem", "bucket does not exist"),
    ],
    ids=["good", "credentials", "bucket"],
)
def test_doctor_tells_whether_a_store_takes_records(  # noqa: PLR0917 - fixtures
    tmp_path: Path,
    s3: S3Server,
    impatient: None,
    bucket: str,
    environ: dict[str, str],
    status: str,
    text: str,
) -> None:
    """With the credentials that the engine will have, and in the words of the store."""
    asked = {
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": f"s3://{bucket}/doctor/",
        "SCHED_PROFILER_SPOOL": str(tmp_path),
    }
    found = list(examine(Surroundings(os.environ | environ | asked, tmp_path)))
    (finding,) = [finding for finding in found if finding.subject == "store"]
    assert finding.status == status
    assert text in finding.text
    assert ("check bucket, credentials" in (finding.remedy or "")) == (status == "problem")
    assert "wrong-secret" not in str(found)
    assert not s3.client().exists("bucket/doctor/.sched-profiler-doctor")


def test_each_try_waits_twice_as_long_up_to_a_minute_and_not_as_long_as_others(
    tmp_path: Path,
) -> None:
    """Engines that failed together do not come back together."""
    sinks = [RemoteSink("memory://x/", spool=tmp_path) for _ in range(200)]
    for longest in (1, 2, 4, 8, 16, 32, 60, 60, 60):
        waits = [sink._failed(OSError("gone")) for sink in sinks]
        assert longest / 2 <= min(waits) < longest * 0.6
        assert longest * 0.9 < max(waits) <= longest
    sinks[0]._succeeded()
    assert sinks[0]._failed(OSError("gone")) <= 1


def test_a_part_that_arrives_cut_short_stays_until_all_of_it_arrives(
    tmp_path: Path,
    memory: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    impatient: None,
) -> None:
    """The store says what it has, and not that something is wrong."""
    is_whole = threading.Event()

    def put_file(store: Any, path: str, target: str) -> None:
        content = Path(path).read_bytes()
        whole = is_whole.is_set() or path.endswith(".run.json")
        store.pipe_file(target, content if whole else content[:-1])

    monkeypatch.setattr(type(memory), "put_file", put_file)
    (tmp_path / "part").write_bytes(bytes(100))
    with pytest.raises(UploadError, match="memory://cut/: 99 of the 100 bytes of part arrived"):
        Store("memory://cut/").put(tmp_path / "part", "part")
    memory.store.clear()
    spool = tmp_path / "spool"
    with BatchProfiler(RemoteSink("memory://cut/", spool=spool, rotation=SOON)) as profiler:
        serve(profiler, 100)
        until(lambda: "bytes of scheduler_profiling.2" in caplog.text)
        assert list(spool.glob("*.jsonl.gz"))
        is_whole.set()
        until(lambda: not list(spool.glob("*.jsonl.gz")))
    (run,) = verify("memory://cut/").runs
    assert (run.num_records, run.num_missing, run.end) == (100, 0, "clean")
    assert is_empty(spool)


def test_a_connection_that_hangs_costs_the_engine_nothing(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Handing over stays fast, close ends in time, and all is in the spool."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)  # takes connections, and never says a word
        port = listener.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        fsspec.filesystem("s3").clear_instance_cache()
        sink = RemoteSink("s3://bucket/x/", spool=tmp_path, rotation=SOON, close_timeout=1)
        profiler = BatchProfiler(sink)
        serve(profiler, 100)
        assert profiler.flush(5)
        time.sleep(1.5)  # by now an upload hangs
        began = time.monotonic()
        serve(profiler, 1000)
        assert time.monotonic() - began < 3
        began = time.monotonic()
        assert profiler.close()
        assert time.monotonic() - began < 8
    fsspec.filesystem("s3").clear_instance_cache()
    assert "is not reached in time" in caplog.text
    (run,) = verify(tmp_path).runs
    assert (run.num_records, run.num_missing, run.end) == (1100, 0, "clean")


def test_what_a_killed_engine_left_is_uploaded_by_the_next_start(
    tmp_path: Path, s3: S3Server
) -> None:
    """Also the part that had been growing, and the manifest, which shows no end."""
    code = (
        f"RemoteSink('s3://bucket/next/', spool={str(tmp_path)!r}, "
        "rotation=Rotation(part_seconds=0.7, compress='gzip'))"
    )
    with engine(code) as first:
        time.sleep(2)
        num_handed_over = first.killed()
    assert list(tmp_path.glob("*.jsonl*"))
    manifest = only_file(tmp_path, "*.run.json")
    # Its own part is one only: on a busy machine an upload takes seconds, and the end waits for 5.
    with engine(code.replace("0.7", "600")) as second:
        until(lambda: not manifest.exists())
        printed, _ = second.ended()
    assert "closed True" in printed
    assert is_empty(tmp_path)
    killed, clean = verify("s3://bucket/next/").runs
    if killed.end == "clean":
        killed, clean = clean, killed
    assert (killed.end, clean.end) == ("none", "clean")
    assert killed.num_missing == clean.num_missing == 0
    assert num_handed_over - killed.num_records < 20_000


def test_what_a_killed_engine_left_is_uploaded_by_the_command(
    tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """To where it was bound for; a run that still lives is left to its own process."""
    code = f"RemoteSink('s3://bucket/command/', spool={str(tmp_path)!r})"
    with engine(code) as one:
        until(lambda: list(tmp_path.glob("*.run.json")))
        assert main(["upload", str(tmp_path)]) == 1
        assert "still running; its own process uploads it" in capsys.readouterr().out
        time.sleep(0.5)
        one.killed()
    assert main(["upload", str(tmp_path)]) == 0
    assert "1 part uploaded\n" in capsys.readouterr().out
    assert is_empty(tmp_path)
    (run,) = verify("s3://bucket/command/").runs
    assert run.num_missing == 0
    assert run.end == "none"


def test_a_part_that_is_closed_in_the_moment_of_an_upload_is_not_overlooked(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is not done: its manifest stays, and with it the knowledge of where it is bound."""
    names = LogNames.of_run(str(tmp_path / "log.jsonl"), label="r", values={})
    growing, list_parts = names.current(rotates=True), LogNames.parts
    growing.touch()
    names.manifest.touch()

    def parts(self: LogNames) -> list[Part]:
        found = list_parts(self)
        growing.rename(names.closed(10**18, 0))
        return found

    monkeypatch.setattr(LogNames, "parts", parts)
    assert not upload_rest(names, Store("memory://moment/"))
    assert names.manifest.exists()


def test_a_run_bound_for_another_place_does_not_keep_ours_back(
    tmp_path: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left from before may have nowhere to go."""
    gone = RemoteSink("s3://no-such-bucket/", spool=tmp_path, rotation=SOON, close_timeout=0.1)
    with BatchProfiler(gone) as before:
        serve(before, 10)
    sink = RemoteSink("s3://bucket/ours/", spool=tmp_path, rotation=SOON)
    with BatchProfiler(sink) as profiler:
        serve(profiler, 10)
        until(lambda: f"{before.run_id} stays in" in caplog.text)
        until(lambda: not list(tmp_path.glob(f"*-{profiler.run_id}-*")))
    assert len(list(read_records("s3://bucket/ours/"))) == 10
    assert list(tmp_path.glob(f"*{before.run_id}*.gz"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://x/", "nonsense:// is no kind of URL that fsspec knows; write it like"),
        ("s3://key:s3cret@bucket/x/", "names a bucket and no user"),
        ("s3://key:s3c/ret@bucket/x/", "names a bucket and no user"),
        ("logs/x.jsonl", "logs/x.jsonl is no URL; write it like s3://bucket/prefix/"),
        ("memory://{rank}/", r"\{rank\}"),
    ],
)
def test_a_url_that_cannot_be_used_is_an_error_at_once(url: str, message: str) -> None:
    """When the sink is made, not when the first part is closed."""
    with pytest.raises(SettingError, match=message) as refused:
        RemoteSink(url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(("url", "extra"), [("s3://bucket/", "s3"), ("memory://x/", "remote")])
def test_what_is_not_installed_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, url: str, extra: str
) -> None:
    """With the remedy."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(SettingError, match=rf'pip install "\.\[{extra}\]"'):
        RemoteSink(url)


def test_parts_must_be_closed_to_be_uploaded() -> None:
    """A rotation that closes none would never upload any."""
    with pytest.raises(SettingError, match="set part_seconds"):
        RemoteSink("memory://x/", rotation=Rotation())


def test_upload_leaves_a_log_without_rotation_alone(
    tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file may be another run's as well; and one with rotation needs to be told where to."""
    with BatchProfiler(JsonlSink(tmp_path / "plain.jsonl")) as profiler:
        serve(profiler, 1)
    sink = JsonlSink(tmp_path / "parts.jsonl", rotation=Rotation(part_seconds=60))
    with BatchProfiler(sink) as profiler:
        serve(profiler, 1)
    before = {path.name for path in tmp_path.glob("plain.*")}
    assert main(["upload", str(tmp_path)]) == 1
    assert "bound for no URL; say where with --to" in capsys.readouterr().out
    assert main(["upload", str(tmp_path), "--to", "memory://there/"]) == 1
    assert "without rotation has no parts" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == before
    assert len(list(read_records("memory://there/"))) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [(False, "is no folder; name a spool"), (True, "is in it; name a spool")],
)
def test_a_folder_that_is_no_spool_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, make: bool, message: str
) -> None:
    """The command says so and ends with 2."""
    folder = tmp_path / "spool"
    if make:
        folder.mkdir()
    assert main(["upload", str(folder)]) == 2
    assert message in capsys.readouterr().err


def test_where_no_thread_can_be_started_records_wait_in_the_spool(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in Python 3.12 when the main thread has ended: none is lost, and it is said where."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    sink = RemoteSink("memory://bucket/late/", spool=tmp_path)
    with monkeypatch.context() as patch, BatchProfiler(sink, background=False) as profiler:
        patch.setattr(threading.Thread, "start", start)
        serve(profiler, 3)
        profiler.close()
    assert memory.find("bucket/late") == []
    assert "1 parts stay in" in caplog.text
    assert main(["upload", str(tmp_path)]) == 0
    assert is_empty(tmp_path)
    (run,) = verify("memory://bucket/late/").runs
    assert (run.num_records, run.end) == (3, "clean")
