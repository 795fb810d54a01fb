"""Says whose files are whose."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["RunLocks"]


class RunLocks:
    """Says whose files are whose: a live run holds the lock of its files.

    The system takes a lock away from a process that dies. So whoever gets the lock of another run
    knows that it has ended, and may look after its files.
    """

    def __init__(self) -> None:
        """Hold no lock yet."""
        self._held: dict[Path, int] = {}
        self._guard = threading.Lock()

    def take(self, path: Path) -> bool:
        """Take a lock if nobody else has it; tell whether it is held now."""
        with self._guard:
            held = self._held.get(path)
            if held is not None:
                if _is_at(path, held):
                    return True
                # Somebody removed the folder: that lock keeps nobody away any more.
                os.close(self._held.pop(path))
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError:
                return False
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(file)
                return False
            # Its holder may have removed it just before we got it.
            if not _is_at(path, file):
                os.close(file)
                return False
            self._held[path] = file
            return True

    def release(self, path: Path) -> None:
        """Give a lock back and remove its file."""
        with self._guard:
            file = self._held.pop(path, None)
            if file is not None:
                with contextlib.suppress(OSError):
                    path.unlink()
                os.close(file)

    def release_all(self) -> None:
        """Give all locks back."""
        for path in list(self._held):
            self.release(path)


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except OSError:
        return False
