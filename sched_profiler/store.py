"""Reads and writes files behind a URL, through fsspec: S3, Google Cloud Storage, Azure and others.

Every failure becomes an error of ours whose message holds no credential.
"""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import os
import posixpath
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from sched_profiler.errors import (
    LogError,
    SchedProfilerError,
    SettingError,
    UploadError,
    how_to_install,
)
from sched_profiler.redact import is_url, redacted, split_url, without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Store", "require", "start_loop"]

# What pip calls the extra, where fsspec needs one more package for a kind of URL.
_EXTRAS = {"s3": "s3", "s3a": "s3"}
# Where a file needs its folder; object stores have none, and some would take it for a bucket.
_WITH_FOLDERS = ("dbfs", "file", "ftp", "hdfs", "local", "sftp", "smb", "ssh", "webhdfs")
_WITHOUT_CREDENTIALS = ("s3", "s3a", "gs", "gcs")

_REMEDY = (
    "; check the URL, the network, and the credentials that the client of this storage looks for"
)

_BUFFER_BYTES = 1 << 20

# Where nobody set logging up, what they log would go to standard error, tracebacks and addresses
# and all. What matters of it becomes an error of ours.
for _client in ("adlfs", "fsspec", "gcsfs", "s3fs"):
    logging.getLogger(_client).addHandler(logging.NullHandler())


def require(url: str) -> None:
    """Check that URLs like this can be used here; nothing is asked of the network.

    Raises:
        SettingError: if a package is not installed, or the URL holds a credential that nobody would
            read.
    """
    if not is_url(url):
        raise SettingError(f"{url} is no URL; write it like s3://bucket/prefix/")
    parts = split_url(url)
    scheme = parts.scheme.lower()
    if scheme in _WITHOUT_CREDENTIALS and parts.user:
        raise SettingError(
            f"a {scheme}:// URL names a bucket and no user; give credentials in the environment, "
            "where the client of that storage looks for them"
        )
    remedy = f"install it with: {how_to_install(_EXTRAS.get(scheme, 'remote'))}"
    try:
        import fsspec  # noqa: PLC0415 - no part of the base install

        if scheme not in _EXTRAS:
            remedy = "install the package that fsspec names"
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise SettingError(
            f"{scheme}:// URLs need a package that is not installed ({error}); {remedy}"
        ) from None
    except ValueError:
        raise SettingError(
            f"{scheme}:// is no kind of URL that fsspec knows; write it like s3://bucket/prefix/"
        ) from None


class Store:
    """A place behind a URL: a file, a folder or prefix, or a pattern.

    Attributes:
        url: the URL without credentials.
    """

    def __init__(self, url: str) -> None:
        """Name a place; nothing is asked of the network before the first call.

        Raises:
            SettingError: if a package is not installed.
        """
        require(url)
        self.url = without_credentials(url)
        self._secret_url = url
        self._fs: Any = None
        self._path = ""

    def at(self, url: str) -> Store:
        """Return another place that is reached in the same way; its URL has no credentials."""
        other = Store(url)
        other._secret_url = self._secret_url
        with self._errors(SettingError, url):
            other._fs = self._opened()
            other._path = other._fs._strip_protocol(url)  # noqa: SLF001 - fsspec has no other way
        return other

    def find(self) -> list[tuple[str, int]]:
        """Return the paths of the files that the URL stands for, and their sizes in bytes.

        Raises:
            LogError: if there is nothing, or it cannot be listed.
        """
        with self._errors(LogError):
            fs = self._opened()
            fs.invalidate_cache()
            if any(character in self._path for character in "*?["):
                found = fs.glob(self._path, detail=True)
            elif self.url.endswith("/") or fs.isdir(self._path):
                found = fs.find(self._path, detail=True)
            else:
                found = {self._path: fs.info(self._path)}
        return [
            (path, info["size"] or 0)
            for path, info in sorted(found.items())
            if info["type"] == "file"
        ]

    def beside(self, path: str, ending: str) -> list[str]:
        """Return the paths of files in the folder of `path` whose names end so.

        Raises:
            LogError: if the folder cannot be listed.
        """
        with self._errors(LogError):
            return sorted(self._opened().glob(f"{posixpath.dirname(path)}/*{ending}"))

    def name(self, path: str) -> str:
        """Return a path as a URL without credentials."""
        return without_credentials(str(self._opened().unstrip_protocol(path)))

    def open(self, path: str) -> tuple[str, BinaryIO]:
        """Open a file for reading; return its path as well, for objects stay where they are.

        Raises:
            LogError: if it cannot be opened.
        """
        with self._errors(LogError, path):
            # Lines cannot be read up to some length from what fsspec opens.
            return path, io.BufferedReader(self._opened().open(path, "rb"), _BUFFER_BYTES)

    @contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """Turn failures of a block that reads a file into errors of ours.

        What the client has kept of the listing is forgotten then: the file may be another now.
        """
        with self._errors(LogError, path):
            try:
                yield
            except BaseException:
                self._opened().invalidate_cache()
                raise

    def put(self, file: Path, name: str) -> None:
        """Upload a file under the URL, and confirm that all of it arrived.

        Raises:
            UploadError: if it did not.
            FileNotFoundError: if the file is no longer there.
        """
        size = file.stat().st_size
        target = posixpath.join(self._target(), name)
        with self._errors(UploadError):
            fs = self._opened()
            if self.url.partition("://")[0].lower() in _WITH_FOLDERS:
                fs.makedirs(posixpath.dirname(target), exist_ok=True)
            fs.put_file(str(file), target)
            fs.invalidate_cache()
            arrived = fs.info(target)["size"]
        if arrived != size:
            raise UploadError(f"{self.url}: {arrived} of the {size} bytes of {name} arrived")

    def remove(self, name: str) -> None:
        """Remove a file that was put under the URL.

        Raises:
            UploadError: if it cannot be removed.
        """
        with self._errors(UploadError):
            self._opened().rm_file(posixpath.join(self._target(), name))

    def leave_open(self) -> None:
        """Let the client be as it is when the interpreter ends; it would complain of being left."""
        _own_loop(os.getpid())[1].append(self._fs)

    def _target(self) -> str:
        with self._errors(UploadError):
            self._opened()
        return self._path.rstrip("/")

    def _opened(self) -> Any:
        if self._fs is None:
            import fsspec  # noqa: PLC0415 - no part of the base install

            options: dict[str, Any] = {}
            kind = fsspec.get_filesystem_class(self._secret_url.partition("://")[0].lower())
            if kind.async_impl:
                options = {"loop": _own_loop(os.getpid())[0], "skip_instance_cache": True}
            self._fs, self._path = fsspec.core.url_to_fs(self._secret_url, **options)
        return self._fs

    @contextmanager
    def _errors(self, kind: type[SchedProfilerError], path: str = "") -> Iterator[None]:
        try:
            yield
        except SchedProfilerError:
            raise
        except Exception as error:  # noqa: BLE001 - clients of storage raise all kinds of errors
            # What is uploaded is tried again, and whoever tells of it says what becomes of it.
            remedy = _REMEDY if kind is LogError else ""
            raise kind(f"{self._shown(path)}: {self._reason(error)}{remedy}") from None

    def _shown(self, path: str) -> str:
        return redacted(self.url if not path else self.name(path), self._secret_url)

    def _reason(self, error: Exception) -> str:
        text = " ".join(str(error).split()) or "no reason given"
        return redacted(f"{type(error).__name__}: {text}", self._secret_url)[:300]


def start_loop() -> None:
    """Start the thread that all stores need, as long as a thread can be started."""
    _own_loop(os.getpid())


@functools.cache
def _own_loop(_pid: int) -> tuple[asyncio.AbstractEventLoop, list[Any]]:
    """Return the event loop on which clients of storage run in this process, and what it keeps.

    It is not the one that fsspec would share with the engine.
    """
    loop, kept = asyncio.new_event_loop(), list[Any]()
    loop.set_default_executor(_Threads())
    # What a thread that is never joined holds is never taken apart.
    threading.Thread(
        target=_run_for_ever, args=(loop, kept), name="sched-profiler-io", daemon=True
    ).start()
    return loop, kept


def _run_for_ever(loop: asyncio.AbstractEventLoop, kept: list[Any]) -> None:
    loop.run_forever()
    kept.clear()


class _Threads(ThreadPoolExecutor):
    """Runs each call on a thread of its own, also while the interpreter ends.

    Its base refuses that from the moment in which the main thread has ended: before the last action
    of a profiler that nobody closed, which is to upload what is left.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the result gets it
                future.set_exception(error)

        try:
            threading.Thread(target=run, name="sched-profiler-io", daemon=True).start()
        except RuntimeError:
            # Python 3.12 starts none once the main thread has ended. Then the loop waits for it.
            run()
        return future
