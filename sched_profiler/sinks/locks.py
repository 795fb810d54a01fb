"""Says whose files are whose, among processes and among the threads of one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["RunLocks", "not_for_forks"]


class _Forgetful(Protocol):
    def forget_files(self) -> None:
        """Close what is open here, in a process that was forked; the parent has it open."""


_not_for_forks: weakref.WeakSet[_Forgetful] = weakref.WeakSet()


def not_for_forks(holder: _Forgetful) -> None:
    """Have a forked process close what is open here: else it keeps locks that the parent held."""
    _not_for_forks.add(holder)


def _forget_files() -> None:
    for holder in list(_not_for_forks):
        holder.forget_files()


os.register_at_fork(after_in_child=_forget_files)


class RunLocks:
    """Says whose files are whose: a live run holds the lock of its files.

    The system takes a lock away from a process that dies. So whoever gets the lock of another run
    knows that it has ended, and may look after its files.
    """

    def __init__(self) -> None:
        """Hold no lock yet."""
        self._held: dict[Path, int] = {}
        self._used: set[Path] = set()
        self._guard = threading.Lock()
        not_for_forks(self)

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

    @contextlib.contextmanager
    def using(self, path: Path) -> Iterator[None]:
        """See to it that a file is not removed by `remove` meanwhile."""
        with self._guard:
            self._used.add(path)
        try:
            yield
        finally:
            with self._guard:
                self._used.discard(path)

    def remove(self, path: Path) -> bool:
        """Remove a file, unless somebody is `using` it; tell whether it was removed.

        Raises:
            FileNotFoundError: if it is gone.
        """
        with self._guard:
            if path in self._used:
                return False
            path.unlink()
            return True

    def forget_files(self) -> None:
        """Hold nothing any more, in a process that was forked."""
        self._guard = threading.Lock()
        held, self._held = self._held, {}
        for file in held.values():
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
