"""Sends records to a store behind a URL, by way of a spool on the local disk."""

from __future__ import annotations

import posixpath
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from sched_profiler.clock import SYSTEM_CLOCK, Clock
from sched_profiler.errors import SchedProfilerError, SettingError
from sched_profiler.log_names import check_placeholders, fill
from sched_profiler.messages import logger
from sched_profiler.redact import redacted, without_credentials
from sched_profiler.sinks.jsonl import BATCHES, JsonlSink, Lines
from sched_profiler.sinks.rotation import Rotation
from sched_profiler.sinks.upload import destination_of, upload_parts, upload_rest
from sched_profiler.store import Store, require, start_loop

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from sched_profiler.log_names import LogNames, Part
    from sched_profiler.manifest import Run
    from sched_profiler.record import BatchRecord

__all__ = ["REMOTE_ROTATION", "RemoteSink", "default_spool", "split_log"]

REMOTE_ROTATION = Rotation(
    part_bytes=64 << 20, part_seconds=60.0, keep_bytes=1 << 30, compress="gzip"
)
"""Parts of a minute at most, and a spool of 1 GiB at most."""

_LOOK_S = 1.0
_MANIFEST_S = 30.0
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0
_CLOSE_S = 5.0


def default_spool() -> Path:
    """Return the folder of the spool where none is named."""
    return Path("~/.local/state/sched_profiler/spool").expanduser()


class RemoteSink:
    """Sends records to any URL that fsspec knows, such as `s3://bucket/prefix/`.

    Records are written to a spool on the local disk, a `JsonlSink` with rotation. Closed parts are
    uploaded on a thread of their own as objects that never change, and removed here once their size
    there is confirmed. While the store cannot be reached, parts wait in the spool; when that is
    full, the oldest give way, and are counted. What earlier runs left in the spool is uploaded as
    well.
    """

    def __init__(
        self,
        url: str,
        *,
        spool: str | os.PathLike[str] | None = None,
        rotation: Rotation = REMOTE_ROTATION,
        clock: Clock = SYSTEM_CLOCK,
        close_timeout: float = _CLOSE_S,
        lines: Lines = BATCHES,
    ) -> None:
        """Send to `url`.

        Args:
            url: a prefix; if it ends with `.jsonl`, the names of the objects begin with that name.
                It may hold the same placeholders as the path of a `JsonlSink`.
            spool: folder for what is not uploaded yet; by default one below the home folder.
                Engines may share it.
            rotation: when a part is closed and uploaded, and how large the spool may get.
            clock: the source of all times.
            close_timeout: how long `close` waits for uploads, in seconds.
            lines: what the objects hold.

        Raises:
            SettingError: if a package for such URLs is not installed, the URL has an unknown
                placeholder, or `rotation` closes no part.
        """
        check_placeholders(url)
        require(url)
        if not rotation.is_on:
            raise SettingError("parts that are never closed are never uploaded; set part_seconds")
        self._folder = Path(spool) if spool is not None else default_spool()
        self._rotation = rotation
        self._close_timeout = close_timeout
        prefix, stem = split_log(url)
        self._url = url
        self._spool = _Spool(prefix, self._folder / f"{stem}.jsonl", rotation, clock, lines)
        self._store: Store | None = None
        self._thread: threading.Thread | None = None
        self._lacks_thread = False
        self._woken = threading.Event()
        self._deadline: float | None = None
        self._uploaded_manifest = (0, 0.0)
        self._num_failures = 0
        self._left_alone: set[str] = set()

    def begin_run(self, run: Run) -> None:
        """Keep a manifest of this run, from the first record on."""
        self._spool.begin_run(run)

    def write(self, record: BatchRecord) -> None:
        """Take a record; it reaches the spool at `flush`, or when 1 MiB has come together.

        Raises:
            SinkUnavailableError: if the spool cannot be written; the record is lost.
        """
        self._spool.write(record)
        if self._thread is None:
            self._deadline = None
            thread = threading.Thread(target=self._run, name="sched-profiler-upload", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # Python 3.12 starts none once the main thread has ended. The spool has the record.
                self._lacks_thread = True
            else:
                self._thread = thread

    def flush(self) -> None:
        """Bring what was written to the spool, where it survives the end of the process.

        Raises:
            SinkUnavailableError: if the spool cannot be written; the lines are kept.
        """
        self._spool.flush()

    def close(self) -> None:
        """Upload what is left, as far as that goes in time; the rest stays in the spool.

        Raises:
            SinkUnavailableError: if lines are left that cannot be written to the spool.
        """
        try:
            self._spool.close()
        finally:
            self._finish()

    @property
    def num_unwritten(self) -> int:
        """Records taken that are not in the spool yet."""
        return self._spool.num_unwritten

    @property
    def shown(self) -> str:
        """Where the records go, for a message: the URL without credentials."""
        return without_credentials(self._url)

    def __repr__(self) -> str:
        """Return where the records go."""
        return f"RemoteSink({self.shown!r})"

    def _finish(self) -> None:
        thread, self._thread = self._thread, None
        lacks_thread, self._lacks_thread = self._lacks_thread, False
        if thread is not None:
            self._deadline = time.monotonic() + self._close_timeout
            self._woken.set()
            thread.join(self._close_timeout)
        elif not lacks_thread:
            return
        names = self._spool.names
        if names is not None and (left := [part.path.name for part in names.parts()]):
            logger.warning(
                "%s is not reached in time: %d parts stay in %s, and the next start or "
                "`sched-profiler upload %s` uploads them: %s",
                without_credentials(self._url),
                len(left),
                self._folder,
                self._folder,
                ", ".join(left),
            )
        self._spool.locks.release_all()
        if self._store is not None and not threading.main_thread().is_alive():
            self._store.leave_open()

    def _run(self) -> None:
        # Python 3.12 starts no thread once the main thread has ended, and the last upload is then.
        start_loop()
        while True:
            deadline = self._deadline
            wait = _LOOK_S
            try:
                done = self._upload(ending=deadline is not None)
            except Exception as error:  # noqa: BLE001 - storage must not matter to the engine
                done = False
                wait = self._failed(error)
            else:
                self._succeeded()
            if deadline is not None:
                # To the end, failures are asked again soon: there is no later.
                wait = min(wait, _LOOK_S / 2)
                if done or time.monotonic() + wait > deadline:
                    return
            self._woken.wait(wait)
            self._woken.clear()

    def _upload(self, *, ending: bool) -> bool:
        """Upload what is ready; tell whether nothing of this run is left."""
        names, compress = self._spool.names, self._rotation.compress
        if names is None:
            return True
        if self._store is None:
            self._store = Store(self._spool.destination)
        upload_parts(names, self._store, self._spool.locks, compress=compress)
        done = upload_rest(names, self._store) if ending else False
        if not done:
            self._upload_manifest(names, self._store, at_once=ending)
        for other in names.other_runs():
            if other.own not in self._left_alone:
                self._upload_other(other, self._store)
        return done

    def _upload_manifest(self, names: LogNames, store: Store, *, at_once: bool) -> None:
        try:
            changed = names.manifest.stat().st_mtime_ns
        except FileNotFoundError:
            return
        before, when = self._uploaded_manifest
        if changed != before and (at_once or time.monotonic() - when >= _MANIFEST_S or not before):
            store.put(names.manifest, names.manifest.name)
            self._uploaded_manifest = (changed, time.monotonic())

    def _upload_other(self, names: LogNames, store: Store) -> None:
        """Upload what a run that has ended left behind."""
        url = destination_of(names)
        if url is None or urlsplit(url).scheme != urlsplit(store.url).scheme:
            return
        if not self._spool.locks.take(names.lock):
            return
        try:
            there = store.at(url)
            upload_parts(names, there, self._spool.locks, compress=self._rotation.compress)
            done = upload_rest(names, there)
        except SchedProfilerError as error:
            # Ours arrive: it is something about that place, and must not keep ours back.
            self._left_alone.add(names.own)
            logger.warning("run %s stays in %s: %s", names.own, self._folder, error)
            return
        if done:
            self._spool.locks.release(names.lock)

    def _failed(self, error: Exception) -> float:
        """Take a failure; return how long to wait before the next try, in seconds."""
        self._num_failures += 1
        if self._num_failures == 1:
            # Clients put addresses and worse into their errors: no traceback, and nothing unseen.
            ours = isinstance(error, SchedProfilerError)
            text = str(error) if ours else f"{type(error).__name__}: {error}"
            logger.warning(
                "records wait in %s and uploading is tried again: %s",
                self._folder,
                redacted(text, self._url),
            )
        longest = min(
            _LONGEST_RETRY_S, _FIRST_RETRY_S * float(2 ** min(self._num_failures - 1, 10))
        )
        # Engines that failed together must not come back together.
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def _succeeded(self) -> None:
        if self._num_failures:
            logger.warning(
                "%s is reached again after %d failures",
                without_credentials(self._url),
                self._num_failures,
            )
        self._num_failures = 0


class _Spool(JsonlSink):
    """A log with rotation that is on its way to a store."""

    _label = "{host}-{dp_rank}-{run_id}"

    def __init__(
        self, url: str, path: Path, rotation: Rotation, clock: Clock, lines: Lines
    ) -> None:
        super().__init__(path, rotation=rotation, clock=clock, lines=lines)
        self._url = url
        self.destination = ""
        self._warned = False

    def _log_name_of(self, values: Mapping[str, str]) -> str:
        self.destination = fill(self._url, values)
        return self.destination

    def _make_folder(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Nobody else's business until it is where it belongs.
        folder.mkdir(mode=0o700, exist_ok=True)

    def _removed(self, part: Part, num_records: int) -> None:
        super()._removed(part, num_records)
        if not self._warned:
            self._warned = True
            logger.warning(
                "the spool %s is full: the oldest records give way, and are counted",
                part.path.parent,
            )

    def _let_go(self) -> None:
        """Keep the files until they are uploaded."""


def split_log(url: str) -> tuple[str, str]:
    """Return the prefix of the objects of a log, and what their names begin with."""
    parts = urlsplit(url)
    folder, name = posixpath.split(parts.path)
    stem = name.removesuffix(".jsonl")
    if stem == name:
        folder, stem = parts.path, "scheduler_profiling"
    return urlunsplit(parts._replace(path=folder.rstrip("/") + "/")), stem
