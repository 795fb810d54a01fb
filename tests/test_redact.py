"""Credentials never reach a log line, a manifest, an exception or a repr."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest
from credentials import IN_ENVIRON, IN_URL, URL
from engine_under_test import serve, until

from sched_profiler import BatchProfiler, LogError, RemoteSink, Rotation
from sched_profiler.cli import main
from sched_profiler.redact import is_url, redacted, without_credentials
from sched_profiler.settings import Settings
from sched_profiler.store import Store
from sched_profiler.verify import verify


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Plant credentials in the environment; return all that are planted."""
    for name, value in IN_ENVIRON.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pytest.importorskip("talkative").Talkative, "works", False)
    return (*IN_URL, *IN_ENVIRON.values())


def plain(content: bytes) -> bytes:
    """Return the content of a file without compression."""
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def test_nothing_that_is_written_or_said_holds_a_credential(
    secrets: tuple[str, ...],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through a failing upload, a late one, the commands and all that has a repr."""
    caplog.set_level(logging.DEBUG, "sched_profiler")
    said: list[str] = []
    settings = Settings.from_environ({"VLLM_SCHEDULER_PROFILING_LOG": URL})
    sink = RemoteSink(
        settings.log, spool=tmp_path, rotation=Rotation(part_seconds=0.2), close_timeout=0.5
    )
    profiler = BatchProfiler(sink, facts={"model": URL})
    said += [repr(settings), str(settings), repr(sink), sink.shown, repr(profiler)]
    serve(profiler, 10)
    until(lambda: "uploading is tried again" in caplog.text)
    profiler.close()
    assert main(["upload", str(tmp_path)]) == 1
    assert main(["upload", str(tmp_path), "--to", URL]) == 1
    for command in ("verify", "analyze", "validate"):
        assert main([command, URL]) == 2
    monkeypatch.setenv("VLLM_ENABLE_SCHEDULER_PROFILING", "1")
    monkeypatch.setenv("VLLM_SCHEDULER_PROFILING_LOG", URL)
    monkeypatch.setenv("SCHED_PROFILER_SPOOL", str(tmp_path))
    assert main(["doctor"]) == 1
    said += capsys.readouterr()
    assert "store: talkative://host/logs/: PermissionError: refused" in said[-2]
    with pytest.raises(LogError) as error:
        verify(URL)
    said += [str(error.value), repr(error.value), str(error.value.__cause__)]
    assert "PermissionError: refused" in caplog.text
    monkeypatch.setattr("talkative.Talkative.works", True)
    # What is uploaded compresses it; that would hide what is in it.
    files = {path.name: plain(path.read_bytes()) for path in tmp_path.iterdir()}
    assert main(["upload", str(tmp_path)]) == 0
    assert not list(tmp_path.iterdir())
    store = pytest.importorskip("talkative").MemoryFileSystem.store
    files |= {path: plain(entry.getvalue()) for path, entry in store.items()}
    store.clear()
    assert any(b"talkative://host/logs/" in content for content in files.values())
    said += [caplog.text, *capsys.readouterr(), *files, *map(bytes.decode, files.values())]
    for secret in secrets:
        assert not [text for text in said if secret in text], secret


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a/", "s3://bucket/a/"),
        ("sftp://user:pw@host:22/a", "sftp://host:22/a"),
        ("sftp://user@host/a", "sftp://host/a"),
        ("https://host/a?sig=x#y", "https://host/a"),
        # The name of a container, not of a user.
        ("abfs://container@account.dfs/a", "abfs://container@account.dfs/a"),
        ("abfs://user:pw@account.dfs/a", "abfs://account.dfs/a"),
        # What ought to have been percent-encoded.
        ("s3://key:s3c/ret@pa?ss@bucket/a?b#c", "s3://bucket/a"),
        ("ftp://us@er:s3c/ret@host/a", "ftp://host/a"),
        ("s3://bucket/a@b/", "s3://bucket/a@b/"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("http://[broken", "http://[broken"),
        ("/logs/a@b?c", "/logs/a@b?c"),
    ],
)
def test_a_url_is_shown_without_user_password_and_query(url: str, shown: str) -> None:
    """A path is shown as it is."""
    assert without_credentials(url) == shown
    assert is_url(url) == (not url.startswith("/"))


def test_secrets_are_taken_out_of_any_text() -> None:
    """Also percent-encoded ones; short values are left, for they are none."""
    text = "p%40ssword p@ssword abcd 12"
    environ = {"MY_TOKEN": "abcd", "OTHER_TOKEN": "12", "PATH": "p"}
    assert redacted(text, "ftp://u:p%40ssword@h/", environ=environ) == "*** *** *** 12"


def test_users_and_queries_of_unknown_urls_are_taken_out_as_well() -> None:
    """An error may quote an address that nobody here has seen."""
    text = "GET https://me:pw@host/path?sig=1 and 'ftp://me@host/a' failed, s3://bucket/a did not"
    expected = "GET https://***@host/path?*** and 'ftp://***@host/a' failed, s3://bucket/a did not"
    assert redacted(text, environ={}) == expected


def test_a_store_shows_no_credential(secrets: tuple[str, ...]) -> None:
    """Neither its URL nor that of a file in it."""
    store = Store(URL)
    assert store.url == "talkative://host/logs/"
    for secret in secrets:
        assert secret not in store.name("/logs/x")
