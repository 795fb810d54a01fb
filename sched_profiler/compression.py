"""Compresses parts of logs, and reads them back; the name of a file says how it is compressed."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from sched_profiler.errors import LogError, SettingError, how_to_install

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

__all__ = ["SUFFIXES", "compress", "decompressed", "num_lines", "read_errors", "require"]

SUFFIXES = {"gzip": ".gz", "zstd": ".zst"}
"""Ways to compress, and what they add to the name of a file."""

_CHUNK_BYTES = 1 << 20
_ZSTD_BYTES = 4096
"""How much of zstd is taken at a time: it may be 32,768 times as long without compression."""
# More effort costs far more time than it saves bytes.
_GZIP_LEVEL = 3


def require(way: str) -> None:
    """Check that a way to compress is there.

    Raises:
        SettingError: if its package is not installed.
    """
    if way == "zstd" and _zstandard() is None:
        raise SettingError(
            "zstd needs zstandard, which is not installed; "
            f"install it with: {how_to_install('zstd')}, or choose gzip"
        )


def compress(path: Path, way: str) -> Path:
    """Replace a file by its compressed form, which appears under its name when it is whole."""
    target = path.with_name(path.name + SUFFIXES[way])
    unfinished = path.with_name(f".{target.name}.tmp")
    try:
        with path.open("rb") as source, unfinished.open("wb") as file, _writer(file, way) as out:
            while chunk := source.read(_CHUNK_BYTES):
                out.write(chunk)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    path.unlink()
    return target


def decompressed(stream: BinaryIO, name: str) -> BinaryIO:
    """Return what reads `stream`, whose file has this name, without compression.

    Raises:
        LogError: if the package that it takes is not installed.
    """
    if name.endswith(SUFFIXES["gzip"]):
        return cast("BinaryIO", gzip.GzipFile(fileobj=stream))
    if name.endswith(SUFFIXES["zstd"]):
        zstandard = _zstandard()
        if zstandard is None:
            raise LogError(
                f"{name} needs zstandard, which is not installed; "
                f"install it with: {how_to_install('zstd')}"
            )
        return cast("BinaryIO", io.BufferedReader(_ZstdReader(stream, zstandard), _CHUNK_BYTES))
    return stream


class _ZstdReader(io.RawIOBase):
    """Reads zstd, one frame or several; that of its package takes what is cut short for whole."""

    def __init__(self, stream: BinaryIO, zstandard: ModuleType) -> None:
        self._stream = stream
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read some bytes; 0 at the end.

        Raises:
            EOFError: if the file ends within a frame.
        """
        while not self._rest:
            data = b""
            if self._frame is not None and self._frame.eof:
                data, self._frame = self._frame.unused_data, None
            data = data or self._stream.read(_ZSTD_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._rest = memoryview(self._frame.decompress(data))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


@contextmanager
def read_errors(name: str) -> Iterator[None]:
    """Turn what goes wrong in the block, which reads a compressed file, into a `LogError`."""
    try:
        yield
    except EOFError:
        raise LogError(f"{name} is cut short; copy it again, or leave it out") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise LogError(f"{name} is no gzip file ({error}); copy it again") from None
    except Exception as error:
        zstandard = _zstandard() if name.endswith(SUFFIXES["zstd"]) else None
        if zstandard is None or not isinstance(error, zstandard.ZstdError):
            raise
        raise LogError(f"{name} is no zstd file ({error}); copy it again") from None


def num_lines(path: Path) -> int:
    """Count the lines of a part, compressed or not; 0 for what is no longer there or is broken."""
    count = 0
    try:
        with path.open("rb") as file, read_errors(path.name):
            stream = decompressed(file, path.name)
            while chunk := stream.read(_CHUNK_BYTES):
                count += chunk.count(b"\n")
    except (OSError, LogError):
        pass
    return count


@contextmanager
def _writer(file: IO[bytes], way: str) -> Iterator[Any]:
    if way == "gzip":
        # Without name and time of the file, so that the same lines give the same bytes.
        with gzip.GzipFile("", "wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0) as out:
            yield out
        return
    zstandard = _zstandard()
    if zstandard is None:
        raise OSError(f"zstandard is gone; {os.fspath(file.name)} stays as it is")
    with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as out:
        yield out


def _zstandard() -> ModuleType | None:
    # Loaded only where a file needs it: it is no part of the base install.
    try:
        import zstandard  # noqa: PLC0415
    except ModuleNotFoundError:
        return None
    return zstandard
