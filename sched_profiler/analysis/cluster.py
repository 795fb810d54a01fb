"""Reads logs into a digest on a Dask cluster: each part of them on some worker."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sched_profiler.analysis.digest import COLUMNS, Digest, OverlapError
from sched_profiler.analysis.rows import read_rows
from sched_profiler.errors import SettingError
from sched_profiler.log_files import LogPath, find_logs, is_compressed, is_parquet
from sched_profiler.reader import Span, Tally, empty_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client

    from sched_profiler.log_files import LogFile

__all__ = ["connect", "scan_on"]

_PART_BYTES = 256 << 20
"""How much of a file one task reads."""
_CONNECT_TIMEOUT_S = 10


def connect(address: str) -> Client:
    """Return a client of the cluster whose scheduler is there, such as `tcp://host:8786`.

    Raises:
        SettingError: if it cannot be reached.
        ModuleNotFoundError: without the extra `dask`.
    """
    from distributed import Client  # noqa: PLC0415 - an extra

    try:
        # A client that fails at it hangs in the end; and in a notebook, a loop runs already.
        with ThreadPoolExecutor(1) as threads:
            threads.submit(asyncio.run, _greet(address)).result()
        return Client(address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise SettingError(
            f"no Dask cluster at {address} ({reason:.200}); give the address of its scheduler, "
            "such as tcp://host:8786"
        ) from None


async def _greet(address: str) -> None:
    """Connect to a scheduler and leave again."""
    from distributed import Security  # noqa: PLC0415 - an extra
    from distributed.comm import connect as connected  # noqa: PLC0415 - likewise

    options = Security().get_connection_args("client")
    comm = await connected(address, timeout=_CONNECT_TIMEOUT_S, **options)
    await comm.close()


def scan_on(
    client: Client,
    *logs: LogPath,
    skip_invalid: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Digest:
    """Read logs into a digest as `scan` does, on the workers of a cluster.

    The workers open the files themselves: paths must lead to the same files on every one of them,
    and for URLs they need the packages and the credentials that this machine needs. This package
    must be installed on them.

    Args:
        client: of an existing cluster.
        *logs: as for `scan`; a file that is neither compressed nor Parquet is read in parts.
        skip_invalid: go on after a line that holds no record, and count it.
        progress: as for `scan`.

    Raises:
        LogError: as `scan` does.
    """
    files = find_logs(*logs)
    parts = [part for file in files for part in _parts(file)]
    total = sum(num_bytes for _, _, num_bytes in parts)
    # A key of its own for each task: the same log may have grown since the last time.
    futures = [
        client.submit(_digest, file, span, skip_invalid=skip_invalid, pure=False)
        for file, span, _ in parts
    ]
    whole, done = Digest(), 0
    try:
        for (file, span, num_bytes), future in zip(parts, futures, strict=True):
            digest = future.result()
            future.release()
            try:
                whole.merge(digest)
            except OverlapError:
                # Some batches are in both. Read the part once more, on top of all before it.
                whole = client.submit(
                    _digest, file, span, whole, skip_invalid=skip_invalid, pure=False
                ).result()
            done += num_bytes
            if progress:
                progress(done, total)
    finally:
        client.cancel(futures)
    if not whole.num_batches:
        tally = Tally(0, whole.num_skipped_lines or 0, whole.num_half_written_lines or 0)
        raise empty_error(logs, tally)
    return whole


def _parts(file: LogFile) -> Iterator[tuple[LogFile, Span, int]]:
    """Yield the parts of a file, each with its size."""
    if is_parquet(file) or is_compressed(file):
        yield file, Span(), file.num_bytes
        return
    start = 0
    while file.num_bytes - start > _PART_BYTES:
        yield file, Span(start, start + _PART_BYTES), _PART_BYTES
        start += _PART_BYTES
    # The last part has no end: the log may still grow.
    yield file, Span(start), file.num_bytes - start


def _digest(
    file: LogFile, span: Span, before: Digest | None = None, *, skip_invalid: bool
) -> Digest:
    """Return the digest of a part of a file, on top of what comes before it; runs on a worker."""
    digest, tally = before or Digest(), Tally()
    for rows in read_rows(file, tally, COLUMNS, skip_invalid=skip_invalid, span=span):
        digest.add(rows, file.name)
    digest.count_lines(tally)
    return digest
