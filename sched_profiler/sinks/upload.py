"""Uploads closed parts of logs from a folder, and removes each once all of it has arrived."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import attrs

from sched_profiler.errors import LogError, SettingError, UploadError
from sched_profiler.log_names import MANIFEST_SUFFIX, LogNames
from sched_profiler.manifest import read_manifest
from sched_profiler.redact import is_url
from sched_profiler.sinks.locks import RunLocks
from sched_profiler.sinks.parts import settle
from sched_profiler.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Leftover", "destination_of", "upload_folder", "upload_parts", "upload_rest"]


def upload_parts(names: LogNames, store: Store, locks: RunLocks, *, compress: str | None) -> None:
    """Upload the parts of a run that are ready, oldest first.

    Each is removed here once its size there is confirmed, and meanwhile `locks` keep it from giving
    way to a limit. Where parts are to be compressed, one that is not yet is not ready.

    Raises:
        UploadError: if one did not arrive; it and those after it stay.
    """
    for part in names.parts():
        if compress is None or part.is_compressed:
            # A part may give way to the limit of the spool at any time.
            with contextlib.suppress(FileNotFoundError), locks.using(part.path):
                store.put(part.path, part.path.name)
                part.path.unlink()


def upload_rest(names: LogNames, store: Store) -> bool:
    """Upload the manifest of a run that has ended, and remove it; tell whether the run is done.

    It is not while parts are left.

    Raises:
        UploadError: if the manifest did not arrive.
    """
    # In this order: a file that grew may become a part in between.
    if names.current(rotates=True).exists() or names.parts():
        return False
    with contextlib.suppress(FileNotFoundError):
        store.put(names.manifest, names.manifest.name)
        names.manifest.unlink()
    return True


def destination_of(names: LogNames) -> str | None:
    """Return the URL that a run in a spool is bound for, or None where its manifest has none."""
    try:
        manifest = read_manifest(names.manifest)
    except (OSError, LogError):
        return None
    return manifest.log if is_url(manifest.log) else None


@attrs.frozen
class Leftover:
    """A run in a spool, and what became of it."""

    run: str
    num_uploaded: int
    """Parts that arrived."""
    problem: str | None = None
    """Why the rest did not; None if there is no rest."""


def upload_folder(folder: Path, url: str | None = None) -> Iterator[Leftover]:
    """Upload what runs that have ended left in a folder, run by run.

    Args:
        folder: a spool, or any folder of logs with rotation.
        url: where to; by default, where each run was bound for.

    Raises:
        LogError: if there is no such folder, or no run in it.
        SettingError: if a package for the URL is not installed.
    """
    if not folder.is_dir():
        raise LogError(f"{folder} is no folder; name a spool, see SCHED_PROFILER_SPOOL")
    runs = list(_runs_in(folder))
    if not runs:
        raise LogError(
            f"{folder} has no run to upload: no file *{MANIFEST_SUFFIX} is in it; name a spool, "
            "see SCHED_PROFILER_SPOOL"
        )
    locks = RunLocks()
    for names in runs:
        if not locks.take(names.lock):
            yield Leftover(names.own, 0, "still running; its own process uploads it")
            continue
        try:
            yield _upload_run(names, url or destination_of(names), locks)
        finally:
            locks.release(names.lock)


def _upload_run(names: LogNames, url: str | None, locks: RunLocks) -> Leftover:
    if not names.parts() and not names.current(rotates=True).exists() and not destination_of(names):
        return Leftover(names.own, 0, "a log without rotation has no parts; copy its file instead")
    if url is None:
        return Leftover(names.own, 0, "bound for no URL; say where with --to")
    before = 0
    try:
        settle(names, compress="gzip")
        before = len(names.parts())
        store = Store(url)
        upload_parts(names, store, locks, compress="gzip")
        upload_rest(names, store)
    except (UploadError, SettingError, OSError) as error:
        return Leftover(names.own, before - len(names.parts()), str(error))
    return Leftover(names.own, before)


def _runs_in(folder: Path) -> Iterator[LogNames]:
    """Yield the names of the runs in a folder, by their manifests."""
    for path in sorted(folder.glob(f"*{MANIFEST_SUFFIX}")):
        own = path.name.removesuffix(MANIFEST_SUFFIX)
        stem, _, label = own.rpartition(".")
        if stem:
            template = str(folder / f"{stem}.jsonl")
            yield LogNames(template, folder, stem, ".jsonl", label, own)
