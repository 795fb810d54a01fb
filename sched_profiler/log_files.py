"""Finds the files that a name stands for, and opens them: wherever they are, compressed or not.

A log is named by a path, a folder, a pattern with wildcards, or a URL of any of these.
"""

from __future__ import annotations

import contextlib
import glob
import os
import posixpath
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import attrs

from sched_profiler import compression
from sched_profiler.errors import LogError, SettingError
from sched_profiler.log_names import COMPRESSED, MANIFEST_SUFFIX, is_part, is_request_trace
from sched_profiler.manifest import manifest_text
from sched_profiler.redact import is_url, without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

__all__ = [
    "LogFile",
    "LogPath",
    "find_logs",
    "find_manifests",
    "find_request_traces",
    "is_compressed",
    "is_on_disk",
    "is_parquet",
    "logs_to_read",
    "open_file",
    "open_log",
    "plain_path",
]

LogPath = str | os.PathLike[str]
"""Where a log is: a path, a folder, a pattern, or a URL of any of these."""

_LOG_SUFFIX = ".jsonl"
_PARQUET_SUFFIX = ".parquet"
_KINDS = "*.jsonl, *.jsonl.gz, *.jsonl.zst, *.parquet"
_ATTEMPTS = 3


class _Place(Protocol):
    """Where files are."""

    def open(self, path: str) -> tuple[str, BinaryIO]:
        """Open for reading what was found at `path`; return where it is now as well."""
        ...

    def reading(self, path: str) -> AbstractContextManager[None]:
        """Turn failures of a block that reads the file into errors of ours."""
        ...

    def beside(self, path: str, ending: str) -> list[str]:
        """Return the files in the folder of `path` whose names end so."""
        ...


@attrs.frozen
class LogFile:
    """One file of a log."""

    name: str
    """How to call it to a user."""
    num_bytes: int
    """Its size on the disk."""
    path: str
    place: _Place


def find_logs(*logs: LogPath) -> list[LogFile]:
    """Return the files that logs stand for, each once: closed parts of a log before what grows.

    In a folder, or under a prefix, those are the files whose names end with `.jsonl`, `.jsonl.gz`,
    `.jsonl.zst` or `.parquet`, at any depth.

    Raises:
        LogError: if a log does not exist or holds no file.
    """
    found: dict[str, LogFile] = {}
    for log in logs:
        name = os.fspath(log)
        files = _in_store(name) if is_url(name) else _on_disk(name)
        for file in sorted(files, key=_order):
            found.setdefault(file.name if is_url(name) else os.path.realpath(file.path), file)
    return list(found.values())


def logs_to_read(*logs: LogPath) -> Iterator[LogFile]:
    """Yield the files of `find_logs`, each to be read before the next; parts may be closed by then.

    While a live run is read, the part that grows may get another name: it is then found under that
    one, and read before what grows now. A part that gave way to a limit by then is passed over, as
    if it had before.

    Raises:
        LogError: if a log does not exist or holds no file.
    """
    files = find_logs(*logs)
    known = {plain_path(file.path) for file in files}
    for file in files:
        if file.place is _DISK and _is_locked(file.path):
            yield from _of_live_run(file, logs, known)
        elif not _gave_way(file):
            yield file


def _gave_way(file: LogFile) -> bool:
    """Tell whether a closed part that was there when it was found is gone."""
    if file.place is not _DISK or not file.num_bytes or not is_part(posixpath.basename(file.path)):
        return False
    return not any(os.path.lexists(file.path + end) for end in ("", *COMPRESSED))


def _of_live_run(file: LogFile, logs: tuple[LogPath, ...], known: set[str]) -> Iterator[LogFile]:
    """Yield the parts that were closed since `known` was found, and then the one that grows."""
    while True:
        with contextlib.ExitStack() as stack:
            # Opened first: if no part is new by then, this is what follows the last of them.
            growing = stack.enter_context(_opened(file))
            closed = [
                found
                for found in find_logs(*logs)
                if is_part(posixpath.basename(found.path)) and plain_path(found.path) not in known
            ]
            if not closed:
                if growing is not None:
                    yield growing
                return
        known.update(plain_path(found.path) for found in closed)
        yield from closed


@contextmanager
def _opened(file: LogFile) -> Iterator[LogFile | None]:
    """Yield a file that stays open for the block, or None if it is gone."""
    try:
        stream = open(file.path, "rb")  # noqa: PTH123, SIM115 - as everywhere here; closed below
    except OSError:
        yield None
        return
    with stream:
        yield attrs.evolve(file, place=_Opened(stream))


def plain_path(path: str) -> str:
    """Return the path that a file has, or had, before it is compressed."""
    for suffix in COMPRESSED:
        path = path.removesuffix(suffix)
    return path


def _is_locked(path: str) -> bool:
    """Tell whether a file may be the part that grows of a run that lives."""
    folder, name = os.path.split(path)
    return Path(folder, f".{name.removesuffix(_LOG_SUFFIX)}.lock").exists()


def find_manifests(*logs: LogPath) -> Iterator[tuple[str, bytes]]:
    """Yield the run manifests in and beside logs: their names, and texts for `parse_manifest`.

    Raises:
        LogError: if they cannot be read.
    """
    found = set()
    for file in find_logs(*logs):
        for path in file.place.beside(file.path, MANIFEST_SUFFIX):
            if path not in found and not is_request_trace(posixpath.basename(path)):
                found.add(path)
                yield path, _manifest_at(path, file.place)


def _manifest_at(path: str, place: _Place) -> bytes:
    """Return the text of a manifest, read anew if it was renewed meanwhile: its run may live."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(LogError), place.reading(path), place.open(path)[1] as stream:
            return manifest_text(stream)
    with place.reading(path), place.open(path)[1] as stream:
        return manifest_text(stream)


def find_request_traces(*logs: LogPath) -> list[LogFile]:
    """Return the files of the request traces beside logs.

    Raises:
        LogError: if a log does not exist, or a store cannot be reached.
    """
    found: dict[str, LogFile] = {}
    for file in find_logs(*logs):
        endings = ["", *COMPRESSED]
        beside = [
            path for end in endings for path in file.place.beside(file.path, _LOG_SUFFIX + end)
        ]
        for path in _without_twins(beside):
            if is_request_trace(posixpath.basename(path)) and not _hidden(path):
                found.setdefault(path, LogFile(path, 0, path, file.place))
    return [found[path] for path in sorted(found)]


def is_on_disk(file: LogFile) -> bool:
    """Tell whether a file is one of this machine, and may grow."""
    return file.place is _DISK


def is_compressed(file: LogFile) -> bool:
    """Tell whether a file can only be read from its start."""
    return file.path.endswith(COMPRESSED)


@contextmanager
def open_file(file: LogFile) -> Iterator[BinaryIO]:
    """Open a file for reading as it is; the block reads it.

    Raises:
        LogError: if it cannot be read, also in the block.
    """
    with file.place.reading(file.path), file.place.open(file.path)[1] as stream:
        yield stream


@contextmanager
def open_log(file: LogFile) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """Open a file of a log for reading; the block reads it.

    Returns:
        what reads it without compression, and a function that tells how many of its bytes on the
        disk are read.

    Raises:
        LogError: if it cannot be read, also in the block.
    """
    with file.place.reading(file.path):
        path, opened = file.place.open(file.path)
        with opened as stream, compression.read_errors(file.name):
            yield compression.decompressed(stream, path), stream.tell


def _order(file: LogFile) -> tuple[str, bool, str]:
    folder, name = posixpath.split(file.path)
    return folder, not is_part(name), name


def _is_log(name: str) -> bool:
    if is_request_trace(posixpath.basename(name)):
        return False
    return name.endswith(_PARQUET_SUFFIX) or plain_path(name).endswith(_LOG_SUFFIX)


def is_parquet(file: LogFile) -> bool:
    """Tell whether a file is Parquet, which has no lines."""
    return file.path.endswith(_PARQUET_SUFFIX)


def _hidden(path: str) -> bool:
    return posixpath.basename(path).startswith(".")


def _without_twins(paths: list[str]) -> list[str]:
    """Leave out what has just been compressed and is still there uncompressed as well."""
    plain = set(paths)
    return [path for path in paths if not any(path + end in plain for end in COMPRESSED)]


class _Disk:
    """Files of this machine."""

    def open(self, path: str) -> tuple[str, BinaryIO]:
        # It may have been compressed since it was found.
        for now_at in (path, *(path + end for end in COMPRESSED)):
            try:
                return now_at, open(now_at, "rb")  # noqa: PTH123 - as the user wrote it
            except FileNotFoundError:
                continue
            except OSError as error:
                raise LogError(f"{path} cannot be read: {error.strerror}; name another") from None
        raise LogError(
            f"{path}: no such file; a server writes its log where VLLM_SCHEDULER_PROFILING_LOG "
            "says, relative to the folder it was started in"
        )

    def reading(self, path: str) -> AbstractContextManager[None]:  # noqa: ARG002 - as for a store
        return nullcontext()

    def beside(self, path: str, ending: str) -> list[str]:
        folder = glob.escape(str(Path(path).parent))
        return sorted(glob.glob(f"{folder}/*{ending}"))  # noqa: PTH207 - as names


_DISK = _Disk()


class _Opened(_Disk):
    """A file of this machine that somebody holds open, whatever becomes of its name."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def open(self, path: str) -> tuple[str, BinaryIO]:
        return path, self._stream


def _on_disk(name: str) -> list[LogFile]:
    if Path(name).is_dir():
        walk = os.walk(name, onerror=_not_listed)
        inside = [str(Path(folder, file)) for folder, _, files in walk for file in files]
        paths = [path for path in inside if _is_log(path) and not _hidden(path)]
        # What is gone by now got another name since it was listed, and is found when it is opened.
        paths = [path for path in paths if Path(path).is_file() or not os.path.lexists(path)]
        if not paths:
            raise LogError(f"{name} is a folder without a log in it ({_KINDS}); name another")
    elif glob.has_magic(name) and not Path(name).exists():
        matching = glob.glob(name, recursive=True)  # noqa: PTH207 - a pattern
        paths = [path for path in matching if Path(path).is_file() and not _is_beside_log(path)]
        if not paths:
            raise LogError(f"{name}: no such file; nothing matches this pattern, name another")
    else:
        paths = [name]
    return [LogFile(path, _size(path), path, _DISK) for path in _without_twins(paths)]


def _not_listed(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        return  # it is gone
    raise LogError(
        f"{error.filename} cannot be listed: {error.strerror}; what is in it would be missing"
    )


def _is_beside_log(path: str) -> bool:
    return path.endswith(MANIFEST_SUFFIX) or is_request_trace(posixpath.basename(path))


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0  # opening it will say what is wrong


def _in_store(url: str) -> list[LogFile]:
    # Loaded only for URLs: fsspec is no part of the base install.
    from sched_profiler.store import Store  # noqa: PLC0415

    try:
        store = Store(url)
    except SettingError as error:
        raise LogError(f"{without_credentials(url)}: {error}") from None
    sizes = dict(store.find())
    paths = [path for path in sizes if not _is_beside_log(path) and not _hidden(path)]
    if len(sizes) != 1:
        paths = [path for path in paths if _is_log(path)]
    if not paths:
        remedy = "check the bucket and the prefix"
        if any(path.endswith(MANIFEST_SUFFIX) for path in sizes):
            remedy = "a run there has not uploaded its first part yet: try again in a minute"
        raise LogError(f"{store.url} holds no log ({_KINDS}); {remedy}")
    return [LogFile(store.name(path), sizes[path], path, store) for path in _without_twins(paths)]
